//! The schema: `verbatim setup` creates it, and every worker checks it when it starts.

use sqlx::migrate::{MigrateError, Migrator};
use tokio::time::timeout;

use crate::{Database, Error, SchemaError};

static MIGRATIONS: Migrator = sqlx::migrate!();

impl Database {
    /// Creates the schema or upgrades it to this program's version. Idempotent; several processes may run
    /// it at once. Calls `waits` after each lock timeout in which another process ran migrations. Returns the
    /// version.
    pub async fn migrate(&self, waits: impl Fn()) -> Result<i64, SchemaError> {
        loop {
            let mut lease = timeout(self.time_out, self.pool.lease(self.limits))
                .await
                .map_err(|_| Error::TimedOut(self.time_out))
                .flatten()?;
            match MIGRATIONS.run(&mut lease.connection).await {
                Ok(()) => {
                    lease.release();
                    return Ok(newest());
                }
                // The next try is on a connection that has no lock.
                Err(MigrateError::Execute(error)) if is_lock_timeout(&error) => waits(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Fails if the schema is missing or older than this program. A newer schema is accepted, because
    /// migrations only add. Fails too if row-level security would hide rows from this role.
    pub async fn verify_schema(&self) -> Result<(), SchemaError> {
        self.verify_schema_version().await?;
        let query = "SELECT row_security_active('conversations'), current_user::text";
        let (restricted, role): (bool, String) = self.value(sqlx::query_as(query)).await?;
        if restricted { Err(SchemaError::RowSecurity(role)) } else { Ok(()) }
    }

    pub(crate) async fn verify_schema_version(&self) -> Result<(), SchemaError> {
        let table = sqlx::query_as("SELECT to_regclass('_sqlx_migrations')::text");
        let (Some(_),): (Option<String>,) = self.value(table).await? else {
            return Err(SchemaError::Missing);
        };
        let applied = sqlx::query_as("SELECT max(version) FROM _sqlx_migrations WHERE success");
        let (applied,): (Option<i64>,) = self.value(applied).await?;
        match applied {
            None => Err(SchemaError::Missing),
            Some(found) if found < newest() => Err(SchemaError::TooOld { found, needed: newest() }),
            Some(_) => Ok(()),
        }
    }
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.as_deref() == Some("55P03")
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}
