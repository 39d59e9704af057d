//! How far a PostgreSQL is: positions in its write-ahead log, and what a standby says of itself.
//!
//! A position is comparable only within one [`History`]: a failover begins another timeline, on which the same numbers
//! stand for other records. Every role may call the functions used here, on a primary and on a standby.
//!
//! A standby does not say on which timeline the record is that it replayed last. Its control file has the timeline of its
//! last restart point, and that of its minimum recovery point: neither is newer than the record. So after a failover a
//! standby counts as one of the old timeline until its next restart point.

use std::sync::{Mutex, PoisonError};

use sqlx::FromRow;
use sqlx::postgres::PgConnection;

use crate::{Error, Result};

/// A cluster of PostgreSQL on one of its timelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// The system identifier of the cluster.
    pub system: u64,
    /// The number of the timeline.
    pub timeline: u32,
}

/// A position in the write-ahead log of a [`History`], in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

/// How far a primary has written its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPosition {
    /// Its history.
    pub history: History,
    /// Each commit that PostgreSQL reported before the question ends here or before.
    pub lsn: Lsn,
}

/// What a server says of itself that should be a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaState {
    /// Its cluster, and a timeline on which it has replayed records.
    pub history: History,
    /// Whether it is a standby. A server that was promoted is none.
    pub is_standby: bool,
    /// Up to where it has replayed the log. A statement that begins later sees every commit up to here.
    pub replayed: Lsn,
}

/// What the transactions of one request saw of a server, each at its beginning.
#[derive(Debug, Default)]
pub struct ReplicaStates(Mutex<Vec<ReplicaState>>);

impl ReplicaStates {
    /// The state at the beginning of each transaction.
    #[must_use]
    pub fn all(&self) -> Vec<ReplicaState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the state, in a transaction whose next statements take snapshots of their own (READ COMMITTED). `keep` is
    /// [`crate::Database::keeps_statements`].
    pub(crate) async fn note(&self, connection: &mut PgConnection, keep: bool) -> Result<()> {
        let query = sqlx::query_as(STATE).persistent(keep);
        let row: StateRow = query.fetch_one(connection).await?;
        let state = row.state()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(state);
        Ok(())
    }
}

/// A [`StateRow`] of the server that answers.
pub(crate) const STATE: &str = "
    SELECT s.system_identifier AS system, greatest(c.timeline_id, r.min_recovery_end_timeline) AS timeline,
           pg_is_in_recovery() AS is_standby, (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint AS replayed
    FROM pg_control_system() AS s, pg_control_checkpoint() AS c, pg_control_recovery() AS r";

/// The row of [`STATE`].
#[derive(FromRow)]
pub(crate) struct StateRow {
    system: i64,
    timeline: i32,
    is_standby: bool,
    /// Null on a server that was never a standby.
    replayed: Option<i64>,
}

impl StateRow {
    pub(crate) fn state(&self) -> Result<ReplicaState> {
        let timeline = u32::try_from(self.timeline).map_err(|_| corrupt(&self.timeline))?;
        Ok(ReplicaState {
            history: History { system: self.system.cast_unsigned(), timeline },
            is_standby: self.is_standby,
            replayed: Lsn(self.replayed.unwrap_or_default().cast_unsigned()),
        })
    }
}

pub(crate) fn corrupt(found: &impl std::fmt::Display) -> Error {
    Error::Corrupt { table: "pg_control", fault: format!("the timeline {found}") }
}
