//! Checks the shipped rules and configurations with `promtool` and `amtool`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use testkit::monitoring::Program;
use testkit::place;

use crate::{cargo, packages};

/// The receiver that each severity must be routed to by the shipped configuration.
const ROUTES: [(&str, &str); 2] = [("critical", "pager"), ("warning", "office-hours")];

/// Checks the configurations, the rules and the routes, and runs the tests of the rules.
pub(super) async fn check() -> Result<()> {
    packages::ensure_for_tests().await?;
    let deploy = place::workspace().join("deploy");
    let prometheus = deploy.join("prometheus");
    let (rules, tests) = (files(&prometheus.join("rules"))?, files(&prometheus.join("tests"))?);
    let config = [prometheus.join("prometheus.yml")];
    tool(Program::Promtool, &["check", "config"], &config).await?;
    tool(Program::Promtool, &["check", "rules"], &rules).await?;
    tool(Program::Promtool, &["test", "rules"], &tests).await?;
    let routes = deploy.join("alertmanager/alertmanager.yml");
    tool(Program::Amtool, &["check-config"], std::slice::from_ref(&routes)).await?;
    let file = format!("--config.file={}", routes.display());
    for (severity, receiver) in ROUTES {
        let (verify, label) =
            (format!("--verify.receivers={receiver}"), format!("severity={severity}"));
        let arguments = ["config", "routes", "test", &file, &verify, &label];
        tool(Program::Amtool, &arguments, &[]).await?;
    }
    Ok(())
}

async fn tool(program: Program, arguments: &[&str], files: &[PathBuf]) -> Result<()> {
    let mut command = Command::new(program.path()?);
    command.args(arguments).args(files);
    cargo::run(command).await
}

/// The YAML files of a folder, sorted by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension() == Some(OsStr::new("yml")));
    files.sort();
    ensure!(!files.is_empty(), "{} has no .yml file", folder.display());
    Ok(files)
}
