//! Halving a batch until a failing item is isolated.
//!
//! A database refuses a whole statement for one bad row, and is too slow for a whole statement for one locked
//! row. Halving finds the row in about 2·log2(n) statements and saves all other rows.

use database::{Database, Error};
use domain::failure::{DeadLetterReason, Failure, FailureClass, Refusal, Unavailable};
use metrics::{Counter, Metrics, TransactionRetry};

/// What becomes of a message that PostgreSQL refused. Invalid data fails again on every attempt, so it
/// becomes a dead letter; any other failure is retried.
pub(crate) fn refused(error: Error) -> Failure {
    if error.class() == FailureClass::Data {
        let detail = format!("PostgreSQL refused the action: {error}");
        Failure::DeadLetter(Refusal::new(DeadLetterReason::Schema, detail))
    } else {
        Failure::Retry(error.into())
    }
}

/// The parts of a batch that are still to be tried, in order.
pub struct Bisection<'a, T> {
    parts: Vec<&'a [T]>,
    metrics: &'a Metrics,
}

impl<'a, T> Bisection<'a, T> {
    /// The whole batch is tried first.
    #[must_use]
    pub fn new(batch: &'a [T], metrics: &'a Metrics) -> Self {
        Self { parts: vec![batch], metrics }
    }

    /// The next part to try, never an empty one; `None` if all were tried.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would stay borrowed while a part is tried"
    )]
    pub fn next(&mut self) -> Option<&'a [T]> {
        self.parts.pop().filter(|part| !part.is_empty())
    }

    /// Records that a part failed, and that its halves are tried next. If one item is at fault, returns it with the
    /// error.
    ///
    /// # Errors
    /// PostgreSQL is unavailable, or is too slow for this one item, or a row of it stays locked.
    pub async fn failed(
        &mut self,
        part: &'a [T],
        error: Error,
        database: &Database,
    ) -> Result<Option<(&'a T, Error)>, Unavailable> {
        let class = error.class();
        let continues = match class {
            FailureClass::Data | FailureClass::Retryable => true,
            // If PostgreSQL is available, the part is too large for one transaction, or a row in it is locked.
            FailureClass::Unavailable | FailureClass::Transient => {
                let parts_may_succeed = class == FailureClass::Transient || error.is_time_out();
                part.len() > 1 && parts_may_succeed && database.probe().await.is_ok()
            }
        };
        if !continues {
            return Err(error.into());
        }
        Ok(self.halve(part).map(|at_fault| (at_fault, error)))
    }

    /// The halves of the part are tried next. A part of one item is not split: that item is at fault and is
    /// returned.
    fn halve(&mut self, part: &'a [T]) -> Option<&'a T> {
        if let [at_fault] = part {
            return Some(at_fault);
        }
        self.metrics.add(Counter::TransactionRetries { class: TransactionRetry::Split }, 1);
        let (left, right) = part.split_at(part.len() / 2);
        self.parts.push(right);
        self.parts.push(left);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(batch: &[u32], bad: impl Fn(u32) -> bool) -> (Vec<u32>, Vec<u32>, usize) {
        let (mut saved, mut at_fault, mut tries) = (Vec::new(), Vec::new(), 0);
        let metrics = Metrics::new();
        let mut bisection = Bisection::new(batch, &metrics);
        while let Some(part) = bisection.next() {
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
    fn one_bad_row_of_500_leaves_499_in_order() {
        let batch: Vec<u32> = (0..500).collect();
        let (saved, at_fault, tries) = run(&batch, |item| item == 321);
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
