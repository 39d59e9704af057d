//! Installs the distribution's packages that a bare machine lacks.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use testkit::monitoring;
use testkit::place;
use testkit::servers::{self, Kind};

use crate::say;

/// As root: keeps freshly installed services from starting (the standard ports are not ours to take),
/// and installs. A machine that has such a policy already, as containers do, keeps its own.
const SCRIPT: &str = r#"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' HUP INT TERM
        printf '#!/bin/sh\n# Of "cargo xtask", while it installs packages. Safe to remove.\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    wait=-oDPkg::Lock::Timeout=300
    apt-get "$wait" -qq update &&
        apt-get "$wait" -qq -y --no-install-recommends install "$@"
"#;

/// Makes sure that the programs of these servers are there.
pub(crate) async fn ensure_servers(kinds: &[Kind]) -> Result<()> {
    let missing: Vec<_> = servers::missing().into_iter().filter(|it| kinds.contains(it)).collect();
    let packages: Vec<_> = missing.into_iter().map(servers::package).collect();
    ensure(&packages).await
}

/// Makes sure that Prometheus, Alertmanager and their tools are there.
pub(crate) async fn ensure_monitoring() -> Result<()> {
    ensure(&monitoring::missing_packages()).await
}

/// Installs packages, as root or through `sudo` where it asks for no password.
pub(crate) async fn ensure(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let by_hand = || format!("install these packages, then try again: {list}");
    let mut command = as_root().with_context(by_hand)?;
    say::line(&format!("installing {list} (once; about a minute)"));
    command.args(["sh", "-c", SCRIPT, "install"]).args(packages).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    bail!("apt-get failed; {}\n{}", by_hand(), said.trim_end())
}

/// The beginning of a command that runs as root. `env` stands for "nothing in front".
fn as_root() -> Result<Command> {
    if !succeeds("apt-get", &["--version"]) {
        bail!("this machine has no apt-get");
    }
    if place::user_id()? == 0 {
        return Ok(Command::new("env"));
    }
    if !succeeds("sudo", &["-n", "true"]) {
        bail!("packages can be installed only by root or with a sudo that asks for no password");
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
