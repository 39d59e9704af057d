//! One connection at a time: made on demand, checked before use, discarded when it is lost.
//!
//! One connection object is one Redis server process, or one process for each master of a cluster
//! with its slots. A client that reconnects by itself, or follows a moved slot, would continue
//! after a restart, failover or resharding as if the server had lost nothing. So a connection that
//! is lost or whose server identity changed is discarded. The identity of a new connection is
//! compared with the recorded one before its first use.
//!
//! - While a slot migrates, its old master replies ASK for a key that it no longer has. ASK is not
//!   followed: the new master may have a copy from an earlier migration that was aborted, and that
//!   copy would be accepted there. Instead the call fails for this one key, which costs a read of
//!   PostgreSQL. When the migration is complete, MOVED ends the connection, and the next server
//!   identity invalidates every copy.
//! - Only one attempt to connect runs at a time, with pauses between attempts. Calls that come
//!   while Redis is known to be unavailable fail at once instead of waiting for a timeout.
//! - A write requires an identity check that is at most two intervals old. If the watcher is late
//!   (for example because the process was suspended), the next write checks first. A read requires
//!   no check: what it finds is compared with the epoch and generation in PostgreSQL.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use domain::causes::with_causes;
use domain::repeated::RepeatedFailure;
use redis::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::error::Error;
use crate::node::Node;
use crate::server_identity::ServerIdentity;
use crate::servers::Servers;
use crate::settings::Settings;

/// The last known state of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// No attempt to connect has ended yet.
    Untried,
    /// There is a checked connection.
    Up,
    /// The connection was lost, or the last attempt to connect failed.
    Down,
}

/// The timeout of an identity check. A check is one small transaction in PostgreSQL; without a
/// timeout one that hangs would prevent every further attempt to connect.
const SERVER_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after the first failed attempt; it doubles up to [`Settings::longest_pause`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// For how many intervals of the watcher an identity check is valid for writes. With the defaults
/// that is 2 s. Together with 1 s for the reply, a server that is no longer the master is written
/// to for at most 3 s.
const CHECK_VALID_INTERVALS: u32 = 2;

type BoxError = Box<dyn StdError + Send + Sync>;
type ServerCheck = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;
type Attempt = watch::Receiver<Option<Result<Connection, Error>>>;

#[derive(Clone)]
pub(crate) struct Connections(Arc<Shared>);

struct Shared {
    settings: Settings,
    check_server: Box<dyn Fn(ServerIdentity) -> ServerCheck + Send + Sync>,
    state: Mutex<State>,
    health: watch::Sender<Health>,
    serial: AtomicU64,
}

/// The state of the connection. Its lock is never held across an await.
enum State {
    /// There is no connection; the next call connects at once.
    Empty,
    /// An attempt to connect is running. `down` is the last error if Redis was known to be
    /// unavailable.
    Connecting { attempt: Attempt, down: Option<Error> },
    /// Checked and in use.
    Live(Connection),
    /// The last attempt failed; the next one may start at `retry_at`.
    Down { cause: Error, retry_at: Instant, pauses: ExponentialBackoff },
}

/// A connection whose server identity was checked. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection(Arc<CheckedConnection>);

struct CheckedConnection {
    serial: u64,
    servers: Servers,
    server_identity: ServerIdentity,
    last_check: LastCheck,
    owner: Connections,
}

#[derive(Clone, Copy)]
pub(crate) struct Link<'a> {
    connection: &'a Connection,
    node: &'a Node,
}

pub(crate) struct Share<'a, T> {
    pub(crate) link: Link<'a>,
    /// The keys of this server, each with its part of the work.
    pub(crate) items: Vec<(String, T)>,
}

struct LastCheck {
    /// When the last successful identity check began.
    at: Mutex<Instant>,
    /// Held during a check, so that many waiting writers cause one check.
    running: tokio::sync::Mutex<()>,
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
            state: Mutex::new(State::Empty),
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

