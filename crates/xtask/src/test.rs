//! `cargo xtask test`: runs every test on real servers.

mod newer_rabbitmq;
mod on_redis_cluster;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use testkit::environment::{DEEP, REDIS_CLUSTER, SHARED, SharedServers};
use testkit::fleet::{self, BUILT};
use testkit::servers::{Kind, RABBITMQ};

use crate::{cargo, packages, say, servers};

/// Options of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Tests always run on private servers, not on AMQP_URL, REDIS_URL and \
                        DATABASE_URL: fault tests kill, freeze and empty their servers.")]
pub(crate) struct Options {
    /// Use larger loads and more rounds in the fault tests; takes much longer
    #[arg(long)]
    deep: bool,
    /// Run only the tests that use Redis, on private Redis Clusters of three masters
    #[arg(long)]
    redis_cluster: bool,
    /// Use RabbitMQ 4 instead of the distribution's version: downloaded once into `target/`; needs root
    #[arg(long)]
    rabbitmq_4: bool,
    /// Arguments of `cargo test`: a filter, `--package broker`, `-- --nocapture`, …
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

impl Options {
    /// The options of `cargo xtask test --redis-cluster`.
    pub(crate) fn redis_cluster() -> Self {
        Self { redis_cluster: true, ..Self::default() }
    }
}

/// Numbers of tests, summed over the test programs, and how long each test took.
#[derive(Debug, Default, PartialEq)]
struct TestCounts {
    programs: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Seconds and names of the tests that passed.
    took: Vec<(f64, String)>,
}

/// Runs a test program so that it prints how long each test took. The option is unstable, but works in every
/// version of Rust; RUSTC_BOOTSTRAP allows it. Only the test program gets the variable: cargo would compile
/// everything again for it. Programs of documentation tests, which are not in `deps`, do not have the option.
const TIMED: &str = r#"target.'cfg(all())'.runner = ["sh", "-c", """case "$0" in
*/deps/*) RUSTC_BOOTSTRAP=1 exec "$0" "$@" -Zunstable-options --report-time ;;
*) exec "$0" "$@" ;;
esac"""]"#;

/// The environment variable with the number of tests that a test program runs at the same time.
const THREADS: &str = "RUST_TEST_THREADS";

/// Tests that run at the same time on a core. Most of the time they wait for a server, a timeout or a process
/// to start.
const THREADS_PER_CORE: usize = 2;

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

/// Builds the workspace, starts the shared servers, runs `cargo test`, and prints the totals.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    packages::ensure_servers(&Kind::ALL).await?;
    packages::ensure_for_tests().await?;
    if options.rabbitmq_4 && std::env::var_os(RABBITMQ).is_none() {
        // Run this command again with the variable set, which this process and the tests read.
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).env(RABBITMQ, newer_rabbitmq::prepare().await?);
        return cargo::run(again).await;
    }
    let chosen = |argument: &String| ["-p", "--package"].contains(&argument.as_str());
    let everything = !options.arguments.iter().any(chosen);
    if everything {
        say::line("building the fleet and the tests");
        // In one build: then binaries and tests use the same features of their dependencies, and nothing
        // is compiled twice.
        cargo::run(cargo::command(&["build", "--workspace", "--bins", "--tests"])).await?;
        say::line("building the workers with failpoints");
        fleet::build_armed().await?;
    }

    let servers = servers::start(&SharedServers::KINDS).await?;
    let description = servers.dir().join("shared.json");
    SharedServers::of(&servers).save(&description)?;

    let mut command = cargo::command(&["test", "--no-fail-fast", "--config", TIMED]);
    if everything {
        command.arg("--workspace").env(BUILT, "1");
        if options.redis_cluster {
            // Not by package: cargo would then select other features, and recompile everything.
            for program in on_redis_cluster::programs().await? {
                command.args(["--test", &program]);
            }
        }
    }
    command.args(&options.arguments).env(SHARED, &description);
    if everything && options.redis_cluster && !options.arguments.iter().any(|it| it == "--") {
        command.arg("--");
        for name in on_redis_cluster::SAME_ON_BOTH {
            command.args(["--skip", name]);
        }
    }
    if std::env::var_os(THREADS).is_none() {
        let cores = thread::available_parallelism()?.get();
        command.env(THREADS, (THREADS_PER_CORE * cores).to_string());
    }
    if options.deep {
        command.env(DEEP, "1");
    }
    if options.redis_cluster {
        command.env(REDIS_CLUSTER, "1");
    }
    // If this process is killed, the guard ends cargo and the tests too.
    servers.mark().put_on(&mut command);
    let (counts, success) = tokio::task::spawn_blocking(move || watch(command)).await??;

    let TestCounts { programs, passed, failed, ignored, mut took } = counts;
    took.sort_by(|a, b| b.0.total_cmp(&a.0));
    say::heading("\nthe slowest tests");
    for (seconds, test) in took.iter().take(SLOWEST) {
        say::line(&format!("{seconds:>8.1} s  {test}"));
    }
    let seconds = began.elapsed().as_secs();
    say::heading(&format!(
        "\n{passed} passed, {failed} failed, {ignored} ignored in {programs} test programs ({} min {:02} s)",
        seconds / 60,
        seconds % 60
    ));
    if !success {
        bail!("tests failed; see above");
    }
    Ok(())
}

/// Prints the output of cargo and counts the test results in it.
fn watch(mut command: Command) -> Result<(TestCounts, bool)> {
    let mut cargo = command.stdout(Stdio::piped()).spawn().context("cargo test")?;
    let mut counts = TestCounts::default();
    if let Some(output) = cargo.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            counts.count(&line);
            say::line(&line);
        }
    }
    Ok((counts, cargo.wait()?.success()))
}

impl TestCounts {
    fn count(&mut self, line: &str) {
        if let Some((test, seconds)) =
            line.strip_prefix("test ").and_then(|it| it.strip_suffix("s>")?.split_once(" ... ok <"))
            && let Ok(seconds) = seconds.parse()
        {
            self.took.push((seconds, test.to_owned()));
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.programs += 1;
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
        let mut counts = TestCounts::default();
        counts.count("running 3 tests");
        counts.count("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.24s");
        counts.count("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 2s");
        let took = Vec::new();
        assert_eq!(counts, TestCounts { programs: 2, passed: 5, failed: 1, ignored: 1, took });
    }

    #[test]
    fn the_time_of_each_test_is_read() {
        let mut counts = TestCounts::default();
        counts.count("test kills::a_worker ... ok <12.345s>");
        counts.count("test kills::a_worker ... FAILED <1.000s>");
        counts.count("test result: ok. 1 passed; 0 failed; finished in 12.35s");
        assert_eq!(counts.took, [(12.345, "kills::a_worker".to_owned())]);
    }
}
