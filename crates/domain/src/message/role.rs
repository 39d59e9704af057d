//! The roles of messages.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::named::named;

named! {
    /// The role of a message.
    #[derive(Serialize, schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Role {
        /// The end user.
        User = "user",
        /// The model.
        Assistant = "assistant",
        /// Instructions to the model.
        System = "system",
        /// Instructions to the model by the developer of an agent, as OpenAI's newer models name them.
        Developer = "developer",
        /// The result of a tool call.
        Tool = "tool",
        /// The result of a function call; the older form of `tool`.
        Function = "function",
    }
}

impl Role {
    /// The role that another system's name means, for a hint.
    pub(crate) fn meant_by(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "human" | "customer" | "client" | "contact" => Some(Self::User),
            "ai" | "bot" | "agent" | "model" => Some(Self::Assistant),
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
                f.write_str("one of `user`, `assistant`, `system`, `developer`, `tool`, `function`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Role, E> {
                Role::parse(name).ok_or_else(|| E::invalid_value(Unexpected::Str(name), &self))
            }
        }
        deserializer.deserialize_str(Name)
    }
}
