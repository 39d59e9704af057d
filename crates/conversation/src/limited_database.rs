//! PostgreSQL with the time limits of a handler.

use std::time::Duration;

use database::{Database, Limits};
use domain::failure_policy::{BATCH_LIMIT, PART_LIMIT, PART_LOCK_LIMIT, SLOW_LOCK_LIMIT};

/// PostgreSQL with two time limits: for a batch, and a short one for the parts of a batch that failed. Both, and clones,
/// share their connections.
#[derive(Clone)]
pub struct LimitedDatabase {
    batches: Database,
    parts: Database,
}

impl LimitedDatabase {
    /// With the limits of a handler of batches, none longer than those of `database`.
    #[must_use]
    pub fn of_batches(database: &Database) -> Self {
        let Limits { time_out, lock_time_out } = database.limits();
        let limited = |longest, lock| {
            let limits =
                Limits { time_out: time_out.min(longest), lock_time_out: lock_time_out.min(lock) };
            database.limited(limits)
        };
        Self {
            batches: limited(BATCH_LIMIT, lock_time_out),
            parts: limited(PART_LIMIT, PART_LOCK_LIMIT),
        }
    }

    /// With the limit of a handler of single items that are slow or locked, on one connection of its own.
    #[must_use]
    pub fn of_slow_items(database: &Database, limit: Duration) -> Self {
        let limits = Limits { time_out: limit, lock_time_out: SLOW_LOCK_LIMIT };
        let batches = database.with_limits(limits, 1);
        Self { parts: batches.clone(), batches }
    }

    /// For a batch.
    #[must_use]
    pub fn batches(&self) -> &Database {
        &self.batches
    }

    /// For a part of a batch that failed.
    pub(crate) fn parts(&self) -> &Database {
        &self.parts
    }
}
