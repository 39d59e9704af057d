//! Private RabbitMQ, Redis and PostgreSQL servers: on free ports, with their data under `target/`.
//!
//! Fault tests kill, freeze, stop and restart them; the demo and ordinary tests just use them. They
//! never listen on a standard port, take connections from this machine only, and want a random
//! password. None of them outlives its [`Servers`], nor the process that owns it (see [`crate::guard`]).
//!
//! RabbitMQ decides how long a start takes (some 6 s on two cores); Redis needs 30 ms, PostgreSQL 1 s.

mod binaries;
pub(crate) mod postgresql;
mod rabbitmq;
mod redis;

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use uuid::Uuid;

pub use self::binaries::{missing, package};
use self::postgresql::PostgreSql;
use self::rabbitmq::RabbitMq;
use self::redis::Redis;
use crate::guard::{Guard, Mark};
use crate::management::Management;
use crate::process::{Process, Signal, send};
use crate::wait::until;

/// A server that takes longer than this to come up is broken: ten times what it takes on two busy cores.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A graceful stop: RabbitMQ with its management plugin takes 6 s.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The user whom every private server knows.
const USER: &str = "verbatim";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// RabbitMQ with the management plugin.
    RabbitMq,
    /// A single Redis.
    Redis,
    /// PostgreSQL.
    PostgreSql,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::RabbitMq, Self::Redis, Self::PostgreSql];

    /// Its name in file names and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
            Self::PostgreSql => "postgresql",
        }
    }
}

impl Kind {
    /// Its name as people write it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::RabbitMq => "RabbitMQ",
            Self::Redis => "Redis",
            Self::PostgreSql => "PostgreSQL",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a server's data must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The server's own end, `kill -9` included, but not the machine's: PostgreSQL writes without
    /// `fsync`, and Redis writes nothing. What most tests want.
    #[default]
    Fast,
    /// As in production: PostgreSQL with `fsync`, Redis with an append-only file.
    Durable,
}

/// A set of private servers.
#[derive(Debug)]
pub struct Servers {
    // Dropped first: it ends the processes gently enough; the servers then only reap them.
    guard: Guard,
    servers: Vec<Server>,
}

impl Servers {
    /// Starts one server of each of `kinds`, all at once, and waits until each answers.
    ///
    /// # Errors
    /// When a program is not installed, or a server does not come up: then with its log's last lines.
    pub async fn start(kinds: &[Kind]) -> Result<Self> {
        Self::start_with(kinds, Durability::Fast).await
    }

    /// [`Self::start`] with a choice of durability.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(kinds: &[Kind], durability: Durability) -> Result<Self> {
        let as_user =
            kinds.contains(&Kind::PostgreSql).then(postgresql::user).transpose()?.flatten();
        let guard =
            Guard::new(as_user.map(|user| user.id)).context("no directory for the servers")?;
        let mut servers = Vec::new();
        for kind in kinds {
            let dir = guard.dir().join(kind.as_str());
            std::fs::create_dir_all(&dir)?;
            let launch = match kind {
                Kind::RabbitMq => Launch::RabbitMq(RabbitMq::prepare(&guard, dir)?),
                Kind::Redis => Launch::Redis(Redis::prepare(&guard, dir, durability)?),
                Kind::PostgreSql => {
                    Launch::PostgreSql(PostgreSql::prepare(&guard, dir, durability, as_user)?)
                }
            };
            servers.push(Server { launch, process: Mutex::new(None) });
        }
        // Every server is spawned before the first is waited for.
        for server in &servers {
            server.spawn()?;
        }
        for server in &servers {
            server.ready().await?;
        }
        Ok(Self { guard, servers })
    }

    /// Their directory, which goes away with them.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.guard.dir()
    }

    /// The mark of their processes; another process that carries it ends with them.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        self.guard.mark()
    }

    /// One of the servers.
    ///
    /// # Panics
    /// When it was not among the kinds that were started.
    #[must_use]
    pub fn get(&self, kind: Kind) -> &Server {
        self.servers
            .iter()
            .find(|server| server.kind() == kind)
            .unwrap_or_else(|| panic!("no {kind} was started in this set"))
    }
}

/// One private server, at one address for all its restarts.
#[derive(Debug)]
pub struct Server {
    launch: Launch,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
enum Launch {
    RabbitMq(RabbitMq),
    Redis(Redis),
    PostgreSql(PostgreSql),
}

impl Server {
    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &self.launch {
            Launch::RabbitMq(_) => Kind::RabbitMq,
            Launch::Redis(_) => Kind::Redis,
            Launch::PostgreSql(_) => Kind::PostgreSql,
        }
    }

    /// Its URL, with the password: virtual host `/`, database 0, or database `postgres`.
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

    /// RabbitMQ's HTTP interface.
    ///
    /// # Panics
    /// For another server.
    #[must_use]
    pub fn management(&self) -> Management {
        match &self.launch {
            Launch::RabbitMq(it) => it.management(),
            _ => panic!("{} has no management interface", self.kind()),
        }
    }

