//! Saving: a batch of messages is committed in PostgreSQL, then appended to Redis, and only then acknowledged.
//!
//! 1. One PostgreSQL transaction stores new messages and compares the others with their stored rows. A
//!    message that PostgreSQL refuses is isolated by bisection; the rest of the batch is saved.
//! 2. The committed rows are appended in Redis, duplicates included: a redelivery completes what a saver
//!    left that crashed between the two servers.
//! 3. If Redis failed, or its reply was lost, the conversations get new generations in PostgreSQL, which
//!    invalidates their copies.
//! 4. So do the conversations of redelivered messages without an identity. An earlier delivery may have stored
//!    such a message under another id, which is unknown now, and have ended before it wrote the hot copy.
//!
//! Only then does [`Saver::save`] return.

mod batch;
mod committed;

pub use self::batch::ToSave;
pub(crate) use self::committed::{Committed, CommittedMessage};

use std::collections::BTreeSet;
use std::time::Duration;

use database::{Database, HotWrites, OpenSaves, SaveRow, Wanted};
use domain::action::{Identity, SaveMessage, TimeSource};
use domain::causes::with_causes;
use domain::failure::{DeadLetterReason, Done, Failure, Outcome, Unavailable};
use domain::ids::ConversationKey;
use failpoints::{Guard, Step};
use hot_store::HotStore;
use metrics::{Counter, GenerationChange, Metrics};
use tokio::time::timeout;

use self::batch::{Batch, Row, in_key_order};
use crate::RandomSource;
use crate::bisection::{Bisection, SetAside, failed_alone};
use crate::limited_database::LimitedDatabase;
use crate::locked_conversations::LockedConversations;
use crate::transient::retry_transient;

/// How long a change of a generation waits at most for the saves that are open.
const OPEN_SAVES_LIMIT: Duration = Duration::from_secs(1);

/// Saves messages. Clones share their connections.
#[derive(Clone)]
pub struct Saver {
    pub(crate) database: LimitedDatabase,
    hot: HotStore,
    pub(crate) metrics: Metrics,
    pub(crate) random: RandomSource,
    /// Also those that a saver of single messages found.
    pub(crate) locked: LockedConversations,
}

impl Saver {
    /// A saver to these two servers.
    #[must_use]
    pub fn new(database: &Database, hot: HotStore, metrics: Metrics, random: RandomSource) -> Self {
        let database = LimitedDatabase::of_batches(database);
        Self { database, hot, metrics, random, locked: LockedConversations::default() }
    }

    /// The same saver with this time limit, for single messages that are slow or locked.
    #[must_use]
    pub fn with_time_limit(&self, limit: Duration) -> Self {
        let database = LimitedDatabase::of_slow_items(self.database.batches(), limit);
        Self { database, locked: self.locked.of_slow_items(), ..self.clone() }
    }

    /// Checks with a test write whether messages can be saved.
    ///
    /// # Errors
    /// PostgreSQL is unavailable, or refuses every message.
    pub async fn check(&self) -> Result<(), Unavailable> {
        Ok(self.database.batches().check_save().await?)
    }

    /// Saves a batch: one outcome for each action, in their order. When this returns `Ok`, every
    /// [`Done`] is committed in PostgreSQL, and each hot copy has it or is invalidated.
    ///
    /// # Errors
    /// PostgreSQL is unavailable. Part of the batch may be stored; saving it again is harmless.
    pub async fn save(&self, actions: &[SaveMessage]) -> Result<Vec<Outcome>, Unavailable> {
        let each = |(unit, message)| ToSave::alone(unit, message);
        self.save_units(&actions.iter().enumerate().map(each).collect::<Vec<_>>()).await
    }