    /// The current connection, or a new one. Fails at once while Redis is known to be unavailable.
    pub(crate) async fn get(&self) -> Result<Connection, Error> {
        let mut attempt = {
            let mut state = self.state();
            match &mut *state {
                State::Live(connection) => return Ok(connection.clone()),
                State::Down { cause, retry_at, .. } if Instant::now() < *retry_at => {
                    return Err(cause.clone());
                }
                // An attempt whose sender was dropped has panicked; the next one may start.
                State::Connecting { attempt, down } if attempt.has_changed().is_ok() => {
                    match down {
                        Some(cause) => return Err(cause.clone()),
                        None => attempt.clone(),
                    }
                }
                State::Empty | State::Connecting { .. } | State::Down { .. } => {
                    self.start(&mut state)
                }
            }
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(Error::NotConnected("the attempt to connect panicked".into())),
        }
    }

    /// A connection for writes: its server identity was checked recently.
    pub(crate) async fn get_for_writing(&self) -> Result<Connection, Error> {
        let connection = self.get().await?;
        if !connection.has_valid_check() {
            let running = connection.0.last_check.running.lock().await;
            if !connection.has_valid_check() {
                self.check_again(&connection).await?;
            }
            drop(running);
        }
        Ok(connection)
    }

    /// Runs for ever: connects when there is no connection, and checks the server identity at every
    /// interval.
    pub(crate) async fn watch(&self) {
        let mut checks = RepeatedFailure::default();
        loop {
            // A failed attempt was logged when the health changed.
            if let Ok(connection) = self.get().await {
                let running = connection.0.last_check.running.lock().await;
                let result = self.check_again(&connection).await;
                let now = Instant::now().into();
                match result {
                    Ok(()) => {
                        if let Some(failed_for) = checks.succeeded(now) {
                            let seconds = failed_for.as_secs_f32();
                            tracing::info!(
                                "Redis server identity check succeeded again after {seconds:.1} s"
                            );
                        }
                    }
                    // A lost connection has its own log line.
                    Err(error) if error.ends_the_connection() => {}
                    Err(error) if checks.failed(now) => tracing::warn!(
                        error = with_causes(&error),
                        "Redis server identity check failed; hot copies are written only after a \
                         successful check"
                    ),
                    Err(_) => {}
                }
                drop(running);
            }
            sleep(self.pause()).await;
        }
    }

    pub(crate) fn lost(&self, serial: u64, cause: &Error) {
        let mut state = self.state();
        if matches!(&*state, State::Live(connection) if connection.serial() == serial) {
            *state = State::Empty;
            self.publish(Health::Down, Some(cause));
        }
    }

    /// Starts an attempt in its own task, so that it continues when its caller is cancelled.
    fn start(&self, state: &mut State) -> Attempt {
        let (outcome, attempt) = watch::channel(None);
        let (mut pauses, down) = match std::mem::replace(state, State::Empty) {
            State::Down { pauses, cause, .. } => (pauses, Some(cause)),
            State::Empty | State::Connecting { .. } | State::Live(_) => (self.pauses(), None),
        };
        *state = State::Connecting { attempt: attempt.clone(), down };
        let this = self.clone();
        tokio::spawn(async move {
            let result = this.connect().await;
            let mut state = this.state();
            match &result {
                Ok(connection) => {
                    *state = State::Live(connection.clone());
                    this.publish(Health::Up, None);
                }
                Err(cause) => {
                    let pause = pauses.next().unwrap_or(this.0.settings.longest_pause);
                    let retry_at = Instant::now() + pause;
                    *state = State::Down { cause: cause.clone(), retry_at, pauses };
                    this.publish(Health::Down, Some(cause));
                }
            }
            drop(state);
            outcome.send_replace(Some(result));
        });
        attempt
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let began = Instant::now();
        let (servers, server_identity) =
            Servers::connect(&self.0.settings).await.map_err(Error::while_connecting)?;
        self.check_server(&server_identity).await?;
        Ok(Connection(Arc::new(CheckedConnection {
            serial: self.0.serial.fetch_add(1, Ordering::Relaxed),
            servers,
            server_identity,
            last_check: LastCheck { at: Mutex::new(began), running: tokio::sync::Mutex::new(()) },
            owner: self.clone(),
        })))
    }

