//! What an agent asked for, decoded: every field checked, every default applied.
//!
//! These types are what handlers work with. How a body becomes one of them is `decode`'s business,
//! what bodies may look like is said by the types in [`crate::wire`].

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
    /// Keep a message.
    SaveMessage(Box<SaveMessage>),
    /// A connection began.
    SessionOpened(SessionOpened),
    /// A connection ended.
    SessionClosed(SessionClosed),
    /// Which messages should a model see?
    GetContext(GetContext),
    /// What was said?
    GetHistory(GetHistory),
    /// How content was the human?
    Feedback(Feedback),
    /// Forget a conversation, or all of a user's.
    Erase(Erase),
    /// Work on a bot's state.
    State(state::StateAction),
}

/// What every action carries.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    /// Which action it is.
    pub kind: ActionKind,
    /// Tenant and conversation.
    pub key: ConversationKey,
    /// Whether the sender named the conversation.
    pub conversation_is_explicit: ConversationSource,
    /// The connection.
    pub session: SessionId,
    /// The idempotency key: the body's `action_id`, else the AMQP `message_id`.
    pub action_id: Option<ActionId>,
    /// The id under which retries and dead letters know this action. For a message it is the
    /// message's own.
    pub resolved_id: MessageId,
    /// When it happened, as far as the sender said: the body's `timestamp`, else the AMQP one.
    pub sent_at: Option<Timestamp>,
    /// When the first attempt received it.
    pub received_at: Timestamp,
    /// The human on the other side.
    pub user_id: Option<UserId>,
    /// The agent.
    pub agent_id: Option<AgentId>,
    /// The model.
    pub model_name: Option<String>,
    /// What the tenant pays for: `tenant_tier`, else `metadata.tenant_tier`.
    pub tenant_tier: Option<String>,
    /// The sender's task.
    pub task_id: Option<String>,
    /// The sender's name for itself.
    pub origin_service: Option<String>,
    /// What the reply must carry: the AMQP `correlation_id`, else the body's.
    pub correlation_id: Option<String>,
    /// Where the reply goes: the AMQP `reply_to`, else the body's `callback_queue_name`.
    pub reply_to: Option<String>,
    /// `metadata` with the fields that the contract does not know. `None` in a
    /// [`SaveMessage`], whose message carries it.
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
    /// The sender gave one. Its effects happen once.
    Sent,
    /// Derived from conversation, timestamp and body. Its effects happen once.
    Derived,
    /// Made up, for want of anything better: a crash may store the message twice.
    Random,
}

/// `conversation.save_message`
#[derive(Debug, Clone, PartialEq)]
pub struct SaveMessage {
    /// What every action carries.
    pub common: Common,
    /// The message, complete.
    pub message: Message,
    /// How it got its id.
    pub identity: Identity,
}

/// `conversation.session_opened`
#[derive(Debug, Clone, PartialEq)]
pub struct SessionOpened {
    /// What every action carries.
    pub common: Common,
}

/// `conversation.session_closed`
#[derive(Debug, Clone, PartialEq)]
pub struct SessionClosed {
    /// What every action carries.
    pub common: Common,
    /// Why it ended, in the sender's words.
    pub reason: Option<String>,
    /// How content the human was, 1 to 5.
    pub satisfaction: Option<u8>,
}

/// `conversation.get_context`
#[derive(Debug, Clone, PartialEq)]
pub struct GetContext {
    /// What every action carries; the model is in its `model_name`.
    pub common: Common,
    /// The budget, in tokens; by default the model's.
    pub max_tokens: Option<u32>,
    /// Tokens that the caller keeps for its reply or tools.
    pub reserve_tokens: u32,
}

/// `conversation.get_history`
#[derive(Debug, Clone, PartialEq)]
pub struct GetHistory {
    /// What every action carries.
    pub common: Common,
    /// At most so many messages, the newest ones.
    pub limit: u32,
    /// Only messages that stand before the one with this id.
    pub before: Option<MessageId>,
}

/// `conversation.feedback`
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// What every action carries.
    pub common: Common,
    /// How content the human was, 1 to 5.
    pub satisfaction: u8,
}

/// `conversation.erase`
#[derive(Debug, Clone, PartialEq)]
pub struct Erase {
    /// What every action carries.
    pub common: Common,
    /// Erase all of this user's conversations instead of one.
    pub user_id: Option<UserId>,
}

impl Action {
    /// What every action carries.
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

    /// What a retry or dead letter must carry so that a later attempt decides the same; nothing
    /// for a question, which is never tried again.
    #[must_use]
    pub fn resolved(&self) -> Option<Resolved> {
        let common = self.common();
        (!common.kind.is_request()).then(|| common.resolved())
    }
}

impl Common {
    /// When it happened, as well as anybody knows.
    #[must_use]
    pub fn happened_at(&self) -> Timestamp {
        self.sent_at.unwrap_or(self.received_at)
    }

    /// What a retry or dead letter must carry so that a later attempt decides the same.
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
