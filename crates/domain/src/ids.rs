//! Identifiers as they arrive on the wire: 1 to 128 bytes of UTF-8 without control characters.
//!
//! Each kind of id is its own type, so that a session can never be passed where a conversation is
//! meant. Ids compare by bytes, which is what `COLLATE "C"` does in PostgreSQL and what Redis does
//! with members of equal score: one order everywhere.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The longest id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 128;

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The string has no bytes at all.
    #[error("is empty; an id has 1 to {MAX_ID_BYTES} bytes")]
    Empty,
    /// The string has more than [`MAX_ID_BYTES`] bytes.
    #[error("is {0} bytes long; an id has 1 to {MAX_ID_BYTES} bytes")]
    TooLong(usize),
    /// The string holds a control character (Unicode category Cc).
    #[error("holds the control character U+{:04X} at byte {at}", *character as u32)]
    Control {
        /// The character.
        character: char,
        /// Its offset in bytes.
        at: usize,
    },
}

fn check(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > MAX_ID_BYTES {
        return Err(InvalidId::TooLong(text.len()));
    }
    // Printable ASCII, as nearly every id is; without an early end it is looked at 16 bytes at a time.
    if text.bytes().fold(true, |good, byte| good & (b' '..=b'~').contains(&byte)) {
        return Ok(());
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, character)) => Err(InvalidId::Control { character, at }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[doc = $doc:literal])* $name:ident) => {
        $(#[doc = $doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts 1 to [`MAX_ID_BYTES`] bytes without control characters.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The id as it was sent.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::new(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl From<Uuid> for $name {
            /// The hyphenated lower-case form: 36 bytes, always valid.
            fn from(uuid: Uuid) -> Self {
                Self((&*uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer())).into())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "description": concat!(
                        $($doc,)* " 1 to 128 bytes of UTF-8 without control characters."
                    ).trim(),
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_ID_BYTES,
                    "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
                })
            }
        }
    };
}

id!(
    /// Who owns the data. Every read and write names one.
    TenantId
);
id!(
    /// The connection over which a conversation runs: a WebSocket, a phone number, a thread.
    SessionId
);
id!(
    /// A conversation within its tenant.
    ConversationId
);
id!(
    /// The identity of a message within its conversation: the key of its idempotency.
    MessageId
);
id!(
    /// The idempotency key of an action.
    ActionId
);
id!(
    /// The human on the other side.
    UserId
);
id!(
    /// The agent that speaks.
    AgentId
);
id!(
    /// A kind of bot state: how it is keyed, stored, expired and protected.
    ProfileName
);
id!(
    /// One part of the key of a bot's state: a contact, a company, a phone number.
    KeyPart
);

impl From<ActionId> for MessageId {
    /// The idempotency key of the action that saves a message is the message's identity, where it
    /// has none of its own.
    fn from(id: ActionId) -> Self {
        Self(id.0)
    }
}

/// The name space of conversation ids that are derived from sessions. Fixed for ever: another value
/// would give every session another conversation.
const CONVERSATION_NAMESPACE: Uuid = Uuid::from_u128(0x7e4b_1f0a_93c5_5d1e_8a6f_2c0d_51b7_e4a9);

/// A conversation and its tenant: the key under which everything is stored. Sorts by tenant, then
/// by conversation, in byte order; whoever locks several conversations locks them in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationKey {
    /// The tenant.
    pub tenant: TenantId,
    /// The conversation within the tenant.
    pub conversation: ConversationId,
}

impl ConversationKey {
    /// The key of two ids as they are stored.
    pub fn parse(tenant: &str, conversation: &str) -> Result<Self, InvalidId> {
        Ok(Self {
            tenant: TenantId::new(tenant)?,
            conversation: ConversationId::new(conversation)?,
        })
    }

    /// The conversation of a session whose actions carry no `conversation_id`: UUIDv5 of tenant and
    /// session, a pure function, so that every replica derives the same one without asking anybody.
    #[must_use]
    pub fn of_session(tenant: TenantId, session: &SessionId) -> Self {
        // Ids hold no control characters, so NUL separates the two unambiguously.
        let name = [tenant.as_str(), "\0", session.as_str()].concat();
        let conversation = Uuid::new_v5(&CONVERSATION_NAMESPACE, name.as_bytes()).into();
        Self { tenant, conversation }
    }
}

impl fmt::Display for ConversationKey {
    /// `tenant/conversation`, each [escaped](escape): two different keys never print alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", escape(self.tenant.as_str()), escape(self.conversation.as_str()))
    }
}

/// Percent-encodes every byte that is not unreserved in a URL (RFC 3986, section 2.3: letters,
/// digits, `-`, `.`, `_`, `~`), so that an id may stand in a Redis key or a path segment and two
/// different ids never look alike there.
#[must_use]
pub fn escape(id: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    if id.bytes().all(plain) {
        return Cow::Borrowed(id);
    }
    let mut escaped = String::with_capacity(id.len() * 3);
    for byte in id.bytes() {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            escaped.push('%');
            escaped.push(char::from(HEX[usize::from(byte >> 4)]));
            escaped.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    Cow::Owned(escaped)
}
