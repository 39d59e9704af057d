//! The baselines that `cargo xtask bench` compares the save worker with, and the load for all of them.
//!
//! | role | what it does |
//! |---|---|
//! | `null` | consumes and acknowledges: the cost of RabbitMQ, the AMQP client and the kernel alone |
//! | `ideal` | the least work of any correct save worker with these three servers |
//! | `preload`, `steady`, `fill` | publish messages |
//! | `watch` | records when Redis receives messages |
//!
//! The baselines do not validate, retry or handle errors: they are not examples of a worker. They run until
//! SIGTERM, and print the number of acknowledged messages to standard output.

mod body;
mod broker;
mod fill;
mod ideal;
mod load;
mod masters;
mod null;
mod watch;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(name = "bench-peers", about = "The baselines and the load of `cargo xtask bench`")]
struct Cli {
    /// RabbitMQ
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Baseline: consume and acknowledge
    Null(broker::Deliveries),
    /// Baseline: consume, parse, store in PostgreSQL, store in Redis, acknowledge
    Ideal(ideal::Servers),
    /// Publish messages as fast as they are confirmed
    Preload(load::Preload),
    /// Publish messages at a constant rate and record when each was confirmed
    Steady {
        #[command(flatten)]
        load: load::Steady,
        /// File for the message ids and the times of their confirms
        #[arg(long)]
        out: PathBuf,
    },
    /// Publish messages of any size, with any headers, to one queue
    Fill(fill::Fill),
    /// Record when Redis received each message of a run
    Watch(watch::Watch),
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = run(Cli::parse()) => result,
        // A regular exit: valgrind writes its counts then.
        _ = terminate.recv() => Ok(()),
    }
}

async fn run(Cli { amqp_url, role }: Cli) -> Result<()> {
    match role {
        Role::Null(deliveries) => null::run(&amqp_url, deliveries).await,
        Role::Ideal(servers) => ideal::run(&amqp_url, &servers).await,
        Role::Preload(preload) => load::preload(&amqp_url, &preload).await,
        Role::Steady { load, out } => load::steady(&amqp_url, &load, &out).await,
        Role::Fill(fill) => fill::fill(&amqp_url, &fill).await,
        Role::Watch(watch) => watch::run(&watch).await,
    }
}
