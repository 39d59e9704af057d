//! `conversation.sync_messages`: of each list what is not stored yet is committed in PostgreSQL, then appended to Redis.
//!
//! What is stored of a list already is not read, so its hot copy cannot be completed from it, as that of a repeated message
//! is. So if an earlier try of a list may have been committed, its copy is invalidated.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use database::{Database, HotWrites, ListToSync, SyncRefusal, Synced, SyncedList};
use domain::action::{SyncMessages, TimeSource};
use domain::causes::with_causes;
use domain::failure::{DeadLetterReason, Failure, Refusal, Unavailable};
use domain::ids::ConversationKey;
use domain::sync::names::Aligned;
use failpoints::Step;
use metrics::{Counter, SyncAlignment};

use crate::bisection::{Bisection, SetAside, failed_alone};
use crate::saver::{Committed, CommittedMessage, Saver};
use crate::transient::retry_transient;

/// Lists in one transaction.
const LISTS: usize = 50;

/// A list to store.
#[derive(Debug, Clone, Copy)]
pub struct ToSync<'a> {
    /// The list.
    pub action: &'a SyncMessages,
    /// The body from which it was decoded.
    pub body: &'a [u8],
    /// Whether it was tried before. Set by each try.
    pub is_tried: &'a AtomicBool,
}

/// What became of a list.
#[derive(Debug, Clone, PartialEq)]
pub enum SyncOutcome {
    /// What was new of it is stored.
    Stored(Box<SyncedList>),
    /// What was new of it is not stored, because its conversation or user was erased after it was sent.
    Erased,
    /// Nothing of it is stored: it goes on from an earlier message, and its sender wants no branch. The position of its
    /// first new message.
    NoBranch(usize),
}

/// A list in a batch.
struct Item<'a> {
    list: ToSync<'a>,
    /// Its place in the batch.
    place: usize,
}

impl<'a> Item<'a> {
    fn key(&self) -> &'a ConversationKey {
        &self.list.action.common.key
    }

    fn id(&self) -> &'a str {
        self.list.action.common.resolved_id.as_str()
    }
}

type Outcomes = Vec<Option<Result<SyncOutcome, Failure>>>;

