//! What every action has.

use super::kind::ActionKind;
use crate::ids::{ActionId, AgentId, ConversationKey, MessageId, SessionId, UserId};
use crate::json::Json;
use crate::time::Timestamp;

/// The fields of every action.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    /// Which action it is.
    pub kind: ActionKind,
    /// Tenant and conversation.
    pub key: ConversationKey,
    /// Where the conversation's id comes from.
    pub conversation_is_explicit: ConversationSource,
    /// The session: the connection over which the conversation runs.
    pub session: SessionId,
    /// The idempotency key: the body's `action_id`, else the AMQP `message_id`.
    pub action_id: Option<ActionId>,
    /// The id of this action in retries and dead letters. For a message it is the message's id.
    pub resolved_id: MessageId,
    /// When it happened, if the sender says so: the body's `timestamp`, else the AMQP property.
    pub sent_at: Option<Timestamp>,
    /// When the first attempt received it.
    pub received_at: Timestamp,
    /// The end user.
    pub user_id: Option<UserId>,
    /// The agent.
    pub agent_id: Option<AgentId>,
    /// The model.
    pub model_name: Option<String>,
    /// The tenant's price plan: `tenant_tier`, else `metadata.tenant_tier`.
    pub tenant_tier: Option<String>,
    /// The sender's task.
    pub task_id: Option<String>,
    /// The name of the sending service.
    pub origin_service: Option<String>,
    /// The correlation id of the reply: the AMQP `correlation_id`, else the body's.
    pub correlation_id: Option<String>,
    /// The queue for the reply: the AMQP `reply_to`, else the body's `callback_queue_name`.
    pub reply_to: Option<String>,
    /// `metadata` with the fields that the contract does not define. `None` in a `SaveMessage`:
    /// there the message has it.
    pub metadata: Option<Json>,
}

/// Where a conversation's id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConversationSource {
    /// The body names it.
    Explicit,
    /// It is derived from tenant and session.
    FromSession,
}

/// How a message got its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The sender gave one. A redelivered message is stored once.
    Sent,
    /// Derived from conversation, timestamp and body. A redelivered message is stored once.
    Derived,
    /// Random, because the sender gave neither an id nor a timestamp: after a crash the message may
    /// be stored twice.
    Random,
}
