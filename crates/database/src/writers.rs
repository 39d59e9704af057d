//! Who saves: a row of `writers` for each start of a process, and its number beside each message.
//!
//! The row is made with the first batch, so that a process that never saves leaves none. Everything
//! after costs one number in a statement and four bytes in a row.

use sqlx::PgConnection;
use tokio::sync::OnceCell;

use crate::{Database, Result};

/// A process that saves, and its number once it has one.
#[derive(Debug)]
pub(crate) struct Writer {
    process: &'static str,
    instance: String,
    number: OnceCell<i32>,
}

impl Database {
    /// The same archive, whose messages say that this process saved them. `instance` tells the process
    /// from others of its kind: its host and process id.
    #[must_use]
    pub fn saving_as(mut self, process: &'static str, instance: String) -> Self {
        self.writer = Some(Writer { process, instance, number: OnceCell::new() }.into());
        self
    }

    /// The number of this process; `None` where nobody said who it is.
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
