//! A message of a conversation, as it is stored and read.

mod role;

pub use self::role::Role;
pub use crate::json::Json;

use sha2::{Digest, Sha256};

use crate::ids::{AgentId, MessageId, UserId};
use crate::time::Timestamp;

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// An array of parts (text, images, …), stored as it was sent.
    Parts {
        /// The array.
        json: Json,
        /// The text of its text parts, one to a line: for search and token counts.
        text: String,
    },
}

/// A complete message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its id, unique within the conversation.
    pub id: MessageId,
    /// Who speaks.
    pub role: Role,
    /// The content; usually empty if there are `tool_calls`.
    pub content: Content,
    /// The tool calls that the model requests, as they were sent.
    pub tool_calls: Option<Json>,
    /// The tool call to which this message is the result.
    pub tool_call_id: Option<String>,
    /// The sender's own token count; stored, never used for budgets.
    pub tokens_estimate: Option<i64>,
    /// The end user.
    pub user_id: Option<UserId>,
    /// The agent that speaks.
    pub agent_id: Option<AgentId>,
    /// The model.
    pub model_name: Option<String>,
    /// How long the agent worked on it, in milliseconds.
    pub processing_time_ms: Option<f64>,
    /// When it happened. Together with the id it is the position in the conversation.
    pub created_at: Timestamp,
    /// When the first attempt to save it received the message.
    pub received_at: Timestamp,
    /// Further data of the sender.
    pub metadata: Option<Json>,
}

/// The position of a message in its conversation. Sorts by time, then by id in byte order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// When it happened.
    pub created_at: Timestamp,
    /// Its id.
    pub id: MessageId,
}

/// A 16-byte hash of a message's content: two messages with the same id are the same message if and
/// only if their hashes are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyHash(pub [u8; 16]);

impl Content {
    /// The text, or the text of the text parts.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Parts { text, .. } => text,
        }
    }

    /// The array of parts, if the content is one.
    #[must_use]
    pub fn parts(&self) -> Option<&Json> {
        match self {
            Self::Text(_) => None,
            Self::Parts { json, .. } => Some(json),
        }
    }
}

impl Message {
    /// Its position in the conversation.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { created_at: self.created_at, id: self.id.clone() }
    }

    /// The hash of role, content, tool calls and tool call id. A second message with the same id
    /// and the same hash is a duplicate; one with another hash is a conflict.
    #[must_use]
    pub fn body_hash(&self) -> BodyHash {
        let mut hasher = Sha256::new();
        // Each part is hashed with a tag and its length, so that no two messages share an encoding.
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
