//! The pool of connections to PostgreSQL.
//!
//! sqlx's own pool pings every connection that is released: one more round trip for each unit of work.
//! This pool pings only after a failed unit of work, which also rolls back its transaction. When a
//! connection breaks or times out, all idle connections are closed too: they lead to the same server,
//! and each would fail another unit of work before it is replaced.
//!
//! Invariant: every connection in use holds a permit; idle connections hold none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::failure::FailureClass;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::connection_settings::{self, Limits, SessionSettings, Statements};
use crate::{Error, Result};

/// How long a connection may be idle before it is closed: less than the idle timeouts of firewalls
/// (commonly an hour; Azure's load balancers 4 minutes, AWS's 350 s).
const MAX_IDLE: Duration = Duration::from_secs(200);

/// The age at which a connection is closed. A PostgreSQL backend never frees its caches, so it is
/// replaced now and then.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

pub(crate) struct Pool {
    options: PgConnectOptions,
    session_settings: SessionSettings,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: PgConnection,
    /// The time limits that are set on it.
    limits: Limits,
    opened_at: Instant,
    idle_since: Instant,
}

/// A connection in use. Dropping it, as a cancelled unit of work does, closes it, because a statement may
/// still be running on it.
pub(crate) struct Lease {
    pub(crate) connection: PgConnection,
    limits: Limits,
    opened_at: Instant,
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(
        options: PgConnectOptions,
        session_settings: SessionSettings,
        connections: u32,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(connections as usize));
        Self { options, session_settings, permits, idle: Mutex::default() }
    }

    pub(crate) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// How statements are sent.
    pub(crate) fn statements(&self) -> Statements {
        match self.session_settings {
            SessionSettings::OfTheConnection => Statements::Prepared,
            SessionSettings::OfTheRole(statements) => statements,
        }
    }

    /// Whether the connections are those of a role of the conversation-api.
    pub(crate) fn is_of_role(&self) -> bool {
        self.session_settings != SessionSettings::OfTheConnection
    }

    /// As many connections to the same server, which are opened in the same way.
    pub(crate) fn another(&self, connections: u32) -> Self {
        Self::new(self.options.clone(), self.session_settings, connections)
    }

    async fn connect(&self, limits: Limits) -> Result<PgConnection> {
        match self.session_settings {
            SessionSettings::OfTheConnection => {
                let options = connection_settings::limited(self.options.clone(), limits);
                connection_settings::connect(&options).await
            }
            SessionSettings::OfTheRole(_) => Ok(self.options.connect().await?),
        }
    }

    /// A connection with these time limits, if possible the one that was released last, else a new one; waits while all
    /// are in use.
    pub(crate) async fn lease(self: &Arc<Self>, limits: Limits) -> Result<Lease> {
        let closed = |_| sqlx::Error::PoolClosed;
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
        let (connection, opened_at) = match self.take_idle(limits) {
            Some(idle) => {
                let Idle { mut connection, opened_at, .. } = idle;
                if idle.limits != limits
                    && self.session_settings == SessionSettings::OfTheConnection
                {
                    connection_settings::set(&mut connection, limits).await?;
                }
                (connection, opened_at)
            }
            None => (self.connect(limits).await?, Instant::now()),
        };
        Ok(Lease { connection, limits, opened_at, pool: Arc::clone(self), permit })
    }

    /// The idle connection that was released last, if possible one with these limits.
    fn take_idle(&self, limits: Limits) -> Option<Idle> {
        let mut idle = self.idle();
        let same = idle.iter().rposition(|it| it.limits == limits);
        let released = match same {
            Some(position) => Some(idle.remove(position)),
            None => idle.pop(),
        };
        released.filter(Idle::is_reusable)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// After work that succeeded: the connection becomes idle.
    pub(crate) fn release(self) {
        let Self { connection, limits, opened_at, pool, permit } = self;
        let mut idle = pool.idle();
        idle.retain(Idle::is_reusable);
        idle.push(Idle { connection, limits, opened_at, idle_since: Instant::now() });
        drop(idle);
        drop(permit);
    }

    /// After work that failed: rolls back an open transaction first, in the background and within
    /// `limit`. If the error means that the connection is broken, discards it.
    pub(crate) fn release_after(mut self, error: &Error, limit: Duration) {
        if is_broken(error) {
            self.discard();
            return;
        }
        drop(tokio::spawn(async move {
            match timeout(limit, self.connection.ping()).await {
                Ok(Ok(())) => self.release(),
                Ok(Err(_)) | Err(_) => self.discard(),
            }
        }));
    }

    /// Closes this connection, which is broken or timed out, and all idle ones, which most likely are too.
    pub(crate) fn discard(self) {
        self.pool.idle().clear();
    }
}

impl Idle {
    fn is_reusable(&self) -> bool {
        self.idle_since.elapsed() < MAX_IDLE && self.opened_at.elapsed() < MAX_AGE
    }
}

fn is_broken(error: &Error) -> bool {
    if let Error::NotBegun(_) = error {
        return true;
    }
    match error.sqlstate() {
        // The server ended the connection: connection exception (08), shutdown, crash, startup (57P). Or it does not
        // have what was prepared on it (26), or it is in a transaction that failed or should not be there (25P).
        Some(code) => ["08", "57P", "26", "25P"].iter().any(|class| code.starts_with(class)),
        None => error.class() == FailureClass::Unavailable,
    }
}
