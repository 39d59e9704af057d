//! The roles of messages.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The role of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The end user.
    User,
    /// The model.
    Assistant,
    /// Instructions to the model.
    System,
    /// The result of a tool call.
    Tool,
    /// The result of a function call; the older form of `tool`.
    Function,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::User, Self::Assistant, Self::System, Self::Tool, Self::Function];

    /// The stored name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
            Self::Tool => "tool",
            Self::Function => "function",
        }
    }

    /// The role of a stored name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// The role that another system's name means, for a hint.
    pub(crate) fn meant_by(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "human" | "customer" | "client" | "contact" => Some(Self::User),
            "ai" | "bot" | "agent" | "model" => Some(Self::Assistant),
            "developer" => Some(Self::System),
            lower => Self::parse(lower),
        }
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Role;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one of `user`, `assistant`, `system`, `tool`, `function`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Role, E> {
                Role::parse(name).ok_or_else(|| E::invalid_value(Unexpected::Str(name), &self))
            }
        }
        deserializer.deserialize_str(Name)
    }
}
