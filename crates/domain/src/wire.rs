//! The bodies of actions, version 1 of the contract.
//!
//! Bodies are decoded into these types, and the JSON Schemas are generated from them, so the
//! published contract cannot differ from the code. The doc comments of fields become the
//! descriptions in the schemas, which agent developers read.

mod content;
mod value;

use std::borrow::Cow;
use std::fmt;

pub use self::content::{Content, Part};
pub(crate) use self::value::non_empty;
pub use self::value::{Amount, Fitting, Integer, JsonArray, JsonObject};

use schemars::JsonSchema;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::ids::{ActionId, AgentId, ConversationId, MessageId, SessionId, TenantId, UserId};
use crate::json::Json;
use crate::message::Role;
use crate::sync::names::{OnConflict, SystemMessages};
use crate::time::Timestamp;

/// The fields that every action may carry.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Common<'a> {
    /// The action; also the routing key with which it is published.
    #[serde(borrow)]
    pub action_type: Cow<'a, str>,
    /// The tenant: the owner of the data.
    pub tenant_id: TenantId,
    /// The session: one connection of the user, such as a WebSocket, a call or a chat window.
    pub session_id: SessionId,
    /// The id of the action, repeated in its reply. Recommended; by default the AMQP property
    /// `message_id`. A message without `message_id` has it as its id.
    pub action_id: Option<ActionId>,
    /// The conversation. By default it is derived from tenant and session. An agent that sends it
    /// must send it in every action about that conversation. `conversation.session_closed` without it
    /// closes the session in every conversation in which it is open.
    pub conversation_id: Option<ConversationId>,
    /// When it happened. Recommended; by default a time within the second that the AMQP property `timestamp`
    /// names (0 counts as absent), in the order of receipt; then the time of receipt. The order of receipt is
    /// that of one worker process.
    pub timestamp: Option<Timestamp>,
    /// The end user.
    pub user_id: Option<UserId>,
    /// The agent.
    pub agent_id: Option<AgentId>,
    /// The model.
    pub model_name: Option<String>,
    /// The tenant's price plan; by default `metadata.tenant_tier`.
    pub tenant_tier: Option<String>,
    /// The sender's task.
    pub task_id: Option<String>,
    /// The name of the sending service.
    pub origin_service: Option<String>,
    /// The correlation id of the reply. The AMQP property `correlation_id` takes precedence.
    pub correlation_id: Option<String>,
    /// The queue for the reply. The AMQP property `reply_to` takes precedence.
    pub callback_queue_name: Option<String>,
    /// Further data of the sender. Of messages, session events and feedback it is stored, its text byte
    /// for byte; `task_id`, `origin_service` and fields that the contract does not define are added at
    /// its end. A field whose name is already taken is added as `extra.` and its name.
    pub metadata: Option<JsonObject>,
}

/// The longest `usage`, `finish_reason`, `response_id` and `context_hash`, in bytes; longer ones are metadata. PostgreSQL
/// reads a `usage` again for each number in it.
pub const MAX_DETAIL_BYTES: usize = 4_096;

/// A value as its sender wrote it: valid JSON, which is read later.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a>(pub &'a str);

/// The name under which [`Sent`] asks its deserializer for the text of a value.
pub(crate) const SENT: &str = "value as sent";

impl<'de: 'a, 'a> Deserialize<'de> for Sent<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = &'de str;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the text of a value")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<&'de str, E> {
                Ok(text)
            }
        }
        deserializer.deserialize_newtype_struct(SENT, Text).map(Self)
    }
}

/// Save a message of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SaveMessage<'a> {
    /// The role of the message.
    pub role: Role,
    /// The content: a string or an array of parts. May be null or absent if there are `tool_calls`, and in messages of
    /// the assistant, such as a refusal or a function call.
    #[serde(borrow)]
    #[schemars(with = "Option<Content>")]
    pub content: Option<Sent<'a>>,
    /// The id of the message, unique within its conversation. Recommended; by default `action_id`,
    /// then the AMQP property `message_id`.
    pub message_id: Option<MessageId>,
    /// The sender's own count of tokens.
    pub tokens_estimate: Option<Integer<0, { i64::MAX }>>,
    /// How long the agent worked on it, in milliseconds.
    pub processing_time_ms: Option<Amount>,
    /// The id of the tool call whose result this message is.
    pub tool_call_id: Option<String>,
    /// The tool calls that the model requests.
    pub tool_calls: Option<JsonArray>,
    /// What another API gave for this message, stored byte for byte: an item of OpenAI's Responses, the blocks of an
    /// Anthropic message, a framework's own message. Two messages with one id and different items are a conflict.
    #[schemars(with = "Option<serde_json::Value>")]
    pub item: Option<Json>,
    /// The tokens that the provider counted. The numbers under `input_tokens`, `output_tokens`, `cache_read_tokens`,
    /// `cache_write_tokens` and `reasoning_tokens` are in the statistics. What is no object, or has more than
    /// 4096 bytes, is stored as metadata.
    pub usage: Option<Fitting<JsonObject>>,
    /// Why the model stopped, such as `stop` or `length`. What is no string, or has more than 4096 bytes, is stored as
    /// metadata.
    pub finish_reason: Option<Fitting<String>>,
    /// The provider's id of the response. What is no string, or has more than 4096 bytes, is stored as
    /// metadata.
    pub response_id: Option<Fitting<String>>,
    /// The id of the message to which this one is the answer, where that is not the message before it: a regenerated
    /// answer, an edited message. What is no id is stored as metadata.
    pub parent_message_id: Option<Fitting<MessageId>>,
    /// The hash of the context from which the model answered. What is no string, or has more than 4096 bytes, is stored as
    /// metadata.
    pub context_hash: Option<Fitting<String>>,
}

