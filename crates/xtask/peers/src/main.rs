//! What `cargo xtask bench` measures the fleet against, and the load that it runs under.
//!
//! `null` consumes and acknowledges: the floor that RabbitMQ, the AMQP client and the kernel set.
//! `ideal` does the least that any correct save worker must do with these three servers. Neither
//! validates, retries, supervises or survives anything: they are baselines, not examples. Both go
//! on until they are told to end (SIGTERM), and say on standard output how much they have acknowledged.

mod body;
mod broker;
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
#[command(name = "bench-peers", about = "The peers and the load of `cargo xtask bench`")]
struct Cli {
    /// RabbitMQ
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Consume and acknowledge, nothing else
    Null,
    /// Consume, parse, store in PostgreSQL, store in Redis, acknowledge
    Ideal(ideal::Stores),
    /// Publish messages as fast as they are confirmed
    Preload(load::Preload),
    /// Publish messages at a steady rate and write down when each was confirmed
    Steady {
        #[command(flatten)]
        pace: load::Steady,
        /// Where to write the messages' ids and the times of their confirms
        #[arg(long)]
        out: PathBuf,
    },
    /// Write down when Redis took each message of a run
    Watch(watch::Watch),
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = play(Cli::parse()) => done,
        // An end with all that an end brings: what counts instructions writes them down then.
        _ = terminate.recv() => Ok(()),
    }
}

async fn play(Cli { amqp_url, role }: Cli) -> Result<()> {
    match role {
        Role::Null => null::run(&amqp_url).await,
        Role::Ideal(stores) => ideal::run(&amqp_url, &stores).await,
        Role::Preload(preload) => load::preload(&amqp_url, &preload).await,
        Role::Steady { pace, out } => load::steady(&amqp_url, &pace, &out).await,
        Role::Watch(watch) => watch::run(&watch).await,
    }
}
