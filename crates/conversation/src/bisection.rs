//! Halving a batch until a failing item is isolated.
//!
//! PostgreSQL refuses a whole statement for one bad row, and is too slow for a whole statement for one locked row.
//! Halving finds the row in about 2·log2(n) statements and saves all other rows. Large parts are tried before small ones,
//! so most of the others are saved soon. Of items that need the same row, one is tried alone: if it fails by a lock, so would
//! the others. Before it halves a batch that failed by a lock, it asks which conversations are locked: an operator's
//! transaction may have locked hundreds, and halving would find them one by one.
//!
//! No item is blamed, or moved to the slow queue, on its own failure alone: another part of its batch, or a test write,
//! must have succeeded beside it. If none does, PostgreSQL counts as unavailable. The time that the test write takes
//! decides how long a part may take: on a slow server no item is slow by itself.
//!
//! Some errors speak of an outage, and may yet be caused by one item, such as the lack of memory for a large value. Beside
//! a test write that succeeds the batch is halved for these, too; each item that then fails by itself needs one more.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use database::{Database, Error};
use domain::failure::{DeadLetterReason, Failure, FailureClass, Refusal, Unavailable};
use domain::ids::ConversationKey;
use failpoints::Guard;
use metrics::{Counter, Metrics, TransactionRetry};
use tokio::time::Instant;

use crate::limited_database::LimitedDatabase;
use crate::transient::retry_transient;

/// What becomes of a message with which PostgreSQL failed, but not with others. Invalid data fails again on every
/// attempt, so it becomes a dead letter. What is slow or locked is handled again apart from others, and so is what fails
/// as in an outage. Any other failure is retried.
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
    if error.class() == FailureClass::Unavailable {
        return Failure::Unavailable(error.into());
    }
    Failure::Retry(error.into())
}

/// A part of a batch may take so many times as long as a test write.
const TIMES_A_TEST_WRITE: u32 = 10;

/// The time between the two looks at which conversations are locked.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// If so many parts in a row are too slow or locked, another test write is made: PostgreSQL may have become slow, or
/// unavailable, since the last one. Halving down to one such item has fewer in a row.
const TIME_OUTS: usize = 8;

/// Items that are not tried again with their batch: one that failed by itself, or items that need a locked row.
pub struct SetAside<'a, T> {
    /// At least one.
    pub items: Vec<&'a T>,
    /// The error of the part that they were in.
    pub error: Error,
    /// PostgreSQL said that other transactions have locked the rows of their conversations.
    pub are_known_to_be_locked: bool,
}

/// The parts of a batch that are still to be tried.
pub struct Bisection<'a, T> {
    parts: VecDeque<&'a [T]>,
    /// The conversation whose row an item needs.
    key: fn(&T) -> Option<&ConversationKey>,
    /// Whether two neighbours are saved in one transaction, if that is possible.
    are_one: fn(&T, &T) -> bool,
    /// Whether they are separated where they fail by themselves.
    divides_one: bool,
    /// For the parts of a batch that has failed; `None` until it has.
    of_parts: Option<Database>,
    /// Whether another part, or a test write, has succeeded.
    another_succeeded: bool,
    /// Items of parts that succeeded: the first and the last one of each. A part before or after may need the same row.
    succeeded: Vec<&'a T>,
    /// Items that failed alone by a lock.
    locked: Vec<&'a T>,
    /// Whether PostgreSQL was asked which conversations are locked.
    asked: bool,
    /// Time-outs since another part, or a test write, succeeded.
    time_outs: usize,
    database: &'a LimitedDatabase,
    metrics: &'a Metrics,
}

impl<'a, T> Bisection<'a, T> {
    /// The whole batch is tried first. `key` is the conversation whose row an item needs, if it needs one.
    #[must_use]
    pub fn new(
        batch: &'a [T],
        key: fn(&T) -> Option<&ConversationKey>,
        database: &'a LimitedDatabase,
        metrics: &'a Metrics,
    ) -> Self {
        Self {
            parts: VecDeque::from([batch]),
            key,
            are_one: |_, _| false,
            divides_one: true,
            of_parts: None,
            another_succeeded: false,
            succeeded: Vec::new(),
            locked: Vec::new(),
            asked: false,
            time_outs: 0,
            database,
            metrics,
        }
    }