    /// As [`save`](Self::save), for messages of which some belong together: those of one unit are committed in one
    /// transaction or, where PostgreSQL refuses some of them, the others in as few as possible. Of an atomic unit all
    /// have an effect, or all fail.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub async fn save_units(&self, actions: &[ToSave<'_>]) -> Result<Vec<Outcome>, Unavailable> {
        if actions.is_empty() {
            return Ok(Vec::new());
        }
        let hot = self.hot_writes();
        let mut batch = Batch::new(actions, &self.locked);
        failpoints::reached(Step::SaveDecoded);
        let mut is_first = true;
        while let Some(mut round) = batch.next_round() {
            if !std::mem::take(&mut is_first) {
                batch.fail_locked(&mut round, &self.locked);
            }
            self.store(&mut batch, &round, hot, Wanted::Each).await?;
        }
        for mut unit in batch.atomic_units() {
            // The conversation of an earlier unit may be the same one.
            batch.fail_locked(&mut unit, &self.locked);
            self.store(&mut batch, &unit, hot, Wanted::AllOrNone).await?;
        }
        failpoints::reached(Step::SaveCommitted);
        let again = batch.saved_again();
        let failed = self.write_copies(&mut batch.committed, hot, again).await?;
        for (conversation, failure) in &failed {
            batch.fail_conversation(conversation, failure);
        }
        failpoints::reached(Step::SaveAppended);
        self.count(&batch);
        Ok(batch.into_outcomes())
    }

    async fn store<'a>(
        &self,
        batch: &mut Batch<'a>,
        round: &[Row<'a>],
        hot: HotWrites,
        wanted: Wanted,
    ) -> Result<(), Unavailable> {
        let mut bisection =
            Bisection::new(round, |row| Some(row.row.key), &self.database, &self.metrics)
                .keeping_together(|one, other| one.unit == other.unit);
        if wanted == Wanted::AllOrNone {
            bisection = bisection.undivided();
        }
        while let Some((part, database)) = bisection.next() {
            let part_in_order = in_key_order(part, batch.has_units);
            let rows: Vec<SaveRow<'_>> = part_in_order.iter().map(|row| row.row).collect();
            let random = || self.random.next();
            let save = || database.save(&rows, hot, &random, wanted);
            let error = match retry_transient(&self.metrics, save).await {
                Ok(saved) => {
                    bisection.succeeded(part);
                    self.locked.forget(part.iter().map(|row| row.row.key));
                    self.metrics.add(Counter::ConversationsReopened, saved.reopened as u64);
                    batch.committed.renew(saved.touched.iter().copied());
                    batch.settle(&part_in_order, saved);
                    continue;
                }
                Err(error) => error,
            };
            let aside = bisection.failed(part, error, Database::check_save).await?;
            let Some(SetAside { items, error, are_known_to_be_locked }) = aside else { continue };
            let (reason, failure) = (with_causes(&error), failed_alone(error));
            if are_known_to_be_locked {
                self.locked.found(items.iter().map(|row| row.row.key), &failure);
            }
            for row in items {
                // The consumer logs what is handled again apart from others: once, and not with each try.
                if !failure.is_apart() {
                    tracing::warn!(
                        conversation = %row.row.key,
                        message_id = %row.row.message.id,
                        error = reason,
                        "PostgreSQL did not store a message; the other messages of its batch are saved"
                    );
                }
                self.locked.record(row.row.key, row.row.message.id.as_str(), &failure);
                batch.fail(row, &failure);
            }
        }
        Ok(())
    }

    pub(crate) fn hot_writes(&self) -> HotWrites {
        if self.hot.is_known_down() { HotWrites::KnownDown } else { HotWrites::Follow }
    }

    /// Appends what is committed to the hot copies, or invalidates them; and invalidates the copies of the conversations in
    /// `again`, of which an earlier delivery may have stored more than is known now. Conversations for which that failed are
    /// returned: their messages are stored, and handling them again invalidates the copy.
    pub(crate) async fn write_copies(
        &self,
        committed: &mut Committed<'_>,
        hot: HotWrites,
        again: BTreeSet<ConversationKey>,
    ) -> Result<Vec<(ConversationKey, Failure)>, Unavailable> {
        committed.sort();
        let mut failed = match hot {
            HotWrites::Follow => self.append_to_copies(committed).await?,
            HotWrites::KnownDown => {
                let invalidated = committed.by_conversation().len() as u64;
                let cause = GenerationChange::RedisUnavailable;
                self.metrics.add(Counter::HotGenerationChanges { cause }, invalidated);
                Vec::new()
            }
        };
        if failpoints::holds(Guard::SavedAgainInvalidates) {
            failed.extend(self.invalidate(again, GenerationChange::SavedAgain).await?);
        }
        Ok(failed)
    }

    /// Appends the committed rows to their hot copies, or invalidates the copies.
    ///
    /// A copy's expiry is renewed with the first message of a conversation, with the first after a minute
    /// without one, and when the conversation was closing or archived. A copy that was evicted in between
    /// starts without an expiry; a message in a later minute sets one, and a close drops the copy.
    async fn append_to_copies(
        &self,
        committed: &Committed<'_>,
    ) -> Result<Vec<(ConversationKey, Failure)>, Unavailable> {
        let conversations = committed.by_conversation();
        if conversations.is_empty() {
            return Ok(Vec::new());
        }
        let is_renewed = |key: &ConversationKey| committed.is_renewed(key);
        let Err(error) = self.hot.append_renewing(&conversations, is_renewed).await else {
            return Ok(Vec::new());
        };
        tracing::warn!(
            conversations = error.conversations.len(),
            error = with_causes(&error.cause),
            "hot copies of {} conversations could not be written; invalidating them in PostgreSQL",
            error.conversations.len()
        );
        if !failpoints::holds(Guard::FailedAppendInvalidates) {
            return Ok(Vec::new());
        }
        self.invalidate(error.conversations, GenerationChange::AppendFailed).await
    }

    /// Invalidates the hot copies of these conversations. Returns those for which PostgreSQL is too slow, or whose row is
    /// locked.
    async fn invalidate(
        &self,
        conversations: impl IntoIterator<Item = ConversationKey>,
        cause: GenerationChange,
    ) -> Result<Vec<(ConversationKey, Failure)>, Unavailable> {
        let changes: Vec<(ConversationKey, i64)> =
            conversations.into_iter().map(|key| (key, self.random.next())).collect();
        let mut failed = Vec::new();
        let mut bisection =
            Bisection::new(&changes, |(key, _)| Some(key), &self.database, &self.metrics);
        while let Some((part, database)) = bisection.next() {
            let Err(error) = self.change_generations(&database, part, cause).await else {
                bisection.succeeded(part);
                self.metrics.add(Counter::HotGenerationChanges { cause }, part.len() as u64);
                continue;
            };
            let aside = bisection.failed(part, error, Database::check_save).await?;
            let Some(SetAside { items, error, .. }) = aside else { continue };
            let failure = match failed_alone(error) {
                // The messages are stored: none of them is a dead letter.
                Failure::DeadLetter(refusal) => Failure::Retry(refusal.into()),
                failure => failure,
            };
            failed.extend(items.into_iter().map(|(key, _)| (key.clone(), failure.clone())));
        }
        Ok(failed)
    }

    async fn change_generations(
        &self,
        database: &Database,
        changes: &[(ConversationKey, i64)],
        cause: GenerationChange,
    ) -> Result<(), database::Error> {
        let change = |open_saves| {
            retry_transient(&self.metrics, move || database.change_generations(changes, open_saves))
        };
        // The save of an earlier delivery may not be committed yet. But in a conversation with a save at every moment
        // the wait would never end.
        let awaited = match cause {
            GenerationChange::SavedAgain => {
                timeout(OPEN_SAVES_LIMIT, change(OpenSaves::Awaited)).await.ok()
            }
            _ => None,
        };
        match awaited {
            Some(changed) => changed,
            None => change(OpenSaves::Independent).await,
        }?;
        Ok(())
    }

    fn count(&self, batch: &Batch<'_>) {
        let (mut new, mut duplicate, mut conflict, mut erased) = (0, 0, 0, 0);
        let (mut anonymous, mut untimed) = (0, 0);
        for (ToSave { message: action, .. }, outcome) in batch.actions.iter().zip(&batch.outcomes) {
            match outcome {
                Some(Ok(Done::Applied)) => {
                    new += 1;
                    anonymous += u64::from(matches!(action.identity, Identity::Random { .. }));
                    untimed += u64::from(action.common.time_source == TimeSource::Receipt);
                }
                Some(Ok(Done::Duplicate)) => duplicate += 1,
                Some(Ok(Done::Erased)) => erased += 1,
                Some(Err(Failure::DeadLetter(refusal)))
                    if refusal.reason == DeadLetterReason::Conflict =>
                {
                    conflict += 1;
                }
                Some(Err(_)) | None => {}
            }
        }
        for (counter, n) in [
            (Counter::MessagesSaved, new),
            (Counter::MessagesDuplicate, duplicate),
            (Counter::MessagesConflict, conflict),
            (Counter::MessagesErased, erased),
            (Counter::MessagesWithoutIdentity, anonymous),
            (Counter::MessagesWithoutTimestamp, untimed),
        ] {
            self.metrics.add(counter, n);
        }
    }
}
