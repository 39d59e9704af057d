//! PostgreSQL with the time limits of a handler.

use std::time::Duration;

use database::{Database, Limits};
use domain::failure_policy::{BATCH_LIMIT, PART_LIMIT, PART_LOCK_LIMIT, SLOW_QUEUE_LOCK_LIMIT};

/// PostgreSQL with two time limits: for a batch, and a short one for the parts of a batch that failed. Both, and clones,
/// share their connections.
#[derive(Clone)]
pub struct LimitedDatabase {
    batches: Database,
    /// The shortest limits of a part; `None`: those of a batch.
    parts: Option<Limits>,
}

impl LimitedDatabase {
    /// With the limits of a handler of batches, none longer than those of `database`.
    #[must_use]
    pub fn of_batches(database: &Database) -> Self {
        let Limits { time_out, lock_time_out } = database.limits();
        let limited = |longest, lock| Limits {
            time_out: time_out.min(longest),
            lock_time_out: lock_time_out.min(lock),
        };
        let batches = database.limited(limited(BATCH_LIMIT, lock_time_out));
        Self { batches, parts: Some(limited(PART_LIMIT, PART_LOCK_LIMIT)) }
    }

    /// With the limit of a handler of single items that are slow or locked, on one connection of its own.
    #[must_use]
    pub fn of_slow_items(database: &Database, limit: Duration) -> Self {
        let limits = Limits { time_out: limit, lock_time_out: SLOW_QUEUE_LOCK_LIMIT };
        let batches = database.with_limits(limits, 1);
        Self { batches, parts: None }
    }

    /// Whether a part of a batch has a shorter time limit than the batch.
    pub(crate) fn has_parts(&self) -> bool {
        self.parts.is_some()
    }

    /// For a batch.
    #[must_use]
    pub fn batches(&self) -> &Database {
        &self.batches
    }

    /// For a part of a batch that failed, with at least this time limit, but none longer than that of the batch.
    pub(crate) fn parts(&self, least: Duration) -> Database {
        let Some(Limits { time_out, lock_time_out }) = self.parts else {
            return self.batches.clone();
        };
        let time_out = time_out.max(least).min(self.batches.limits().time_out);
        self.batches.limited(Limits { time_out, lock_time_out })
    }
}
