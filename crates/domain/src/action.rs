//! Decoded actions: every field checked, every default applied.
//!
//! Handlers work with these types. [`crate::decode`] makes them from bodies; [`crate::wire`]
//! defines the bodies.

mod common;
mod kind;
pub mod state;

pub use self::common::{Common, ConversationSource, Identity};
pub use self::kind::ActionKind;

use crate::envelope::Resolved;
use crate::ids::{MessageId, UserId};
use crate::message::Message;
use crate::reply::ReplyAddress;
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

    /// Where its reply is sent; `None` if its sender wants none.
    #[must_use]
    pub fn reply_address(&self) -> Option<ReplyAddress> {
        let queue = self.reply_to.clone()?;
        let (correlation_id, action_id) = (self.correlation_id.clone(), self.action_id.clone());
        Some(ReplyAddress { queue, correlation_id, action_id })
    }
}
