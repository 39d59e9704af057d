//! Development commands: `cargo xtask services | up | test | bench | chaos | lines | new | ci | demo`.
//!
//! They run on a bare Debian or Ubuntu with a Rust toolchain. Missing packages are installed. Servers are
//! private processes on free ports; they end, and their data is removed, however a command ends.

mod bench;
mod cargo;
mod chaos;
mod ci;
mod demo;
mod lines;
mod local_system;
mod new;
mod packages;
mod say;
mod servers;
mod services;
mod test;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// The exit code after an interrupt, by the convention of shells: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Verbatim's development commands",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run private RabbitMQ, Redis and PostgreSQL servers until Ctrl-C, and print their URLs
    Services(servers::ServerOptions),
    /// Run the servers and the whole fleet until Ctrl-C, and print their addresses
    Up(servers::ServerOptions),
    /// Run every test on real servers
    Test(test::Options),
    /// Run every check that a change has to pass
    Ci,
    /// Measure the fleet, and compare it with baselines on this machine
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Break processes, servers and connections at random under load, then check that no message is lost
    #[command(disable_help_flag = true)]
    Chaos(chaos::Options),
    /// Count the product's lines of Rust, by crate
    Lines(lines::Options),
    /// Write one more worker, and enter it where the fleet is listed
    #[command(subcommand)]
    New(new::New),
    /// Show what Verbatim does, in half a minute
    Demo(servers::ServerOptions),
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Cli::parse().command;
    let work = async {
        match command {
            Command::Services(options) => services::run(options).await,
            Command::Up(options) => up::run(options).await,
            Command::Test(options) => test::run(&options).await,
            Command::Ci => ci::run().await,
            Command::Bench(bench) => bench::run(&bench).await,
            Command::Chaos(options) => chaos::run(&options).await,
            Command::Lines(options) => lines::run(&options),
            Command::New(new) => new::run(&new),
            Command::Demo(options) => demo::run(options).await,
        }
    };
    // After a signal the work is dropped, which stops and removes everything that it has started.
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

/// Resolves at SIGINT (Ctrl-C) and SIGTERM. SIGHUP and SIGKILL end this process at once; then the guard of
/// the servers ends them.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn just_has_every_command() {
        let recipes = include_str!("../../../justfile");
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let has = |program: &str| recipes.contains(&format!("\n    cargo {program}{name}"));
            assert!(
                has("xtask ") || has(""),
                "the justfile has no recipe for `cargo xtask {name}`"
            );
        }
    }
}
