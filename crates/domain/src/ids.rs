//! Identifiers as they arrive on the wire: 1 to 512 bytes of UTF-8 without control characters. An integer is accepted
//! by its digits.
//!
//! Each kind of id is its own type, so that a session cannot be passed for a conversation. Ids
//! compare by bytes, as `COLLATE "C"` does in PostgreSQL and as Redis does for members of equal
//! score. So the order is the same everywhere.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::json::{decimal_digits, string};

/// The longest id, in bytes of UTF-8. Conversation ids of Microsoft Teams have several hundred.
pub const MAX_ID_BYTES: usize = 512;

/// Why a string is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The string is empty.
    #[error("is empty; it must have 1 to {MAX_ID_BYTES} bytes")]
    Empty,
    /// The string has more than [`MAX_ID_BYTES`] bytes.
    #[error("is {0} bytes long; it must have 1 to {MAX_ID_BYTES} bytes")]
    TooLong(usize),
    /// The string contains a control character (Unicode category Cc).
    #[error("contains the control character U+{:04X} at byte {at}; remove it", *character as u32)]
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
    // Nearly every id is printable ASCII. A loop without an early exit is vectorised: 16 bytes at
    // once.
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
                let IdText(text) = IdText::deserialize(deserializer)?;
                Self::new(text).map_err(D::Error::custom)
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
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let types = if generator.contract().is_deserialize() {
                    serde_json::json!(["string", "integer"])
                } else {
                    "string".into()
                };
                schemars::json_schema!({
                    "description": concat!(
                        $($doc,)* " 1 to 512 bytes of UTF-8 without control characters; \
                        `maxLength` counts characters, the limit counts bytes."
                    ).trim(),
                    "type": types,
                    "minLength": 1,
                    "maxLength": MAX_ID_BYTES,
                    "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
                })
            }
        }
    };
}

id!(
    /// The tenant: the owner of the data. Every read and write names one.
    TenantId
);
id!(
    /// The session: one connection of the user, such as a WebSocket, a call or a chat window.
    SessionId
);
id!(
    /// A conversation, unique within its tenant.
    ConversationId
);
id!(
    /// The id of a message, unique within its conversation: the message's idempotency key.
    MessageId
);
id!(
    /// The idempotency key of an action.
    ActionId
);
id!(
    /// The end user.
    UserId
);
id!(
    /// The agent.
    AgentId
);
id!(
    /// The kind of a bot state: it defines the state's key, storage, expiry and allowed
    /// transitions.
    ProfileName
);
id!(
    /// One part of the key of a bot's state: a contact, a company, a phone number.
    KeyPart
);

impl From<ActionId> for MessageId {
    /// A message without a `message_id` has the `action_id` as its id.
    fn from(id: ActionId) -> Self {
        Self(id.0)
    }
}

/// The text of an id that is read.
struct IdText<'a>(Cow<'a, str>);

/// The name under which [`IdText`] asks its deserializer for the [text of an id](id_text).
pub(crate) const ID: &str = "id";

/// What an id may be, in an error.
pub(crate) const STRING_OR_INTEGER: &str = "a string or an integer of at most 512 digits";

impl<'de> Deserialize<'de> for IdText<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = IdText<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(STRING_OR_INTEGER)
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(IdText(text.into()))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(IdText(text.to_owned().into()))
            }
            // Another deserializer than that of actions: what it reads was written by us.
            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<Self::Value, D::Error> {
                deserializer.deserialize_str(self)
            }
        }
        deserializer.deserialize_newtype_struct(ID, Text)
    }
}

/// The text of an id that is written as this JSON: that of a string, or the digits of an integer, such as the ids of
/// Telegram. `None` for every other value, and for an integer with more digits than an id has bytes.
pub(crate) fn id_text(json: &str) -> Option<Cow<'_, str>> {
    string(json).or_else(|| decimal_digits(json, MAX_ID_BYTES).map(Cow::Owned))
}

/// The name space of conversation ids that are derived from sessions. It must never change: another
/// value would give every session another conversation.
const CONVERSATION_NAMESPACE: Uuid = Uuid::from_u128(0x7e4b_1f0a_93c5_5d1e_8a6f_2c0d_51b7_e4a9);

/// A conversation and its tenant: the key of all stored data. Sorts by tenant, then by
/// conversation, in byte order. Code that locks several conversations locks them in this order, to
/// avoid deadlocks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationKey {
    /// The tenant.
    pub tenant: TenantId,
    /// The conversation within the tenant.
    pub conversation: ConversationId,
}

impl ConversationKey {
    /// The key of these two stored ids.
    pub fn parse(tenant: &str, conversation: &str) -> Result<Self, InvalidId> {
        Ok(Self {
            tenant: TenantId::new(tenant)?,
            conversation: ConversationId::new(conversation)?,
        })
    }

    /// The conversation of a session whose actions have no `conversation_id`: UUIDv5 of tenant and
    /// session. It is a pure function, so every replica derives the same id without a lookup.
    #[must_use]
    pub fn of_session(tenant: TenantId, session: &SessionId) -> Self {
        // Ids contain no control characters, so NUL separates the two unambiguously.
        let name = [tenant.as_str(), "\0", session.as_str()].concat();
        let conversation = Uuid::new_v5(&CONVERSATION_NAMESPACE, name.as_bytes()).into();
        Self { tenant, conversation }
    }
}

impl fmt::Display for ConversationKey {
    /// `tenant/conversation`, each [escaped](escape), so different keys have different texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", escape(self.tenant.as_str()), escape(self.conversation.as_str()))
    }
}

/// Percent-encodes every byte that is not unreserved in a URL (RFC 3986, section 2.3: A-Z, a-z,
/// digits, `-`, `.`, `_`, `~`), so that an id can be part of a Redis key or a path, and different
/// ids stay different there.
#[must_use]
pub fn escape(id: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    // Without an early exit, so that it is vectorised.
    if id.bytes().fold(true, |all, byte| all & plain(byte)) {
        return Cow::Borrowed(id);
    }
    let escaped = |byte| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    id.bytes().map(escaped).collect()
}
