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

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use database::{Database, HotWrites, OpenSaves, Place, SaveRow, Saved, SavedBatch, Wanted};
use domain::action::{Identity, SaveMessage, TimeSource};
use domain::causes::with_causes;
use domain::failure::{DeadLetterReason, Done, Failure, Outcome, Refusal, Unavailable};
use domain::ids::ConversationKey;
use domain::message::Message;
use failpoints::{Guard, Step};
use hot_store::HotStore;
use metrics::{Counter, GenerationChange, Metrics};
use tokio::time::timeout;

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
    database: LimitedDatabase,
    hot: HotStore,
    metrics: Metrics,
    random: RandomSource,
    /// Also those that a saver of single messages found.
    locked: LockedConversations,
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
        let each = |(unit, message)| ToSave { message, unit, atomic: false, after_receipt: None };
        self.save_units(&actions.iter().enumerate().map(each).collect::<Vec<_>>()).await
    }

    /// As [`save`](Self::save), for messages of which some belong together: those of one unit are committed in one
    /// transaction or, where PostgreSQL refuses some of them, the others in as few as possible. Of an atomic unit all
    /// have an effect, or all fail.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub async fn save_units(&self, actions: &[ToSave<'_>]) -> Result<Vec<Outcome>, Unavailable> {
        let hot = if self.hot.is_known_down() { HotWrites::KnownDown } else { HotWrites::Follow };
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
        if hot == HotWrites::Follow {
            self.append_to_copies(&mut batch).await?;
        } else {
            let invalidated = batch.by_conversation().len() as u64;
            let cause = GenerationChange::RedisUnavailable;
            self.metrics.add(Counter::HotGenerationChanges { cause }, invalidated);
        }
        if failpoints::holds(Guard::SavedAgainInvalidates) {
            let saved_again = batch.saved_again();
            self.invalidate(&mut batch, saved_again, GenerationChange::SavedAgain).await?;
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
                    batch.renewed.extend(saved.touched.iter().copied());
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

    /// Appends the committed rows to their hot copies, or invalidates the copies.
    ///
    /// A copy's expiry is renewed with the first message of a conversation, with the first after a minute
    /// without one, and when the conversation was closing or archived. A copy that was evicted in between
    /// starts without an expiry; a message in a later minute sets one, and a close drops the copy.
    async fn append_to_copies(&self, batch: &mut Batch<'_>) -> Result<(), Unavailable> {
        let renewed = std::mem::take(&mut batch.renewed);
        let committed = batch.by_conversation();
        if committed.is_empty() {
            return Ok(());
        }
        let appended = self.hot.append_renewing(&committed, |key| renewed.contains(key)).await;
        let Err(error) = appended else {
            return Ok(());
        };
        tracing::warn!(
            conversations = error.conversations.len(),
            error = with_causes(&error.cause),
            "hot copies of {} conversations could not be written; invalidating them in PostgreSQL",
            error.conversations.len()
        );
        if !failpoints::holds(Guard::FailedAppendInvalidates) {
            return Ok(());
        }
        self.invalidate(batch, error.conversations, GenerationChange::AppendFailed).await
    }

    /// Invalidates the hot copies of these conversations. Where PostgreSQL is too slow for one of them, or its row is
    /// locked, its messages fail: they are stored, and saving them again invalidates the copy.
    async fn invalidate(
        &self,
        batch: &mut Batch<'_>,
        conversations: impl IntoIterator<Item = ConversationKey>,
        cause: GenerationChange,
    ) -> Result<(), Unavailable> {
        let changes: Vec<(ConversationKey, i64)> =
            conversations.into_iter().map(|key| (key, self.random.next())).collect();
        if changes.is_empty() {
            return Ok(());
        }
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
            for (conversation, _) in items {
                batch.fail_conversation(conversation, &failure);
            }
        }
        Ok(())
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

/// A message to save.
#[derive(Debug, Clone, Copy)]
pub struct ToSave<'a> {
    /// The message.
    pub message: &'a SaveMessage,
    /// Its unit: messages of one conversation that belong together.
    pub unit: usize,
    /// Whether none of its unit is saved if one of it cannot be.
    pub atomic: bool,
    /// How many microseconds after the time of receipt of its unit, where that is its time: nobody sent another.
    pub after_receipt: Option<usize>,
}

/// A row to save, and the actions of the batch that it represents.
struct Row<'a> {
    row: SaveRow<'a>,
    unit: usize,
    first: usize,
    /// Later actions with the same id and the same content.
    repeated: Vec<usize>,
}

