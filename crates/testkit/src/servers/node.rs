//! One process of a server, which can be started, broken and restarted.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::kind::Kind;
use super::postgresql::PostgreSql;
use super::rabbitmq::RabbitMq;
use super::redis::Redis;
use crate::process::{Process, Signal, send};
use crate::wait::until;

/// Timeout of a start: ten times what it takes on two busy cores.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Timeout of a graceful stop; RabbitMQ with its management plugin takes 6 s.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// One process, with the same address after every restart.
#[derive(Debug)]
pub struct Node {
    kind: Kind,
    launch: Launch,
    process: Mutex<Option<Process>>,
}

/// How a kind of server is started and queried.
#[derive(Debug)]
pub(super) enum Launch {
    RabbitMq(RabbitMq),
    Redis(Redis),
    PostgreSql(PostgreSql),
}

impl Node {
    pub(super) fn new(kind: Kind, launch: Launch) -> Self {
        Self { kind, launch, process: Mutex::new(None) }
    }

    pub(super) fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its URL, with the password.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.launch {
            Launch::RabbitMq(it) => it.url(),
            Launch::Redis(it) => it.url(),
            Launch::PostgreSql(it) => it.url(),
        }
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.launch {
            Launch::RabbitMq(it) => it.port,
            Launch::Redis(it) => it.port,
            Launch::PostgreSql(it) => it.port,
        }
    }

    /// Runs a command on a Redis; returns the raw reply (RESP 2) without the last line break.
    ///
    /// # Errors
    /// When it is another kind of server, or does not reply. An error reply is returned as a reply.
    pub async fn redis(&self, command: &[&str]) -> Result<String> {
        let Launch::Redis(it) = &self.launch else { bail!("{} is not Redis", self.kind) };
        Ok(it.execute(command).await?)
    }

    /// Fills the own disk of a PostgreSQL completely.
    ///
    /// # Errors
    /// When it has no own disk.
    pub fn fill_disk(&self) -> Result<()> {
        self.postgresql()?.disk()?.fill()
    }

    /// Frees the space that [`Self::fill_disk`] has filled.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn free_disk(&self) -> Result<()> {
        self.postgresql()?.disk()?.free()
    }

    /// Whether its process runs. A server may also end by itself.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process().as_ref().is_some_and(|process| process.exited().is_none())
    }

    /// Its process id while it is running.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process().as_ref().map_or_else(|| "(not running)".to_owned(), Process::log_tail)
    }

    /// Kills it and its children (`kill -9`), and returns when all of them have ended.
    ///
    /// # Errors
    /// When the signal cannot be sent, or a child does not end.
    pub async fn kill(&self) -> Result<()> {
        let Some(process) = self.process().take() else {
            return Ok(());
        };
        let children = self.signalled_children(&process);
        process.kill();
        send(Signal::Kill, &children)?;
        until(format!("the end of {}'s children", self.kind), STOP_LIMIT, async || match children
            .iter()
            .find(|pid| alive(**pid))
        {
            Some(pid) => Err(format!("process {pid} is alive")),
            None => Ok(()),
        })
        .await?;
        Ok(())
    }

    /// Stops it as an operator would: RabbitMQ and Redis by SIGTERM, PostgreSQL by its fast shutdown.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&self) -> Result<()> {
        let Some(process) = self.process().take() else {
            return Ok(());
        };
        process.signal(match self.kind {
            Kind::PostgreSql => Signal::Interrupt,
            _ => Signal::Terminate,
        })?;
        process.wait(STOP_LIMIT).await.with_context(|| process.log_tail())?;
        Ok(())
    }

    /// Ends PostgreSQL by its immediate shutdown, without a checkpoint: the next start has to recover.
    ///
    /// # Errors
    /// When it does not end, or is another kind of server.
    pub async fn crash(&self) -> Result<()> {
        if self.kind != Kind::PostgreSql {
            bail!("{} has no immediate shutdown", self.kind);
        }
        let Some(process) = self.process().take() else {
            return Ok(());
        };
        process.signal(Signal::Quit)?;
        process.wait(STOP_LIMIT).await.with_context(|| process.log_tail())?;
        Ok(())
    }

    /// Kills one of its children (`kill -9`).
    ///
    /// # Errors
    /// When `pid` is not one of its children.
    pub fn kill_child(&self, pid: u32) -> Result<()> {
        let process = self.process();
        let children = process.as_ref().map(Process::children).unwrap_or_default();
        if !children.contains(&pid) {
            bail!("process {pid} is not a child of {}", self.kind);
        }
        Ok(send(Signal::Kill, &[pid])?)
    }

    /// Restarts it at the same address with its data, and waits until it responds.
    ///
    /// A node of a RabbitMQ cluster that does not become ready is killed and started once more, as an init
    /// system would do: a boot of RabbitMQ 3.10 on Erlang 25 was seen to stand still for a minute before its
    /// first boot step. RabbitMQ's developers name a cause of that kind, `global:sync/0`
    /// (<https://github.com/rabbitmq/rabbitmq-server/pull/5442>).
    ///
    /// # Errors
    /// When it is running, or does not start.
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        match self.ready().await {
            Err(error) if self.kind == Kind::RabbitMqCluster && self.is_running() => {
                eprintln!("{error:#}\nkilling it and starting it once more");
                self.kill().await?;
                self.spawn()?;
                self.ready().await
            }
            outcome => outcome,
        }
    }

    /// Restarts it at the same address without its data, as after the loss of its disk.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_empty(&self) -> Result<()> {
        self.wipe()?;
        self.start().await
    }

    /// Freezes it and its children: connections stay open, and it does not respond.
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self) -> Result<()> {
        let process = self.process();
        let process = process.as_ref().ok_or_else(|| anyhow!("{} is not running", self.kind))?;
        // The parent first, so that it starts no further child.
        process.signal(Signal::Stop)?;
        send(Signal::Stop, &self.signalled_children(process))?;
        Ok(())
    }

    /// Ends [`Self::freeze`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn thaw(&self) -> Result<()> {
        let process = self.process();
        let process = process.as_ref().ok_or_else(|| anyhow!("{} is not running", self.kind))?;
        send(Signal::Continue, &self.signalled_children(process))?;
        process.signal(Signal::Continue)?;
        Ok(())
    }

    /// The children that have to be signalled too: PostgreSQL has one for each connection. RabbitMQ's
    /// children end with it.
    fn signalled_children(&self, process: &Process) -> Vec<u32> {
        match self.kind {
            Kind::PostgreSql => process.children(),
            Kind::RabbitMq | Kind::RabbitMqCluster | Kind::Redis | Kind::RedisCluster => Vec::new(),
        }
    }

    fn postgresql(&self) -> Result<&PostgreSql> {
        match &self.launch {
            Launch::PostgreSql(it) => Ok(it),
            _ => bail!("{} is not PostgreSQL", self.kind),
        }
    }

    pub(super) fn wipe(&self) -> Result<()> {
        if self.process().is_some() {
            bail!("{} is running: its data cannot be removed", self.kind);
        }
        match &self.launch {
            Launch::RabbitMq(it) => it.wipe(),
            Launch::Redis(it) => it.wipe(),
            Launch::PostgreSql(it) => it.wipe(),
        }
    }

    pub(super) fn spawn(&self) -> Result<()> {
        let mut slot = self.process();
        if slot.is_some() {
            bail!("{} is already running", self.kind);
        }
        let (mut command, log) = match &self.launch {
            Launch::RabbitMq(it) => it.command()?,
            Launch::Redis(it) => it.command()?,
            Launch::PostgreSql(it) => it.command()?,
        };
        *slot = Some(Process::spawn(self.kind.as_str(), &mut command, &log)?);
        Ok(())
    }

    pub(super) async fn ready(&self) -> Result<()> {
        let ready = until(format!("{} to respond", self.kind), READY_LIMIT, async || {
            if let Some(status) = self.process().as_ref().and_then(Process::exited) {
                // Ends the wait with an error.
                return Ok(Err(anyhow!("{} ended: {status}", self.kind)));
            }
            match &self.launch {
                Launch::RabbitMq(it) => it.probe().await,
                Launch::Redis(it) => it.probe().await,
                Launch::PostgreSql(it) => it.probe().await,
            }
            .map(Ok)
        })
        .await;
        // The cause first: the log is long, and what prints the error may cut it.
        ready.map_err(anyhow::Error::from).flatten().map_err(|cause| {
            let log = self.log_tail();
            anyhow!("{} did not start: {cause:#}; the end of its log:\n{log}", self.kind)
        })
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn alive(pid: u32) -> bool {
    // A zombie has no working directory.
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok()
}
