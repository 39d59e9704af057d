//! What a tracer answers.

use chrono::{DateTime, Utc};
use serde::Serialize;

/// All that goes by an id.
#[derive(Debug, Clone, Serialize)]
pub struct TraceReport {
    /// What was found, by tenant.
    pub items: Vec<TracedItem>,
    /// Where it may still be. Empty where something was found, or nothing waits.
    pub waiting: Vec<Waiting>,
    /// Why nobody knows what waits.
    pub queues_unknown: Option<String>,
}

/// What an id turned out to be, and what befell it.
#[derive(Debug, Clone, Serialize)]
pub struct TracedItem {
    /// What the id is.
    pub matched: Matched,
    /// The tenant, where known.
    pub tenant_id: Option<String>,
    /// The conversation, where known.
    pub conversation_id: Option<String>,
    /// The message; null where it is about a conversation.
    pub message_id: Option<String>,
    /// Where it is now.
    pub state: State,
    /// Whether it is in Redis.
    pub hot: HotCopyState,
    /// What befell it, oldest first.
    pub timeline: Vec<TraceEvent>,
}

/// What an id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Matched {
    /// A message.
    Message,
    /// A conversation.
    Conversation,
    /// The session of a conversation.
    Session,
    /// A dead letter.
    DeadLetter,
}

/// Where something is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Stored, in a conversation that is active.
    Active,
    /// Stored, in a conversation that is being closed.
    Closing,
    /// Stored, in a conversation that is archived.
    Archived,
    /// Not stored: a dead letter that waits for an operator.
    DeadLetter,
    /// Not stored: a dead letter that was replayed; on its way, or refused again.
    Replayed,
    /// Not stored: a dead letter that an operator discarded.
    Discarded,
}

/// Whether something is in Redis, as a reader would find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HotCopyState {
    /// In a valid copy.
    InHotCopy,
    /// There is a valid copy, and it begins after this.
    OlderThanHotCopy,
    /// There is a valid copy, and it lacks this: `verbatim verify` says more.
    Missing,
    /// There is no valid copy.
    NoHotCopy,
    /// Nobody looked.
    NotChecked,
    /// Redis could not be asked.
    Unknown(String),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// What, in one word.
    pub what: &'static str,
    /// More about it.
    pub text: String,
}

/// A queue in which something waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// The queue.
    pub queue: &'static str,
    /// How many messages are ready.
    pub ready: u32,
}
