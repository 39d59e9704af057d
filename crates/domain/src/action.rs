//! Decoded actions: every field checked. Handlers work with these types; [`crate::decode`] makes them
//! from bodies, which [`crate::wire`] defines.

mod common;
mod kind;
pub mod state;
mod sync;

pub use self::common::{Common, ConversationSource, TimeSource};
pub use self::kind::ActionKind;
pub use self::sync::{ListedMessage, SyncMessages};

use crate::envelope::Resolved;
use crate::failure::Refusal;
use crate::json::Json;
use crate::message::{BodyHash, Message};
use crate::wire;

/// An action of any kind: the fields of every action, and its payload as it was sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Save a message.
    SaveMessage(Box<SaveMessage>),
    /// Save messages of one conversation, in their order.
    SaveMessages(SaveMessages),
    /// Save those messages of a whole list that are not saved yet.
    SyncMessages(SyncMessages),
    /// Delete a message.
    DeleteMessage(Common, wire::DeleteMessage),
    /// A session began.
    SessionOpened(Common),
    /// A session ended.
    SessionClosed(Common, wire::SessionClosed),
    /// Request the messages that a model should see.
    GetContext(Common, wire::GetContext),
    /// Request the messages of a conversation.
    GetHistory(Common, wire::GetHistory),
    /// Rate a conversation.
    Feedback(Common, wire::Feedback),
    /// Erase a conversation or, if the user is named, all conversations of that user.
    Erase(Common),
    /// Read a state.
    StateLoad(Common, state::Load),
    /// Write a state.
    StateSave(Common, state::Save),
    /// Change parts of a state.
    StatePatch(Common, state::Patch),
    /// Move a state to another status.
    StateTransition(Common, state::Transition),
    /// Remove a state or a part of it.
    StateClear(Common, state::Clear),
    /// List the states of a profile.
    StateListActive(Common, state::ListActive),
    /// Count the states of a profile.
    StateStats(Common, state::Stats),
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
    /// What an assistant said instead of content, such as a function call: an object. It is stored as metadata, and is
    /// part of the hash.
    pub instead_of_content: Option<Json>,
}

/// `conversation.save_messages`
#[derive(Debug, Clone, PartialEq)]
pub struct SaveMessages {
    /// The fields of every action.
    pub common: Common,
    /// How the action got its id.
    pub identity: Identity,
    /// Whether no message is saved if one of them cannot be saved.
    pub atomic: bool,
    /// The messages, in their order; at least one.
    pub elements: Vec<Element>,
}

/// A message of a `SaveMessages`.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// The message, or why it is refused.
    pub message: Result<Box<SaveMessage>, Refusal>,
    /// Its id and times, also where it is refused: it keeps them as an action of its own.
    pub resolved: Resolved,
    /// Whether its time follows from its place among the others: its sender gave none to it.
    pub is_time_estimated: bool,
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
    Random {
        /// Whether it may be stored already, under another id: [`Envelope::redelivered`].
        ///
        /// [`Envelope::redelivered`]: crate::envelope::Envelope::redelivered
        redelivered: bool,
    },
}

impl Action {
    /// The fields of every action.
    #[must_use]
    pub fn common(&self) -> &Common {
        match self {
            Self::SaveMessage(action) => &action.common,
            Self::SaveMessages(action) => &action.common,
            Self::SyncMessages(action) => &action.common,
            Self::DeleteMessage(common, _)
            | Self::SessionOpened(common)
            | Self::SessionClosed(common, _)
            | Self::GetContext(common, _)
            | Self::GetHistory(common, _)
            | Self::Feedback(common, _)
            | Self::Erase(common)
            | Self::StateLoad(common, _)
            | Self::StateSave(common, _)
            | Self::StatePatch(common, _)
            | Self::StateTransition(common, _)
            | Self::StateClear(common, _)
            | Self::StateListActive(common, _)
            | Self::StateStats(common, _) => common,
        }
    }

    /// Why some of its messages are refused, if it has several.
    pub fn refused_elements(&self) -> impl Iterator<Item = &Refusal> {
        let several = match self {
            Self::SaveMessages(action) => action.elements.as_slice(),
            _ => &[],
        };
        several.iter().filter_map(|element| element.message.as_ref().err())
    }

    /// The messages that it saves.
    pub fn messages(&self) -> impl Iterator<Item = &SaveMessage> {
        let (one, several) = match self {
            Self::SaveMessage(save) => (Some(&**save), None),
            Self::SaveMessages(action) => (None, Some(&action.elements)),
            _ => (None, None),
        };
        let several = several.into_iter().flatten().filter_map(|it| it.message.as_deref().ok());
        one.into_iter().chain(several)
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

impl SaveMessages {
    /// Why it is refused as a whole: it is atomic, and one of its messages is refused.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        let refused = self.elements.iter().enumerate();
        let refused = refused.filter_map(|(n, it)| Some((n, it.message.as_ref().err()?)));
        let refused: Vec<_> = refused.filter(|_| self.atomic).collect();
        let (_, first) = *refused.first()?;
        Some(Self::refused_at(&refused.iter().map(|(n, _)| *n).collect::<Vec<_>>(), first))
    }

    /// Whether the time of the message at this position follows from the receipt of the action: another attempt has another
    /// time.
    #[must_use]
    pub fn is_by_receipt(&self, position: usize) -> bool {
        let is_sent = |common: &Common| common.time_source == TimeSource::Body;
        self.elements.get(position).is_some_and(|element| {
            !is_sent(&self.common)
                && element.message.as_ref().is_ok_and(|message| !is_sent(&message.common))
                && element.resolved.timestamp == self.common.happened_at.later_by(position)
        })
    }

    /// The refusal of an atomic action whose messages at these positions cannot be saved, the first one for this reason.
    #[must_use]
    pub fn refused_at(positions: &[usize], first: &Refusal) -> Refusal {
        let positions: Vec<String> = positions.iter().map(ToString::to_string).collect();
        let detail = format!(
            "nothing of the action is saved, because it is atomic and its messages at these positions cannot be saved: \
             {}. The first one: {}",
            positions.join(", "),
            first.detail
        );
        Refusal { detail, ..first.clone() }
    }
}

impl SaveMessage {
    /// The hash by which a second message with the same id is a duplicate or a conflict.
    #[must_use]
    pub fn body_hash(&self) -> BodyHash {
        self.message.hash_with(self.instead_of_content.as_ref())
    }
}
