//! What the fleet tells the world on `conversation.events`.
//!
//! An event may come twice (a crash between its publication and the step after it repeats both);
//! consumers compare ids or tokens, or recompute.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::DeadLetterReason;
use crate::ids::{AgentId, ConversationId, SessionId, TenantId, UserId};
use crate::time::Timestamp;

/// An event of any kind; on the wire its `event_type` equals the routing key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event_type")]
pub enum Event {
    /// A conversation was closed and is in the archive.
    #[serde(rename = "conversation.migrated")]
    Migrated(Migrated),
    /// A message arrived for an archived conversation, which is active again.
    #[serde(rename = "conversation.reopened")]
    Reopened(Reopened),
    /// An action became a dead letter.
    #[serde(rename = "conversation.dead_lettered")]
    DeadLettered(DeadLettered),
    /// A conversation, or all of a user's, was erased.
    #[serde(rename = "conversation.erased")]
    Erased(Erased),
}

/// A conversation was closed and is in the archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Migrated {
    /// Who owns it.
    pub tenant_id: TenantId,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The session that began it.
    pub session_id: SessionId,
    /// The agent, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The human, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// How many messages it holds.
    pub message_count: i64,
    /// How many tokens they are.
    pub total_tokens: i64,
    /// When its first message happened.
    pub created_at: Timestamp,
    /// When its last message happened.
    pub last_message_at: Timestamp,
    /// When it was closed.
    pub closed_at: Timestamp,
    /// Why: the reason given by `session_closed`, or `idle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<String>,
    /// The claim under which it was counted. A close that another worker had to finish may be told
    /// twice, with two tokens: the conversation and `closed_at` name the close.
    pub close_token: Uuid,
}

/// A message arrived for an archived conversation, which is active again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reopened {
    /// Who owns it.
    pub tenant_id: TenantId,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The session whose message it was.
    pub session_id: SessionId,
    /// When the message was received.
    pub reopened_at: Timestamp,
}

/// An action became a dead letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLettered {
    /// Names the dead letter.
    pub dead_letter_id: Uuid,
    /// Why.
    pub reason: DeadLetterReason,
    /// A sentence that names the field and its fault.
    pub detail: String,
    /// The field at fault, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The queue in which it failed.
    pub queue: String,
    /// The routing key with which it was first published.
    pub routing_key: String,
    /// Who owns it, as far as the body could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
    /// The conversation, as far as the body could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed first.
    pub first_failed_at: Timestamp,
    /// When it failed last.
    pub last_failed_at: Timestamp,
}

/// A conversation, or all of a user's, was erased.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Erased {
    /// Who owned it.
    pub tenant_id: TenantId,
    /// The conversation, where one was erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The user, where all of a user's was erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Messages sent before this moment are gone and stay away.
    pub erased_at: Timestamp,
    /// How many conversations went.
    pub conversations: i64,
    /// How many messages went.
    pub messages: i64,
}

impl Migrated {
    /// The routing key, and the `event_type`.
    pub const ROUTING_KEY: &str = "conversation.migrated";
}

impl Reopened {
    /// The routing key, and the `event_type`.
    pub const ROUTING_KEY: &str = "conversation.reopened";
}

impl DeadLettered {
    /// The routing key, and the `event_type`.
    pub const ROUTING_KEY: &str = "conversation.dead_lettered";
}

impl Erased {
    /// The routing key, and the `event_type`.
    pub const ROUTING_KEY: &str = "conversation.erased";
}

impl Event {
    /// The routing key with which it is published.
    #[must_use]
    pub fn routing_key(&self) -> &'static str {
        match self {
            Self::Migrated(_) => Migrated::ROUTING_KEY,
            Self::Reopened(_) => Reopened::ROUTING_KEY,
            Self::DeadLettered(_) => DeadLettered::ROUTING_KEY,
            Self::Erased(_) => Erased::ROUTING_KEY,
        }
    }
}
