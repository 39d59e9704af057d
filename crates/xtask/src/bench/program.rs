//! The programs that are measured, and how many messages they have acknowledged.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::fleet::Worker;
use testkit::process::{Process, Signal};

use super::environment::Environment;

/// Timeout of a shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// A program that drains `conversation.save_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Program {
    /// Baseline: consumes and acknowledges, stores nothing. The upper limit of throughput.
    Null,
    /// Baseline: the least work of a correct save worker.
    Ideal,
    /// The product: `message-save-worker`.
    Worker,
}

/// A started program.
#[derive(Debug)]
pub(crate) enum RunningProgram {
    Baseline(Process),
    /// And the messages of each delivery.
    Worker(Worker, u64),
}

impl Program {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ideal => "ideal",
            Self::Worker => "worker",
        }
    }

    /// Whether it stores messages in PostgreSQL and Redis.
    pub(crate) fn stores(self) -> bool {
        self != Self::Null
    }

    /// Starts it, for deliveries of so many messages.
    pub(crate) fn start(self, environment: &Environment, batch: u64) -> Result<RunningProgram> {
        Ok(match self {
            Self::Worker => {
                RunningProgram::Worker(environment.fleet.start("message-save-worker")?, batch)
            }
            Self::Null | Self::Ideal => {
                let peer = environment.peer(self.as_str(), |command| {
                    command.args(["--batch", &batch.to_string()]);
                });
                RunningProgram::Baseline(peer?)
            }
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl RunningProgram {
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Baseline(baseline) => baseline.pid(),
            Self::Worker(worker, _) => worker.pid(),
        }
    }

    /// The number of messages it has acknowledged.
    pub(crate) async fn acknowledged(&self) -> Result<u64> {
        let (exited, log_tail) = match self {
            Self::Baseline(baseline) => (baseline.exited(), baseline.log_tail()),
            Self::Worker(worker, _) => (worker.exited(), String::new()),
        };
        if let Some(status) = exited {
            bail!("the program ended: {status}\n{}", self.log_tail());
        }
        match self {
            Self::Baseline(_) => {
                let lines = log_tail.lines().rev();
                let counts = lines.filter_map(|line| line.strip_prefix("acknowledged "));
                // The last line may be incomplete.
                Ok(counts.filter_map(|count| count.parse().ok()).max().unwrap_or(0))
            }
            Self::Worker(worker, batch) => {
                Ok(applied(&worker.get("/metrics").await?.body)? * batch)
            }
        }
    }

    /// Sends SIGTERM, and waits until it has ended.
    pub(crate) async fn stop(self) -> Result<()> {
        let status = match &self {
            Self::Baseline(baseline) => {
                baseline.signal(Signal::Terminate)?;
                baseline.wait(DRAIN_LIMIT).await?
            }
            Self::Worker(worker, _) => worker.stop(DRAIN_LIMIT).await?,
        };
        if !status.success() {
            bail!("the program ended with {status}:\n{}", self.log_tail());
        }
        Ok(())
    }

    pub(crate) fn log_tail(&self) -> String {
        match self {
            Self::Baseline(baseline) => baseline.log_tail(),
            Self::Worker(worker, _) => worker.log_tail(),
        }
    }
}

/// The number of deliveries with the outcome `applied`, from the metrics of a worker.
fn applied(metrics: &str) -> Result<u64> {
    let series = metrics.lines().find(|line| {
        line.starts_with("verbatim_deliveries_total{")
            && line.contains("outcome=\"applied\"")
            && line.contains("queue=\"conversation.save_message\"")
    });
    match series.and_then(|line| line.rsplit_once(' ')) {
        Some((_, count)) => count.parse().with_context(|| format!("{count:?} is not a count")),
        None => Ok(0),
    }
}
