//! Saving: a batch of messages becomes durable, then hot, and only then may be acknowledged.
//!
//! 1. One PostgreSQL transaction stores what is new and compares what is not. A message that the
//!    database refuses is bisected out; its neighbours are saved.
//! 2. The committed rows go to Redis, duplicates included: that heals a saver that died between
//!    the two stores.
//! 3. If Redis failed, or nobody knows, the conversations get new generations in PostgreSQL, so no
//!    reader believes their copies. Only then does [`Saver::save`] return.

use std::borrow::Borrow;
use std::collections::HashSet;

use database::{Database, HotWrites, SaveRow, Saved};
use domain::action::{Identity, SaveMessage};
use domain::causes::with_causes;
use domain::failure::{DeadLetterReason, Done, FailureClass, Outcome, Refusal, Unavailable};
use domain::ids::ConversationKey;
use domain::message::Message;
use failpoints::Step;
use hot_store::HotStore;
use metrics::{Counter, GenerationChange, Metrics};

use crate::RandomSource;
use crate::bisection::{Bisection, refused};
use crate::transient::retried;

/// Saves messages. Clones share their connections.
#[derive(Clone)]
pub struct Saver {
    database: Database,
    hot: HotStore,
    metrics: Metrics,
    random: RandomSource,
}

impl Saver {
    /// A saver over the two stores.
    #[must_use]
    pub fn new(database: Database, hot: HotStore, metrics: Metrics, random: RandomSource) -> Self {
        Self { database, hot, metrics, random }
    }

