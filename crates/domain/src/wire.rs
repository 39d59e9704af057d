//! What bodies look like on the wire, version 1 of the contract.
//!
//! Bodies are decoded into these very types and the JSON Schemas are generated from them, so the
//! published contract cannot say anything else than the code does. Docstrings here are read by
//! agent developers: they become the descriptions in the schemas.

mod value;

use std::borrow::Cow;

pub use self::value::{Amount, Integer, JsonArray, JsonObject};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ids::{ActionId, AgentId, ConversationId, MessageId, SessionId, TenantId, UserId};
use crate::message::Role;
use crate::time::Timestamp;

/// The fields that every action may carry.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Common<'a> {
    /// Which action this is; the routing key with which it is first published.
    #[serde(borrow)]
    pub action_type: Cow<'a, str>,
    /// Who owns the data.
    pub tenant_id: TenantId,
    /// The connection: a WebSocket, a phone number, a thread.
    pub session_id: SessionId,
    /// The idempotency key of the action. Recommended; else the AMQP `message_id` property is it.
    pub action_id: Option<ActionId>,
    /// The conversation. By default it is derived from tenant and session. Whoever names
    /// conversations names them in every action.
    pub conversation_id: Option<ConversationId>,
    /// When it happened. Recommended; else the AMQP `timestamp` property, then the time of receipt.
    pub timestamp: Option<Timestamp>,
    /// The human on the other side. In `conversation.erase`: erase all of this user's
    /// conversations.
    pub user_id: Option<UserId>,
    /// The agent.
    pub agent_id: Option<AgentId>,
    /// The model.
    pub model_name: Option<String>,
    /// What the tenant pays for; else `metadata.tenant_tier` is it.
    pub tenant_tier: Option<String>,
    /// The sender's task.
    pub task_id: Option<String>,
    /// The sender's name for itself.
    pub origin_service: Option<String>,
    /// What the reply must carry. The AMQP property `correlation_id` wins.
    pub correlation_id: Option<String>,
    /// The queue that wants the reply. The AMQP property `reply_to` wins.
    pub callback_queue_name: Option<String>,
    /// Whatever else belongs to it; kept as it is. Fields that the contract does not know are
    /// added to it, and in `conversation.save_message` also `task_id` and `origin_service`; one
    /// whose name is there already is added as `extra.` and its name.
    pub metadata: Option<JsonObject>,
}

/// Keep a message of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SaveMessage<'a> {
    /// Who speaks.
    pub role: Role,
    /// What was said: a string or an array of parts. May be null or absent beside `tool_calls`.
    #[serde(borrow)]
    #[schemars(with = "Option<Content<'_>>")]
    pub content: Option<&'a RawValue>,
    /// The identity of the message within its conversation. Recommended; else `action_id`, then
    /// the AMQP `message_id` property is it.
    pub message_id: Option<MessageId>,
    /// The sender's own count of tokens.
    pub tokens_estimate: Option<Integer<0, { i64::MAX }>>,
    /// How long the agent worked on it, in milliseconds.
    pub processing_time_ms: Option<Amount>,
    /// The tool call that this message answers.
    pub tool_call_id: Option<String>,
    /// The tool calls that the model wants made.
    pub tool_calls: Option<JsonArray>,
}

/// What was said.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Content<'a> {
    /// Plain text; may be empty.
    Text(String),
    /// Text, images and whatever else a model takes.
    Parts(Vec<Part<'a>>),
}

/// A part of a content; fields beyond these are kept as they are.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Part<'a> {
    /// What kind of part it is, such as `text` or `image_url`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A string in a part of type `text`.
    #[serde(borrow)]
    #[schemars(with = "Option<serde_json::Value>")]
    pub text: Option<&'a RawValue>,
}

/// A connection began.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SessionOpened {}

/// A connection ended. When the last open one of a conversation has, the conversation is archived
/// after a grace period.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SessionClosed {
    /// Why it ended, in the sender's words.
    pub reason: Option<String>,
    /// How content the human was.
    pub satisfaction: Option<Satisfaction>,
}

/// Ask which messages a model should see; the model is named by `model_name`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct GetContext {
    /// The budget for the history, in tokens; by default the model's.
    pub max_tokens: Option<Integer<1, { u32::MAX as i64 }>>,
    /// Tokens that the caller keeps for its reply or tools.
    pub reserve_tokens: Option<Integer<0, { u32::MAX as i64 }>>,
}

/// Ask for what was said, oldest first.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct GetHistory {
    /// At most so many messages, the newest ones; 100 by default.
    pub limit: Option<PageSize>,
    /// Only messages that stand before the one with this id.
    pub before: Option<MessageId>,
}

/// Tell how content the human was.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Feedback {
    /// 1 is bad, 5 is good.
    pub satisfaction: Satisfaction,
}

/// Forget the conversation; or, where `user_id` is given and `conversation_id` is not, all
/// conversations of that user.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Erase {}

/// How content the human was, from 1 (bad) to 5 (good).
pub type Satisfaction = Integer<1, 5>;

/// How many entries one answer may hold.
pub type PageSize = Integer<1, 1000>;

/// Entries in an answer where the question does not say how many.
pub const DEFAULT_PAGE_SIZE: u32 = 100;