struct Batch<'a> {
    actions: &'a [ToSave<'a>],
    /// Whether a unit has more than one message, or is atomic.
    has_units: bool,
    /// Whether units repeat ids, of which one has more than one message or is atomic.
    repeats_ids: bool,
    /// One for each action; `None` until it is decided.
    outcomes: Vec<Option<Outcome>>,
    /// Rows that are not stored yet, in key order. A transaction takes each id once, so rows with the same
    /// id and different content are saved in successive rounds: the first one committed stays.
    pending: Vec<Row<'a>>,
    /// The rows of atomic units, in the order of the units.
    atomic: Vec<Row<'a>>,
    /// Where ids are repeated: those under which a message of this batch is stored.
    stored: HashSet<RowKey<'a>>,
    /// The committed messages, to be appended to the hot copies.
    committed: Vec<(&'a ConversationKey, Committed<'a>)>,
    /// The conversations whose copies' expiry is to be renewed: their rows were created or changed, or the
    /// message is a duplicate, whose first saver may have crashed before it renewed it.
    renewed: HashSet<&'a ConversationKey>,
}

enum Committed<'a> {
    Sent(&'a Message),
    Stored(Box<Message>),
}

impl Borrow<Message> for Committed<'_> {
    fn borrow(&self) -> &Message {
        match self {
            Self::Sent(message) => message,
            Self::Stored(message) => message,
        }
    }
}

