//! A message of a conversation, as every store and reader knows it.

mod canonical;
mod json;
mod role;

pub use self::json::Json;
pub use self::role::Role;

use sha2::{Digest, Sha256};

use crate::ids::{AgentId, MessageId, UserId};
use crate::time::Timestamp;

/// What was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// An array of parts (text, images, …), kept as it was sent.
    Parts {
        /// The array.
        json: Json,
        /// The text of its text parts, one to a line: what people search and models count.
        text: String,
    },
}

/// A message, complete: what a saver writes and a reader gets back.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its identity within the conversation.
    pub id: MessageId,
    /// Who speaks.
    pub role: Role,
    /// What was said; empty beside `tool_calls` is usual.
    pub content: Content,
    /// The calls that the model wants made, as it sent them.
    pub tool_calls: Option<Json>,
    /// The call that this message answers.
    pub tool_call_id: Option<String>,
    /// The sender's own count; kept, never trusted for budgets.
    pub tokens_estimate: Option<i64>,
    /// The human on the other side.
    pub user_id: Option<UserId>,
    /// The agent that speaks.
    pub agent_id: Option<AgentId>,
    /// The model that answers.
    pub model_name: Option<String>,
    /// How long the agent worked on it, in milliseconds.
    pub processing_time_ms: Option<f64>,
    /// When it happened: with the id, its place in the conversation.
    pub created_at: Timestamp,
    /// When the first attempt to save it received it.
    pub received_at: Timestamp,
    /// Whatever else came with it.
    pub metadata: Option<Json>,
}

/// Where a message stands in its conversation: by time, then by id in byte order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// When it happened.
    pub created_at: Timestamp,
    /// Its id.
    pub id: MessageId,
}

/// The words of a message in 16 bytes: two messages with one id are the same message exactly if
/// their hashes are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyHash(pub [u8; 16]);

impl Content {
    /// What people read: the text itself, or the text parts of an array of parts.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Parts { text, .. } => text,
        }
    }

    /// The array of parts, where the content is one.
    #[must_use]
    pub fn parts(&self) -> Option<&Json> {
        match self {
            Self::Text(_) => None,
            Self::Parts { json, .. } => Some(json),
        }
    }
}

impl Message {
    /// Its place in the conversation.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { created_at: self.created_at, id: self.id.clone() }
    }

    /// The hash of role, content, tool calls and tool call id: what makes a second message with the
    /// same id a duplicate rather than a conflict.
    #[must_use]
    pub fn body_hash(&self) -> BodyHash {
        let mut hasher = Sha256::new();
        // Each part goes in with a tag and its length, so that no two bodies share an encoding.
        let mut part = |tag: u8, bytes: &[u8]| {
            hasher.update([tag]);
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        part(b'r', self.role.as_str().as_bytes());
        match &self.content {
            Content::Text(text) => part(b't', text.as_bytes()),
            Content::Parts { json, .. } => part(b'p', json.canonical().as_bytes()),
        }
        if let Some(calls) = &self.tool_calls {
            part(b'c', calls.canonical().as_bytes());
        }
        if let Some(id) = &self.tool_call_id {
            part(b'i', id.as_bytes());
        }
        let digest: [u8; 32] = hasher.finalize().into();
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        BodyHash(hash)
    }
}
