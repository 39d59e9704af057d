//! One connection at a time, made on demand, admitted before use, dropped for good when it breaks.
//!
//! One connection object is one server process. A client that reconnects behind our back would go
//! on after a restart or failover as if nothing had been forgotten; here a broken connection is
//! dropped, and a new one is compared with the reign on record before anybody uses it.
//!
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
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::error::Error;
use crate::reign::Reign;
use crate::settings::{InvalidAddress, Settings};

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
const ADMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after the first failed attempt; it doubles up to [`Settings::longest_pause`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// For how many intervals of the watcher a write relies on a comparison. With the defaults that is
/// 2 s, and with 1 s for the reply no write goes unnoticed to a deposed server for more than 3 s.
const RELY_ON_INTERVALS: u32 = 2;

type BoxError = Box<dyn StdError + Send + Sync>;
type Admission = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;
type Attempt = watch::Receiver<Option<Result<Connection, Error>>>;

/// The way to Redis, shared by all clones of the store.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Shared>);

struct Shared {
    settings: Settings,
    client: redis::Client,
    admit: Box<dyn Fn(Reign) -> Admission + Send + Sync>,
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

/// An admitted connection to one server process.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Tells this connection from every other that this process made.
    serial: u64,
    redis: MultiplexedConnection,
    reign: Reign,
    compared: Arc<Compared>,
    owner: Connections,
}

struct Compared {
    /// When the last comparison that succeeded began.
    at: Mutex<Instant>,
    /// Held while one is under way, so that many late writers compare once.
    turn: tokio::sync::Mutex<()>,
}

impl Connections {
    pub(crate) fn new<F, Fut, E>(settings: Settings, admit: F) -> Result<Self, InvalidAddress>
    where
        F: Fn(Reign) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let client = redis::Client::open(settings.address.info().clone())
            .map_err(|_| InvalidAddress::Malformed("the client does not accept it"))?;
        Ok(Self(Arc::new(Shared {
            settings,
            client,
            admit: Box::new(move |reign| {
                let admission = admit(reign);
                Box::pin(async move { admission.await.map_err(Into::into) })
            }),
            slot: Mutex::new(Slot::Empty),
            health: watch::Sender::new(Health::Untried),
            serial: AtomicU64::new(0),
        })))
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
            let turn = connection.compared.turn.lock().await;
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
                let turn = connection.compared.turn.lock().await;
                if let Err(error) = self.compare(&connection).await {
                    tracing::warn!(%error, "the reign of Redis could not be compared");
                }
                drop(turn);
            }
            sleep(self.pause()).await;
        }
    }

    /// Takes a connection out of use, if it is still in use.
    pub(crate) fn lost(&self, serial: u64, cause: &Error) {
        let mut slot = self.slot();
        if matches!(&*slot, Slot::Live(connection) if connection.serial == serial) {
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
        let settings = &self.0.settings;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let not_connected = |error: Error| match error {
            Error::NotMaster(_) | Error::NotAdmitted(_) => error,
            other => Error::NotConnected(format!("{}: {other}", settings.address).into()),
        };
        let redis = self
            .0
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| not_connected(error.into()))?;
        let began = Instant::now();
        let reign = reign_of(redis.clone()).await.map_err(not_connected)?;
        self.admit(&reign).await?;
        Ok(Connection {
            serial: self.0.serial.fetch_add(1, Ordering::Relaxed),
            redis,
            reign,
            compared: Arc::new(Compared {
                at: Mutex::new(began),
                turn: tokio::sync::Mutex::new(()),
            }),
            owner: self.clone(),
        })
    }

    /// Asks the server for its reign again and compares it with the record. A changed reign ends the
    /// connection; a record that cannot be read does not, since PostgreSQL may be away and the copy
    /// be all that there is to read.
    async fn compare(&self, connection: &Connection) -> Result<(), Error> {
        let began = Instant::now();
        let result = match reign_of(connection.redis.clone()).await {
            Ok(reign) if reign == connection.reign => self.admit(&reign).await,
            Ok(_) => Err(Error::NotServing("its reign has changed".into())),
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => *lock(&connection.compared.at) = began,
            Err(error) => connection.note(error),
        }
        result
    }

    async fn admit(&self, reign: &Reign) -> Result<(), Error> {
        match timeout(ADMIT_TIMEOUT, (self.0.admit)(reign.clone())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::NotAdmitted(error.to_string().into())),
            Err(_) => Err(Error::NotAdmitted("the comparison took too long".into())),
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
        self.serial
    }

    /// Sends a pipeline in one write and returns one reply for each command; an error among them is
    /// for [`Connection::check`]. A transaction has one reply for all.
    pub(crate) async fn run(&self, pipeline: &redis::Pipeline) -> Result<Vec<Value>, Error> {
        let (skipped, awaited) =
            if pipeline.is_transaction() { (pipeline.len() + 1, 1) } else { (0, pipeline.len()) };
        let replies = self.redis.clone().send_packed_commands(pipeline, skipped, awaited).await;
        replies.map_err(|error| self.noted(error))
    }

    /// Sends one command; an error that the server answers is an error here.
    pub(crate) async fn call(&self, command: &redis::Cmd) -> Result<Value, redis::RedisError> {
        let reply = self.redis.clone().send_packed_command(command).await;
        reply.and_then(Value::extract_error).inspect_err(|error| {
            self.note(&error.clone().into());
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
        let error = error.into();
        self.note(&error);
        error
    }

    fn note(&self, error: &Error) {
        if error.ends_the_connection() {
            self.owner.lost(self.serial, error);
        }
    }

    fn is_compared(&self) -> bool {
        let rely_on = self.owner.0.settings.watch_every * RELY_ON_INTERVALS;
        lock(&self.compared.at).elapsed() < rely_on
    }
}

/// Asks a server who it is, and whether it serves at all: INFO alone is answered while loading.
async fn reign_of(mut redis: MultiplexedConnection) -> Result<Reign, Error> {
    let mut questions = redis::pipe();
    questions.cmd("PING").ignore();
    questions.cmd("INFO").arg("server").cmd("INFO").arg("replication");
    let (server, replication): (String, String) = questions.query_async(&mut redis).await?;
    Reign::of_server(&server, &replication)
}

/// A panic while the lock was held leaves nothing half done: every critical section is one store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