impl<'a> Batch<'a> {
    /// A batch of these actions. Those of conversations that were locked a short time ago are decided already.
    fn new(actions: &'a [ToSave<'a>], locked: &LockedConversations) -> Self {
        let mut outcomes: Vec<Option<Outcome>> = actions.iter().map(|_| None).collect();
        if !locked.is_empty() {
            for (ToSave { message, .. }, outcome) in actions.iter().zip(&mut outcomes) {
                *outcome =
                    locked.failure(&message.common.key, message.message.id.as_str()).map(Err);
            }
        }
        let has_units = actions.windows(2).any(|pair| pair[0].unit == pair[1].unit)
            || actions.iter().any(|action| action.atomic);
        let repeats_ids = has_units && repeats_ids(actions);
        let mut pending: Vec<Row<'a>> = Vec::with_capacity(actions.len());
        let mut atomic: Vec<Row<'a>> = Vec::new();
        let mut known = PlacesOfIds::new();
        let mut order: Vec<usize> =
            (0..actions.len()).filter(|index| outcomes[*index].is_none()).collect();
        if has_units {
            // The rows of a unit are neighbours, and the units of a conversation too.
            order.sort_by_key(|n| (&actions[*n].message.common.key, actions[*n].unit));
        } else {
            // A stable sort: actions with the same id stay in order of arrival.
            order.sort_by(|a, b| row_key(actions[*a].message).cmp(&row_key(actions[*b].message)));
        }
        for index in order {
            let ToSave { message: action, unit, atomic: is_atomic, after_receipt } = actions[index];
            let row = SaveRow {
                key: &action.common.key,
                session: &action.common.session,
                tenant_tier: action.common.tenant_tier.as_deref(),
                message: &action.message,
                body_hash: action.body_hash(),
                place: after_receipt.map(|micros| Place { action: unit, micros }),
                created_at: action.message.created_at,
            };
            let rows = if is_atomic { &mut atomic } else { &mut pending };
            let is_same = |known: &Row<'_>| {
                row_key_of(&known.row) == row_key_of(&row) && known.row.body_hash == row.body_hash
            };
            let same = match (has_units, repeats_ids) {
                (true, false) => None,
                (true, true) => {
                    // Rows of an atomic unit are compared within it.
                    let scope = is_atomic.then_some(unit);
                    let places = known.entry((scope, row_key_of(&row))).or_default();
                    let same = places.iter().copied().find(|place| is_same(&rows[*place]));
                    places.extend(same.is_none().then_some(rows.len()));
                    same
                }
                (false, _) => {
                    // They are sorted by their ids.
                    let of_this_id = |n: &usize| row_key_of(&rows[*n].row) == row_key_of(&row);
                    (0..rows.len()).rev().take_while(of_this_id).find(|n| is_same(&rows[*n]))
                }
            };
            match same {
                Some(place) => rows[place].repeated.push(index),
                None => rows.push(Row { row, unit, first: index, repeated: Vec::new() }),
            }
        }
        Self {
            actions,
            has_units,
            repeats_ids,
            outcomes,
            pending,
            atomic,
            stored: HashSet::new(),
            committed: Vec::with_capacity(actions.len()),
            renewed: HashSet::new(),
        }
    }

    /// The first pending row of every id, or `None` if no row is pending.
    fn next_round(&mut self) -> Option<Vec<Row<'a>>> {
        let mut round = std::mem::take(&mut self.pending);
        if self.repeats_ids {
            return self.next_round_of_units(round);
        }
        // Without units they are sorted by their ids.
        let mut last = None;
        let repeats_id = |row: &mut Row<'a>| {
            let key = row_key_of(&row.row);
            last.replace(key) == Some(key)
        };
        self.pending = round.extract_if(.., repeats_id).collect();
        (!round.is_empty()).then_some(round)
    }

    /// A round in which no id is repeated. A unit that repeats an id of another unit waits as a whole.
    fn next_round_of_units(&mut self, all: Vec<Row<'a>>) -> Option<Vec<Row<'a>>> {
        let mut ids: HashSet<RowKey<'_>> = HashSet::with_capacity(all.len());
        let mut round = Vec::with_capacity(all.len());
        let mut all = all.into_iter().peekable();
        while let Some(first) = all.next() {
            let unit = first.unit;
            let mut rows = vec![first];
            rows.extend(std::iter::from_fn(|| all.next_if(|row| row.unit == unit)));
            if rows.iter().any(|row| ids.contains(&row_key_of(&row.row))) {
                // No later unit with one of its ids comes before it.
                ids.extend(rows.iter().map(|row| row_key_of(&row.row)));
                self.pending.extend(rows);
                continue;
            }
            for row in rows {
                if self.stored.contains(&row_key_of(&row.row)) {
                    // This batch has seen the message that is stored under its id: it is another one.
                    let failure = conflict(&row);
                    self.fail(&row, &failure);
                } else if ids.insert(row_key_of(&row.row)) {
                    round.push(row);
                } else {
                    self.pending.push(row);
                }
            }
        }
        // With none left to save, some may wait behind those that were just decided.
        match round.is_empty() && !self.pending.is_empty() {
            true => {
                let pending = std::mem::take(&mut self.pending);
                self.next_round_of_units(pending)
            }
            false => (!round.is_empty()).then_some(round),
        }
    }

    /// The rows of each atomic unit. One with a row that was decided before fails like that row.
    fn atomic_units(&mut self) -> Vec<Vec<Row<'a>>> {
        let mut rows = std::mem::take(&mut self.atomic).into_iter().peekable();
        let mut units: Vec<Vec<Row<'a>>> = Vec::new();
        while let Some(first) = rows.next() {
            let mut unit = vec![first];
            let of_unit = unit[0].unit;
            unit.extend(std::iter::from_fn(|| rows.next_if(|row| row.unit == of_unit)));
            units.push(unit);
        }
        units.retain(|unit| {
            let failure = self.actions.iter().zip(&self.outcomes).find_map(|(action, outcome)| {
                let is_of_unit = action.unit == unit[0].unit;
                outcome.as_ref().filter(|_| is_of_unit).and_then(|it| it.as_ref().err().cloned())
            });
            let mut ids = HashSet::new();
            let twice = unit.iter().find(|row| !ids.insert(row.row.message.id.as_str()));
            let twice = twice.map(|row| (row.first, conflict(row)));
            for row in unit {
                match (&failure, &twice) {
                    (Some(failure), _) => self.fail(row, failure),
                    (None, Some((first, conflict))) if row.first == *first => {
                        self.fail(row, conflict);
                    }
                    (None, Some(_)) => self.fail(row, &withheld()),
                    (None, None) => {}
                }
            }
            failure.is_none() && twice.is_none()
        });
        units
    }

    fn settle(&mut self, part: &[&Row<'a>], saved: SavedBatch<'_>) {
        let mut times = saved.times.into_iter().peekable();
        for (n, (row, saved)) in part.iter().zip(saved.rows).enumerate() {
            let (first, repeated, committed) = match saved {
                Saved::New => {
                    let message = match times.next_if(|(of, _)| *of == n) {
                        Some((_, created_at)) => {
                            let message = Message { created_at, ..row.row.message.clone() };
                            Committed::Stored(Box::new(message))
                        }
                        None => Committed::Sent(row.row.message),
                    };
                    (Ok(Done::Applied), Ok(Done::Duplicate), Some(message))
                }
                Saved::Duplicate(message) => {
                    (Ok(Done::Duplicate), Ok(Done::Duplicate), Some(Committed::Stored(message)))
                }
                Saved::Conflict => (Err(conflict(row)), Err(conflict(row)), None),
                Saved::Erased | Saved::Deleted => (Ok(Done::Erased), Ok(Done::Erased), None),
                Saved::Withheld => (Err(withheld()), Err(withheld()), None),
            };
            if first == Ok(Done::Duplicate) {
                self.renewed.insert(row.row.key);
            }
            if self.repeats_ids && committed.is_some() {
                self.stored.insert(row_key_of(&row.row));
            }
            self.committed.extend(committed.map(|message| (row.row.key, message)));
            for action in &row.repeated {
                self.outcomes[*action] = Some(repeated.clone());
            }
            self.outcomes[row.first] = Some(first);
        }
    }

    /// Fails the rows of conversations that were found to be locked meanwhile: each wait for them takes seconds.
    fn fail_locked(&mut self, rows: &mut Vec<Row<'a>>, locked: &LockedConversations) {
        if locked.is_empty() {
            return;
        }
        rows.retain(|row| match locked.failure(row.row.key, row.row.message.id.as_str()) {
            Some(failure) => {
                self.fail(row, &failure);
                false
            }
            None => true,
        });
    }

    fn fail(&mut self, row: &Row<'a>, failure: &Failure) {
        for action in row.repeated.iter().chain([&row.first]) {
            self.outcomes[*action] = Some(Err(failure.clone()));
        }
    }

    /// The saved messages of a conversation fail; they are handled again.
    fn fail_conversation(&mut self, key: &ConversationKey, failure: &Failure) {
        for (action, outcome) in self.actions.iter().zip(&mut self.outcomes) {
            if action.message.common.key == *key && matches!(outcome, Some(Ok(_))) {
                *outcome = Some(Err(failure.clone()));
            }
        }
    }

    /// The committed messages of each conversation, in key order.
    fn by_conversation(&mut self) -> Vec<(ConversationKey, Vec<&Message>)> {
        // Each round and each part is in order already, so there is little to sort.
        self.committed.sort_by_key(|(key, _)| *key);
        let conversations = self.committed.chunk_by(|(one, _), (other, _)| one == other);
        conversations
            .filter_map(|messages| {
                let (key, _) = messages.first()?;
                let messages = messages.iter().map(|(_, message)| message.borrow()).collect();
                Some(((*key).clone(), messages))
            })
            .collect()
    }

    /// The conversations of messages that may be stored already, under an unknown id; whatever became of them now,
    /// unless they are handled again from the slow queue: then they are asked for again.
    fn saved_again(&self) -> BTreeSet<ConversationKey> {
        let again = Identity::Random { redelivered: true };
        let is_slow =
            |outcome: &Option<Outcome>| matches!(outcome, Some(Err(failure)) if failure.is_apart());
        let saved_again = self.actions.iter().zip(&self.outcomes);
        let saved_again = saved_again
            .filter(|(action, outcome)| action.message.identity == again && !is_slow(outcome));
        saved_again.map(|(action, _)| action.message.common.key.clone()).collect()
    }

    fn into_outcomes(self) -> Vec<Outcome> {
        // Every action is decided in some round.
        let undecided =
            || Err(Failure::Retry("the batch ended without an outcome for this message".into()));
        self.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(undecided)).collect()
    }
}

