//! Errors of the archive, each with its failure class.
//!
//! The class comes from the SQLSTATE (PostgreSQL's manual, appendix A) and decides everything that
//! follows, so this is the one place where it is derived.

use std::time::Duration;

use domain::failure::{Dependency, FailureClass, Unavailable};

/// What went wrong in PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database or the way to it failed.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// No answer within the time-out; whether a commit took effect is unknown.
    #[error("PostgreSQL did not answer within {0:?}")]
    TimedOut(Duration),
    /// A stored row cannot be what this program wrote.
    #[error("a row of {table} cannot be read: {fault}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        fault: String,
    },
}

/// Why the schema cannot be worked with. Every text says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// PostgreSQL could not be asked.
    #[error("the schema could not be checked")]
    Database(#[from] Error),
    /// The schema was never made.
    #[error("the database has no Verbatim schema; run `verbatim setup`")]
    Missing,
    /// The schema is older than this program.
    #[error(
        "the database's schema is at version {found}, this program needs {needed}; run `verbatim setup`"
    )]
    TooOld {
        /// The newest migration that is applied.
        found: i64,
        /// The newest one that this program knows.
        needed: i64,
    },
    /// A migration failed to apply.
    #[error("the schema could not be upgraded")]
    Migration(#[from] sqlx::migrate::MigrateError),
}

impl Error {
    /// How the failure is to be treated.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::TimedOut(_) => FailureClass::Unavailable,
            Self::Corrupt { .. } => FailureClass::Retryable,
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().map_or(FailureClass::Retryable, |code| class_of(&code))
            }
            Self::Database(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed,
            ) => FailureClass::Unavailable,
            Self::Database(_) => FailureClass::Retryable,
        }
    }
}

impl Error {
    /// Whether it was time that ran out, waiting for an answer or for a lock: less at once may
    /// succeed.
    #[must_use]
    pub fn is_time_out(&self) -> bool {
        match self {
            Self::TimedOut(_) => true,
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| matches!(&*code, "55P03" | "57014"))
            }
            _ => false,
        }
    }
}

impl From<Error> for Unavailable {
    fn from(error: Error) -> Self {
        Self { dependency: Dependency::PostgreSql, source: Box::new(error) }
    }
}

fn class_of(sqlstate: &str) -> FailureClass {
    match (sqlstate.get(..2).unwrap_or_default(), sqlstate) {
        // Serialisation failure, deadlock, lock not available, statement cancelled; and a unique
        // violation: somebody else was faster, which the next attempt sees.
        (_, "40001" | "40P01" | "55P03" | "57014" | "23505") => FailureClass::Transient,
        // Data exception, integrity constraint violation: some row of the statement is at fault.
        ("22" | "23", _) => FailureClass::Data,
        // Connection, read-only or aborted transaction, resources (disk full, too many connections),
        // operator intervention, system error, and what an operator must mend before anything can
        // be saved: credentials, a missing database, a schema that is not there.
        ("08" | "25" | "53" | "57" | "58" | "28" | "3D" | "3F" | "42", _) => {
            FailureClass::Unavailable
        }
        _ => FailureClass::Retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_weather_and_a_bad_value_is_data() {
        for (code, class) in [
            ("53100", FailureClass::Unavailable),
            ("25006", FailureClass::Unavailable),
            ("57P01", FailureClass::Unavailable),
            ("42P01", FailureClass::Unavailable),
            ("40P01", FailureClass::Transient),
            ("55P03", FailureClass::Transient),
            ("22021", FailureClass::Data),
            ("23514", FailureClass::Data),
            ("XX000", FailureClass::Retryable),
        ] {
            assert_eq!(class_of(code), class, "{code}");
        }
    }
}
