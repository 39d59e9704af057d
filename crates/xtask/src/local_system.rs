//! Servers, a fleet of the real binaries, and the `verbatim` command to look at them.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use testkit::fleet::{Fleet, Worker};

use crate::stores::{Named, Stores};
use crate::{cargo, say};

/// A worker connects to its servers in a second; a busy machine may take ten times that.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// The workers' own deadline for a drain is shorter.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How soon the end of a worker is noticed.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// All that `up` and the demo run on. Fields are dropped in order: workers, their logs, servers.
#[derive(Debug)]
pub(crate) struct Stage {
    workers: Vec<Worker>,
    fleet: Fleet,
    pub(crate) stores: Stores,
}

impl Stage {
    /// Builds the fleet, opens the servers, and creates schema and topology with `verbatim setup`.
    /// `settings` are environment variables for every process.
    pub(crate) async fn open(named: Named, settings: &[(&str, &str)]) -> Result<Self> {
        say::line("building the fleet");
        cargo::build_fleet().await?;
        let stores = Stores::open(named).await?;
        let mut fleet = Fleet::of_built()?
            .with("AMQP_URL", &stores.amqp_url)
            .with("REDIS_URL", &stores.redis_url)
            .with("DATABASE_URL", &stores.database_url);
        for (name, value) in settings {
            fleet = fleet.with(name, value);
        }
        let stage = Self { workers: Vec::new(), fleet, stores };
        stage.verbatim(&["setup"], "").await?;
        Ok(stage)
    }

    /// Starts workers by their programs' names and waits until all are ready.
    pub(crate) async fn start(&mut self, programs: &[&str]) -> Result<()> {
        let first = self.workers.len();
        for program in programs {
            self.workers.push(self.fleet.start(program)?);
        }
        for worker in &self.workers[first..] {
            worker.ready(READY_LIMIT).await?;
        }
        Ok(())
    }

    /// The workers, in the order of their start.
    pub(crate) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// Runs the `verbatim` command with some input, and returns what it printed.
    pub(crate) async fn verbatim(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.fleet.command("verbatim");
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take();
            // A command that ends without reading its input says why on its standard error.
            stdin.as_mut().map(|stdin| stdin.write_all(input.as_bytes()).ok());
            drop(stdin);
            child.wait_with_output()
        })
        .await??;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("verbatim {}: {}\n{said}", arguments.join(" "), output.status)
    }

    /// [`Self::verbatim`] with `--json`.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["--json"]].concat();
        let text = self.verbatim(&arguments, "").await?;
        serde_json::from_str(&text).with_context(|| format!("verbatim {arguments:?} said {text:?}"))
    }

    /// Lets every worker drain; then all is gone.
    pub(crate) async fn close(self) -> Result<()> {
        for worker in &self.workers {
            worker.signal(testkit::process::Signal::Terminate)?;
        }
        for worker in &self.workers {
            let status = worker.wait(DRAIN_LIMIT).await?;
            if !status.success() {
                bail!("{} ended with {status}:\n{}", worker.name(), worker.log_tail());
            }
        }
        Ok(())
    }

    /// Resolves only when a worker ends, which is a failure.
    pub(crate) async fn watch(&self) -> Result<()> {
        loop {
            if let Some(worker) = self.workers.iter().find(|worker| worker.exited().is_some()) {
                bail!("{} has ended; the end of its log:\n{}", worker.name(), worker.log_tail());
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    /// The ends of the workers' logs, for the report of a failure.
    pub(crate) fn logs(&self) -> String {
        let tails = self.workers.iter().map(|it| format!("--- {}\n{}\n", it.name(), it.log_tail()));
        tails.collect()
    }
}
