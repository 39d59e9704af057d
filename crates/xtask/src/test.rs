//! `cargo xtask test`: every test, on real servers.

mod newer_rabbitmq;
mod programs;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use testkit::environment::{DEEP, REDIS_CLUSTER, SHARED, SharedServers};
use testkit::fleet::{self, BUILT};
use testkit::servers::{Kind, RABBITMQ};

use crate::{cargo, packages, say, stores};

/// Options of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Tests always run on private servers, whatever AMQP_URL, REDIS_URL and \
                        DATABASE_URL say: fault tests kill, freeze and empty them.")]
pub(crate) struct Options {
    /// Larger loads and more rounds in the fault tests; takes much longer
    #[arg(long)]
    deep: bool,
    /// Run the tests that touch Redis, and those alone, on private Redis Clusters of three masters
    #[arg(long)]
    redis_cluster: bool,
    /// Use RabbitMQ 4 instead of the distribution's: fetched once into `target/`; wants root
    #[arg(long)]
    rabbitmq_4: bool,
    /// Arguments of `cargo test`: a filter, `--package broker`, `-- --nocapture`, …
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

impl Options {
    /// Those of `--redis-cluster`.
    pub(crate) fn redis_cluster() -> Self {
        Self { redis_cluster: true, ..Self::default() }
    }
}

/// Sums over the test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    binaries: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Builds everything, starts the shared servers once, runs `cargo test`, and sums up.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    packages::ensure_servers(&Kind::ALL).await?;
    packages::ensure_monitoring().await?;
    if options.rabbitmq_4 && std::env::var_os(RABBITMQ).is_none() {
        // Once more, in an environment that names it: servers are started here and by the tests.
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).env(RABBITMQ, newer_rabbitmq::prepare().await?);
        return cargo::run(again).await;
    }
    let chosen = |argument: &String| ["-p", "--package"].contains(&argument.as_str());
    let everything = !options.arguments.iter().any(chosen);
    if everything {
        say::line("building the fleet and the tests");
        // In one go: the binaries share their dependencies' features with the tests, so that nothing
        // is compiled twice.
        cargo::run(cargo::command(&["build", "--workspace", "--bins", "--tests"])).await?;
        say::line("building the workers that can be made to crash");
        fleet::build_armed().await?;
    }

    let servers = stores::start(&SharedServers::KINDS).await?;
    let description = servers.dir().join("shared.json");
    SharedServers::of(&servers).save(&description)?;

    let mut command = cargo::command(&["test", "--no-fail-fast"]);
    if everything {
        command.arg("--workspace").env(BUILT, "1");
        if options.redis_cluster {
            // Not by package: cargo would then take other features, and compile everything again.
            for program in programs::that_link("hot-store").await? {
                command.args(["--test", &program]);
            }
        }
    }
    command.args(&options.arguments).env(SHARED, &description);
    if options.deep {
        command.env(DEEP, "1");
    }
    if options.redis_cluster {
        command.env(REDIS_CLUSTER, "1");
    }
    // If this process is killed, cargo and the tests go as well.
    servers.mark().put_on(&mut command);
    let (tally, success) = tokio::task::spawn_blocking(move || watch(command)).await??;

    let Tally { binaries, passed, failed, ignored } = tally;
    let seconds = began.elapsed().as_secs();
    say::heading(&format!(
        "\n{passed} passed, {failed} failed, {ignored} ignored in {binaries} test programs ({} min {:02} s)",
        seconds / 60,
        seconds % 60
    ));
    if !success {
        bail!("there are failed tests; see above");
    }
    Ok(())
}

/// Passes the output through and counts the results in it.
fn watch(mut command: Command) -> Result<(Tally, bool)> {
    let mut cargo = command.stdout(Stdio::piped()).spawn().context("cargo test")?;
    let mut tally = Tally::default();
    if let Some(output) = cargo.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            tally.count(&line);
            say::line(&line);
        }
    }
    Ok((tally, cargo.wait()?.success()))
}

impl Tally {
    fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.binaries += 1;
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let Some(Ok(number)) = words.next().map(str::parse::<usize>) else { continue };
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                Some("ignored") => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_over_the_test_programs() {
        let mut tally = Tally::default();
        tally.count("running 3 tests");
        tally.count("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.24s");
        tally.count("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 2s");
        assert_eq!(tally, Tally { binaries: 2, passed: 5, failed: 1, ignored: 1 });
    }
}
