//! Who takes part, and how far it is.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::fleet::Worker;
use testkit::process::{Process, Signal};

use super::ground::Ground;

/// How long a contestant may take to drain and end once it is told to.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// A program that drains `conversation.save_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contestant {
    /// Consumes and acknowledges.
    Null,
    /// Does the least that is correct.
    Ideal,
    /// `message-save-worker`.
    Worker,
}

/// A contestant that has started.
#[derive(Debug)]
pub(crate) enum Running {
    Peer(Process),
    Worker(Worker),
}

impl Contestant {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ideal => "ideal",
            Self::Worker => "worker",
        }
    }

    /// Whether messages end in the stores.
    pub(crate) fn stores(self) -> bool {
        self != Self::Null
    }

    pub(crate) fn start(self, ground: &Ground) -> Result<Running> {
        Ok(match self {
            Self::Worker => Running::Worker(ground.fleet.start("message-save-worker")?),
            Self::Null | Self::Ideal => Running::Peer(ground.peer(self.as_str(), |_| {})?),
        })
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Peer(peer) => peer.pid(),
            Self::Worker(worker) => worker.pid(),
        }
    }

    /// How many messages it has acknowledged.
    pub(crate) async fn acknowledged(&self) -> Result<u64> {
        let (exited, log_tail) = match self {
            Self::Peer(peer) => (peer.exited(), peer.log_tail()),
            Self::Worker(worker) => (worker.exited(), String::new()),
        };
        if let Some(status) = exited {
            bail!("it ended: {status}\n{}", self.log_tail());
        }
        match self {
            Self::Peer(_) => {
                let lines = log_tail.lines().rev();
                let told = lines.filter_map(|line| line.strip_prefix("acknowledged "));
                // The last line may be half written.
                Ok(told.filter_map(|count| count.parse().ok()).max().unwrap_or(0))
            }
            Self::Worker(worker) => applied(&worker.get("/metrics").await?.body),
        }
    }

    /// Tells it to end, and waits until it has.
    pub(crate) async fn stop(self) -> Result<()> {
        let status = match &self {
            Self::Peer(peer) => {
                peer.signal(Signal::Terminate)?;
                peer.wait(DRAIN_LIMIT).await?
            }
            Self::Worker(worker) => worker.stop(DRAIN_LIMIT).await?,
        };
        if !status.success() {
            bail!("it ended with {status}:\n{}", self.log_tail());
        }
        Ok(())
    }

    pub(crate) fn log_tail(&self) -> String {
        match self {
            Self::Peer(peer) => peer.log_tail(),
            Self::Worker(worker) => worker.log_tail(),
        }
    }
}

/// The deliveries that a worker says it has applied and acknowledged.
fn applied(metrics: &str) -> Result<u64> {
    let series = metrics.lines().find(|line| {
        line.starts_with("verbatim_deliveries_total{")
            && line.contains("outcome=\"applied\"")
            && line.contains("queue=\"conversation.save_message\"")
    });
    match series.and_then(|line| line.rsplit_once(' ')) {
        Some((_, count)) => count.parse().with_context(|| format!("{count:?} is no count")),
        None => Ok(0),
    }
}
