//! `conversation.sync_messages`.

use super::common::Common;
use crate::ids::MessageId;
use crate::sync::hash::{Fingerprint, SyncHash};
use crate::sync::names::{OnConflict, SystemMessages};
use crate::sync::path::Computed;
use crate::time::Timestamp;

/// `conversation.sync_messages`
#[derive(Debug, Clone, PartialEq)]
pub struct SyncMessages {
    /// The fields of every action.
    pub common: Common,
    /// The system and developer messages at the head of the list.
    pub head: Vec<ListedMessage>,
    /// The messages behind them.
    pub listed: Vec<ListedMessage>,
    /// When the head is stored.
    pub system: SystemMessages,
    /// What to do with a list that does not go on from the newest message.
    pub on_conflict: OnConflict,
    /// The message from which the list goes on; `None` if it begins with the first one of the conversation.
    pub after: Option<MessageId>,
    /// Whether a worker may have handled it before.
    pub redelivered: bool,
}

/// A message of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedMessage {
    /// Its position in `messages`, from 0.
    pub position: usize,
    /// What it is compared by.
    pub fingerprint: Fingerprint,
    /// The id that its sender gave to it.
    pub id: Option<MessageId>,
    /// The time that its sender gave to it.
    pub timestamp: Option<Timestamp>,
}

impl SyncMessages {
    /// The computed ids of the messages behind the head, in their order, if `start` is the computed id before the first one.
    #[must_use]
    pub fn path(&self, start: Option<Computed>) -> Vec<Computed> {
        let mut before = start;
        let id = |listed: &ListedMessage| {
            let id = Computed::of_message(&self.common.key, before, listed.fingerprint.hash);
            before = Some(id);
            id
        };
        self.listed.iter().map(id).collect()
    }

    /// The hash of the messages at the head together; `None` if there are none.
    #[must_use]
    pub fn head_hash(&self) -> Option<SyncHash> {
        SyncHash::of_all(self.head.iter().map(|listed| listed.fingerprint.hash))
    }
}
