//! Decoded actions: every field checked, every default applied.
//!
//! Handlers work with these types. [`crate::decode`] makes them from bodies; [`crate::wire`]
//! defines the bodies.

mod kind;
pub mod state;

pub use self::kind::ActionKind;

use crate::envelope::Resolved;
use crate::ids::{ActionId, AgentId, ConversationKey, MessageId, SessionId, UserId};
use crate::message::{Json, Message};
use crate::time::Timestamp;

/// An action of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Save a message.
    SaveMessage(Box<SaveMessage>),
    /// A session began.
    SessionOpened(SessionOpened),
    /// A session ended.
    SessionClosed(SessionClosed),
    /// Request the messages that a model should see.
    GetContext(GetContext),
    /// Request the messages of a conversation.
    GetHistory(GetHistory),
    /// Rate a conversation.
    Feedback(Feedback),
    /// Erase a conversation, or all conversations of a user.
    Erase(Erase),
    /// Read or change the state of a bot.
    State(state::StateAction),
}

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
    /// `metadata` with the fields that the contract does not define. `None` in a [`SaveMessage`]:
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

/// `conversation.save_message`
#[derive(Debug, Clone, PartialEq)]
pub struct SaveMessage {
    /// The fields of every action.
    pub common: Common,
    /// The message, complete.
    pub message: Message,
    /// How it got its id.
    pub identity: Identity,
}

/// `conversation.session_opened`
#[derive(Debug, Clone, PartialEq)]
pub struct SessionOpened {
    /// The fields of every action.
    pub common: Common,
}

/// `conversation.session_closed`
#[derive(Debug, Clone, PartialEq)]
pub struct SessionClosed {
    /// The fields of every action.
    pub common: Common,
    /// Why it ended, as the sender says.
    pub reason: Option<String>,
    /// How satisfied the user was, from 1 (bad) to 5 (good).
    pub satisfaction: Option<u8>,
}

/// `conversation.get_context`
#[derive(Debug, Clone, PartialEq)]
pub struct GetContext {
    /// The fields of every action; `model_name` is the model.
    pub common: Common,
    /// The budget, in tokens; by default the model's.
    pub max_tokens: Option<u32>,
    /// Tokens of the budget that the caller needs for its reply or tools.
    pub reserve_tokens: u32,
}

/// `conversation.get_history`
#[derive(Debug, Clone, PartialEq)]
pub struct GetHistory {
    /// The fields of every action.
    pub common: Common,
    /// The largest number of messages; the newest ones are returned.
    pub limit: u32,
    /// Only messages before the one with this id.
    pub before: Option<MessageId>,
}

/// `conversation.feedback`
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// The fields of every action.
    pub common: Common,
    /// How satisfied the user was, from 1 (bad) to 5 (good).
    pub satisfaction: u8,
}

/// `conversation.erase`
#[derive(Debug, Clone, PartialEq)]
pub struct Erase {
    /// The fields of every action.
    pub common: Common,
    /// Erase all of this user's conversations instead of one.
    pub user_id: Option<UserId>,
}

impl Action {
    /// The fields of every action.
    #[must_use]
    pub fn common(&self) -> &Common {
        match self {
            Self::SaveMessage(action) => &action.common,
            Self::SessionOpened(action) => &action.common,
            Self::SessionClosed(action) => &action.common,
            Self::GetContext(action) => &action.common,
            Self::GetHistory(action) => &action.common,
            Self::Feedback(action) => &action.common,
            Self::Erase(action) => &action.common,
            Self::State(action) => &action.common,
        }
    }

    /// Which action it is.
    #[must_use]
    pub fn kind(&self) -> ActionKind {
        self.common().kind
    }

    /// What a retry or dead letter carries so that a later attempt gets the same id and time.
    /// `None` for a request, which is never retried.
    #[must_use]
    pub fn resolved(&self) -> Option<Resolved> {
        let common = self.common();
        (!common.kind.is_request()).then(|| common.resolved())
    }
}

impl Common {
    /// When it happened: the sender's time, else the time of receipt.
    #[must_use]
    pub fn happened_at(&self) -> Timestamp {
        self.sent_at.unwrap_or(self.received_at)
    }

    /// What a retry or dead letter carries so that a later attempt gets the same id and time.
    #[must_use]
    pub fn resolved(&self) -> Resolved {
        Resolved {
            id: self.resolved_id.clone(),
            conversation: self.key.conversation.clone(),
            timestamp: self.happened_at(),
            received_at: self.received_at,
        }
    }
}