/// The fields of a part that is an object, from which its text is read; other fields are stored unchanged.
#[derive(Debug, Deserialize)]
pub struct PartFields<'a> {
    /// The type of the part, such as `text` or `image_url`.
    #[serde(rename = "type", borrow)]
    pub kind: Option<Cow<'a, str>>,
    /// The text of a part of type `text`, `output_text`, `input_text` or of none.
    pub text: Option<&'a RawValue>,
    /// The text of a part of type `refusal`.
    pub refusal: Option<&'a RawValue>,
    /// The text of a part of type `thinking`.
    pub thinking: Option<&'a RawValue>,
    /// The text or parts of a part of type `tool_result`.
    pub content: Option<&'a RawValue>,
}

/// Save messages of one conversation, in their order. Each is a `conversation.save_message` without `action_type`; a field
/// of the action that a message does not have counts for it, too.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SaveMessages<'a> {
    /// The messages, 1 to 100.
    #[serde(borrow)]
    #[schemars(with = "Vec<serde_json::Value>", length(min = 1, max = 100))]
    pub messages: Sent<'a>,
    /// Whether no message is saved if one of them cannot be; false by default.
    pub atomic: Option<bool>,
}

/// Save those messages of a conversation that are not saved yet: the whole list of messages, as a call of a model has it,
/// as often as you like.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SyncMessages<'a> {
    /// The messages of the conversation from its first one, or from the one behind `after`; 1 to 10 000.
    #[serde(borrow)]
    #[schemars(with = "Vec<serde_json::Value>", length(min = 1, max = 10_000))]
    pub messages: Sent<'a>,
    /// The id of a stored message from which the list goes on. By default the list begins with the first message.
    pub after: Option<MessageId>,
    /// When the `system` and `developer` messages at the head of the list are stored: if they differ from those stored last
    /// (`changed`, the default), if the conversation has none yet (`first`), or never (`ignore`).
    pub system: Option<SystemMessages>,
    /// What to do with a list that does not go on from the newest message: store what is new as a branch (`branch`, the
    /// default), or store nothing and reply with the error `conflict` (`refuse`, which needs a queue for the reply).
    pub on_conflict: Option<OnConflict>,
}

/// Delete a message. Its id stays used: what is delivered or replayed of it later is not stored.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct DeleteMessage {
    /// The id of the message.
    pub message_id: MessageId,
}

/// A session began.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SessionOpened {}

/// A session ended. When the last open session of a conversation has ended, the conversation is
/// archived after a grace period, unless a session opens again.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct SessionClosed {
    /// Why it ended.
    pub reason: Option<String>,
    /// How satisfied the user was, from 1 (bad) to 5 (good).
    pub satisfaction: Option<Satisfaction>,
}

/// Request the messages that a model should see. `model_name` is the model.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct GetContext {
    /// The budget for the messages, in tokens; by default the model's.
    pub max_tokens: Option<Integer<1, { u32::MAX as i64 }>>,
    /// Tokens of the budget that the caller needs for its reply or tools.
    pub reserve_tokens: Option<Integer<0, { u32::MAX as i64 }>>,
}

/// Request the newest messages of a conversation; they are returned oldest first.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct GetHistory {
    /// The largest number of messages; 100 by default.
    pub limit: Option<PageSize>,
    /// Only messages before the one with this id.
    pub before: Option<MessageId>,
}

/// Rate a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct Feedback {
    /// How satisfied the user was, from 1 (bad) to 5 (good).
    pub satisfaction: Satisfaction,
}

/// Erase the conversation; with `user_id` and without `conversation_id`, all conversations of that
/// user.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Erase {}

/// A rating, from 1 (bad) to 5 (good).
pub type Satisfaction = Integer<1, 5>;

/// The number of entries in one reply.
pub type PageSize = Integer<1, 1000>;
