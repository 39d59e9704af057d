//! One connection at a time, made on demand, admitted before use, dropped for good when it breaks.
//!
//! One connection object is one server process, or one process for each master of a cluster, with
//! the slots that each has. A client that reconnects or follows a moved slot behind our back would go
//! on after a restart, failover or resharding as if nothing had been forgotten; here a connection of
//! which a part broke or changed is dropped, and a new one is compared with the server identity on record before
//! anybody uses it.
//!
//! - While a slot is handed over, its old master answers ASK for a key that it no longer has. It is
//!   not followed: at the other end may lie a copy from an earlier, broken-off attempt, which would be
//!   believed there. The call fails for that one key, which costs a read of PostgreSQL. When the slot
//!   has arrived, MOVED ends the connection, and the next server identity voids every copy.
//! - Connecting is single flight. Calls that come while Redis is known to be down fail at once,
//!   rather than each waiting for a time-out; one attempt at a time runs, with pauses between them.
//! - Writes rely on a comparison that is at most two intervals old. If the watcher is late (the
//!   process was frozen, say), the next write compares first. Reads need not: what they find is
//!   checked against PostgreSQL's numbers.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use domain::causes::with_causes;
use redis::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::error::Error;
use crate::node::Node;
use crate::server_identity::ServerIdentity;
use crate::servers::Servers;
use crate::settings::Settings;

/// What is known of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Nobody has tried yet.
    Untried,
    /// There is an admitted connection.
    Up,
    /// The connection broke, or the last attempt to make one failed.
    Down,
}

/// How long the comparison with the record may take. It is one small transaction in PostgreSQL;
/// without a bound one that hangs would keep all others from connecting.
const SERVER_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after the first failed attempt; it doubles up to [`Settings::longest_pause`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// For how many intervals of the watcher a write relies on a comparison. With the defaults that is
/// 2 s, and with 1 s for the reply no write goes unnoticed to a deposed server for more than 3 s.
const RELY_ON_INTERVALS: u32 = 2;

type BoxError = Box<dyn StdError + Send + Sync>;
type ServerCheck = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;
type Attempt = watch::Receiver<Option<Result<Connection, Error>>>;

/// The way to Redis, shared by all clones of the store.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Shared>);

struct Shared {
    settings: Settings,
    check_server: Box<dyn Fn(ServerIdentity) -> ServerCheck + Send + Sync>,
    slot: Mutex<Slot>,
    health: watch::Sender<Health>,
    serial: AtomicU64,
}

/// Where the current connection is. Never held across an await.
enum Slot {
    /// None, and nothing speaks against making one at once.
    Empty,
    /// One attempt is under way. `down` holds why, if Redis was known to be down before it.
    Connecting { attempt: Attempt, down: Option<Error> },
    /// Admitted and in use.
    Live(Connection),
    /// The last attempt failed; the next is not due before `retry_at`.
    Down { cause: Error, retry_at: Instant, pauses: ExponentialBackoff },
}

/// An admitted connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection(Arc<CheckedConnection>);

struct CheckedConnection {
    /// Tells this connection from every other that this process made.
    serial: u64,
    servers: Servers,
    server_identity: ServerIdentity,
    compared: Compared,
    owner: Connections,
}

/// One server process of a connection: the one that has a key.
#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    connection: &'a Connection,
    node: &'a Node,
}

/// What one server process is to do of a larger piece of work.
pub(crate) struct Share<'a, T> {
    pub(crate) link: Link<'a>,
    /// Keys that it has, each with what belongs to it.
    pub(crate) items: Vec<(String, T)>,
}

struct Compared {
    /// When the last comparison that succeeded began.
    at: Mutex<Instant>,
    /// Held while one is under way, so that many late writers compare once.
    turn: tokio::sync::Mutex<()>,
}

