//! The pool of PostgreSQL, and the timeout around every unit of work.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{Connection as _, FromRow, Postgres};
use tokio::time::{Instant, timeout_at};

use crate::connection_settings::{self, Limits, SessionSettings, Settings, Statements};
use crate::pool::Pool;
use crate::save_heuristics::{ExpectDuplicates, ExpectSettled};
use crate::sequences::{self, AdvancedSequence};
use crate::wal_position::ReplicaStates;
use crate::writers::{Writer, WriterRow};
use crate::{Error, Result};

/// A pool of connections to PostgreSQL. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pub(crate) pool: Arc<Pool>,
    pub(crate) expect_duplicates: Arc<ExpectDuplicates>,
    pub(crate) expect_settled: Arc<ExpectSettled>,
    pub(crate) writer: Option<Arc<Writer>>,
    pub(crate) time_out: Duration,
    pub(crate) limits: Limits,
    /// For the role of the conversation-api: whose rows its transactions see, as [`crate::TenantKey`] signs it.
    tenant: Option<Arc<str>>,
    /// For a read replica: where each transaction notes the state of the server.
    states: Option<Arc<ReplicaStates>>,
}

impl Database {
    /// Creates the pool. It connects on first use, so that a process can start while PostgreSQL is
    /// unavailable. Fails only on a URL that cannot be parsed.
    pub fn open(settings: &Settings) -> Result<Self> {
        let options = connection_settings::options(settings)?;
        let pool = Pool::new(options, SessionSettings::OfTheConnection, settings.connections);
        Ok(Self::of(settings, pool))
    }

    /// As [`Self::open`], for the role of the conversation-api. It sees no rows before [`Self::of_tenant`].
    pub(crate) fn open_as_role(settings: &Settings, statements: Statements) -> Result<Self> {
        let options = connection_settings::options_of_role(settings)?;
        let session_settings = SessionSettings::OfTheRole(statements);
        Ok(Self::of(settings, Pool::new(options, session_settings, settings.connections)))
    }

    fn of(settings: &Settings, pool: Pool) -> Self {
        Self {
            pool: Arc::new(pool),
            expect_duplicates: Arc::default(),
            expect_settled: Arc::default(),
            writer: None,
            time_out: settings.time_out,
            limits: settings.limits(),
            tenant: None,
            states: None,
        }
    }

    /// The same connections; every transaction sees the rows of the tenant that is signed here.
    pub(crate) fn of_tenant(&self, signed: String) -> Self {
        Self { tenant: Some(signed.into()), ..self.clone() }
    }

    /// The same connections; every transaction of [`Self::in_transaction`] notes the state of the server first.
    pub(crate) fn noting(self, states: Arc<ReplicaStates>) -> Self {
        Self { states: Some(states), ..self }
    }

    /// The same server, on one connection of its own, with these limits for a unit of work.
    pub(crate) fn apart(&self, limits: Limits) -> Self {
        let pool = Arc::new(self.pool.another(1));
        Self { pool, time_out: limits.time_out, ..self.limited(limits) }
    }

