//! The schema: made by `verbatim setup`, checked by every worker at start.

use sqlx::migrate::Migrator;
use tokio::time::timeout;

use crate::{Database, Error, SchemaError};

static MIGRATIONS: Migrator = sqlx::migrate!();

impl Database {
    /// Creates the schema or upgrades it to this program's version; idempotent, and safe to run
    /// from several places at once. Returns the version.
    pub async fn migrate(&self) -> Result<i64, SchemaError> {
        let mut lease = timeout(self.time_out, self.pool.lease())
            .await
            .map_err(|_| Error::TimedOut(self.time_out))
            .flatten()?;
        // Without a limit: it waits for whoever else is migrating.
        MIGRATIONS.run(&mut lease.connection).await?;
        lease.release();
        Ok(newest())
    }

    /// Refuses a database whose schema is missing or older than this program. A newer one is fine:
    /// migrations only add.
    pub async fn verify_schema(&self) -> Result<(), SchemaError> {
        let applied = self
            .within(async |connection| {
                let made: Option<String> =
                    sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations')::text")
                        .fetch_one(&mut *connection)
                        .await?;
                if made.is_none() {
                    return Ok(None);
                }
                sqlx::query_scalar::<_, Option<i64>>(
                    "SELECT max(version) FROM _sqlx_migrations WHERE success",
                )
                .fetch_one(&mut *connection)
                .await
                .map_err(Error::from)
            })
            .await?;
        match applied {
            None => Err(SchemaError::Missing),
            Some(found) if found < newest() => Err(SchemaError::TooOld { found, needed: newest() }),
            Some(_) => Ok(()),
        }
    }
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}
