//! Runs cargo and other commands.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domain::fleet;
pub(crate) use testkit::cargo::command;
use tokio::time::sleep;

/// How often a command is checked for its end.
const POLL: Duration = Duration::from_millis(20);

/// Builds the binaries that the demo and `up` start, with cargo's progress visible.
pub(crate) async fn build_fleet() -> Result<()> {
    let mut arguments = vec!["build"];
    for process in fleet::processes() {
        // Not by package: see `.cargo/config.toml`.
        arguments.extend(["--bin", process.name()]);
    }
    run(command(&arguments)).await
}

/// Builds binaries in the release profile.
pub(crate) async fn build_release(binaries: impl IntoIterator<Item = &'static str>) -> Result<()> {
    let mut arguments = vec!["build", "--release"];
    for binary in binaries {
        arguments.extend(["--bin", binary]);
    }
    run(command(&arguments)).await
}

/// Runs a command with its output visible. Dropping the future kills the command.
pub(crate) async fn run(mut command: Command) -> Result<()> {
    let mut child = RunningChild(command.spawn().with_context(|| format!("{command:?}"))?);
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

/// A child process that is killed when this is dropped.
struct RunningChild(Child);

impl Drop for RunningChild {
    fn drop(&mut self) {
        // Both fail only for a child that is already reaped.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
