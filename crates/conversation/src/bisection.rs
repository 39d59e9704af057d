//! Halving a batch until a failing item is isolated.
//!
//! PostgreSQL refuses a whole statement for one bad row, and is too slow for a whole statement for one locked row.
//! Halving finds the row in about 2·log2(n) statements and saves all other rows. Large parts are tried before small ones,
//! so most of the others are saved soon.
//!
//! No item is blamed, or moved to the slow queue, on its own failure alone: another part of its batch, or a test write, must have
//! succeeded beside it. If none does, PostgreSQL counts as unavailable.

use std::collections::VecDeque;

use database::{Database, Error};
use domain::failure::{DeadLetterReason, Failure, FailureClass, Refusal, Unavailable};
use failpoints::Guard;
use metrics::{Counter, Metrics, TransactionRetry};

use crate::limited_database::LimitedDatabase;
use crate::transient::retry_transient;

/// What becomes of a message with which PostgreSQL failed, but not with others. Invalid data fails again on every
/// attempt, so it becomes a dead letter. What is slow or locked is handled again apart from others. Any other failure is
/// retried.
pub fn failed_alone(error: Error) -> Failure {
    if error.is_lock() {
        return Failure::Locked(error.into());
    }
    if error.is_time_out() {
        return Failure::TimedOut(error.into());
    }
    if error.class() == FailureClass::Data {
        let detail = format!("PostgreSQL refused the action: {error}");
        return Failure::DeadLetter(Refusal::new(DeadLetterReason::Schema, detail));
    }
    Failure::Retry(error.into())
}

/// The parts of a batch that are still to be tried.
pub struct Bisection<'a, T> {
    parts: VecDeque<&'a [T]>,
    /// Whether the whole batch has failed.
    is_split: bool,
    /// Whether another part, or a test write, has succeeded.
    another_succeeded: bool,
    database: &'a LimitedDatabase,
    metrics: &'a Metrics,
}

impl<'a, T> Bisection<'a, T> {
    /// The whole batch is tried first.
    #[must_use]
    pub fn new(batch: &'a [T], database: &'a LimitedDatabase, metrics: &'a Metrics) -> Self {
        let parts = VecDeque::from([batch]);
        Self { parts, is_split: false, another_succeeded: false, database, metrics }
    }

    /// The next part to try, never an empty one, and the database with its time limit; `None` if all were tried.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would stay borrowed while a part is tried"
    )]
    pub fn next(&mut self) -> Option<(&'a [T], &'a Database)> {
        let part = self.parts.pop_front().filter(|part| !part.is_empty())?;
        let database = if self.is_split { self.database.parts() } else { self.database.batches() };
        Some((part, database))
    }

    /// Records that a part succeeded.
    pub fn succeeded(&mut self) {
        self.another_succeeded = true;
    }

    /// Records that a part failed, and that its halves are tried later. A part of one item is not split: that item is
    /// returned with the error. `check` is a test write.
    ///
    /// # Errors
    /// PostgreSQL is unavailable, or fails with everything.
    pub async fn failed<F>(
        &mut self,
        part: &'a [T],
        error: Error,
        check: impl Fn(&'a Database) -> F,
    ) -> Result<Option<(&'a T, Error)>, Unavailable>
    where
        F: Future<Output = Result<(), Error>>,
    {
        if error.class() == FailureClass::Unavailable && !error.is_time_out() {
            return Err(error.into());
        }
        if !self.another_succeeded && failpoints::holds(Guard::SuccessBeside) {
            let check = || check(self.database.batches());
            if retry_transient(self.metrics, check).await.is_err() {
                return Err(error.into());
            }
            self.another_succeeded = true;
        }
        Ok(self.halve(part).map(|alone| (alone, error)))
    }

    /// The halves of the part are tried after the parts that are there. A part of one item is returned.
    fn halve(&mut self, part: &'a [T]) -> Option<&'a T> {
        self.is_split = true;
        if let [alone] = part {
            return Some(alone);
        }
        self.metrics.add(Counter::TransactionRetries { class: TransactionRetry::Split }, 1);
        let (left, right) = part.split_at(part.len() / 2);
        self.parts.extend([left, right]);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn never_connected() -> LimitedDatabase {
        let settings = database::Settings {
            url: "postgres://localhost/none".to_owned(),
            application: "test".to_owned(),
            connections: 1,
            time_out: Duration::from_secs(1),
            lock_time_out: Duration::from_secs(1),
        };
        LimitedDatabase::of_batches(&Database::open(&settings).unwrap())
    }

    fn run(batch: &[u32], bad: impl Fn(u32) -> bool) -> (Vec<u32>, Vec<u32>, usize) {
        let (mut saved, mut at_fault, mut tries) = (Vec::new(), Vec::new(), 0);
        let (database, metrics) = (never_connected(), Metrics::new());
        let mut bisection = Bisection::new(batch, &database, &metrics);
        while let Some((part, _)) = bisection.next() {
            tries += 1;
            if part.iter().any(|item| bad(*item)) {
                at_fault.extend(bisection.halve(part).copied());
            } else {
                saved.extend_from_slice(part);
            }
        }
        (saved, at_fault, tries)
    }

    #[test]
    fn one_bad_row_of_500_leaves_499() {
        let batch: Vec<u32> = (0..500).collect();
        let (mut saved, at_fault, tries) = run(&batch, |item| item == 321);
        assert_eq!(saved[..250], batch[..250], "large parts first");
        saved.sort_unstable();
        assert_eq!(at_fault, [321]);
        assert_eq!(saved, batch.iter().copied().filter(|i| *i != 321).collect::<Vec<_>>());
        assert!(tries <= 19, "{tries} tries");
    }

    #[test]
    fn in_a_batch_of_bad_rows_every_row_is_at_fault() {
        let (saved, at_fault, _) = run(&[1, 2, 3, 4, 5], |_| true);
        assert_eq!((saved.len(), at_fault.as_slice()), (0, &[1, 2, 3, 4, 5][..]));
    }

    #[test]
    fn an_empty_batch_is_never_tried() {
        assert_eq!(run(&[], |_| true).2, 0);
    }
}
