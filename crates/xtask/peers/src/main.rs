//! What `cargo xtask bench` measures the fleet against, and the load that it runs under.
//!
//! `null` consumes and acknowledges: the floor that RabbitMQ, the AMQP client and the kernel set.
//! `ideal` does the least that any correct save worker must do with these three servers. Neither
//! validates, retries, supervises or survives anything: they are yardsticks, not examples. Both stop
//! when they are killed, and say on standard output how much they have acknowledged.

mod body;
mod broker;
mod ideal;
mod load;
mod null;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
}

#[tokio::main]
async fn main() -> Result<()> {
    let Cli { amqp_url, role } = Cli::parse();
    match role {
        Role::Null => null::run(&amqp_url).await,
        Role::Ideal(stores) => ideal::run(&amqp_url, &stores).await,
        Role::Preload(preload) => load::preload(&amqp_url, &preload).await,
        Role::Steady { pace, out } => load::steady(&amqp_url, &pace, &out).await,
    }
}
