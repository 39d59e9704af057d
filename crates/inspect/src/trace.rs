//! Tracing: where a message or a conversation is now, and what happened to it, as PostgreSQL and Redis have it.
//!
//! An id may be that of a message, a conversation, a session or a dead letter, and several tenants may use the
//! same one. Everything with that id is reported, each with its own timeline. What is in neither server may
//! still be in a queue. A queue cannot be read without changing it, so only the queue depths are reported.

mod report;
mod timeline;

use std::collections::{BTreeMap, HashSet};

use broker::Endpoints;
use broker::inspect::Inspector;
use database::{
    ConversationTrace, ConversationView, Database, DeadLetterStatus, DeadLetterSummary,
    MessageTrace,
};
use domain::causes::with_causes;
use domain::ids::{ConversationKey, MessageId, TenantId};
use domain::message::Position;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use hot_store::{Extent, HotStore, Window};
use uuid::Uuid;

pub use report::{
    HotCopyState, MatchKind, QueueBacklog, State, TraceEvent, TraceReport, TracedItem,
};

use conversation::current_numbers;

/// Conversations that one statement searches for a message: some 20 ms.
const CONVERSATIONS: u32 = 2_000;
/// The most dead letters, audit lines, and conversations of a session that are reported: the newest.
const LIMIT: u32 = 1_000;
/// Messages that are read of a copy to find one: as many as may have the same time.
const SAME_TIME: usize = 256;

/// Traces messages and conversations in these servers.
pub struct Tracer {
    database: Database,
    hot: Option<HotStore>,
    endpoints: Option<Endpoints>,
}

/// A message, stored or not, or a conversation, with its dead letters.
#[derive(Default)]
struct Found {
    /// Its row, if it is stored.
    row: Option<MessageTrace>,
    /// Its conversation, if it is stored.
    conversation: Option<ConversationTrace>,
    dead_letters: Vec<DeadLetterSummary>,
    /// Whether the id is that of one of its dead letters.
    by_dead_letter: bool,
}

impl Tracer {
    /// A tracer; Redis and RabbitMQ are optional.
    #[must_use]
    pub fn new(database: Database, hot: Option<HotStore>, endpoints: Option<Endpoints>) -> Self {
        Self { database, hot, endpoints }
    }

