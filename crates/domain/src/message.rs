//! A message of a conversation, as it is stored and read.

mod details;
mod role;
pub mod tool_calls;

pub use self::details::Details;
pub use self::role::Role;
pub use crate::json::Json;

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

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
    /// What it says beside its content about the model's turn.
    pub details: Option<Box<Details>>,
}

/// The position of a message in its conversation. Sorts by time, then by id in byte order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// When it happened.
    pub created_at: Timestamp,
    /// Its id.
    pub id: MessageId,
}

/// A 16-byte hash of the content of a message or session event: two with the same id are the same one if
/// and only if their hashes are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyHash(pub [u8; 16]);

impl BodyHash {
    /// The hash of these parts, each with a tag; absent ones are left out.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = (u8, Option<&'a str>)>) -> Self {
        let mut hasher = Sha256::new();
        for (tag, part) in parts {
            let Some(part) = part else { continue };
            // With its tag and its length, so that no two lists of parts share an encoding.
            hasher.update([tag]);
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let digest: [u8; 32] = hasher.finalize().into();
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        Self(hash)
    }
}

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

    /// The hash of role, content, tool calls, tool call id and item. A second message with the same id
    /// and the same hash is a duplicate; one with another hash is a conflict.
    #[must_use]
    pub fn body_hash(&self) -> BodyHash {
        self.hash_with(None)
    }

    /// The [body hash](Self::body_hash) of a message that was sent without content, and with this instead of it.
    pub(crate) fn hash_with(&self, instead_of_content: Option<&Json>) -> BodyHash {
        let (content_tag, content) = match &self.content {
            Content::Text(text) => (b't', Cow::Borrowed(text.as_str())),
            Content::Parts { json, .. } => (b'p', json.canonical()),
        };
        let calls = self.tool_calls.as_ref().map(Json::canonical);
        let item = Details::of(&self.details).item.as_ref().map(Json::canonical);
        BodyHash::of([
            (b'r', Some(self.role.as_str())),
            (content_tag, Some(&content)),
            (b'c', calls.as_deref()),
            (b'i', self.tool_call_id.as_deref()),
            (b'o', item.as_deref()),
            (b's', instead_of_content.map(Json::canonical).as_deref()),
        ])
    }
}
