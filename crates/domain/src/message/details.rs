//! What a message says beside its content about the model's turn.

use serde::Serialize;

use crate::ids::MessageId;
use crate::json::Json;

/// What a message says beside its content about the model's turn. Most messages have none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    /// What another API gave for this message, as it was sent: an item of OpenAI's Responses, the blocks of an Anthropic
    /// message, a framework's own message.
    #[serde(skip)]
    pub item: Option<Json>,
    /// The tokens that the provider counted: an object, as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Json>,
    /// Why the model stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The provider's id of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_id: Option<String>,
    /// The message to which this one is the answer, where it is not the one before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_message_id: Option<MessageId>,
    /// A hash of the context from which the model answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_hash: Option<String>,
}

impl Details {
    /// These details on the heap; `None` if there are none.
    #[must_use]
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }

    /// The details of a message, where it may have none.
    #[must_use]
    pub fn of(details: &Option<Box<Self>>) -> &Self {
        const NONE: &Details = &Details {
            item: None,
            usage: None,
            finish_reason: None,
            response_id: None,
            parent_message_id: None,
            context_hash: None,
        };
        details.as_deref().unwrap_or(NONE)
    }

    /// One JSON object with all but the item, under the names of the contract, or `None` if there is nothing else. JSON
    /// in it stays byte for byte.
    #[must_use]
    #[expect(clippy::expect_used, reason = "texts and JSON are JSON")]
    pub fn without_item(&self) -> Option<String> {
        let json = serde_json::to_string(self).expect("texts and JSON are JSON");
        (json != "{}").then_some(json)
    }
}