    /// The same database and connections, with other time limits for a statement. A unit of work may take as long as
    /// before.
    #[must_use]
    pub fn limited(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// The same database with other time limits for a statement, on connections of its own: for work that takes long by
    /// itself. A unit of work may take as long as before in addition, so PostgreSQL ends a statement that is too slow
    /// before the wait for its answer ends.
    #[must_use]
    pub fn with_limits(&self, limits: Limits, connections: u32) -> Self {
        let pool = Arc::new(self.pool.another(connections));
        Self { pool, time_out: limits.time_out + self.time_out, ..self.limited(limits) }
    }

    /// The time limits of a statement.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The same database; messages saved through it are recorded as saved by this process. `instance` is
    /// its host and process id, which tells replicas apart.
    #[must_use]
    pub fn saving_as(mut self, process: &'static str, instance: String) -> Self {
        self.writer = Some(Writer::new(process, instance).into());
        self
    }

    /// The row of this process in `writers`; `None` if [`Self::saving_as`] was not called.
    pub(crate) async fn writer(&self, connection: &mut PgConnection) -> Result<Option<WriterRow>> {
        match &self.writer {
            Some(writer) => Ok(Some(writer.row(connection).await?)),
            None => Ok(None),
        }
    }

    /// [`Self::writer`], after a batch that named `row` was not saved: that row may be gone.
    pub(crate) async fn existing_writer(
        &self,
        connection: &mut PgConnection,
        row: Option<WriterRow>,
    ) -> Result<Option<WriterRow>> {
        match (&self.writer, row) {
            (Some(writer), Some(row)) => Ok(Some(writer.existing_row(connection, row).await?)),
            _ => Ok(row),
        }
    }

    /// Checks that PostgreSQL answers and accepts writes.
    pub async fn probe(&self) -> Result<()> {
        let query = sqlx::query_as(
            "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean",
        );
        match self.value(query).await? {
            (false,) => Ok(()),
            (true,) => Err(read_only()),
        }
    }

    /// Host and port of the server; `None` if it is a socket directory.
    #[must_use]
    pub fn address(&self) -> Option<(&str, u16)> {
        let options = self.pool.options();
        let host = Some(options.get_host()).filter(|host| !host.starts_with('/'));
        let host = host.filter(|_| options.get_socket().is_none());
        host.map(|host| (host.trim_matches(['[', ']']), options.get_port()))
    }

    /// Whether connections keep statements under a name; the argument of sqlx's `persistent` for each statement that the
    /// conversation-api executes.
    pub(crate) fn keeps_statements(&self) -> bool {
        self.pool.statements() == Statements::Prepared
    }

    /// Runs one statement; returns its rows.
    pub(crate) fn rows(
        &self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> impl Future<Output = Result<Vec<PgRow>>> {
        let query = query.persistent(self.keeps_statements());
        self.statement(async |connection| Ok(query.fetch_all(connection).await?))
    }

    /// Runs one statement; returns its rows as values.
    pub(crate) fn values<T>(
        &self,
        query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> impl Future<Output = Result<Vec<T>>>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(self.keeps_statements());
        self.statement(async |connection| Ok(query.fetch_all(connection).await?))
    }

    /// Runs one statement that returns exactly one row.
    pub(crate) fn value<T>(
        &self,
        query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> impl Future<Output = Result<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(self.keeps_statements());
        self.statement(async |connection| Ok(query.fetch_one(connection).await?))
    }

    /// Runs one statement; returns how many rows it changed.
    pub(crate) fn execute(
        &self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> impl Future<Output = Result<u64>> {
        let query = query.persistent(self.keeps_statements());
        self.statement(async |connection| Ok(query.execute(connection).await?.rows_affected()))
    }

    /// Runs work of one statement: one transaction. With a role of the API the transaction is begun, since that resets the
    /// session; and an unnamed statement is parsed and executed in two round trips, which only a transaction keeps on one
    /// connection of a pooler.
    pub(crate) async fn statement<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        match self.pool.is_of_role() {
            true => self.in_transaction(work).await,
            false => self.within(work).await,
        }
    }

    /// Runs one transaction, within the timeout, and commits it if the work succeeds. Every transaction of several
    /// statements begins here or in [`in_snapshot`](Self::in_snapshot), except migrations.
    pub(crate) async fn in_transaction<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        self.in_transaction_of(Begin::ToWrite, async |connection| {
            if let Some(states) = &self.states {
                states.note(connection, self.keeps_statements()).await?;
            }
            work(connection).await
        })
        .await
    }

    /// Runs one transaction and rolls it back: checks whether the work succeeds, with all that PostgreSQL would check at
    /// the commit. Then commits another one, which only writes a message for logical decoding, which nothing here reads:
    /// a commit may wait for ever although writes do not, as for a synchronous standby that is lost.
    pub(crate) async fn test_write(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<()>,
    ) -> Result<()> {
        self.within(async |connection| {
            let mut transaction = connection.begin().await?;
            work(&mut transaction).await?;
            sqlx::raw_sql("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *transaction).await?;
            transaction.rollback().await?;
            sqlx::raw_sql("SELECT pg_logical_emit_message(true, 'verbatim', 'test write')")
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
    }

    /// Runs one transaction that only reads, on one snapshot.
    pub(crate) async fn in_snapshot<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        self.in_transaction_of(Begin::Snapshot, work).await
    }

    async fn in_transaction_of<T>(
        &self,
        begin: Begin,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        self.within(async |connection| {
            let begin = begin.statements(self.pool.is_of_role());
            let begun = connection.begin_with(begin).await;
            let mut transaction = begun.map_err(Error::NotBegun)?;
            if let Some(tenant) = &self.tenant {
                self.name_tenant(&mut transaction, tenant).await?;
            }
            let done = work(&mut transaction).await?;
            transaction.commit().await?;
            Ok(done)
        })
        .await
    }

    /// Names the tenant whose rows this transaction may see, and the time limits of its statements. A commit that PostgreSQL would report before it is durable is made durable: entries of the audit log and
    /// nonces depend on it. All of this ends with the transaction, so that another one on this connection, of this process or
    /// behind a pooler of another one, has nothing of it.
    async fn name_tenant(&self, connection: &mut PgConnection, signed: &str) -> Result<()> {
        let query =
            "SELECT set_config('verbatim.tenant', $1, true), set_config('statement_timeout', $2, true),
                    set_config('lock_timeout', $3, true),
                    CASE WHEN current_setting('application_name') <> $4 THEN set_config('application_name', $4, true) END,
                    CASE current_setting('synchronous_commit')
                         WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END";
        let milliseconds = |limit: Duration| format!("{}ms", limit.as_millis());
        sqlx::query(query)
            .bind(signed)
            .bind(milliseconds(self.limits.time_out))
            .bind(milliseconds(self.limits.lock_time_out))
            // A pooler's own connection has another one.
            .bind(self.pool.options().get_application_name().unwrap_or_default())
            .persistent(self.keeps_statements())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Advances the sequences that lag behind their tables; returns them. Repeating it has no further effect.
    ///
    /// Boxed, because a unit of work does it when it fails.
    pub fn advance_sequences(
        &self,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<AdvancedSequence>>> + Send + '_>> {
        Box::pin(self.within(sequences::advance))
    }

    /// Advances the sequences that lagged and so caused this error; returns the error to report.
    async fn advanced_after(&self, error: Error) -> Error {
        match self.advance_sequences().await {
            // Another process advanced them first; the next attempt succeeds.
            Ok(advanced) if advanced.is_empty() => error,
            Ok(advanced) => Error::SequencesAdvanced(
                advanced.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            ),
            Err(failed) => failed,
        }
    }

    /// Runs one unit of work on a connection of its own, within the timeout.
    ///
    /// If it fails or times out, [`Pool`] rolls back or closes the connection in the background; the caller
    /// does not wait for that.
    pub(crate) async fn within<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.time_out;
        let timed_out = |_| Error::TimedOut(self.time_out);
        let mut lease =
            timeout_at(deadline, self.pool.lease(self.limits)).await.map_err(timed_out)??;
        match timeout_at(deadline, work(&mut lease.connection)).await {
            Ok(Ok(done)) => {
                lease.release();
                Ok(done)
            }
            Ok(Err(error)) => {
                lease.release_after(&error, self.time_out);
                Err(if sequences::is_cause_of(&error) {
                    self.advanced_after(error).await
                } else {
                    error
                })
            }
            Err(elapsed) => {
                lease.discard();
                Err(timed_out(elapsed))
            }
        }
    }
}

/// How a transaction begins.
#[derive(Debug, Clone, Copy)]
enum Begin {
    /// At the default level.
    ToWrite,
    /// To read, on one snapshot.
    Snapshot,
}

impl Begin {
    /// With a role of the API the session is reset first, in the same round trip: settings and advisory locks of a session
    /// outlive the transaction that took them, so that a statement injected into one request would change or stop the next
    /// requests on this connection. The reset is a transaction of its own: a rollback of the next one would undo it, and
    /// PostgreSQL reads some defaults at BEGIN.
    fn statements(self, of_role: bool) -> &'static str {
        match (self, of_role) {
            (Self::ToWrite, false) => "BEGIN",
            (Self::ToWrite, true) => {
                "BEGIN; RESET ALL; SELECT pg_advisory_unlock_all(); COMMIT; BEGIN"
            }
            (Self::Snapshot, false) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            (Self::Snapshot, true) => {
                "BEGIN; RESET ALL; SELECT pg_advisory_unlock_all(); COMMIT;
                 BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
            }
        }
    }
}

/// The error of a server that refuses writes; its class is unavailable.
pub(crate) fn read_only() -> Error {
    let text = "the server is read-only (a standby, or default_transaction_read_only)";
    Error::Database(sqlx::Error::Protocol(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_each_of_its_forms() {
        for (url, expected) in [
            ("postgres://u:p@db:6543/v?sslmode=require", Some(("db", 6543))),
            ("postgres://db", Some(("db", 5432))),
            ("postgres://u@[::1]:6543/v", Some(("::1", 6543))),
            ("postgres://[::1]/v", Some(("::1", 5432))),
            ("postgres:///v?host=/run/postgresql", None),
        ] {
            let database = Database::open(&Settings {
                url: url.to_owned(),
                application: "test".to_owned(),
                connections: 1,
                time_out: Duration::from_secs(1),
                lock_time_out: Duration::from_secs(1),
            });
            assert_eq!(database.unwrap().address(), expected, "{url}");
        }
    }
}
