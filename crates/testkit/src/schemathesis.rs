//! schemathesis, which makes requests from an OpenAPI document: a program in Python, in an environment of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::clients::PYTHON;
use crate::place;

/// Its packages, with their versions.
const REQUIREMENTS: &str = "tests/schemathesis/requirements.txt";

/// Debian's and Ubuntu's package with which Python makes environments.
const VENV: &str = "python3-venv";

/// The packages of Debian and Ubuntu that are missing on this machine for [`install`].
#[must_use]
pub fn missing_packages() -> Vec<&'static str> {
    let mut python = Command::new(PYTHON);
    python.args(["-c", "import ensurepip, venv"]).stdin(Stdio::null()).stderr(Stdio::null());
    match python.status().is_ok_and(|status| status.success()) {
        true => Vec::new(),
        false => vec![VENV],
    }
}

/// The program.
#[must_use]
pub fn program() -> PathBuf {
    environment().join("bin/schemathesis")
}

/// The commands that install it, one after the other; none if it is installed. Its directory is named after the packages: other
/// versions are in another one.
#[must_use]
pub fn install() -> Vec<Command> {
    let (environment, requirements) = (environment(), place::workspace().join(REQUIREMENTS));
    if environment.join("installed").exists() {
        return Vec::new();
    }
    let mut venv = Command::new(PYTHON);
    venv.args(["-m", "venv", "--clear"]).arg(&environment);
    let mut pip = Command::new(environment.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    pip.arg(requirements);
    // Last, so that an environment that is half installed is made again.
    let mut installed = Command::new("touch");
    installed.arg(environment.join("installed"));
    vec![venv, pip, installed]
}

fn environment() -> PathBuf {
    let profile = place::profile_dir();
    let requirements = place::workspace().join(REQUIREMENTS);
    let text = std::fs::read_to_string(requirements).unwrap_or_default();
    let version = text.lines().find_map(|line| line.strip_prefix("schemathesis=="));
    let target = profile.parent().map_or(profile.clone(), Path::to_owned);
    target.join("tools").join(format!("schemathesis-{}", version.unwrap_or("unknown")))
}
