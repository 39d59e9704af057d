//! Bringing statistics up to date: conversations first, then the days that they fall on.
//!
//! What to recompute is stored in PostgreSQL and worked off in bounded batches. So it does not matter which
//! process runs this, how often, or whether an earlier run was cut off.

use database::Database;
use domain::failure::Unavailable;
use metrics::{Counter, Metrics};

use crate::background::Background;

/// Conversations in one transaction: a few milliseconds of work.
const BATCH: u32 = 10;

/// Days in one transaction. Each reads all conversations of its day.
const DAYS: u32 = 1;

/// Refreshes statistics. Clones share their connections.
#[derive(Clone)]
pub struct Statistics {
    database: Database,
    metrics: Metrics,
    background: Background,
}

impl Statistics {
    /// Statistics in this database, recomputed in the background.
    #[must_use]
    pub fn new(database: Database, metrics: Metrics, background: Background) -> Self {
        Self { database, metrics, background }
    }

    /// Recomputes the statistics of at most 10 dirty conversations; returns how many there were.
    ///
    /// # Errors
    /// PostgreSQL failed; nothing changed.
    pub async fn refresh_conversations(&self) -> Result<usize, Unavailable> {
        let work = || self.database.refresh_conversations(BATCH);
        let done = self.background.step(&self.metrics, work).await?;
        self.metrics.add(Counter::StatisticsRecomputed, done as u64);
        Ok(done)
    }

    /// Recomputes one dirty day; returns 1, or 0 if there is none. It reads all conversations of that day, so
    /// it is meant for every interval, not for every event.
    ///
    /// # Errors
    /// PostgreSQL failed; nothing changed.
    pub async fn refresh_days(&self) -> Result<usize, Unavailable> {
        let done = self.background.step(&self.metrics, || self.database.refresh_days(DAYS)).await?;
        self.metrics.add(Counter::DailyBucketsRecomputed, done as u64);
        Ok(done)
    }
}
