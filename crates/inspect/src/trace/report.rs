//! The report of a trace.

use chrono::{DateTime, Utc};
use serde::Serialize;

/// Everything with one id.
#[derive(Debug, Clone, Serialize)]
pub struct TraceReport {
    /// What was found, by tenant.
    pub items: Vec<TracedItem>,
    /// The queues that have messages, if nothing was found: what is traced may be in one of them.
    pub waiting: Vec<QueueBacklog>,
    /// Why the queues could not be inspected, if so.
    pub queues_unknown: Option<String>,
}

/// Something with the traced id, and what happened to it.
#[derive(Debug, Clone, Serialize)]
pub struct TracedItem {
    /// What the id identifies.
    pub matched: MatchKind,
    /// The tenant, if known.
    pub tenant_id: Option<String>,
    /// The conversation, if known.
    pub conversation_id: Option<String>,
    /// The message; null for a conversation.
    pub message_id: Option<String>,
    /// Its present state.
    pub state: State,
    /// Whether it is in Redis.
    pub hot: HotCopyState,
    /// What happened to it, oldest first.
    pub timeline: Vec<TraceEvent>,
}

/// What an id identifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchKind {
    /// A message.
    Message,
    /// A conversation.
    Conversation,
    /// The session of a conversation.
    Session,
    /// A dead letter.
    DeadLetter,
}

/// The present state of a message or conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Stored, in a conversation that is active.
    Active,
    /// Stored, in a conversation that is being closed.
    Closing,
    /// Stored, in a conversation that is archived.
    Archived,
    /// Not stored: it was deleted, and will not be stored again.
    Deleted,
    /// Not stored: an open dead letter, which an operator has to decide about.
    DeadLetter,
    /// Not stored: a dead letter that was replayed, and is not processed yet or was refused again.
    Replayed,
    /// Not stored: a dead letter that an operator discarded.
    Discarded,
}

/// Whether something is in a hot copy that readers use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HotCopyState {
    /// In a valid copy.
    InHotCopy,
    /// There is a valid copy, which begins after it.
    OlderThanHotCopy,
    /// There is a valid copy, which should have it and does not: run `verbatim verify`.
    Missing,
    /// There is no valid copy.
    NoHotCopy,
    /// Redis was not asked.
    NotChecked,
    /// Redis failed; the error.
    Unknown(String),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// What happened: one of a fixed set of names.
    pub what: &'static str,
    /// Details.
    pub text: String,
}

/// A queue that has messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueueBacklog {
    /// The queue.
    pub queue: &'static str,
    /// How many messages are ready.
    pub ready: u32,
}
