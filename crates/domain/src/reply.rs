//! Replies to agents: to every action that has a reply address.
//!
//! On the wire: `{action_id, correlation_id, success: true, data}` or
//! `{action_id, correlation_id, success: false, error}`.

mod data;
mod error;

pub use self::data::{
    ContextData, ContextMessage, DeleteMessageData, EraseData, HistoryData, HistoryMessage,
    NewMessage, NoData, SaveMessageData, SaveMessagesData, SavedElement, StateData, StateListData,
    StateListEntry, StateStatsData, SyncMessagesData,
};

pub use self::error::{ErrorType, ReplyError};

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::ids::ActionId;

/// The reply to an action; `T` is the data of a success.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply<T> {
    /// The `action_id` of the action.
    pub action_id: Option<ActionId>,
    /// The `correlation_id` of the action.
    pub correlation_id: Option<String>,
    /// The data, or the error.
    pub result: Result<T, ReplyError>,
}

/// Where the reply to an action is sent, and what it repeats of the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyAddress {
    /// The queue: the AMQP `reply_to`, else the body's `callback_queue_name`.
    pub queue: String,
    /// The AMQP `correlation_id`, else the body's.
    pub correlation_id: Option<String>,
    /// The body's `action_id`, else the AMQP `message_id`.
    pub action_id: Option<ActionId>,
}

impl<T> Reply<T> {
    /// The reply to the action that has this reply address.
    pub fn to(address: &ReplyAddress, result: Result<T, ReplyError>) -> Self {
        let ReplyAddress { action_id, correlation_id, .. } = address;
        Self { action_id: action_id.clone(), correlation_id: correlation_id.clone(), result }
    }
}

impl<T: Serialize> Serialize for Reply<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Reply", 4)?;
        fields.serialize_field("action_id", &self.action_id)?;
        fields.serialize_field("correlation_id", &self.correlation_id)?;
        fields.serialize_field("success", &self.result.is_ok())?;
        match &self.result {
            Ok(data) => fields.serialize_field("data", data)?,
            Err(error) => fields.serialize_field("error", error)?,
        }
        fields.end()
    }
}

impl<T: JsonSchema> JsonSchema for Reply<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Reply_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let data = generator.subschema_for::<T>();
        let error = generator.subschema_for::<ReplyError>();
        let action_id = generator.subschema_for::<Option<ActionId>>();
        json_schema!({
            "type": "object",
            "properties": {
                "action_id": action_id,
                "correlation_id": {
                    "description": "The `correlation_id` of the action; null if it had none.",
                    "type": ["string", "null"],
                },
                "success": {
                    "description": "Whether there is `data`; otherwise there is `error`.",
                    "type": "boolean",
                },
                "data": data,
                "error": error,
            },
            "required": ["action_id", "correlation_id", "success"],
            "oneOf": [
                { "properties": { "success": { "const": true } }, "required": ["data"] },
                { "properties": { "success": { "const": false } }, "required": ["error"] },
            ],
        })
    }
}