    /// Saves a batch: one outcome for each action, in their order. When this returns `Ok`, what is
    /// [`Outcome::Done`] is durable, and readers either see it or know that they must look in
    /// PostgreSQL.
    ///
    /// # Errors
    /// PostgreSQL is away. Part of the batch may be stored; saving it again is harmless.
    pub async fn save(&self, actions: &[SaveMessage]) -> Result<Vec<Outcome>, Unavailable> {
        let hot = if self.hot.is_known_down() { HotWrites::KnownDown } else { HotWrites::Follow };
        let mut batch = Batch::new(actions);
        failpoints::reached(Step::SaveDecoded);
        while let Some(round) = batch.next_round() {
            self.store(&mut batch, &round, hot).await?;
        }
        failpoints::reached(Step::SaveCommitted);
        if hot == HotWrites::Follow {
            self.make_hot(&mut batch).await?;
        } else {
            let voided = batch.by_conversation().len() as u64;
            let cause = GenerationChange::RedisUnavailable;
            self.metrics.add(Counter::HotGenerationChanges { cause }, voided);
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
    ) -> Result<(), Unavailable> {
        let mut bisection = Bisection::new(round, &self.metrics);
        while let Some(part) = bisection.next() {
            let rows: Vec<SaveRow<'_>> = part.iter().map(|row| row.row).collect();
            let random = || self.random.next();
            let error =
                match retried(&self.metrics, || self.database.save(&rows, hot, &random)).await {
                    Ok(saved) => {
                        self.metrics.add(Counter::ConversationsReopened, saved.reopened as u64);
                        batch.settle(part, saved.rows);
                        batch.renewed.extend(saved.touched);
                        continue;
                    }
                    Err(error) => error,
                };
            match error.class() {
                // Too much for one transaction, or locked in part: PostgreSQL answers otherwise.
                _ if part.len() > 1
                    && error.is_time_out()
                    && self.database.probe().await.is_ok() =>
                {
                    bisection.failed(part);
                }
                FailureClass::Unavailable | FailureClass::Transient => return Err(error.into()),
                class @ (FailureClass::Data | FailureClass::Retryable) => {
                    if let Some(culprit) = bisection.failed(part) {
                        tracing::warn!(
                            conversation = %culprit.row.key,
                            message_id = %culprit.row.message.id,
                            class = ?class,
                            "PostgreSQL refused a message; its neighbours are saved"
                        );
                        batch.refuse(culprit, class, &error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends the committed rows to their hot copies, or voids the copies.
    ///
    /// A copy's expiry is renewed with the first message of a conversation, after a quiet minute, and
    /// whenever it was closing or closed. Should a copy vanish in between and begin anew without an
    /// expiry, the next minute's message gives it one, and a close drops it.
    async fn make_hot(&self, batch: &mut Batch<'_>) -> Result<(), Unavailable> {
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
            "hot copies could not be written; they are void"
        );
        let changes: Vec<(ConversationKey, i64)> =
            error.conversations.into_iter().map(|key| (key, self.random.next())).collect();
        retried(&self.metrics, || self.database.change_generations(&changes)).await?;
        let cause = GenerationChange::AppendFailed;
        self.metrics.add(Counter::HotGenerationChanges { cause }, changes.len() as u64);
        Ok(())
    }

    fn count(&self, batch: &Batch<'_>) {
        let (mut new, mut duplicate, mut conflict, mut erased, mut anonymous) = (0, 0, 0, 0, 0);
        for (action, outcome) in batch.actions.iter().zip(&batch.outcomes) {
            match outcome {
                Some(Outcome::Done(Done::Applied)) => {
                    new += 1;
                    anonymous += u64::from(action.identity == Identity::Random);
                }
                Some(Outcome::Done(Done::Duplicate)) => duplicate += 1,
                Some(Outcome::Done(Done::Erased)) => erased += 1,
                Some(Outcome::DeadLetter(refusal))
                    if refusal.reason == DeadLetterReason::Conflict =>
                {
                    conflict += 1;
                }
                Some(Outcome::DeadLetter(_) | Outcome::Retry(_)) | None => {}
            }
        }
        for (counter, n) in [
            (Counter::MessagesSaved, new),
            (Counter::MessagesDuplicate, duplicate),
            (Counter::MessagesConflict, conflict),
            (Counter::MessagesErased, erased),
            (Counter::MessagesWithoutIdentity, anonymous),
        ] {
            self.metrics.add(counter, n);
        }
    }
}

/// A row and the actions that it stands for.
struct Row<'a> {
    row: SaveRow<'a>,
    first: usize,
    /// Later ones that say the same.
    repeated: Vec<usize>,
}

/// A batch on its way to its outcomes.
struct Batch<'a> {
    actions: &'a [SaveMessage],
    /// One for each action; none while it waits.
    outcomes: Vec<Option<Outcome>>,
    /// Rows that are not stored yet, in key order. One transaction takes each id once, so rows that
    /// give one id different words go in rounds: the first committed stays.
    waiting: Vec<Row<'a>>,
    /// What Redis is to hold.
    committed: Vec<(&'a ConversationKey, Committed<'a>)>,
    /// The conversations whose copies' expiry is to be renewed: their rows were made or changed, or a
    /// saver died, perhaps before it had renewed it.
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
    fn new(actions: &'a [SaveMessage]) -> Self {
        let mut waiting: Vec<Row<'a>> = Vec::with_capacity(actions.len());
        let mut order: Vec<usize> = (0..actions.len()).collect();
        // A stable sort: of several actions with one id the first to arrive comes first.
        order.sort_by(|a, b| place(&actions[*a]).cmp(&place(&actions[*b])));
        for index in order {
            let action = &actions[index];
            let row = SaveRow {
                key: &action.common.key,
                session: &action.common.session,
                tenant_tier: action.common.tenant_tier.as_deref(),
                message: &action.message,
                body_hash: action.message.body_hash(),
            };
            let same = waiting
                .iter_mut()
                .rev()
                .take_while(|known| place_of(&known.row) == place_of(&row))
                .find(|known| known.row.body_hash == row.body_hash);
            match same {
                Some(known) => known.repeated.push(index),
                None => waiting.push(Row { row, first: index, repeated: Vec::new() }),
            }
        }
        let outcomes = actions.iter().map(|_| None).collect();
        Self {
            actions,
            outcomes,
            waiting,
            committed: Vec::with_capacity(actions.len()),
            renewed: HashSet::new(),
        }
    }

    /// The first waiting row of every id, or `None` when all are settled.
    fn next_round(&mut self) -> Option<Vec<Row<'a>>> {
        let mut round = std::mem::take(&mut self.waiting);
        let mut last = None;
        let repeats_id = |row: &mut Row<'a>| {
            let place = place_of(&row.row);
            last.replace(place) == Some(place)
        };
        self.waiting = round.extract_if(.., repeats_id).collect();
        (!round.is_empty()).then_some(round)
    }

    fn settle(&mut self, part: &[Row<'a>], saved: Vec<Saved>) {
        for (row, saved) in part.iter().zip(saved) {
            let (first, repeated, committed) = match saved {
                Saved::New => (
                    Outcome::Done(Done::Applied),
                    Outcome::Done(Done::Duplicate),
                    Some(Committed::Sent(row.row.message)),
                ),
                Saved::Duplicate(message) => (
                    Outcome::Done(Done::Duplicate),
                    Outcome::Done(Done::Duplicate),
                    Some(Committed::Stored(message)),
                ),
                Saved::Conflict => (conflict(row), conflict(row), None),
                Saved::Erased => (Outcome::Done(Done::Erased), Outcome::Done(Done::Erased), None),
            };
            if matches!(committed, Some(Committed::Stored(_))) {
                self.renewed.insert(row.row.key);
            }
            self.committed.extend(committed.map(|message| (row.row.key, message)));
            for action in &row.repeated {
                self.outcomes[*action] = Some(repeated.clone());
            }
            self.outcomes[row.first] = Some(first);
        }
    }

    fn refuse(&mut self, row: &Row<'a>, class: FailureClass, error: &database::Error) {
        for action in row.repeated.iter().chain([&row.first]) {
            self.outcomes[*action] = Some(refused(class, error));
        }
    }

    /// The committed messages of each conversation, in key order.
    fn by_conversation(&mut self) -> Vec<(ConversationKey, Vec<&Message>)> {
        // Each round and part came in order, so there is little to sort.
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

    fn into_outcomes(self) -> Vec<Outcome> {
        // Every action is settled by some round.
        let left = || Outcome::Retry("the batch was left before this message".to_owned());
        self.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(left)).collect()
    }
}

fn place(action: &SaveMessage) -> (&ConversationKey, &str) {
    (&action.common.key, action.message.id.as_str())
}

fn place_of<'a>(row: &SaveRow<'a>) -> (&'a ConversationKey, &'a str) {
    (row.key, row.message.id.as_str())
}

fn conflict(row: &Row<'_>) -> Outcome {
    Outcome::DeadLetter(Refusal {
        reason: DeadLetterReason::Conflict,
        hint: None,
        field: Some("message_id".to_owned()),
        detail: format!(
            "message_id {:?} is taken by a message with another role, content, tool_calls or \
             tool_call_id in this conversation; the first one stays",
            row.row.message.id
        ),
    })
}