    /// Reads the server identity again and checks it. A changed identity ends the connection. A
    /// check that fails does not: PostgreSQL may be unavailable, and then the hot copy is the only
    /// thing that can be read.
    async fn check_again(&self, connection: &Connection) -> Result<(), Error> {
        let began = Instant::now();
        let result = match connection.0.servers.server_identity().await {
            Ok(server_identity) if server_identity == connection.0.server_identity => {
                self.check_server(&server_identity).await
            }
            Ok(_) => Err(Error::NotServing("its server identity changed; reconnecting".into())),
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => *lock(&connection.0.last_check.at) = began,
            Err(error) => connection.note(error),
        }
        result
    }

    async fn check_server(&self, server_identity: &ServerIdentity) -> Result<(), Error> {
        match timeout(SERVER_CHECK_TIMEOUT, (self.0.check_server)(server_identity.clone())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::ServerRejected(error.to_string().into())),
            Err(_) => {
                let limit = SERVER_CHECK_TIMEOUT.as_secs();
                Err(Error::ServerRejected(format!("no result within {limit} s").into()))
            }
        }
    }

    fn pause(&self) -> Duration {
        match &*self.state() {
            State::Down { retry_at, .. } => retry_at.saturating_duration_since(Instant::now()),
            State::Empty => Duration::ZERO,
            State::Connecting { .. } | State::Live(_) => self.0.settings.watch_every,
        }
    }

    fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(FIRST_PAUSE)
            // The jitter adds up to 100 %.
            .with_max_delay(self.0.settings.longest_pause / 2)
            .without_max_times()
            .with_jitter()
            .build()
    }

    /// Publishes the health, and logs it if it changed. Called with the state locked, so that
    /// changes are published and logged in the order in which they happened.
    fn publish(&self, health: Health, cause: Option<&Error>) {
        let changed =
            self.0.health.send_if_modified(|old| std::mem::replace(old, health) != health);
        let server = &self.0.settings.address;
        match cause {
            _ if !changed => {}
            Some(cause) => {
                tracing::warn!(%server, %cause, "Redis unavailable; using PostgreSQL, reconnecting");
            }
            None => tracing::info!(%server, "connected to Redis"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

impl Connection {
    pub(crate) fn serial(&self) -> u64 {
        self.0.serial
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = Link<'_>> {
        self.0.servers.nodes().iter().map(|node| Link { connection: self, node })
    }

    pub(crate) fn of(&self, key: &str) -> Link<'_> {
        let node = &self.0.servers.nodes()[self.0.servers.index_of(key)];
        Link { connection: self, node }
    }

    /// Splits work by the server process of each key. Servers without work are left out.
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

    fn has_valid_check(&self) -> bool {
        let valid_for = self.0.owner.0.settings.watch_every * CHECK_VALID_INTERVALS;
        lock(&self.0.last_check.at).elapsed() < valid_for
    }
}

impl Link<'_> {
    /// Sends a pipeline in one write and returns one reply for each command; a transaction has one
    /// reply. A reply may be an error: use [`Link::check`].
    pub(crate) async fn run(&self, pipeline: &redis::Pipeline) -> Result<Vec<Value>, Error> {
        self.node.run(pipeline).await.map_err(|error| self.noted(error))
    }

    /// Sends one command. An error reply is returned as an error.
    pub(crate) async fn call(&self, command: &redis::Cmd) -> Result<Value, redis::RedisError> {
        self.node.call(command).await.inspect_err(|error| {
            self.noted(error.clone());
        })
    }

    /// Returns an error reply as an error, and discards the connection if the error requires it.
    pub(crate) fn check(&self, reply: &Value) -> Result<(), Error> {
        match reply {
            Value::ServerError(error) => Err(self.noted(error.clone().into())),
            _ => Ok(()),
        }
    }

    fn noted(&self, error: redis::RedisError) -> Error {
        let error = Error::from(error).at(self.node.name());
        self.connection.note(&error);
        error
    }
}

/// Ignores poisoning: every critical section is one assignment, so a panic leaves no partial
/// change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
