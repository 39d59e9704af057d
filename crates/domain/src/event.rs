//! The events that the fleet publishes on the exchange `conversation.events`.
//!
//! An event may be published twice: after a crash between its publication and the next step, both
//! are repeated. Consumers compare ids or tokens, or recompute.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::{DeadLetterReason, Refusal};
use crate::ids::{AgentId, ConversationId, SessionId, TenantId, UserId};
use crate::time::Timestamp;

/// An event of any kind; on the wire its `event_type` equals the routing key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event_type")]
pub enum Event {
    /// A conversation is archived or about to be.
    #[serde(rename = "conversation.migrated")]
    Migrated(Migrated),
    /// A closed conversation is active again.
    #[serde(rename = "conversation.reopened")]
    Reopened(Reopened),
    /// An action became a dead letter.
    #[serde(rename = "conversation.dead_lettered")]
    DeadLettered(DeadLettered),
    /// A conversation, or all conversations of a user, were erased.
    #[serde(rename = "conversation.erased")]
    Erased(Erased),
}

/// A conversation was closed. It is archived, or about to be: if a message arrives just then, it stays
/// active, and a later close has an event of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Migrated {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// Its first session.
    pub session_id: SessionId,
    /// The agent, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The end user, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// How many messages it has.
    pub message_count: i64,
    /// How many tokens its messages have.
    pub total_tokens: i64,
    /// When its first message happened.
    pub created_at: Timestamp,
    /// When its last message happened.
    pub last_message_at: Timestamp,
    /// When it was closed.
    pub closed_at: Timestamp,
    /// Why it was closed: the `reason` of the last `session_closed`, or `idle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<String>,
    /// The claim of the worker that closed it. If another worker had to finish the close, the event
    /// may be published twice with different tokens; `conversation_id` and `closed_at` identify the
    /// close.
    pub close_token: Uuid,
}

/// A message or an opened session made a closed conversation active again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reopened {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// Its first session.
    pub session_id: SessionId,
    /// When the message was saved or the session was opened, by PostgreSQL's clock. If the event is
    /// published twice, the second one may have a later time.
    pub reopened_at: Timestamp,
}

/// An action became a dead letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLettered {
    /// The id of the dead letter.
    pub dead_letter_id: Uuid,
    /// Why it became a dead letter.
    pub reason: DeadLetterReason,
    /// A sentence for people that names the field, its fault and the remedy.
    pub detail: String,
    /// The field at fault, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The queue in which it failed.
    pub queue: String,
    /// The routing key with which it was published first.
    pub routing_key: String,
    /// The tenant, if the body could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
    /// The conversation, if the body could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The number of attempts.
    pub attempts: u32,
    /// When it failed first.
    pub first_failed_at: Timestamp,
    /// When it failed last.
    pub last_failed_at: Timestamp,
}

/// A conversation, or all conversations of a user, were erased.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Erased {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The conversation, if a single one was erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The user, if all conversations of a user were erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Messages with this timestamp or an earlier one are erased, even if they arrive later.
    pub erased_at: Timestamp,
    /// How many conversations were erased.
    pub conversations: i64,
    /// How many messages were erased.
    pub messages: i64,
}

impl Event {
    /// Decodes the body of a message from the exchange of events.
    ///
    /// # Errors
    /// It is not an event that this version knows.
    pub fn decode(body: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body).map_err(|error| {
            let detail = format!("the body is not an event of the fleet: {error}");
            Refusal::new(DeadLetterReason::Schema, detail)
        })
    }

    /// The routing key with which it is published.
    #[must_use]
    pub fn routing_key(&self) -> &'static str {
        match self {
            Self::Migrated(_) => "conversation.migrated",
            Self::Reopened(_) => "conversation.reopened",
            Self::DeadLettered(_) => "conversation.dead_lettered",
            Self::Erased(_) => "conversation.erased",
        }
    }
}