    /// Runs `rabbitmqctl` against it (`stop_app`, `set_vm_memory_high_watermark`, …), which takes about
    /// 2 s, and returns what it printed.
    ///
    /// # Errors
    /// When the command fails; with its output.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let Launch::RabbitMq(it) = &self.launch else { bail!("{} is not RabbitMQ", self.kind()) };
        let mut command = it.ctl(arguments)?;
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        bail!("rabbitmqctl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr))
    }

    /// Runs SQL on one of PostgreSQL's databases; the answer is unaligned text, a line for each row.
    ///
    /// # Errors
    /// When the server is another, or the statement fails; with its message.
    pub async fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let Launch::PostgreSql(it) = &self.launch else {
            bail!("{} is not PostgreSQL", self.kind())
        };
        it.psql(database, sql).await
    }

    /// Its process id, while it is running.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process().as_ref().map_or_else(|| "(not running)".to_owned(), Process::log_tail)
    }

    /// Ends it without any chance to react (`kill -9`), children included, and returns when all of
    /// them are gone.
    ///
    /// # Errors
    /// When the signal cannot be sent, or a child stays.
    pub async fn kill(&self) -> Result<()> {
        let Some(process) = self.process().take() else {
            return Ok(());
        };
        let children = self.dependants(&process);
        process.kill();
        send(Signal::Kill, &children)?;
        until(
            format!("the end of {}'s children", self.kind()),
            STOP_LIMIT,
            async || match children.iter().find(|pid| alive(**pid)) {
                Some(pid) => Err(format!("process {pid} is alive")),
                None => Ok(()),
            },
        )
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
        process.signal(match self.kind() {
            Kind::PostgreSql => Signal::Interrupt,
            _ => Signal::Terminate,
        })?;
        process.wait(STOP_LIMIT).await.with_context(|| process.log_tail())?;
        Ok(())
    }

    /// Starts it again at the same address with the data it had, and waits until it answers.
    ///
    /// # Errors
    /// When it is running, or does not come up.
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts it again at the same address, but empty, as after the loss of its disk.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_empty(&self) -> Result<()> {
        if self.process().is_some() {
            bail!("{} is running: its data cannot be removed", self.kind());
        }
        match &self.launch {
            Launch::RabbitMq(it) => it.wipe()?,
            Launch::Redis(it) => it.wipe()?,
            Launch::PostgreSql(it) => it.wipe()?,
        }
        self.start().await
    }

    /// Freezes it, children included: connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self) -> Result<()> {
        let process = self.process();
        let process = process.as_ref().ok_or_else(|| anyhow!("{} is not running", self.kind()))?;
        // The parent first, so that it has no new child in between.
        process.signal(Signal::Stop)?;
        send(Signal::Stop, &self.dependants(process))?;
        Ok(())
    }

    /// Thaws what [`Self::freeze`] froze.
    ///
    /// # Errors
    /// When it is not running.
    pub fn thaw(&self) -> Result<()> {
        let process = self.process();
        let process = process.as_ref().ok_or_else(|| anyhow!("{} is not running", self.kind()))?;
        send(Signal::Continue, &self.dependants(process))?;
        process.signal(Signal::Continue)?;
        Ok(())
    }

    /// The children that do a server's work: PostgreSQL has one for each connection. RabbitMQ's are
    /// helpers that end with it.
    fn dependants(&self, process: &Process) -> Vec<u32> {
        match self.kind() {
            Kind::PostgreSql => process.children(),
            Kind::RabbitMq | Kind::Redis => Vec::new(),
        }
    }

    fn spawn(&self) -> Result<()> {
        let mut slot = self.process();
        if slot.is_some() {
            bail!("{} is running already", self.kind());
        }
        let (mut command, log) = match &self.launch {
            Launch::RabbitMq(it) => it.command()?,
            Launch::Redis(it) => it.command()?,
            Launch::PostgreSql(it) => it.command()?,
        };
        *slot = Some(Process::spawn(self.kind().as_str(), &mut command, &log)?);
        Ok(())
    }

    async fn ready(&self) -> Result<()> {
        let ready = until(format!("{} to answer", self.kind()), READY_LIMIT, async || {
            if let Some(status) = self.process().as_ref().and_then(Process::exited) {
                // Nothing will change any more: no reason to wait on.
                return Ok(Err(anyhow!("{} ended at once: {status}", self.kind())));
            }
            match &self.launch {
                Launch::RabbitMq(it) => it.probe().await,
                Launch::Redis(it) => it.probe().await,
                Launch::PostgreSql(it) => it.probe().await,
            }
            .map(Ok)
        })
        .await;
        ready.map_err(anyhow::Error::from).flatten().with_context(|| {
            format!("{} did not come up; the end of its log:\n{}", self.kind(), self.log_tail())
        })
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A password that no other user of this machine can guess.
fn secret() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Writes a file that its owner alone can read. (A process's arguments everybody can read.)
fn write_secret(file: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(file)?
            .write_all(text.as_bytes())
    };
    write().with_context(|| format!("{} cannot be written", file.display()))
}

/// Removes a directory that may not be there.
fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", dir.display()))
        }
        _ => Ok(()),
    }
}

fn alive(pid: u32) -> bool {
    // A zombie has no open directory any more.
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok()
}
