//! Errors of PostgreSQL, each with its failure class.
//!
//! The failure class decides how a failure is handled. Only this file derives it, from the SQLSTATE
//! (PostgreSQL's manual, appendix A).

use std::borrow::Cow;
use std::time::Duration;

use domain::failure::{Dependency, FailureClass, Unavailable};
use uuid::Uuid;

/// Why a unit of work failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL or the connection to it failed.
    #[error("{0}")]
    Database(#[source] sqlx::Error),
    /// PostgreSQL or the connection to it failed while a transaction was begun, and perhaps in the middle of it: the
    /// connection is not used again.
    #[error("{0}")]
    NotBegun(#[source] sqlx::Error),
    /// No answer within the timeout. Whether a commit took effect is unknown.
    #[error("PostgreSQL did not answer within {0:?}")]
    TimedOut(Duration),
    /// A unit of work of several statements took longer than the limit for one. PostgreSQL works.
    #[error("the transaction took longer than {0:?}")]
    TooSlow(Duration),
    /// A table holds or returned data that this program does not expect.
    #[error("unexpected data in table {table}: {fault}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// What is unexpected.
        fault: String,
    },
    /// Other transactions changed the same rows in each of several attempts.
    #[error("{0}")]
    Contended(String),
    /// The next numbers of these sequences were taken, as after a logical restore. They were advanced, so
    /// the next attempt succeeds.
    #[error("the number of a new row was taken: {0}")]
    SequencesAdvanced(String),
    /// A list was to begin after a dead letter that is not stored.
    #[error("no dead letter has the id {0}; give an id that a list shows")]
    UnknownDeadLetter(Uuid),
}

/// The result of a statement.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the database or its schema cannot be used. The messages name the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The query of the schema version failed.
    #[error("the schema could not be checked")]
    Database(#[from] Error),
    /// The database cannot store every text.
    #[error(
        "the encoding of the database is {0}, not UTF8, so it cannot store every text; create another one: \
         CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
    )]
    Encoding(String),
    /// The server loses commits when its machine crashes.
    #[error(
        "PostgreSQL runs with {0}, so a crash of its machine may lose or corrupt what is committed; switch it on. \
         For tests, and for storage that makes it unnecessary, set VERBATIM_ALLOW_FSYNC_OFF=true"
    )]
    NotDurable(String),
    /// The database has no schema.
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
    /// The role of a worker or a command does not see all rows.
    #[error(
        "row-level security applies to the role {0} of DATABASE_URL: use the role that owns the tables, or ALTER ROLE … \
         BYPASSRLS"
    )]
    RowSecurity(String),
    /// The role of the API may touch more or less than it must.
    #[error(
        "the role of {setting} has other privileges than the conversation-api needs: {faults}; run `verbatim setup` with \
         this {setting}, and take the role out of other roles and from PUBLIC what is named"
    )]
    ApiRole {
        /// The setting with the URL of the role.
        setting: &'static str,
        /// What it may do and must not, or may not do and must.
        faults: String,
    },
    /// Prepared statements are to be used behind a pooler that mixes them up.
    #[error(
        "{0} leads to a pooler in transaction mode, which would execute prepared statements of other clients; \
         set VERBATIM_API_DATABASE_POOLER=transaction"
    )]
    Pooler(&'static str),
    /// PostgreSQL refuses the signature of a tenant.
    #[error(
        "API_SECRET is not the one with which `verbatim setup` ran last; run `verbatim setup` with this API_SECRET"
    )]
    TenantKey,
    /// A role could not be created or changed.
    #[error(
        "the role of DATABASE_URL may not set up the role {role}: give it CREATEROLE, or run `verbatim setup` once with a \
         DATABASE_URL of a superuser"
    )]
    NotPermitted {
        /// The role to set up.
        role: String,
        /// The error of PostgreSQL.
        source: Error,
    },
    /// A migration failed to apply.
    #[error("the schema could not be upgraded")]
    Migration(#[from] sqlx::migrate::MigrateError),
}

