//! Tools that are not part of the toolchain: installed once, under `target/tools`, in fixed versions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use testkit::place;

use crate::{cargo, say};

/// A tool: its crate, its program, its version.
struct Tool {
    package: &'static str,
    program: &'static str,
    version: &'static str,
}

const DENY: Tool = Tool { package: "cargo-deny", program: "cargo-deny", version: "0.20.2" };
const TYPOS: Tool = Tool { package: "typos-cli", program: "typos", version: "1.52.0" };

/// Runs `cargo deny check` with these checks.
pub(super) async fn deny(checks: &[&str]) -> Result<()> {
    let mut command = Command::new(DENY.ensure().await?);
    command.arg("check").args(checks).current_dir(place::workspace());
    cargo::run(command).await
}

/// Checks for known vulnerabilities. Skipped with a message if the advisory database cannot be fetched.
pub(super) async fn advisories() -> Result<()> {
    let mut fetch = Command::new(DENY.ensure().await?);
    fetch.args(["fetch", "db"]).current_dir(place::workspace()).stdin(Stdio::null());
    let fetched = tokio::task::spawn_blocking(move || fetch.output()).await??;
    if fetched.status.success() {
        return deny(&["advisories"]).await;
    }
    say::line("NOT CHECKED: the advisory database cannot be fetched");
    Ok(())
}

/// Checks the spelling of code and text.
pub(super) async fn spelling() -> Result<()> {
    let mut command = Command::new(TYPOS.ensure().await?);
    command.current_dir(place::workspace());
    cargo::run(command).await
}

/// Installs `rustfmt` and `clippy` if they are missing, as in a minimal toolchain.
pub(super) async fn ensure_components() -> Result<()> {
    for (component, program) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let mut probe = cargo::command(&[program, "--version"]);
        let output = tokio::task::spawn_blocking(move || probe.output()).await??;
        if !output.status.success() {
            let mut add = Command::new("rustup");
            add.args(["component", "add", component]).current_dir(place::workspace());
            cargo::run(add).await.with_context(|| format!("{component} is not installed"))?;
        }
    }
    Ok(())
}

impl Tool {
    /// The path of the program, which is installed if it is missing.
    async fn ensure(&self) -> Result<PathBuf> {
        let profile = place::profile_dir();
        let root = profile
            .parent()
            .unwrap_or(&profile)
            .join("tools")
            .join(format!("{}-{}", self.package, self.version));
        let program = root.join("bin").join(self.program);
        if !program.is_file() {
            say::line(&format!(
                "installing {} {} (once; takes a minute or two)",
                self.package, self.version
            ));
            cargo::run(self.install(&root)).await?;
        }
        if !program.is_file() {
            bail!(
                "the package {} was installed, but contains no program {}",
                self.package,
                self.program
            );
        }
        Ok(program)
    }

    /// In the debug profile: the tools run for seconds, and a release build takes minutes.
    fn install(&self, root: &Path) -> Command {
        let Self { package, version, .. } = self;
        let mut command = cargo::command(&["install", "--quiet", "--locked", "--debug", package]);
        command.args(["--version", version, "--root"]).arg(root);
        command
    }
}
