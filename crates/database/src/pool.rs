//! The connections to PostgreSQL that a process keeps.
//!
//! sqlx's own pool asks every connection that comes back whether it lives: one more round trip for
//! each unit of work. This one asks only after a failure, where a rollback is still to be sent. And a
//! connection that broke or fell silent takes the resting ones with it: they lead to the same server,
//! and each would cost a failed unit of work to find out.
//!
//! Invariant: a permit is held for every connection that is in use, and for none that rests.

use std::fmt::{self, Debug, Formatter};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::failure::FailureClass;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::{Error, Result};

/// How long a connection may rest before it is closed: less than what firewalls forget (commonly an
/// hour; Azure's load balancers after 4 minutes, AWS's after 350 s).
const REST: Duration = Duration::from_secs(200);

/// How old a connection grows. A server process keeps what it cached, so it should end some time.
const AGE: Duration = Duration::from_secs(30 * 60);

pub(crate) struct Pool {
    options: PgConnectOptions,
    connections: u32,
    permits: Arc<Semaphore>,
    resting: Mutex<Vec<Resting>>,
}

struct Resting {
    connection: PgConnection,
    born: Instant,
    since: Instant,
}

/// A connection in use. Dropping it, as a cancelled unit of work does, closes it: nobody knows what
/// it was in the middle of.
pub(crate) struct Lease {
    pub(crate) connection: PgConnection,
    born: Instant,
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(options: PgConnectOptions, connections: u32) -> Self {
        let permits = Arc::new(Semaphore::new(connections as usize));
        Self { options, connections, permits, resting: Mutex::default() }
    }

    /// The connection that rested last, or a new one; waits while all are in use.
    pub(crate) async fn lease(self: &Arc<Self>) -> Result<Lease> {
        let closed = |_| sqlx::Error::PoolClosed;
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
        let rested = self.resting().pop();
        let (connection, born) = match rested {
            Some(rested) if rested.is_fresh() => (rested.connection, rested.born),
            _ => (self.options.connect().await?, Instant::now()),
        };
        Ok(Lease { connection, born, pool: Arc::clone(self), permit })
    }

    /// Closes every connection, once nobody uses one any more.
    pub(crate) async fn close(&self) {
        // All permits at once: whoever asked before still gets his turn.
        drop(self.permits.acquire_many(self.connections).await);
        self.permits.close();
        let resting = std::mem::take(&mut *self.resting());
        for rested in resting {
            // The server ends the connection by itself where the farewell does not reach it.
            drop(timeout(Duration::from_secs(1), rested.connection.close()).await);
        }
    }

    fn resting(&self) -> MutexGuard<'_, Vec<Resting>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// After work that succeeded: the connection is ready for the next.
    pub(crate) fn release(self) {
        let Self { connection, born, pool, permit } = self;
        let mut resting = pool.resting();
        resting.retain(Resting::is_fresh);
        resting.push(Resting { connection, born, since: Instant::now() });
        drop(resting);
        drop(permit);
    }

    /// After work that failed: an open transaction is rolled back first, in the background and
    /// within `limit`. A connection that the error says is gone is not kept.
    pub(crate) fn release_after(mut self, error: &Error, limit: Duration) {
        if is_broken(error) {
            self.lose();
            return;
        }
        drop(tokio::spawn(async move {
            match timeout(limit, self.connection.ping()).await {
                Ok(Ok(())) => self.release(),
                Ok(Err(_)) | Err(_) => self.lose(),
            }
        }));
    }

    /// The connection is gone or silent. So are, most likely, those that rest.
    pub(crate) fn lose(self) {
        self.pool.resting().clear();
    }
}

impl Resting {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < REST && self.born.elapsed() < AGE
    }
}

/// Whether nothing more can be said over the connection that this error came from.
fn is_broken(error: &Error) -> bool {
    match error {
        Error::TimedOut(_) => true,
        Error::Corrupt { .. } => false,
        // The server said farewell: connection exception, shutdown, crash, starting up.
        Error::Database(sqlx::Error::Database(error)) => {
            error.code().is_some_and(|code| code.starts_with("08") || code.starts_with("57P"))
        }
        Error::Database(_) => error.class() == FailureClass::Unavailable,
    }
}

impl Debug for Pool {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // The options hold the password.
        f.debug_struct("Pool").field("connections", &self.connections).finish_non_exhaustive()
    }
}