impl Error {
    /// The failure class, which decides how the failure is handled.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        if let Some(sqlstate) = self.sqlstate() {
            return class_of(&sqlstate);
        }
        match self {
            Self::TimedOut(_) => FailureClass::Unavailable,
            Self::Contended(_) | Self::SequencesAdvanced(_) => FailureClass::Transient,
            Self::UnknownDeadLetter(_) => FailureClass::Data,
            Self::Database(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed,
            )
            | Self::NotBegun(_) => FailureClass::Unavailable,
            Self::Database(_) | Self::TooSlow(_) | Self::Corrupt { .. } => FailureClass::Retryable,
        }
    }

    /// Whether a transaction that failed with it may be committed: PostgreSQL did not answer that it is not.
    #[must_use]
    pub fn may_be_committed(&self) -> bool {
        let is_answered = self.sqlstate().is_some()
            || matches!(self, Self::Contended(_) | Self::SequencesAdvanced(_));
        !is_answered || self.class() == FailureClass::Unavailable
    }

    /// Whether the role lacks a privilege: for the role of the conversation-api, `verbatim setup` has to be run.
    #[must_use]
    pub fn is_missing_privilege(&self) -> bool {
        self.sqlstate().as_deref() == Some("42501")
    }

    /// Whether a timeout expired, while waiting for an answer or for a lock. A smaller batch may succeed.
    #[must_use]
    pub fn is_time_out(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::TooSlow(_))
            || matches!(self.sqlstate().as_deref(), Some("55P03" | "57014"))
    }

    /// Whether another transaction was in the way, for as long as the limit allows.
    #[must_use]
    pub fn is_lock(&self) -> bool {
        // A unique violation that stays is one of an index that is not ours; 57014 is a time limit.
        self.class() == FailureClass::Transient
            && !matches!(self.sqlstate().as_deref(), Some("57014" | "23505" | "26000"))
    }

    /// Whether an error of [`FailureClass::Unavailable`] may come from what the statement was for: PostgreSQL answered it
    /// with an error of its memory, its disk, its files or its objects. One large value may need more memory than there
    /// is, one row may be on a bad block, and a trigger may fail for one tenant. Only a test write tells that from an
    /// outage.
    #[must_use]
    pub fn may_concern_one_item(&self) -> bool {
        self.sqlstate().is_some_and(|sqlstate| may_concern_one_item(&sqlstate))
    }

    /// The SQLSTATE with which PostgreSQL refused a statement.
    pub(crate) fn sqlstate(&self) -> Option<Cow<'_, str>> {
        let (Self::Database(error) | Self::NotBegun(error)) = self else { return None };
        error.as_database_error()?.code()
    }
}

/// An error of this crate passes through sqlx, where it reads a row, and stays what it is.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Decode(source) => match source.downcast() {
                Ok(error) => *error,
                Err(source) => Self::Database(sqlx::Error::Decode(source)),
            },
            other => Self::Database(other),
        }
    }
}

impl From<Error> for sqlx::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Database(error) | Error::NotBegun(error) => error,
            other => Self::Decode(Box::new(other)),
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
        // violation: another transaction inserted the row first, which the next attempt sees.
        // And a prepared statement that this connection does not have, as behind a pooler: it is closed, and the next
        // attempt uses another one.
        (_, "40001" | "40P01" | "55P03" | "57014" | "23505" | "26000") => FailureClass::Transient,
        // Data exception, integrity constraint violation: some row of the statement is at fault. Not class 54: 54000 is
        // a value too large for an index, and also PostgreSQL's stop before a wraparound, which refuses every write.
        ("22" | "23", _) => FailureClass::Data,
        // Connection, read-only or aborted transaction, resources (disk full, too many connections),
        // operator intervention, system error; and what an operator must fix before anything can be
        // saved: wrong credentials, a missing database, a missing schema.
        ("08" | "25" | "53" | "57" | "58" | "28" | "3D" | "3F" | "42", _) => {
            FailureClass::Unavailable
        }
        _ => FailureClass::Retryable,
    }
}

/// See [`Error::may_concern_one_item`]. Not what says that no statement is accepted: a full disk (a small test write may
/// still find room), too many connections, a read-only transaction, a shutdown.
fn may_concern_one_item(sqlstate: &str) -> bool {
    match (sqlstate.get(..2).unwrap_or_default(), sqlstate) {
        (_, "53100" | "53300" | "25006") => false,
        (class, _) => matches!(class, "25" | "53" | "58" | "3F" | "42"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_item_may_cause_an_error_of_memory_or_files_and_none_a_shutdown() {
        for code in ["53200", "58030", "58P01", "42501", "42P01"] {
            assert!(may_concern_one_item(code), "{code}");
            assert_eq!(class_of(code), FailureClass::Unavailable, "{code}");
        }
        for code in
            ["53100", "53300", "25006", "57P01", "57P03", "08006", "28000", "3D000", "22021"]
        {
            assert!(!may_concern_one_item(code), "{code}");
        }
    }

    #[test]
    fn a_full_disk_is_unavailable_and_a_bad_value_is_data() {
        for (code, class) in [
            ("53100", FailureClass::Unavailable),
            ("25006", FailureClass::Unavailable),
            ("57P01", FailureClass::Unavailable),
            ("42P01", FailureClass::Unavailable),
            ("40P01", FailureClass::Transient),
            ("55P03", FailureClass::Transient),
            ("26000", FailureClass::Transient),
            ("22021", FailureClass::Data),
            ("23514", FailureClass::Data),
            ("54000", FailureClass::Retryable),
            ("XX000", FailureClass::Retryable),
        ] {
            assert_eq!(class_of(code), class, "{code}");
        }
    }
}
