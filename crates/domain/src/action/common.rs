//! The fields of every action.

use super::kind::ActionKind;
use crate::envelope::Resolved;
use crate::ids::{ActionId, AgentId, ConversationKey, MessageId, SessionId, UserId};
use crate::json::Json;
use crate::reply::ReplyAddress;
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
    /// When it happened: the sender's time, else the time of receipt.
    pub happened_at: Timestamp,
    /// Where that time comes from.
    pub time_source: TimeSource,
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
    /// The correlation id of the reply: the AMQP `correlation_id`, else the body's.
    pub correlation_id: Option<String>,
    /// The queue for the reply: the AMQP `reply_to`, else the body's `callback_queue_name`.
    pub reply_to: Option<String>,
    /// `metadata` with `task_id`, `origin_service` and the fields that the contract does not define. `None`
    /// in a `SaveMessage`: there the message has it.
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

/// Where the time of an action comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeSource {
    /// The body's `timestamp`.
    Body,
    /// The AMQP property, which has whole seconds. Each receipt completes its microseconds.
    AmqpSecond,
    /// The receipt: the sender gave none.
    Receipt,
}

impl Common {
    /// What a retry or dead letter carries so that a later attempt gets the same id and time.
    #[must_use]
    pub fn resolved(&self) -> Resolved {
        Resolved {
            id: self.resolved_id.clone(),
            conversation: self.key.conversation.clone(),
            timestamp: self.happened_at,
            received_at: self.received_at,
        }
    }

    /// Where its reply is sent; `None` if its sender wants none.
    #[must_use]
    pub fn reply_address(&self) -> Option<ReplyAddress> {
        let queue = self.reply_to.clone()?;
        let (correlation_id, action_id) = (self.correlation_id.clone(), self.action_id.clone());
        Some(ReplyAddress { queue, correlation_id, action_id })
    }
}
