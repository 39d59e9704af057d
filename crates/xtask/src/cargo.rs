//! Cargo, called from within.

use std::process::Command;

use anyhow::{Result, bail};
use testkit::place;

/// The processes of a fleet, and the command line.
pub(crate) const FLEET: [&str; 4] =
    ["message-save-worker", "persistence-migration-worker", "statistics-worker", "verbatim"];

/// A cargo command in the workspace; it is the cargo that runs this.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(place::workspace());
    command
}

/// Builds what the demo and `up` start; cargo's own progress is visible.
pub(crate) async fn build_fleet() -> Result<()> {
    let mut arguments = vec!["build"];
    for package in FLEET {
        arguments.extend(["--package", package]);
    }
    run(command(&arguments)).await
}

/// Runs a command with its output visible.
pub(crate) async fn run(mut command: Command) -> Result<()> {
    let shown = format!("{:?}", command.get_args().collect::<Vec<_>>());
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    if !status.success() {
        bail!("cargo {shown} ended with {status}");
    }
    Ok(())
}
