//! What each action promises to answer: the `data` of its reply.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::state::StateKey;
use crate::ids::{ConversationId, MessageId};
use crate::message::{Json, Role};
use crate::time::Timestamp;

/// The answer to `conversation.save_message`: the message is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SaveMessageData {
    /// The conversation, given or derived.
    pub conversation_id: ConversationId,
    /// The message, given or made.
    pub message_id: MessageId,
    /// Whether it had been saved before.
    pub duplicate: bool,
}

/// The answer to `conversation.get_context`: what a model should see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContextData {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The messages, in the conversation's order.
    pub messages: Vec<ContextMessage>,
    /// What they cost, with the overhead of the model's chat format.
    pub total_tokens: u64,
    /// Whether anything was left out or cut.
    pub truncation_applied: bool,
    /// What is verbatim, summarised or left out, how it was counted, and where it came from.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub receipt: Json,
    /// Whether a store was away, so that more may exist than is told.
    pub degraded: bool,
}

/// A message as a model sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContextMessage {
    /// Its id.
    pub id: MessageId,
    /// Who speaks.
    pub role: Role,
    /// What was said: a string, or the array of parts.
    #[schemars(with = "serde_json::Value")]
    pub content: Json,
    /// What it costs.
    pub tokens: u64,
    /// The calls that the model wanted made.
    #[schemars(with = "Option<serde_json::Value>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Json>,
    /// The call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// The answer to `conversation.get_history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryData {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The messages, oldest first.
    pub messages: Vec<HistoryMessage>,
    /// Whether a store was away, so that more may exist than is told.
    pub degraded: bool,
}

/// A message as it was said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryMessage {
    /// Its id.
    pub id: MessageId,
    /// Who speaks.
    pub role: Role,
    /// What was said: a string, or the array of parts.
    #[schemars(with = "serde_json::Value")]
    pub content: Json,
    /// When it happened.
    pub created_at: Timestamp,
    /// The calls that the model wanted made.
    #[schemars(with = "Option<serde_json::Value>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Json>,
    /// The call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Whatever else came with it.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Json>,
}

/// The answer to `conversation.erase`: what was erased.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EraseData {
    /// Messages sent before this moment are gone and stay away.
    pub erased_at: Timestamp,
    /// How many conversations went.
    pub conversations: u64,
    /// How many messages went.
    pub messages: u64,
}

/// The answer to `state.load`, `.save`, `.patch`, `.transition` and `.clear`: the state as it is
/// now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateData {
    /// The state; null where there is none.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub value: Option<Json>,
    /// Its version; 0 where there has never been one.
    pub version: i64,
    /// When it expires, where it does.
    pub expires_at: Option<Timestamp>,
    /// Whether a write was stored; absent in the answer to a load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<bool>,
    /// Whether a store was away, so that a newer state may exist.
    pub degraded: bool,
}

/// The answer to `state.list_active`: one page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateListData {
    /// The states of this page.
    pub states: Vec<StateListEntry>,
    /// What to send as `cursor` for the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// One state in a listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateListEntry {
    /// Whose state.
    pub key: StateKey,
    /// The fields that the profile lists.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub value: Json,
    /// Its version.
    pub version: i64,
    /// When it was written last.
    pub updated_at: Timestamp,
}

/// The answer to `state.stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateStatsData {
    /// How many states have not expired.
    pub active: u64,
    /// How many of them stand in each status or stage, for profiles that have one.
    pub by_status: BTreeMap<String, u64>,
}
