//! The `data` of the reply to each action.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ReplyError;
use crate::action::state::StateKey;
use crate::ids::{ConversationId, MessageId};
use crate::json::Json;
use crate::message::Role;
use crate::sync::names::Aligned;
use crate::time::Timestamp;

/// The reply to `conversation.save_message`: the message is stored durably.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SaveMessageData {
    /// The conversation, from the action or derived.
    pub conversation_id: ConversationId,
    /// The message, from the action or generated.
    pub message_id: MessageId,
    /// Whether the message had been saved before.
    pub duplicate: bool,
}

/// The reply to `conversation.save_messages`: what became of each message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SaveMessagesData {
    /// The conversation, from the action or derived.
    pub conversation_id: ConversationId,
    /// The messages, in the order of the action.
    pub messages: Vec<SavedElement>,
}

/// What became of a message of `conversation.save_messages`: it is stored durably, or there is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SavedElement {
    /// Its position in the action, from 0.
    pub position: u32,
    /// Its id, from the action or derived.
    pub message_id: MessageId,
    /// Whether it had been saved before; absent if there is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<bool>,
    /// Why it is not saved; absent if it is. It is a dead letter, or is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ReplyError>,
}

/// The reply to `conversation.sync_messages`: what was new of the list is stored durably.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SyncMessagesData {
    /// The conversation, from the action or derived.
    pub conversation_id: ConversationId,
    /// The messages that this action stored, in the order of the list.
    pub new: Vec<NewMessage>,
    /// How many other messages the list has, those at its head not counted.
    pub known: u32,
    /// The id of the last message of the list, for `after`; null if the list has only `system` and `developer` messages.
    pub tail: Option<MessageId>,
    /// How the list continues what was stored.
    pub aligned: Aligned,
    /// The last message that list and conversation have in common, if what follows is a branch.
    pub branch_of: Option<MessageId>,
}

/// A message that `conversation.sync_messages` stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NewMessage {
    /// Its position in the list, from 0.
    pub position: u32,
    /// Its id.
    pub id: MessageId,
}

/// The reply to `conversation.delete_message`: no message is stored under this id, and none will be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteMessageData {
    /// The conversation, from the action or derived.
    pub conversation_id: ConversationId,
    /// The message.
    pub message_id: MessageId,
    /// Whether this action deleted it; false if another one had done so before.
    pub deleted: bool,
}

/// The reply to `conversation.session_opened`, `.session_closed` and `.feedback`: it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoData {}

/// The reply to `conversation.get_context`: the messages that a model should see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContextData {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The messages, in the conversation's order.
    pub messages: Vec<ContextMessage>,
    /// The number of tokens, with the overhead of the model's chat format.
    pub total_tokens: u64,
    /// Whether messages were left out or shortened.
    pub truncation_applied: bool,
    /// Which messages are verbatim, summarised or left out, how tokens were counted, and where the
    /// messages were read from.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub receipt: Json,
    /// Whether a dependency was unavailable, so that messages may be missing.
    pub degraded: bool,
}

/// A message for a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContextMessage {
    /// Its id.
    pub id: MessageId,
    /// The role of the message.
    pub role: Role,
    /// The content: a string, or the array of parts.
    #[schemars(with = "serde_json::Value")]
    pub content: Json,
    /// The number of tokens.
    pub tokens: u64,
    /// The tool calls that the model requested.
    #[schemars(with = "Option<serde_json::Value>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Json>,
    /// The id of the tool call whose result this message is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// The reply to `conversation.get_history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryData {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The messages, oldest first.
    pub messages: Vec<HistoryMessage>,
    /// Whether a dependency was unavailable, so that messages may be missing.
    pub degraded: bool,
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryMessage {
    /// Its id.
    pub id: MessageId,
    /// The role of the message.
    pub role: Role,
    /// The content: a string, or the array of parts.
    #[schemars(with = "serde_json::Value")]
    pub content: Json,
    /// The timestamp of the message.
    pub created_at: Timestamp,
    /// The tool calls that the model requested.
    #[schemars(with = "Option<serde_json::Value>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Json>,
    /// The id of the tool call whose result this message is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Further data of the sender.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Json>,
}

/// The reply to `conversation.erase`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EraseData {
    /// Messages with this timestamp or an earlier one are erased, even if they arrive later.
    pub erased_at: Timestamp,
    /// How many conversations were erased.
    pub conversations: u64,
    /// How many messages were erased.
    pub messages: u64,
}

/// The reply to `state.load`, `.save`, `.patch`, `.transition` and `.clear`: the state as it is
/// now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateData {
    /// The state; null if there is none.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub value: Option<Json>,
    /// Its version; 0 if there has never been a state.
    pub version: i64,
    /// When it expires; null if it does not.
    pub expires_at: Option<Timestamp>,
    /// Whether this write was stored; absent in the reply to a load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<bool>,
    /// Whether a dependency was unavailable, so that a newer state may exist.
    pub degraded: bool,
}

/// The reply to `state.list_active`: one page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateListData {
    /// The states of this page.
    pub states: Vec<StateListEntry>,
    /// The `cursor` for the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// One state in a listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateListEntry {
    /// The key of the state.
    pub key: StateKey,
    /// The fields of the state that its profile lists.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub value: Json,
    /// Its version.
    pub version: i64,
    /// When it was written last.
    pub updated_at: Timestamp,
}

/// The reply to `state.stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StateStatsData {
    /// How many states have not expired.
    pub active: u64,
    /// How many of them have each status or stage, for profiles that have one.
    pub by_status: BTreeMap<String, u64>,
}