    /// Items that are neighbours and for which `are_one` holds are only separated if they fail without the others, by
    /// themselves. All of them need the same row.
    #[must_use]
    pub fn keeping_together(self, are_one: fn(&T, &T) -> bool) -> Self {
        Self { are_one, ..self }
    }

    /// Items that are kept together are never separated: they fail together.
    #[must_use]
    pub fn undivided(self) -> Self {
        Self { divides_one: false, ..self }
    }

    /// The next part to try, never an empty one, and the database with its time limit; `None` if all were tried.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would stay borrowed while a part is tried"
    )]
    pub fn next(&mut self) -> Option<(&'a [T], Database)> {
        let part = self.parts.pop_front().filter(|part| !part.is_empty())?;
        let database = self.of_parts.as_ref().unwrap_or(self.database.batches());
        Some((part, database.clone()))
    }

    /// Records that a part succeeded.
    pub fn succeeded(&mut self, part: &'a [T]) {
        self.another_succeeded = true;
        self.time_outs = 0;
        self.succeeded.extend(part.first().into_iter().chain(part.last()));
    }

    /// Locked at two moments: transactions of the fleet hold their locks for some milliseconds. None if PostgreSQL does
    /// not answer.
    async fn locked_for_some_time<'k>(
        &self,
        keys: impl Iterator<Item = &'k ConversationKey> + Clone,
    ) -> HashSet<ConversationKey> {
        let database = self.database.batches();
        let Ok(mut locked) = database.locked_conversations(keys).await else {
            return HashSet::new();
        };
        if !locked.is_empty() {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            let again = database.locked_conversations(locked.iter()).await.unwrap_or_default();
            locked.retain(|key| again.contains(key));
        }
        locked
    }

    /// Records that a part failed, and that its halves are tried later. Items that are not tried again are returned with
    /// the error. `check` is a test write.
    ///
    /// # Errors
    /// PostgreSQL is unavailable, or fails with everything.
    pub async fn failed<F>(
        &mut self,
        part: &'a [T],
        error: Error,
        check: impl Fn(&'a Database) -> F,
    ) -> Result<Option<SetAside<'a, T>>, Unavailable>
    where
        F: Future<Output = Result<(), Error>>,
    {
        let is_outage = error.class() == FailureClass::Unavailable && !error.is_time_out();
        if is_outage && !error.may_concern_one_item() {
            return Err(error.into());
        }
        let database = self.database.batches();
        // What is blamed for anything but time is blamed for a test write after it, not one long before.
        let is_blamed = self.is_one(part) && !error.is_time_out();
        self.time_outs += usize::from(error.is_time_out());
        let is_again = self.time_outs > TIME_OUTS || matches!(error, Error::TimedOut(_));
        if (!self.another_succeeded || is_blamed || is_again)
            && failpoints::holds(Guard::SuccessBeside)
        {
            let began = Instant::now();
            if retry_transient(self.metrics, || check(database)).await.is_err() {
                return Err(error.into());
            }
            (self.another_succeeded, self.time_outs) = (true, 0);
            let parts = self.database.parts(began.elapsed() * TIMES_A_TEST_WRITE);
            if self
                .of_parts
                .as_ref()
                .is_none_or(|it| it.limits().time_out < parts.limits().time_out)
            {
                self.of_parts = Some(parts);
            }
        }
        self.of_parts.get_or_insert_with(|| self.database.parts(Duration::ZERO));
        if error.is_lock() && part.len() > 1 && !std::mem::replace(&mut self.asked, true) {
            let locked = self.locked_for_some_time(part.iter().filter_map(self.key)).await;
            let is_locked = |item: &T| (self.key)(item).is_some_and(|key| locked.contains(key));
            let items: Vec<&T> = part.iter().filter(|item| is_locked(item)).collect();
            if !items.is_empty() {
                let runs = part.chunk_by(|one, other| is_locked(one) == is_locked(other));
                self.parts.extend(runs.filter(|run| run.first().is_some_and(|it| !is_locked(it))));
                return Ok(Some(SetAside { items, error, are_known_to_be_locked: true }));
            }
        }
        // What is too slow together is tried apart, with more time; only there it is divided.
        let is_slow = error.is_time_out() && self.database.has_parts();
        let alone = self.split(part, error.is_lock(), error.is_lock() || is_slow);
        let aside = |items: &'a [T]| SetAside {
            items: items.iter().collect(),
            error,
            are_known_to_be_locked: false,
        };
        Ok(alone.map(aside))
    }

    /// The halves of the part are tried after the parts that are there. A part that is not split is returned.
    fn split(&mut self, part: &'a [T], is_lock: bool, is_whole: bool) -> Option<&'a [T]> {
        let at = match part {
            [] => None,
            [first, rest @ ..]
                if self.is_one(part) && (is_whole || !self.divides_one || rest.is_empty()) =>
            {
                self.locked.extend(is_lock.then_some(first));
                None
            }
            _ if self.is_one(part) => Some(part.len() / 2),
            [first, ..] if is_lock => {
                self.split_by_rows(part, first).and_then(|at| self.near(part, at))
            }
            _ => self.near(part, part.len() / 2),
        };
        let Some(at) = at else { return Some(part) };
        self.metrics.add(Counter::TransactionRetries { class: TransactionRetry::Split }, 1);
        let (left, right) = part.split_at(at);
        self.parts.extend([left, right]);
        None
    }
}

