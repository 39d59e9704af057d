//! Cargo, called from within.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub(crate) use testkit::cargo::command;
use tokio::time::sleep;

/// How soon the end of a command is noticed.
const POLL: Duration = Duration::from_millis(20);

/// The processes of a fleet, and the command line.
const FLEET: [&str; 4] =
    ["message-save-worker", "persistence-migration-worker", "statistics-worker", "verbatim"];

/// Builds what the demo and `up` start; cargo's own progress is visible.
pub(crate) async fn build_fleet() -> Result<()> {
    let mut arguments = vec!["build"];
    for binary in FLEET {
        // Not by package: see `.cargo/config.toml`.
        arguments.extend(["--bin", binary]);
    }
    run(command(&arguments)).await
}

/// Builds binaries with the optimisations that a release has.
pub(crate) async fn build_release(binaries: &[&str]) -> Result<()> {
    let mut arguments = vec!["build", "--release"];
    for binary in binaries {
        arguments.extend(["--bin", binary]);
    }
    run(command(&arguments)).await
}

/// Runs a command with its output visible. Dropping the future ends the command.
pub(crate) async fn run(mut command: Command) -> Result<()> {
    let mut child = Running(command.spawn().with_context(|| format!("{command:?}"))?);
    let status = loop {
        match child.0.try_wait()? {
            Some(status) => break status,
            None => sleep(POLL).await,
        }
    };
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// A child that does not outlive its interest.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has been reaped already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
