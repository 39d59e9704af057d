//! How the collector stores a batch: at once, in halves, or one dead letter without some of its columns.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use broker::topology::WorkQueue;
use conversation::{
    Bisection, LimitedDatabase, RandomSource, SetAside, failed_alone, retry_transient,
};
use database::{CollectedDeadLetter, Database, Omitted};
use domain::causes::with_causes;
use domain::event::DeadLettered;
use domain::failure::{Failure, FailureClass, Unavailable};
use domain::ids::ConversationKey;
use domain::reply::{ReplyAddress, ReplyError};
use failpoints::Guard;
use metrics::{Counter, GenerationChange, Metrics};
use uuid::Uuid;

/// How often everything of a dead letter is tried before an error of no known class counts as one of this dead letter:
/// as often as the pause between two attempts still grows.
const WHOLE_ATTEMPTS: u32 = 3;

/// The longest error that is stored with a dead letter that is not stored whole, in bytes.
const MAX_ERROR_BYTES: usize = 2048;

/// Stores the dead letters of one work queue.
#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) queue: WorkQueue,
    pub(crate) database: LimitedDatabase,
    pub(crate) metrics: Metrics,
    /// Generations are from it.
    pub(crate) random: RandomSource,
}

/// A dead letter, and which steps have succeeded and are not repeated.
pub struct Collected {
    pub(crate) record: CollectedDeadLetter,
    pub(crate) event: DeadLettered,
    /// The conversation whose hot copy may lack its message.
    pub(crate) may_be_stored_in: Option<ConversationKey>,
    /// The reply that no worker sent to its sender, who wants one.
    pub(crate) unanswered: Option<(ReplyAddress, ReplyError)>,
    pub(crate) trace_id: Option<String>,
    /// How often it is being stored now, from 1.
    pub(crate) attempt: u32,
    pub(crate) stored: AtomicBool,
    pub(crate) announced: AtomicBool,
}

impl Storage {
    /// Stores the dead letters that are not stored yet: all at once or, if PostgreSQL refuses that, in halves, down to
    /// the one that it refuses. Returns the failure of each that was not stored.
    pub(crate) async fn store(
        &self,
        dead_letters: &[&Collected],
    ) -> Result<Vec<(Uuid, Failure)>, Unavailable> {
        let new: Vec<&Collected> =
            dead_letters.iter().copied().filter(|it| !it.stored.load(Relaxed)).collect();
        let mut faults = Vec::new();
        let mut bisection = Bisection::new(&new, may_be_stored_in, &self.database, &self.metrics);
        while let Some((part, database)) = bisection.next() {
            let Err(error) = self.store_together(part, &database).await else {
                bisection.succeeded(part);
                continue;
            };
            let aside = bisection.failed(part, error, Database::check_dead_letters).await?;
            let Some(SetAside { items, error, .. }) = aside else { continue };
            if error.is_lock() {
                let failure = failed_alone(error);
                let fault = |it: &&Collected| (it.event.dead_letter_id, failure.clone());
                faults.extend(items.into_iter().map(fault));
            } else if let [dead_letter] = items[..]
                && let Some(failure) = self.store_in_part(dead_letter, error).await?
            {
                faults.push((dead_letter.event.dead_letter_id, failure));
            }
        }
        Ok(faults)
    }

    /// Stores a dead letter, which PostgreSQL refused with `error`, without some of its columns. Returns the failure if
    /// PostgreSQL refuses that too, or if it was no refusal.
    ///
    /// An error of no known class may be one of PostgreSQL and not of the dead letter. Then everything is tried again
    /// with the first retries, before anything is left out.
    async fn store_in_part(
        &self,
        dead_letter: &Collected,
        mut error: database::Error,
    ) -> Result<Option<Failure>, Unavailable> {
        if is_outage(&error) {
            // Too slow, locked, or as in an outage: fewer columns would not help.
            return Ok(Some(failed_alone(error)));
        }
        let (queue, id) = (self.queue.dlq(), dead_letter.event.dead_letter_id);
        let (reason, trace_id) = (dead_letter.event.reason, dead_letter.trace_id.as_deref());
        let is_known = error.class() == FailureClass::Data;
        if is_known || dead_letter.attempt > WHOLE_ATTEMPTS {
            for omitted in Omitted::ALL {
                let refusal = with_causes(&error);
                match self.store_without(dead_letter, omitted, &refusal).await {
                    Ok(()) => {
                        tracing::error!(
                            queue,
                            dead_letter = %id,
                            %reason,
                            trace_id,
                            error = refusal,
                            "PostgreSQL refused a dead letter; it is stored without some of its columns, which \
                             `verbatim dead-letters show {id}` names"
                        );
                        return Ok(None);
                    }
                    Err(error) if is_outage(&error) => {
                        return self.of_this_one(error).await.map(Some);
                    }
                    Err(refusal) => error = refusal,
                }
            }
        }
        let attempt = dead_letter.attempt;
        tracing::error!(
            queue,
            dead_letter = %id,
            %reason,
            trace_id,
            attempt,
            error = with_causes(&error),
            "PostgreSQL refused a dead letter (attempt {attempt}); it is retried"
        );
        Ok(Some(Failure::Retry(error.into())))
    }

