//! Finding a pooler in transaction mode, behind which a prepared statement may be that of another client.
//!
//! Such a pooler executes the transactions of two clients on one connection of PostgreSQL. So a statement that one client
//! prepared is seen by another one. On connections without a pooler in between it is not.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::{Database, Result};

/// A pooler gives the second client the connection that the first one has just released, unless a third one was faster.
const TRIES: usize = 5;

/// Whether there is one. It may be overlooked while others use it heavily.
pub(crate) async fn is_found(database: &Database) -> Result<bool> {
    // Two connections of its own: others may be in use, or there may be one alone.
    let database = database.with_limits(database.limits(), 2);
    // As a name of its column the mark is a part of the statement.
    let mark = Uuid::new_v4().to_string();
    database
        .within(async |first| {
            for _ in 0..TRIES {
                if is_foreign(prepare(first, &mark).await)?
                    || database.within(async |second| sees(second, &mark).await).await?
                {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
}

/// Executes a statement with this mark under the name that sqlx gives it.
async fn prepare(connection: &mut PgConnection, mark: &str) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!("SELECT 1 AS \"{mark}\""))).execute(connection).await?;
    Ok(())
}

/// Whether the name was not known, or known for another statement.
fn is_foreign(prepared: Result<()>) -> Result<bool> {
    match prepared {
        Ok(()) => Ok(false),
        Err(error) if matches!(error.sqlstate().as_deref(), Some("26000" | "42P05")) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether the connection has the statement with this mark under that name. PgBouncer 1.21 and newer can give it another
/// one, which it knows.
async fn sees(connection: &mut PgConnection, mark: &str) -> Result<bool> {
    let query = format!(
        "SELECT FROM pg_prepared_statements WHERE name LIKE 'sqlx%' AND statement LIKE '%{mark}%'"
    );
    let seen = sqlx::raw_sql(AssertSqlSafe(query)).execute(connection).await?;
    Ok(seen.rows_affected() > 0)
}