impl<T> Bisection<'_, T> {
    /// Whether all of a part is saved in one transaction, if that is possible.
    fn is_one(&self, part: &[T]) -> bool {
        part.windows(2).all(|pair| (self.are_one)(&pair[0], &pair[1]))
    }

    /// The place nearest to `at` that separates none that are kept together.
    fn near(&self, part: &[T], at: usize) -> Option<usize> {
        let between = (1..part.len()).filter(|n| !(self.are_one)(&part[n - 1], &part[*n]));
        between.min_by_key(|n| n.abs_diff(at))
    }

    /// Where to split a part that failed by a lock: between two rows, or behind the first item of one row; `None` if
    /// that row is locked.
    fn split_by_rows(&self, part: &[T], first: &T) -> Option<usize> {
        let middle = part.len() / 2;
        let together =
            |one: &T, other: &T| (self.key)(one).is_some_and(|key| (self.key)(other) == Some(key));
        let between = (1..part.len()).filter(|n| !together(&part[n - 1], &part[*n]));
        let of_this_row = |items: &[&T]| items.iter().any(|it| together(it, first));
        match between.min_by_key(|n| n.abs_diff(middle)) {
            Some(between) => Some(between),
            None if of_this_row(&self.succeeded) => Some(middle),
            None if of_this_row(&self.locked) => None,
            None => Some(1),
        }
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

    fn run(batch: &[u32], bad: impl Fn(u32) -> bool, is_lock: bool) -> (Vec<u32>, Vec<u32>, usize) {
        let (mut saved, mut at_fault, mut tries) = (Vec::new(), Vec::new(), 0);
        let (database, metrics) = (never_connected(), Metrics::new());
        // Numbers with the same hundreds need the same row.
        let key = |item: &u32| ConversationKey::parse("t", &(item / 100).to_string()).unwrap();
        let batch: Vec<_> = batch.iter().map(|item| (*item, key(item))).collect();
        let mut bisection = Bisection::new(&batch, |(_, key)| Some(key), &database, &metrics);
        while let Some((part, _)) = bisection.next() {
            tries += 1;
            let numbers = |part: &[(u32, ConversationKey)]| -> Vec<u32> {
                part.iter().map(|(item, _)| *item).collect()
            };
            if part.iter().any(|(item, _)| bad(*item)) {
                let alone = bisection.split(part, is_lock, is_lock);
                at_fault.extend(alone.into_iter().flat_map(numbers));
            } else {
                bisection.succeeded(part);
                saved.extend(numbers(part));
            }
        }
        (saved, at_fault, tries)
    }

    #[test]
    fn one_bad_row_of_500_leaves_499() {
        let batch: Vec<u32> = (0..500).collect();
        let (mut saved, at_fault, tries) = run(&batch, |item| item == 321, false);
        assert_eq!(saved[..250], batch[..250], "large parts first");
        saved.sort_unstable();
        assert_eq!(at_fault, [321]);
        assert_eq!(saved, batch.iter().copied().filter(|i| *i != 321).collect::<Vec<_>>());
        assert!(tries <= 19, "{tries} tries");
    }

    #[test]
    fn items_that_need_the_same_locked_row_are_not_separated() {
        let batch: Vec<u32> = (0..500).collect();
        let (mut saved, at_fault, tries) = run(&batch, |item| item / 100 == 3, true);
        saved.sort_unstable();
        assert_eq!(at_fault, (300..400).collect::<Vec<_>>());
        assert_eq!(saved, batch.iter().copied().filter(|i| i / 100 != 3).collect::<Vec<_>>());
        assert!(tries <= 9, "{tries} tries");
    }

    #[test]
    fn of_items_with_the_same_row_one_that_is_locked_by_itself_is_found() {
        let batch: Vec<u32> = (200..400).collect();
        let (mut saved, at_fault, _) = run(&batch, |item| item == 350, true);
        saved.sort_unstable();
        assert_eq!(at_fault, [350]);
        assert_eq!(saved, batch.iter().copied().filter(|i| *i != 350).collect::<Vec<_>>());
    }

    #[test]
    fn items_that_are_kept_together_are_separated_only_where_they_fail_by_themselves() {
        let (database, metrics) = (never_connected(), Metrics::new());
        let batch: Vec<u32> = (0..500).collect();
        let mut bisection = Bisection::new(&batch, |_| None, &database, &metrics)
            .keeping_together(|one, other| one / 10 == other / 10);
        let (mut saved, mut at_fault) = (Vec::<u32>::new(), Vec::new());
        while let Some((part, _)) = bisection.next() {
            if part.contains(&321) {
                at_fault.extend(bisection.split(part, false, false).into_iter().flatten());
                continue;
            }
            let is_of_the_bad_one = part[0] / 10 == 32;
            assert!(is_of_the_bad_one || part.len() % 10 == 0 && part[0] % 10 == 0, "{part:?}");
            bisection.succeeded(part);
            saved.extend(part);
        }
        assert_eq!((saved.len(), at_fault), (499, vec![&321]));
    }

    #[test]
    fn in_a_batch_of_bad_rows_every_row_is_at_fault() {
        let (saved, at_fault, _) = run(&[1, 2, 3, 4, 5], |_| true, false);
        assert_eq!((saved.len(), at_fault.as_slice()), (0, &[1, 2, 3, 4, 5][..]));
    }

    #[tokio::test]
    async fn a_part_without_an_answer_is_tried_further_only_beside_another_test_write() {
        let (database, metrics) = (never_connected(), Metrics::new());
        let batch: Vec<u32> = (0..9).collect();
        let no_answer = || Error::TimedOut(Duration::from_secs(1));
        for answers in [true, false] {
            let mut bisection = Bisection::new(&batch, |_| None, &database, &metrics);
            bisection.succeeded(&batch[..1]);
            let test_write = |_| async move { if answers { Ok(()) } else { Err(no_answer()) } };
            let tried = bisection.failed(&batch[1..], no_answer(), test_write).await;
            assert_eq!(tried.is_ok(), answers);
        }
    }

    #[test]
    fn an_empty_batch_is_never_tried() {
        assert_eq!(run(&[], |_| true, true).2, 0);
    }
}