    /// Everything with this id, of one tenant or of all. `progress` is called with the number of conversations
    /// that were searched for a message.
    ///
    /// # Errors
    /// PostgreSQL failed. A failure of Redis or RabbitMQ is part of the report.
    pub async fn trace(
        &self,
        id: &str,
        tenant: Option<&TenantId>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<TraceReport, database::Error> {
        let named = self.database.conversations_named(id, tenant).await?.into_iter();
        let mut conversations: Vec<_> = named.map(|row| (MatchKind::Conversation, row)).collect();
        for row in self.database.conversations_of_session(id, tenant, LIMIT).await? {
            let name = |it: &ConversationTrace| {
                (it.conversation.tenant_id.clone(), it.conversation.id.clone())
            };
            if !conversations.iter().any(|(_, known)| name(known) == name(&row)) {
                conversations.push((MatchKind::Session, row));
            }
        }
        let dead_letters = self.database.dead_letters_about(id, tenant, LIMIT).await?;
        let messages = self.messages(id, tenant, &dead_letters, progress).await?;
        let mut items = Vec::new();
        // Dead letters that an item reports already. Compared by id, because many name no message.
        let mut reported: HashSet<Uuid> = HashSet::new();
        for (key, found) in messages {
            reported.extend(found.dead_letters.iter().map(|it| it.dead_letter.id));
            items.push(self.trace_message(key, found).await?);
        }
        for (matched, row) in conversations {
            items.push(self.trace_conversation(matched, row, &mut reported).await?);
        }
        // Dead letters of a session, or of a conversation without a stored message.
        let mut rest: BTreeMap<(MessageKey, Option<Uuid>), Found> = BTreeMap::new();
        let others = |it: &DeadLetterSummary| !reported.contains(&it.dead_letter.id);
        for summary in dead_letters.into_iter().filter(others) {
            let key = key_of(&summary);
            // Those of one message are one item; one that names no message is an item of its own.
            let own = key.2.is_none().then_some(summary.dead_letter.id);
            let entry = rest.entry((key, own)).or_default();
            entry.by_dead_letter = true;
            entry.dead_letters.push(summary);
        }
        for ((key, _), mut found) in rest {
            found.row = self.row(&key).await?;
            items.push(self.trace_message(key, found).await?);
        }
        items.sort_by(|a, b| (&a.tenant_id, a.matched).cmp(&(&b.tenant_id, b.matched)));
        let (waiting, queues_unknown) =
            if items.is_empty() { self.backlog().await } else { (Vec::new(), None) };
        Ok(TraceReport { items, waiting, queues_unknown })
    }

    /// Messages with this id, and those whose dead letters have it; by tenant, conversation and id.
    async fn messages(
        &self,
        id: &str,
        tenant: Option<&TenantId>,
        dead_letters: &[DeadLetterSummary],
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<BTreeMap<MessageKey, Found>, database::Error> {
        let mut found: BTreeMap<MessageKey, Found> = BTreeMap::new();
        let (mut before, mut searched) = (None, 0);
        loop {
            let (rows, next) =
                self.database.messages_named(id, tenant, before, CONVERSATIONS).await?;
            for row in rows {
                let key = (
                    Some(row.tenant_id.clone()),
                    Some(row.conversation_id.clone()),
                    Some(row.id.clone()),
                );
                found.entry(key).or_default().row = Some(row);
            }
            searched += u64::from(CONVERSATIONS);
            progress(searched);
            match next {
                None => break,
                next => before = next,
            }
        }
        for summary in dead_letters {
            let by_id = Uuid::parse_str(id).is_ok_and(|id| id == summary.dead_letter.id);
            if !by_id && summary.dead_letter.message_id.as_deref() != Some(id) {
                continue;
            }
            let key = key_of(summary);
            let row = if by_id { self.row(&key).await? } else { None };
            let entry = found.entry(key).or_default();
            entry.row = entry.row.take().or(row);
            entry.by_dead_letter |= by_id;
            entry.dead_letters.push(summary.clone());
        }
        Ok(found)
    }

    /// The stored message that a dead letter names.
    async fn row(&self, key: &MessageKey) -> Result<Option<MessageTrace>, database::Error> {
        match (conversation_key(key), &key.2) {
            (Some(key), Some(message)) => self.database.message_trace(&key, message).await,
            _ => Ok(None),
        }
    }

    async fn trace_message(
        &self,
        key: MessageKey,
        mut found: Found,
    ) -> Result<TracedItem, database::Error> {
        if let (Some(_), Some(key)) = (&found.row, conversation_key(&key)) {
            let id = key.conversation.as_str();
            found.conversation =
                self.database.conversations_named(id, Some(&key.tenant)).await?.pop();
        }
        let matched = if found.by_dead_letter { MatchKind::DeadLetter } else { MatchKind::Message };
        self.item(matched, key, found).await
    }

    async fn trace_conversation(
        &self,
        matched: MatchKind,
        row: ConversationTrace,
        reported: &mut HashSet<Uuid>,
    ) -> Result<TracedItem, database::Error> {
        let ConversationView { tenant_id, id, .. } = &row.conversation;
        let tenant = TenantId::new(tenant_id).ok();
        let mut dead_letters = self.database.dead_letters_about(id, tenant.as_ref(), LIMIT).await?;
        dead_letters.retain(|it| it.dead_letter.conversation_id.as_ref() == Some(id));
        reported.extend(dead_letters.iter().map(|it| it.dead_letter.id));
        let key = (Some(tenant_id.clone()), Some(id.clone()), None);
        let found = Found { conversation: Some(row), dead_letters, ..Found::default() };
        self.item(matched, key, found).await
    }

    async fn item(
        &self,
        matched: MatchKind,
        key: MessageKey,
        Found { row, conversation, dead_letters, .. }: Found,
    ) -> Result<TracedItem, database::Error> {
        let is_deleted = row.as_ref().is_some_and(|row| row.deleted_by.is_some());
        let hot = match conversation_key(&key) {
            Some(key) if !is_deleted && (row.is_some() || conversation.is_some()) => {
                self.hot_copy_state(&key, row.as_ref()).await?
            }
            _ => HotCopyState::NotChecked,
        };
        let (tenant_id, conversation_id, message_id) = key;
        let mut subjects: Vec<String> =
            dead_letters.iter().map(|it| it.dead_letter.id.to_string()).collect();
        subjects.extend(conversation.as_ref().and(conversation_id.clone()));
        let mut audit = self.database.audit_about(&subjects, LIMIT).await?;
        audit.retain(|line| line.tenant_id.is_none() || line.tenant_id == tenant_id);
        let state = match (&conversation, dead_letters.last().map(|it| it.state.status)) {
            _ if is_deleted => State::Deleted,
            (Some(trace), _) => state(trace.conversation.status),
            (None, Some(DeadLetterStatus::Replayed)) => State::Replayed,
            (None, Some(DeadLetterStatus::Discarded)) => State::Discarded,
            (None, Some(DeadLetterStatus::Open) | None) => State::DeadLetter,
        };
        let timeline = timeline::of(row.as_ref(), conversation.as_ref(), &dead_letters, &audit);
        Ok(TracedItem { matched, tenant_id, conversation_id, message_id, state, hot, timeline })
    }

    /// Whether a message, or any message of a conversation, is in a hot copy that readers use.
    async fn hot_copy_state(
        &self,
        key: &ConversationKey,
        message: Option<&MessageTrace>,
    ) -> Result<HotCopyState, database::Error> {
        let Some(hot) = &self.hot else { return Ok(HotCopyState::NotChecked) };
        let window = match message {
            None => Window { newest: 1, before: None },
            Some(message) => Window { newest: SAME_TIME, before: just_after(message) },
        };
        let copy = match hot.read(key, &window).await {
            Ok(copy) => copy,
            Err(error) => return Ok(HotCopyState::Unknown(with_causes(&error))),
        };
        let numbers = self.database.numbers(key).await?;
        let complete_from = numbers
            .conversation
            .as_ref()
            .and_then(|conversation| current_numbers(&numbers, conversation))
            .and_then(|current| copy.complete_from(current));
        let Some(complete_from) = complete_from.filter(|_| copy.damage.is_none()) else {
            return Ok(HotCopyState::NoHotCopy);
        };
        let Some(message) = message else { return Ok(HotCopyState::InHotCopy) };
        let held = copy.messages.iter().find(|it| it.id.as_str() == message.id);
        Ok(match (held, position(message)) {
            (Some(held), _) if complete_from.covers(&held.position()) => HotCopyState::InHotCopy,
            (None, Some(position))
                if complete_from.covers(&position) && copy.extent != Extent::CutShort =>
            {
                HotCopyState::Missing
            }
            _ => HotCopyState::OlderThanHotCopy,
        })
    }

    /// The queues that have messages, or why that is unknown. What is traced may be among those messages.
    async fn backlog(&self) -> (Vec<QueueBacklog>, Option<String>) {
        let Some(endpoints) = &self.endpoints else {
            return (Vec::new(), Some("AMQP_URL is not set".to_owned()));
        };
        match Inspector::new(endpoints.clone()).depths().await {
            Ok(depths) => {
                let backlog = |(queue, depth): (&'static str, Option<broker::inspect::Depth>)| {
                    let ready = depth.map_or(0, |depth| depth.ready);
                    (ready > 0).then_some(QueueBacklog { queue, ready })
                };
                (depths.into_iter().filter_map(backlog).collect(), None)
            }
            Err(error) => (Vec::new(), Some(with_causes(&error))),
        }
    }
}

/// Tenant, conversation and message id, as far as known.
type MessageKey = (Option<String>, Option<String>, Option<String>);

fn conversation_key((tenant, conversation, _): &MessageKey) -> Option<ConversationKey> {
    ConversationKey::parse(tenant.as_deref()?, conversation.as_deref()?).ok()
}

fn key_of(DeadLetterSummary { dead_letter, .. }: &DeadLetterSummary) -> MessageKey {
    (
        dead_letter.tenant_id.clone(),
        dead_letter.conversation_id.clone(),
        dead_letter.message_id.clone(),
    )
}

fn state(status: ConversationStatus) -> State {
    match status {
        ConversationStatus::Active => State::Active,
        ConversationStatus::Closing => State::Closing,
        ConversationStatus::Archived => State::Archived,
    }
}

fn position(message: &MessageTrace) -> Option<Position> {
    let created_at = Timestamp::try_from(message.created_at).ok()?;
    Some(Position { created_at, id: MessageId::new(&message.id).ok()? })
}

/// The first position after all messages with this message's time: no id sorts before a space.
fn just_after(message: &MessageTrace) -> Option<Position> {
    let micros = message.created_at.timestamp_micros() + 1;
    let created_at = Timestamp::from_micros(micros).ok()?;
    Some(Position { created_at, id: MessageId::new(" ").ok()? })
}