/// Whether several messages have one id.
fn repeats_ids(actions: &[ToSave<'_>]) -> bool {
    let mut ids: Vec<RowKey<'_>> = actions.iter().map(|it| row_key(it.message)).collect();
    ids.sort_unstable();
    ids.windows(2).any(|pair| pair[0] == pair[1])
}

/// What identifies a row.
type RowKey<'a> = (&'a ConversationKey, &'a str);

/// Where the rows of an id are, in an atomic unit or outside of those.
type PlacesOfIds<'a> = HashMap<(Option<usize>, RowKey<'a>), Vec<usize>>;

fn row_key(action: &SaveMessage) -> RowKey<'_> {
    (&action.common.key, action.message.id.as_str())
}

fn row_key_of<'a>(row: &SaveRow<'a>) -> RowKey<'a> {
    (row.key, row.message.id.as_str())
}

/// The rows in the order in which they are saved: two batches cannot deadlock. Without units they are sorted already.
fn in_key_order<'r, 'a>(part: &'r [Row<'a>], has_units: bool) -> Vec<&'r Row<'a>> {
    let mut rows: Vec<&Row<'a>> = part.iter().collect();
    if has_units {
        rows.sort_by(|a, b| row_key_of(&a.row).cmp(&row_key_of(&b.row)));
    }
    rows
}

/// Of a message whose atomic unit is not saved because of another message.
fn withheld() -> Failure {
    let detail = "another message of its action cannot be saved, and the action is atomic";
    Failure::DeadLetter(Refusal::new(DeadLetterReason::Conflict, detail.to_owned()))
}

fn conflict(row: &Row<'_>) -> Failure {
    Failure::DeadLetter(Refusal {
        reason: DeadLetterReason::Conflict,
        hint: None,
        field: Some("message_id".to_owned()),
        detail: format!(
            "message_id {:?} is already stored in this conversation with a different role, content, \
             tool_calls or tool_call_id; the stored message stays as it is",
            row.row.message.id
        ),
    })
}
