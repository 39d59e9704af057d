//! How to reach PostgreSQL, and the time-out around every unit of work.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::{Instant, timeout_at};

use crate::pool::Pool;
use crate::save_heuristics::{ExpectDuplicates, ExpectSettled};
use crate::writers::Writer;
use crate::{Error, Result};

/// How to reach PostgreSQL.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`. Holds a secret: never logged.
    pub url: String,
    /// The name under which `pg_stat_activity` shows the connections.
    pub application: String,
    /// The most connections that this process opens.
    pub connections: u32,
    /// How long one unit of work may take, waiting for a connection included; a server that is
    /// silent for longer counts as away.
    pub time_out: Duration,
    /// How long a statement waits for a row lock before it gives up and is retried.
    pub lock_time_out: Duration,
}

/// The archive: a pool of connections to PostgreSQL. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    pub(crate) pool: Arc<Pool>,
    pub(crate) expect_duplicates: Arc<ExpectDuplicates>,
    pub(crate) expect_settled: Arc<ExpectSettled>,
    pub(crate) writer: Option<Arc<Writer>>,
    pub(crate) time_out: Duration,
}

impl Database {
    /// Makes the pool; connects on first use, so that a server that is away delays and does not
    /// stop the start. Fails only on a URL that cannot be parsed.
    pub fn open(settings: &Settings) -> Result<Self> {
        let options = PgConnectOptions::from_str(&settings.url)?
            .application_name(&settings.application)
            .options([
                ("lock_timeout", format!("{}ms", settings.lock_time_out.as_millis())),
                ("statement_timeout", format!("{}ms", settings.time_out.as_millis())),
                // A worker that was frozen or cut off must not keep row locks for ever.
                ("idle_in_transaction_session_timeout", "30s".to_owned()),
                ("TimeZone", "UTC".to_owned()),
                // One plan for each statement, whatever its values and however much or little was in
                // the tables when it was made: by index. A statement of ours that has no index to walk
                // is a mistake, and a batch of one message is not worth a plan of its own.
                ("plan_cache_mode", "force_generic_plan".to_owned()),
                ("enable_seqscan", "off".to_owned()),
                ("jit", "off".to_owned()),
            ]);
        Ok(Self {
            pool: Arc::new(Pool::new(options, settings.connections)),
            expect_duplicates: Arc::default(),
            expect_settled: Arc::default(),
            writer: None,
            time_out: settings.time_out,
        })
    }

    /// Whether PostgreSQL answers and would accept a write.
    pub async fn probe(&self) -> Result<()> {
        self.within(async |connection| {
            let read_only: bool = sqlx::query_scalar(
                "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean",
            )
            .fetch_one(&mut *connection)
            .await?;
            if read_only {
                return Err(Error::Database(sqlx::Error::Protocol(
                    "the server is read-only (a standby, or default_transaction_read_only)".into(),
                )));
            }
            Ok(())
        })
        .await
    }

    /// Closes every connection; what is under way finishes first.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Runs one unit of work on a connection of its own, all of it under the time-out.
    ///
    /// Work that succeeds has ended its transactions. Where it fails or falls silent, the connection
    /// is taken care of in [`Pool`]; the caller never waits for that.
    pub(crate) async fn within<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.time_out;
        let silent = |_| Error::TimedOut(self.time_out);
        let mut lease = timeout_at(deadline, self.pool.lease()).await.map_err(silent)??;
        match timeout_at(deadline, work(&mut lease.connection)).await {
            Ok(Ok(done)) => {
                lease.release();
                Ok(done)
            }
            Ok(Err(error)) => {
                lease.release_after(&error, self.time_out);
                Err(error)
            }
            Err(elapsed) => {
                lease.lose();
                Err(silent(elapsed))
            }
        }
    }
}
