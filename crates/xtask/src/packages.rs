//! Installs missing packages of the distribution.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use testkit::place;
use testkit::servers::{self, Kind, PgBouncer};
use testkit::{clients, monitoring, schemathesis};

use crate::{cargo, say};

/// Runs as root: installs packages without starting their services, which would take standard ports
/// (`policy-rc.d`). An existing policy, as containers have, is kept.
const SCRIPT: &str = r#"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' HUP INT TERM
        printf '#!/bin/sh\n# Created by "cargo xtask" while it installs packages. Safe to remove.\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    wait=-oDPkg::Lock::Timeout=300
    apt-get "$wait" -qq update &&
        apt-get "$wait" -qq -y --no-install-recommends install "$@"
"#;

/// Installs these servers if they are missing.
pub(crate) async fn ensure_servers(kinds: &[Kind]) -> Result<()> {
    let missing: Vec<_> = servers::missing().into_iter().filter(|it| kinds.contains(it)).collect();
    let packages: Vec<_> = missing.into_iter().map(servers::package).collect();
    ensure(&packages).await
}

/// Installs what only tests need, if it is missing: Prometheus, Alertmanager and their tools, PgBouncer, the client packages
/// of examples, and schemathesis.
pub(crate) async fn ensure_for_tests() -> Result<()> {
    let pooler: Vec<_> = PgBouncer::missing_package().into_iter().collect();
    let python = [clients::missing_packages(), schemathesis::missing_packages()].concat();
    ensure(&[monitoring::missing_packages(), pooler, python].concat()).await?;
    let install = schemathesis::install();
    if !install.is_empty() {
        say::line("installing schemathesis (once; takes half a minute)");
    }
    for command in install {
        cargo::run(command).await?;
    }
    Ok(())
}

/// Installs packages, as root or through `sudo` without a password.
pub(crate) async fn ensure(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let by_hand = || format!("install these packages, then run the command again: {list}");
    let mut command = as_root().with_context(by_hand)?;
    say::line(&format!("installing {list} (once; takes about a minute)"));
    command.args(["sh", "-c", SCRIPT, "install"]).args(packages).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    bail!("apt-get failed; {}\n{}", by_hand(), stderr.trim_end())
}

/// A command that runs its arguments as root: `env` if this process is root, otherwise `sudo -n`.
fn as_root() -> Result<Command> {
    if !succeeds("apt-get", &["--version"]) {
        bail!("this machine has no apt-get");
    }
    if place::user_id()? == 0 {
        return Ok(Command::new("env"));
    }
    if !succeeds("sudo", &["-n", "true"]) {
        bail!("installing packages needs root, or sudo without a password");
    }
    let mut command = Command::new("sudo");
    command.arg("-n");
    Ok(command)
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