impl Saver {
    /// Stores what is new of lists: one outcome for each, in their order. When this returns `Ok`, what was new of each
    /// [`SyncOutcome::Stored`] is committed in PostgreSQL, and each hot copy has it or is invalidated.
    ///
    /// # Errors
    /// PostgreSQL is unavailable. Part of the lists may be stored; storing them again is harmless.
    pub async fn sync(
        &self,
        lists: &[ToSync<'_>],
    ) -> Result<Vec<Result<SyncOutcome, Failure>>, Unavailable> {
        if lists.is_empty() {
            return Ok(Vec::new());
        }
        let hot = self.hot_writes();
        let mut outcomes: Outcomes = lists.iter().map(|_| None).collect();
        let mut committed = Committed::default();
        // Whether an earlier try of a list may have been committed: one that did not come to its end.
        let mut may_be_stored = vec![false; lists.len()];
        let mut pending = Vec::with_capacity(lists.len());
        for (place, list) in lists.iter().enumerate() {
            let item = Item { list: *list, place };
            may_be_stored[place] =
                list.is_tried.swap(true, Ordering::Relaxed) || list.action.redelivered;
            pending.push(item);
        }
        failpoints::reached(Step::SaveDecoded);
        while !pending.is_empty() {
            // A transaction takes one list of each conversation, and few of them: it holds their locks.
            let mut conversations = HashSet::new();
            let (round, rest) = pending
                .into_iter()
                .partition(|it| conversations.len() < LISTS && conversations.insert(it.key()));
            self.store_lists(round, hot, &mut outcomes, &mut committed, &mut may_be_stored).await?;
            pending = rest;
        }
        failpoints::reached(Step::SaveCommitted);
        // What is handled again apart from others is asked for again there. Another list of its conversation is not.
        let is_apart =
            |place: usize| matches!(&outcomes[place], Some(Err(failure)) if failure.is_apart());
        let again: BTreeSet<ConversationKey> = lists
            .iter()
            .enumerate()
            .filter(|(place, _)| may_be_stored[*place] && !is_apart(*place))
            .map(|(_, list)| list.action.common.key.clone())
            .collect();
        for (conversation, failure) in self.write_copies(&mut committed, hot, again).await? {
            for (list, outcome) in lists.iter().zip(&mut outcomes) {
                if list.action.common.key == conversation && matches!(outcome, Some(Ok(_))) {
                    *outcome = Some(Err(failure.clone()));
                }
            }
        }
        failpoints::reached(Step::SaveAppended);
        self.count_lists(lists, &outcomes);
        let undecided = || Err(Failure::Retry("the batch ended without an outcome".into()));
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(undecided)).collect())
    }

    /// Stores lists of different conversations.
    async fn store_lists<'a>(
        &self,
        mut round: Vec<Item<'a>>,
        hot: HotWrites,
        outcomes: &mut Outcomes,
        committed: &mut Committed<'a>,
        may_be_stored: &mut [bool],
    ) -> Result<(), Unavailable> {
        round.retain(|item| {
            let failure = self.locked.failure(item.key(), item.id());
            let is_open = failure.is_none();
            outcomes[item.place] = failure.map(Err);
            is_open
        });
        let mut bisection = Bisection::new(
            &round,
            |item: &Item<'_>| Some(item.key()),
            &self.database,
            &self.metrics,
        );
        while let Some((part, database)) = bisection.next() {
            let lists: Vec<ListToSync<'a>> = part
                .iter()
                .map(|it| ListToSync { action: it.list.action, body: it.list.body })
                .collect();
            let random = || self.random.next();
            let sync = || database.sync(&lists, hot, &random);
            let error = match retry_transient(&self.metrics, sync).await {
                Ok(synced) => {
                    bisection.succeeded(part);
                    self.locked.forget(part.iter().map(Item::key));
                    self.metrics.add(Counter::ConversationsReopened, synced.reopened as u64);
                    committed.renew(synced.touched);
                    for (item, synced) in part.iter().zip(synced.lists) {
                        outcomes[item.place] = Some(settled(item, synced, committed));
                    }
                    continue;
                }
                Err(error) => error,
            };
            if error.may_be_committed() {
                part.iter().for_each(|item| may_be_stored[item.place] = true);
            }
            let aside = bisection.failed(part, error, Database::check_save).await?;
            let Some(SetAside { items, error, are_known_to_be_locked }) = aside else { continue };
            let (reason, failure) = (with_causes(&error), failed_alone(error));
            if are_known_to_be_locked {
                self.locked.found(items.iter().map(|item| item.key()), &failure);
            }
            for item in items {
                if !failure.is_apart() {
                    tracing::warn!(
                        conversation = %item.key(),
                        action_id = item.id(),
                        error = reason,
                        "PostgreSQL did not store what is new of a list; the other lists of its batch are stored"
                    );
                }
                self.locked.record(item.key(), item.id(), &failure);
                outcomes[item.place] = Some(Err(failure.clone()));
            }
        }
        Ok(())
    }

    fn count_lists(&self, lists: &[ToSync<'_>], outcomes: &Outcomes) {
        let (mut saved, mut untimed) = (0, 0);
        for (list, outcome) in lists.iter().zip(outcomes) {
            let aligned = match outcome {
                Some(Ok(SyncOutcome::Stored(synced))) => {
                    let of_receipt = list.action.common.time_source == TimeSource::Receipt;
                    let new = &synced.plan.new;
                    let estimated = new.iter().filter(|it| of_receipt && it.is_time_estimated);
                    saved += new.len() as u64;
                    untimed += estimated.count() as u64;
                    match synced.plan.aligned {
                        Aligned::Exact => SyncAlignment::Exact,
                        Aligned::Inferred => SyncAlignment::Inferred,
                        Aligned::Branch => SyncAlignment::Branch,
                    }
                }
                Some(Ok(SyncOutcome::NoBranch(_))) => SyncAlignment::Conflict,
                Some(Err(Failure::DeadLetter(refusal)))
                    if refusal.reason == DeadLetterReason::Conflict =>
                {
                    SyncAlignment::Conflict
                }
                Some(Ok(SyncOutcome::Erased)) => {
                    self.metrics.add(Counter::MessagesErased, 1);
                    continue;
                }
                Some(Err(_)) | None => continue,
            };
            self.metrics.add(Counter::Syncs { aligned }, 1);
        }
        self.metrics.add(Counter::MessagesSaved, saved);
        self.metrics.add(Counter::MessagesWithoutTimestamp, untimed);
    }
}

fn settled<'a>(
    item: &Item<'a>,
    synced: Synced,
    committed: &mut Committed<'a>,
) -> Result<SyncOutcome, Failure> {
    match synced {
        Synced::Stored(mut list) => {
            for message in std::mem::take(&mut list.messages) {
                committed.add(item.key(), CommittedMessage::Stored(Box::new(message)));
            }
            Ok(SyncOutcome::Stored(list))
        }
        Synced::Erased => Ok(SyncOutcome::Erased),
        Synced::Refused(refusal) => refused(item.list.action, refusal),
    }
}

fn refused(list: &SyncMessages, refusal: SyncRefusal) -> Result<SyncOutcome, Failure> {
    let conflict = |field: String, detail: String| {
        let reason = DeadLetterReason::Conflict;
        Err(Failure::DeadLetter(Refusal { reason, field: Some(field), detail, hint: None }))
    };
    let id = |position: usize| format!("messages[{position}].message_id");
    match refusal {
        SyncRefusal::NoBranch(position) => Ok(SyncOutcome::NoBranch(position)),
        SyncRefusal::NothingInCommon => conflict(
            "messages".to_owned(),
            "the list has nothing in common with the stored conversation, so where it belongs is unknown; send it from the \
             first message of the conversation, or send the messages behind a stored one, with its id as `after`; if its first \
             message was edited, send it as another conversation"
                .to_owned(),
        ),
        SyncRefusal::RepeatedId(position) => conflict(
            id(position),
            format!("`{}` is the id of an earlier message of the list", id(position)),
        ),
        // It may arrive yet: another worker saves it.
        SyncRefusal::AfterUnknown => Err(Failure::Retry(
            format!(
                "`after` is {:?}, and no message of this conversation has that id; save that message, and replay this action",
                list.after.as_ref().map_or("", |id| id.as_str())
            )
            .into(),
        )),
    }
}