    /// The failure of a dead letter with which PostgreSQL fails as in an outage, if a test write succeeds beside it.
    async fn of_this_one(&self, error: database::Error) -> Result<Failure, Unavailable> {
        let may_be = error.is_time_out() || error.is_lock() || error.may_concern_one_item();
        let test_write = || self.database.batches().check_dead_letters();
        if may_be && retry_transient(&self.metrics, test_write).await.is_ok() {
            Ok(failed_alone(error))
        } else {
            Err(error.into())
        }
    }

    /// Stores dead letters in one transaction, which also invalidates the hot copies that may lack their messages.
    async fn store_together(
        &self,
        dead_letters: &[&Collected],
        database: &Database,
    ) -> Result<(), database::Error> {
        let records: Vec<_> = dead_letters.iter().map(|it| &it.record).collect();
        if failpoints::holds(Guard::DeadLetterStored) {
            let generations = self.generations(dead_letters);
            let store = || database.store_dead_letters(&records, &generations);
            self.count_invalidated(retry_transient(&self.metrics, store).await?);
        }
        dead_letters.iter().for_each(|it| self.mark_stored(it));
        Ok(())
    }

    /// Stores one dead letter as [`Self::store_together`] does, without some of its columns.
    async fn store_without(
        &self,
        dead_letter: &Collected,
        omitted: Omitted,
        error: &str,
    ) -> Result<(), database::Error> {
        let error = &error[..error.floor_char_boundary(MAX_ERROR_BYTES)];
        let generations = self.generations(&[dead_letter]);
        let store = || {
            let (record, database) = (&dead_letter.record, self.database.batches());
            database.store_dead_letter_without(record, omitted, error, &generations)
        };
        self.count_invalidated(retry_transient(&self.metrics, store).await?);
        self.mark_stored(dead_letter);
        Ok(())
    }

    /// New generations for the conversations whose hot copies may lack messages of these dead letters.
    fn generations(&self, dead_letters: &[&Collected]) -> Vec<(ConversationKey, i64)> {
        if !failpoints::holds(Guard::DeadLetterInvalidates) {
            return Vec::new();
        }
        let conversations: BTreeSet<_> =
            dead_letters.iter().filter_map(|it| it.may_be_stored_in.as_ref()).collect();
        conversations.into_iter().map(|key| (key.clone(), self.random.next())).collect()
    }

    fn count_invalidated(&self, invalidated: u64) {
        let cause = GenerationChange::DeadLettered;
        self.metrics.add(Counter::HotGenerationChanges { cause }, invalidated);
    }

    fn mark_stored(&self, dead_letter: &Collected) {
        dead_letter.stored.store(true, Relaxed);
        let DeadLettered { reason, dead_letter_id, field, attempts, .. } = &dead_letter.event;
        let (queue, reason) = (self.queue.name(), *reason);
        self.metrics.add(Counter::DeadLettersStored { queue, reason }, 1);
        tracing::warn!(
            queue,
            %reason,
            dead_letter = %dead_letter_id,
            trace_id = dead_letter.trace_id,
            field,
            attempts,
            "dead letter stored"
        );
    }
}

fn may_be_stored_in<'a>(dead_letter: &'a &Collected) -> Option<&'a ConversationKey> {
    dead_letter.may_be_stored_in.as_ref()
}

/// Whether PostgreSQL is at fault, or a lock, and not what was to be stored.
fn is_outage(error: &database::Error) -> bool {
    error.class() == FailureClass::Unavailable || error.is_time_out() || error.is_lock()
}
