//! Which process saved a message: one row of `writers` for each start of a process, and its id with each
//! message.
//!
//! The row is inserted with the first batch, so that a process that never saves leaves none. After that
//! it costs two parameters and a look-up in a statement, and four bytes in a row.
//!
//! A failover to a lagging standby or a restore may undo the insert. The id may then be given to another
//! process. So each save includes the condition that the row exists, with the time at which this process
//! inserted it; else nothing is saved, and the process inserts another row.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tokio::sync::Mutex;

use crate::error::Result;

/// A process that saves, and its row of `writers` once that is inserted.
#[derive(Debug)]
pub(crate) struct Writer {
    process: &'static str,
    instance: String,
    row: Mutex<Option<WriterRow>>,
}

/// What names a row of `writers`: no two have both the same, even if an id was given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct WriterRow {
    pub(crate) id: i32,
    pub(crate) started_at: DateTime<Utc>,
}

impl Writer {
    /// This process; `instance` is its host and process id, which tells replicas apart.
    pub(crate) fn new(process: &'static str, instance: String) -> Self {
        Self { process, instance, row: Mutex::new(None) }
    }

    /// Its row; the first call inserts it.
    pub(crate) async fn row(&self, connection: &mut PgConnection) -> Result<WriterRow> {
        let mut row = self.row.lock().await;
        match *row {
            Some(row) => Ok(row),
            None => Ok(*row.insert(self.insert(connection).await?)),
        }
    }

    /// Its row, after a batch was not saved: another one if that which the batch named is gone.
    pub(crate) async fn existing_row(
        &self,
        connection: &mut PgConnection,
        named: WriterRow,
    ) -> Result<WriterRow> {
        let mut row = self.row.lock().await;
        match *row {
            // Another batch has replaced it.
            Some(row) if row != named => return Ok(row),
            _ => {}
        }
        let exists: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM writers WHERE id = $1 AND started_at = $2)",
        )
        .bind(named.id)
        .bind(named.started_at)
        .fetch_one(&mut *connection)
        .await?;
        if exists { Ok(named) } else { Ok(*row.insert(self.insert(connection).await?)) }
    }

    /// Its row or, if it has none, one that is inserted in a transaction that is rolled back.
    pub(crate) async fn row_to_check(&self, connection: &mut PgConnection) -> Result<WriterRow> {
        match *self.row.lock().await {
            Some(row) => Ok(row),
            None => self.insert(connection).await,
        }
    }

    async fn insert(&self, connection: &mut PgConnection) -> Result<WriterRow> {
        let row = sqlx::query_as(
            "INSERT INTO writers (process, instance) VALUES ($1, $2) RETURNING id, started_at",
        )
        .bind(self.process)
        .bind(&self.instance)
        .fetch_one(connection)
        .await?;
        Ok(row)
    }
}
