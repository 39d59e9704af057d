//! Verbatim's chores, each one verb: `cargo xtask services | up | test | bench | chaos | ci | demo`.
//!
//! They work on a bare Debian or Ubuntu with a Rust toolchain: what is missing is installed, servers are
//! private processes on free ports, and nothing is left running or lying about, however a verb ends.

mod bench;
mod cargo;
mod chaos;
mod ci;
mod demo;
mod packages;
mod say;
mod services;
mod stage;
mod stores;
mod test;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// The status of a process that was interrupted, by the shells' convention: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Verbatim's chores",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start private RabbitMQ, Redis and PostgreSQL, print their URLs, and keep them until Ctrl-C
    Services(stores::Named),
    /// Start the servers and the whole fleet, print their addresses, and keep them until Ctrl-C
    Up(stores::Named),
    /// Run every test on real servers
    Test(test::Options),
    /// Run every check that a change has to pass
    Ci,
    /// Measure the fleet against what is possible on this machine
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Kill, freeze and cut everything at random under load, then compare every message
    #[command(disable_help_flag = true)]
    Chaos(chaos::Options),
    /// Show what Verbatim does, in half a minute
    Demo(stores::Named),
}

#[tokio::main]
async fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    let work = async {
        match verb {
            Verb::Services(named) => services::run(named).await,
            Verb::Up(named) => up::run(named).await,
            Verb::Test(options) => test::run(&options).await,
            Verb::Ci => ci::run().await,
            Verb::Bench(bench) => bench::run(&bench).await,
            Verb::Chaos(options) => chaos::run(&options).await,
            Verb::Demo(named) => demo::run(named).await,
        }
    };
    // Whichever ends first: dropping the work stops and removes all that it has started.
    tokio::select! {
        result = work => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say::failure(&error);
                ExitCode::FAILURE
            }
        },
        Ok(()) = interrupted() => {
            say::line("\nstopping");
            ExitCode::from(INTERRUPTED)
        }
    }
}

/// Resolves at Ctrl-C and at a polite kill. A hang-up, like `kill -9`, ends this process at once; the
/// servers' guard sees it.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