impl Connections {
    pub(crate) fn new<F, Fut, E>(settings: Settings, check_server: F) -> Self
    where
        F: Fn(ServerIdentity) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Arc::new(Shared {
            settings,
            check_server: Box::new(move |server_identity| {
                let check_server = check_server(server_identity);
                Box::pin(async move { check_server.await.map_err(Into::into) })
            }),
            slot: Mutex::new(Slot::Empty),
            health: watch::Sender::new(Health::Untried),
            serial: AtomicU64::new(0),
        }))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// The current connection, or a new one; fails at once while Redis is known to be down.
    pub(crate) async fn get(&self) -> Result<Connection, Error> {
        let mut attempt = {
            let mut slot = self.slot();
            match &mut *slot {
                Slot::Live(connection) => return Ok(connection.clone()),
                Slot::Down { cause, retry_at, .. } if Instant::now() < *retry_at => {
                    return Err(cause.clone());
                }
                // An attempt whose sender is gone has panicked; it must not block the next one.
                Slot::Connecting { attempt, down } if attempt.has_changed().is_ok() => match down {
                    Some(cause) => return Err(cause.clone()),
                    None => attempt.clone(),
                },
                Slot::Empty | Slot::Connecting { .. } | Slot::Down { .. } => self.start(&mut slot),
            }
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(Error::NotConnected("the attempt was given up".into())),
        }
    }

    /// A connection that may be written to: compared with the record not long ago.
    pub(crate) async fn get_for_writing(&self) -> Result<Connection, Error> {
        let connection = self.get().await?;
        if !connection.is_compared() {
            let turn = connection.0.compared.turn.lock().await;
            if !connection.is_compared() {
                self.compare(&connection).await?;
            }
            drop(turn);
        }
        Ok(connection)
    }

    /// Connects whenever there is no connection and compares the one that there is, for ever.
    pub(crate) async fn watch(&self) {
        loop {
            // That there is none was logged when the health changed.
            if let Ok(connection) = self.get().await {
                let turn = connection.0.compared.turn.lock().await;
                if let Err(error) = self.compare(&connection).await {
                    tracing::warn!(
                        error = with_causes(&error),
                        "the server identity of Redis could not be compared"
                    );
                }
                drop(turn);
            }
            sleep(self.pause()).await;
        }
    }

    /// Takes a connection out of use, if it is still in use.
    pub(crate) fn lost(&self, serial: u64, cause: &Error) {
        let mut slot = self.slot();
        if matches!(&*slot, Slot::Live(connection) if connection.serial() == serial) {
            *slot = Slot::Empty;
            self.tell(Health::Down, Some(cause));
        }
    }

    /// Starts an attempt in a task of its own, so that a caller who gives up does not end it.
    fn start(&self, slot: &mut Slot) -> Attempt {
        let (outcome, attempt) = watch::channel(None);
        let started = Slot::Connecting { attempt: attempt.clone(), down: None };
        let (mut pauses, down) = match std::mem::replace(slot, started) {
            Slot::Down { pauses, cause, .. } => (pauses, Some(cause)),
            Slot::Empty | Slot::Connecting { .. } | Slot::Live(_) => (self.pauses(), None),
        };
        *slot = Slot::Connecting { attempt: attempt.clone(), down };
        let this = self.clone();
        tokio::spawn(async move {
            let result = this.connect().await;
            let mut slot = this.slot();
            match &result {
                Ok(connection) => {
                    *slot = Slot::Live(connection.clone());
                    this.tell(Health::Up, None);
                }
                Err(cause) => {
                    let pause = pauses.next().unwrap_or(this.0.settings.longest_pause);
                    let retry_at = Instant::now() + pause;
                    *slot = Slot::Down { cause: cause.clone(), retry_at, pauses };
                    this.tell(Health::Down, Some(cause));
                }
            }
            drop(slot);
            outcome.send_replace(Some(result));
        });
        attempt
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let began = Instant::now();
        let (servers, server_identity) =
            Servers::connect(&self.0.settings).await.map_err(Error::in_connecting)?;
        self.check_server(&server_identity).await?;
        Ok(Connection(Arc::new(CheckedConnection {
            serial: self.0.serial.fetch_add(1, Ordering::Relaxed),
            servers,
            server_identity,
            compared: Compared { at: Mutex::new(began), turn: tokio::sync::Mutex::new(()) },
            owner: self.clone(),
        })))
    }

    /// Asks the server for its server identity again and compares it with the record. A changed server identity ends the
    /// connection; a record that cannot be read does not, since PostgreSQL may be away and the copy
    /// be all that there is to read.
    async fn compare(&self, connection: &Connection) -> Result<(), Error> {
        let began = Instant::now();
        let result = match connection.0.servers.server_identity().await {
            Ok(server_identity) if server_identity == connection.0.server_identity => {
                self.check_server(&server_identity).await
            }
            Ok(_) => Err(Error::NotServing("its server identity has changed".into())),
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => *lock(&connection.0.compared.at) = began,
            Err(error) => connection.note(error),
        }
        result
    }

    async fn check_server(&self, server_identity: &ServerIdentity) -> Result<(), Error> {
        match timeout(SERVER_CHECK_TIMEOUT, (self.0.check_server)(server_identity.clone())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::ServerRejected(error.to_string().into())),
            Err(_) => Err(Error::ServerRejected("the comparison took too long".into())),
        }
    }

    /// How long the watcher rests: until the next attempt is due, or one interval.
    fn pause(&self) -> Duration {
        match &*self.slot() {
            Slot::Down { retry_at, .. } => retry_at.saturating_duration_since(Instant::now()),
            Slot::Empty => Duration::ZERO,
            Slot::Connecting { .. } | Slot::Live(_) => self.0.settings.watch_every,
        }
    }

    fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(FIRST_PAUSE)
            // The jitter adds up to as much again.
            .with_max_delay(self.0.settings.longest_pause / 2)
            .without_max_times()
            .with_jitter()
            .build()
    }

    /// Publishes the health, and logs it if it changed. Called with the slot locked, so that the
    /// order of what is told is the order of what happened.
    fn tell(&self, health: Health, cause: Option<&Error>) {
        let changed =
            self.0.health.send_if_modified(|old| std::mem::replace(old, health) != health);
        let server = &self.0.settings.address;
        match cause {
            _ if !changed => {}
            Some(cause) => tracing::warn!(%server, %cause, "Redis is down"),
            None => tracing::info!(%server, "Redis is up"),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        lock(&self.0.slot)
    }
}

