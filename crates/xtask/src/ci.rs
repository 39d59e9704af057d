//! `cargo xtask ci`: every check that a change has to pass, fast ones first. It ends at the first failure.

mod alerts;
mod tools;
mod unused;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::servers::ServerOptions;
use crate::{cargo, demo, say, test};

/// Runs all checks.
pub(crate) async fn run() -> Result<()> {
    let began = Instant::now();
    let mut report = Report::default();
    tools::ensure_components().await?;

    report.step("format", plain(&["fmt", "--all", "--check"])).await?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    report.step("clippy", plain(&clippy)).await?;
    report.step("documentation", document()).await?;
    report.step("unused dependencies", unused::check()).await?;
    report.step("licences, bans, sources", tools::deny(&["bans", "licenses", "sources"])).await?;
    report.step("advisories", tools::advisories()).await?;
    report.step("spelling", tools::spelling()).await?;
    report.step("alert rules", alerts::check()).await?;
    // These include the allowed dependencies between crates, and that generated files are up to date.
    report.step("tests", test::run(&test::Options::default())).await?;
    report.step("tests on Redis Cluster", test::run(&test::Options::redis_cluster())).await?;
    report.step("demo", demo::run(ServerOptions::default())).await?;

    say::heading("\nall checks passed");
    for (name, took) in report.steps {
        say::line(&format!("  {name:<26} {:>6.1} s", took.as_secs_f64()));
    }
    say::line(&format!("  {:<26} {:>6.1} s", "total", began.elapsed().as_secs_f64()));
    Ok(())
}

/// The steps that have passed, with their durations.
#[derive(Debug, Default)]
struct Report {
    steps: Vec<(&'static str, Duration)>,
}

impl Report {
    async fn step(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        say::heading(&format!("\n== {name}"));
        let began = Instant::now();
        work.await.with_context(|| format!("{name} failed"))?;
        self.steps.push((name, began.elapsed()));
        Ok(())
    }
}

async fn plain(arguments: &[&str]) -> Result<()> {
    cargo::run(cargo::command(arguments)).await
}

async fn document() -> Result<()> {
    let mut command: Command =
        cargo::command(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    cargo::run(command).await
}
