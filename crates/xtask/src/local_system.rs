//! A local system: servers, workers, and the `verbatim` command.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domain::fleet;
use serde_json::Value;
use testkit::fleet::{Fleet, Worker};

use crate::servers::{LocalServers, ServerOptions};
use crate::{cargo, say};

/// Timeout for a worker to become ready, which takes a second on an idle machine.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Timeout of a shutdown; longer than the workers' drain deadline.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How often workers are checked for their end.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// The system that `up` and the demo use. Fields are dropped in this order: workers, logs, servers.
#[derive(Debug)]
pub(crate) struct LocalSystem {
    workers: Vec<Worker>,
    fleet: Fleet,
    pub(crate) servers: LocalServers,
}

impl LocalSystem {
    /// Builds the fleet, starts the servers, and creates schema and topology with `verbatim setup`.
    /// `settings` are environment variables for every process.
    pub(crate) async fn open(options: ServerOptions, settings: &[(&str, &str)]) -> Result<Self> {
        say::line("building the fleet");
        cargo::build_fleet().await?;
        let servers = LocalServers::open(options).await?;
        let mut fleet = Fleet::of_built()?
            .with("AMQP_URL", &servers.amqp_url)
            .with("REDIS_URL", &servers.redis_url)
            .with("DATABASE_URL", &servers.database_url);
        for (name, value) in servers.settings.iter().chain(settings) {
            fleet = fleet.with(name, value);
        }
        let system = Self { workers: Vec::new(), fleet, servers };
        system.verbatim(&["setup"], "").await?;
        Ok(system)
    }

    /// Starts a fleet and waits until it is ready: two message-save-workers, so that effects between replicas
    /// are visible, and one of each other worker. Returns a line about it.
    pub(crate) async fn start_fleet(&mut self) -> Result<String> {
        let mut started = Vec::new();
        for worker in fleet::WORKERS {
            let replicas = if worker == fleet::MESSAGE_SAVE_WORKER { 2 } else { 1 };
            for _ in 0..replicas {
                self.workers.push(self.fleet.start(worker.name())?);
            }
            started.push(format!("{replicas} {}", worker.name()));
        }
        for worker in &self.workers {
            worker.ready(READY_LIMIT).await?;
        }
        Ok(format!("ready: {}", started.join(", ")))
    }

    /// The workers, in the order of their starts.
    pub(crate) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// Runs the `verbatim` command with this input; returns its output.
    pub(crate) async fn verbatim(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.fleet.command("verbatim");
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take();
            // Fails if the command ends without reading its input; then standard error has the reason.
            stdin.as_mut().map(|stdin| stdin.write_all(input.as_bytes()).ok());
            drop(stdin);
            child.wait_with_output()
        })
        .await??;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("verbatim {}: {}\n{stderr}", arguments.join(" "), output.status)
    }

    /// [`Self::verbatim`] with `--json`; returns the parsed output.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["--json"]].concat();
        let text = self.verbatim(&arguments, "").await?;
        serde_json::from_str(&text)
            .with_context(|| format!("verbatim {arguments:?} printed {text:?}, which is not JSON"))
    }

    /// Shuts down every worker with SIGTERM, then stops private servers.
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

    /// Returns an error when a worker ends.
    pub(crate) async fn watch(&self) -> Result<()> {
        loop {
            if let Some(worker) = self.workers.iter().find(|worker| worker.exited().is_some()) {
                bail!("{} has ended; the end of its log:\n{}", worker.name(), worker.log_tail());
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    /// The ends of the workers' logs.
    pub(crate) fn logs(&self) -> String {
        let tails = self.workers.iter().map(|it| format!("--- {}\n{}\n", it.name(), it.log_tail()));
        tails.collect()
    }
}
