//! A local system: servers, workers, and the `verbatim` command.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domain::fleet;
use serde_json::Value;
use testkit::fleet::{Fleet, Worker};
use uuid::Uuid;

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
    /// The settings of the API alone.
    pub(crate) api_settings: Vec<(&'static str, String)>,
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
        let mut api_settings = Vec::new();
        if let Some(url) = &servers.api_database_url {
            let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            api_settings.extend([("API_DATABASE_URL", url.clone()), ("API_SECRET", secret)]);
            let operators = servers.api_operator_database_url.clone();
            api_settings.extend(operators.map(|url| ("API_OPERATOR_DATABASE_URL", url)));
        }
        for (name, value) in &api_settings {
            fleet = fleet.with(name, value);
        }
        let system = Self { workers: Vec::new(), fleet, servers, api_settings };
        system.verbatim(&["setup"], "").await?;
        Ok(system)
    }

    /// Starts a fleet and waits until it is ready: two message-save-workers, so that effects between replicas
    /// are visible, one of each other worker, and the API where PostgreSQL has a role for it. Returns a line about it.
    pub(crate) async fn start_fleet(&mut self) -> Result<String> {
        let mut started = Vec::new();
        for worker in fleet::WORKERS {
            let replicas = if worker == fleet::MESSAGE_SAVE_WORKER { 2 } else { 1 };
            for _ in 0..replicas {
                self.workers.push(self.fleet.start(worker.name())?);
            }
            started.push(format!("{replicas} {}", worker.name()));
        }
        if self.servers.api_database_url.is_some() {
            let file = self.api_file();
            let settings = [
                ("VERBATIM_API_LISTEN", "127.0.0.1:0"),
                ("VERBATIM_API_LISTEN_FILE", file.to_str().context("a path in UTF-8")?),
            ];
            self.workers.push(self.fleet.start_with(fleet::CONVERSATION_API.name(), &settings)?);
            started.push(format!("1 {}", fleet::CONVERSATION_API.name()));
        }
        for worker in &self.workers {
            worker.ready(READY_LIMIT).await?;
        }
        Ok(format!("ready: {}", started.join(", ")))
    }

    /// The file with the address of the API.
    fn api_file(&self) -> PathBuf {
        self.fleet.dir().join("api.listen")
    }

    /// The address of the API, once it is ready; `None` if there is none.
    pub(crate) fn api_address(&self) -> Option<String> {
        std::fs::read_to_string(self.api_file()).ok()
    }

    /// The workers and the API, in the order of their starts.
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
