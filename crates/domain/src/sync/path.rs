//! Computed ids: a message of a list is identified by the messages before it.
//!
//! Each id is a UUID of version 8 (RFC 9562, section 5.8), from a SHA-256 of tenant, conversation, the computed id before it
//! and what the message says. Ids are stored and compared for ever, so their form never changes.

use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

use super::hash::SyncHash;
use crate::ids::{ConversationKey, MessageId};

/// The name space of computed ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1c_93d8_2a47_4e0b_8d5e_b7a1_50c4_39f2);

/// A computed id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Computed(pub Uuid);

/// What a computed id stands for.
enum Step<'a> {
    /// A message of the list.
    Message(SyncHash),
    /// A system message at the head of the list, by its place there.
    Instruction(u32, SyncHash),
    /// A message with an id of its sender's, from which a list goes on.
    Named(&'a MessageId),
}

impl Computed {
    /// The id of a message behind another one; `None` before the first.
    #[must_use]
    pub fn of_message(key: &ConversationKey, before: Option<Self>, hash: SyncHash) -> Self {
        computed(key, before, &Step::Message(hash))
    }

    /// The id of a system or developer message at the head of a list, by its place there. Such a message is stored before the
    /// first new message of the list; `before` is the one before that.
    #[must_use]
    pub fn of_instruction(
        key: &ConversationKey,
        before: Option<Self>,
        place: u32,
        hash: SyncHash,
    ) -> Self {
        computed(key, before, &Step::Instruction(place, hash))
    }

    /// What a list that goes on from this message begins with: the id itself if it was computed, else one of its own.
    #[must_use]
    pub fn of_stored(key: &ConversationKey, id: &MessageId) -> Self {
        Self::parse(id).unwrap_or_else(|| computed(key, None, &Step::Named(id)))
    }

    /// The id of a message as a computed one, if it has that form.
    #[must_use]
    pub fn parse(id: &MessageId) -> Option<Self> {
        let uuid = Uuid::parse_str(id.as_str()).ok()?;
        let is_computed = uuid.get_version_num() == 8 && MessageId::from(uuid) == *id;
        is_computed.then_some(Self(uuid))
    }

    /// The id under which the message is stored, if its sender names none.
    #[must_use]
    pub fn message_id(self) -> MessageId {
        self.0.into()
    }
}

fn computed(key: &ConversationKey, before: Option<Computed>, step: &Step<'_>) -> Computed {
    let mut hasher = Sha256::new();
    hasher.update(NAMESPACE.as_bytes());
    // Ids have no control characters, so NUL ends each.
    for id in [key.tenant.as_str(), key.conversation.as_str()] {
        hasher.update(id);
        hasher.update([0]);
    }
    match before {
        Some(Computed(before)) => {
            hasher.update([1]);
            hasher.update(before.as_bytes());
        }
        None => hasher.update([0]),
    }
    match step {
        Step::Message(SyncHash(hash)) => {
            hasher.update(b"m");
            hasher.update(hash);
        }
        Step::Instruction(place, SyncHash(hash)) => {
            hasher.update(b"s");
            hasher.update(place.to_be_bytes());
            hasher.update(hash);
        }
        Step::Named(id) => {
            hasher.update(b"n");
            hasher.update(id.as_str());
        }
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Computed(Builder::from_custom_bytes(bytes).into_uuid())
}