impl Connection {
    /// Which of this process's connections it is.
    pub(crate) fn serial(&self) -> u64 {
        self.0.serial
    }

    /// Every server process.
    pub(crate) fn links(&self) -> impl Iterator<Item = Link<'_>> {
        self.0.servers.nodes().iter().map(|node| Link { connection: self, node })
    }

    /// The server process that has a key.
    pub(crate) fn of(&self, key: &str) -> Link<'_> {
        let node = &self.0.servers.nodes()[self.0.servers.index_of(key)];
        Link { connection: self, node }
    }

    /// Work, by the server process that has the key; without those that have none.
    pub(crate) fn shares<T>(&self, work: impl Iterator<Item = (String, T)>) -> Vec<Share<'_, T>> {
        let mut shares: Vec<_> =
            self.links().map(|link| Share { link, items: Vec::new() }).collect();
        for (key, item) in work {
            shares[self.0.servers.index_of(&key)].items.push((key, item));
        }
        shares.retain(|share| !share.items.is_empty());
        shares
    }

    fn note(&self, error: &Error) {
        if error.ends_the_connection() {
            self.0.owner.lost(self.0.serial, error);
        }
    }

    fn is_compared(&self) -> bool {
        let rely_on = self.0.owner.0.settings.watch_every * RELY_ON_INTERVALS;
        lock(&self.0.compared.at).elapsed() < rely_on
    }
}

impl Link<'_> {
    /// Sends a pipeline in one write and returns one reply for each command; an error among them is
    /// for [`Link::check`]. A transaction has one reply for all.
    pub(crate) async fn run(&self, pipeline: &redis::Pipeline) -> Result<Vec<Value>, Error> {
        self.node.run(pipeline).await.map_err(|error| self.noted(error))
    }

    /// Sends one command; an error that the server answers is an error here.
    pub(crate) async fn call(&self, command: &redis::Cmd) -> Result<Value, redis::RedisError> {
        self.node.call(command).await.inspect_err(|error| {
            self.noted(error.clone());
        })
    }

    /// Whether a reply is an error; takes the connection out of use if the error says so.
    pub(crate) fn check(&self, reply: &Value) -> Result<(), Error> {
        match reply {
            Value::ServerError(error) => Err(self.noted(error.clone().into())),
            _ => Ok(()),
        }
    }

    fn noted(&self, error: redis::RedisError) -> Error {
        let error = Error::from(error).at(self.node.place());
        self.connection.note(&error);
        error
    }
}

/// A panic while the lock was held leaves nothing half done: every critical section is one store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
