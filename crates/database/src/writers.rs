//! Which process saved a message: one row of `writers` for each start of a process, and its id with each
//! message.
//!
//! The row is inserted with the first batch, so that a process that never saves leaves none. After that
//! it costs one parameter in a statement and four bytes in a row.

use sqlx::PgConnection;
use tokio::sync::OnceCell;

use crate::{Database, Result};

/// A process that saves, and its `writers.id` once the row is inserted.
#[derive(Debug)]
pub(crate) struct Writer {
    process: &'static str,
    instance: String,
    number: OnceCell<i32>,
}

impl Database {
    /// The same database; messages saved through it are recorded as saved by this process. `instance` is
    /// its host and process id, which tells replicas apart.
    #[must_use]
    pub fn saving_as(mut self, process: &'static str, instance: String) -> Self {
        self.writer = Some(Writer { process, instance, number: OnceCell::new() }.into());
        self
    }

    /// The `writers.id` of this process; `None` if [`Self::saving_as`] was not called.
    pub(crate) async fn writer(&self, connection: &mut PgConnection) -> Result<Option<i32>> {
        let Some(writer) = &self.writer else { return Ok(None) };
        let number = writer.number.get_or_try_init(|| async move {
            sqlx::query_scalar(
                "INSERT INTO writers (process, instance) VALUES ($1, $2) RETURNING id",
            )
            .bind(writer.process)
            .bind(&writer.instance)
            .fetch_one(connection)
            .await
        });
        Ok(Some(*number.await?))
    }
}
