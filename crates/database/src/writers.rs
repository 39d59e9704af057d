//! Which process saved a message: one row of `writers` for each start of a process, and its id with each
//! message.
//!
//! The row is inserted with the first batch, so that a process that never saves leaves none. After that
//! it costs one parameter in a statement and four bytes in a row.

use sqlx::PgConnection;
use tokio::sync::OnceCell;

use crate::error::Result;

/// A process that saves, and its `writers.id` once the row is inserted.
#[derive(Debug)]
pub(crate) struct Writer {
    process: &'static str,
    instance: String,
    number: OnceCell<i32>,
}

impl Writer {
    /// This process; `instance` is its host and process id, which tells replicas apart.
    pub(crate) fn new(process: &'static str, instance: String) -> Self {
        Self { process, instance, number: OnceCell::new() }
    }

    /// Its `writers.id`; the first call inserts the row.
    pub(crate) async fn number(&self, connection: &mut PgConnection) -> Result<i32> {
        let number = self.number.get_or_try_init(|| async move {
            sqlx::query_scalar(
                "INSERT INTO writers (process, instance) VALUES ($1, $2) RETURNING id",
            )
            .bind(self.process)
            .bind(&self.instance)
            .fetch_one(connection)
            .await
        });
        Ok(*number.await?)
    }
}
