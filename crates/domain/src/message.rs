//! A message of a conversation, as every store and reader knows it.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::ids::{AgentId, MessageId, UserId};
use crate::time::Timestamp;

/// JSON kept to the letter: key order, number format and white space are the sender's.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The human.
    User,
    /// The model.
    Assistant,
    /// Instructions to the model.
    System,
    /// The result of a tool call.
    Tool,
    /// The result of a function call, the older form of [`Role::Tool`].
    Function,
}

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

impl Json {
    /// The text, as it was sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Parses and keeps a text.
    pub fn parse(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self)
    }

    /// The same value in one form: keys sorted, no white space. Two texts that mean the same give
    /// the same canonical form.
    fn canonical(&self) -> String {
        // `serde_json::Map` is a sorted map unless `preserve_order` is on, which it is not; a test
        // of the body hash holds this.
        serde_json::from_str::<serde_json::Value>(self.as_str())
            .map_or_else(|_| self.as_str().to_owned(), |value| value.to_string())
    }
}

impl From<Box<RawValue>> for Json {
    fn from(raw: Box<RawValue>) -> Self {
        Self(raw)
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::User,
        Self::Assistant,
        Self::System,
        Self::Tool,
        Self::Function,
    ];

    /// The stored name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
            Self::Tool => "tool",
            Self::Function => "function",
        }
    }

    /// The role of a stored name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// The role behind a name that other systems use, for a hint.
    fn meant_by(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "human" | "customer" | "client" | "contact" => Some(Self::User),
            "ai" | "bot" | "agent" | "model" => Some(Self::Assistant),
            "developer" => Some(Self::System),
            lower => Self::parse(lower),
        }
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Role;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one of `user`, `assistant`, `system`, `tool`, `function`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Role, E> {
                Role::parse(name).ok_or_else(|| match Role::meant_by(name) {
                    Some(role) => E::custom(format_args!(
                        "must be a role, but is {name:?}; did you mean `{}`?",
                        role.as_str()
                    )),
                    None => E::invalid_value(Unexpected::Str(name), &self),
                })
            }
        }
        deserializer.deserialize_str(Name)
    }
}

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
        Position {
            created_at: self.created_at,
            id: self.id.clone(),
        }
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
