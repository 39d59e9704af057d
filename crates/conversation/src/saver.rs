//! Saving: a batch of messages becomes durable, then hot, and only then may be acknowledged.
//!
//! 1. One PostgreSQL transaction stores what is new and compares what is not. A message that the
//!    database refuses is bisected out; its neighbours are saved.
//! 2. The committed rows go to Redis, duplicates included: that heals a saver that died between
//!    the two stores.
//! 3. If Redis failed, or nobody knows, the conversations get new generations in PostgreSQL, so no
//!    reader believes their copies. Only then does [`Saver::save`] return.

use std::collections::HashMap;

use archive::{Archive, HotWrites, SaveRow, Saved};
use domain::action::{Identity, SaveMessage};
use domain::failure::{DeadLetterReason, Done, FailureClass, Outcome, Refusal, Unavailable};
use domain::ids::ConversationKey;
use domain::message::Message;
use hot_store::HotStore;
use metrics::{Counter, GenerationChange, Metrics};

use crate::Fresh;
use crate::bisection::{Bisection, refused};
use crate::transient::retried;

/// Saves messages. Clones share their connections.
#[derive(Clone)]
pub struct Saver {
    archive: Archive,
    hot: HotStore,
    metrics: Metrics,
    fresh: Fresh,
}

impl Saver {
    /// A saver over the two stores.
    #[must_use]
    pub fn new(archive: Archive, hot: HotStore, metrics: Metrics, fresh: Fresh) -> Self {
        Self { archive, hot, metrics, fresh }
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
        while let Some(round) = batch.next_round() {
            self.store(&mut batch, &round, hot).await?;
        }
        if hot == HotWrites::Follow {
            self.make_hot(&batch).await?;
        } else {
            let voided = batch.conversations() as u64;
            let cause = GenerationChange::RedisAway;
            self.metrics.add(Counter::HotGenerationChanges { cause }, voided);
        }
        self.count(&batch);
        Ok(batch.outcomes)
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
            let fresh = || self.fresh.draw();
            let error = match retried(&self.metrics, || self.archive.save(&rows, hot, &fresh)).await
            {
                Ok(saved) => {
                    self.metrics.add(Counter::ConversationsReopened, saved.reopened as u64);
                    batch.settle(part, saved.rows);
                    continue;
                }
                Err(error) => error,
            };
            match error.class() {
                // Too much for one transaction, or locked in part: PostgreSQL answers otherwise.
                _ if part.len() > 1
                    && error.is_time_out()
                    && self.archive.probe().await.is_ok() =>
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
    async fn make_hot(&self, batch: &Batch<'_>) -> Result<(), Unavailable> {
        let committed = batch.committed();
        if committed.is_empty() {
            return Ok(());
        }
        let Err(error) = self.hot.append(&committed).await else {
            return Ok(());
        };
        tracing::warn!(
            conversations = error.conversations.len(),
            error = %error.cause,
            "hot copies could not be written; they are void"
        );
        let changes: Vec<(ConversationKey, i64)> =
            error.conversations.into_iter().map(|key| (key, self.fresh.draw())).collect();
        retried(&self.metrics, || self.archive.change_generations(&changes)).await?;
        let cause = GenerationChange::AppendFailed;
        self.metrics.add(Counter::HotGenerationChanges { cause }, changes.len() as u64);
        Ok(())
    }

    fn count(&self, batch: &Batch<'_>) {
        let (mut new, mut duplicate, mut conflict, mut erased, mut anonymous) = (0, 0, 0, 0, 0);
        for (action, outcome) in batch.actions.iter().zip(&batch.outcomes) {
            match outcome {
                Outcome::Done(Done::Applied) => {
                    new += 1;
                    anonymous += u64::from(action.identity == Identity::Random);
                }
                Outcome::Done(Done::Duplicate) => duplicate += 1,
                Outcome::Done(Done::Erased) => erased += 1,
                Outcome::DeadLetter(refusal) if refusal.reason == DeadLetterReason::Conflict => {
                    conflict += 1;
                }
                Outcome::DeadLetter(_) | Outcome::Retry(_) => {}
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

/// An action's row and its place in the batch.
#[derive(Clone)]
struct Row<'a> {
    row: SaveRow<'a>,
    /// The actions that this row stands for: the first one, then those with the same words.
    actions: Vec<usize>,
}

/// A batch on its way to its outcomes.
struct Batch<'a> {
    actions: &'a [SaveMessage],
    outcomes: Vec<Outcome>,
    /// Rows that are not stored yet, in key order. One transaction takes each id once, so rows that
    /// give one id different words go in rounds: the first committed stays.
    waiting: Vec<Row<'a>>,
    /// What Redis is to hold: the committed messages by conversation.
    committed: HashMap<&'a ConversationKey, Vec<Committed<'a>>>,
}

enum Committed<'a> {
    Sent(&'a Message),
    Stored(Box<Message>),
}

impl std::borrow::Borrow<Message> for Committed<'_> {
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
                .map_while(|known| (place_of(&known.row) == place_of(&row)).then_some(known));
            match same.into_iter().find(|known| known.row.body_hash == row.body_hash) {
                Some(known) => known.actions.push(index),
                None => waiting.push(Row { row, actions: vec![index] }),
            }
        }
        Self {
            actions,
            // Every action is settled by some round; this is what it would say otherwise.
            outcomes: vec![
                Outcome::Retry("the batch was left before this message".into());
                actions.len()
            ],
            waiting,
            committed: HashMap::new(),
        }
    }

    /// The first waiting row of every id, or `None` when all are settled.
    fn next_round(&mut self) -> Option<Vec<Row<'a>>> {
        let mut round: Vec<Row<'a>> = Vec::with_capacity(self.waiting.len());
        let mut later = Vec::new();
        for row in self.waiting.drain(..) {
            match round.last() {
                Some(last) if place_of(&last.row) == place_of(&row.row) => later.push(row),
                _ => round.push(row),
            }
        }
        self.waiting = later;
        (!round.is_empty()).then_some(round)
    }

    fn settle(&mut self, part: &[Row<'a>], saved: Vec<Saved>) {
        for (row, saved) in part.iter().zip(saved) {
            let (first, rest, committed) = match saved {
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
            if let Some(committed) = committed {
                self.committed.entry(row.row.key).or_default().push(committed);
            }
            for (n, action) in row.actions.iter().enumerate() {
                self.outcomes[*action] = if n == 0 { first.clone() } else { rest.clone() };
            }
        }
    }

    fn refuse(&mut self, row: &Row<'a>, class: FailureClass, error: &archive::Error) {
        for action in &row.actions {
            self.outcomes[*action] = refused(class, error);
        }
    }

    fn committed(&self) -> Vec<(ConversationKey, Vec<&Message>)> {
        self.committed
            .iter()
            .map(|(key, messages)| {
                ((*key).clone(), messages.iter().map(std::borrow::Borrow::borrow).collect())
            })
            .collect()
    }

    fn conversations(&self) -> usize {
        self.committed.len()
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
        field: Some("message_id".to_owned()),
        detail: format!(
            "message_id {:?} is taken by a message with another role, content, tool_calls or \
             tool_call_id in this conversation; the first one stays",
            row.row.message.id
        ),
    })
}
