//! Replies to agents: to every action that has a reply address.
//!
//! On the wire: `{action_id, correlation_id, success: true, data}` or
//! `{action_id, correlation_id, success: false, error}`.

mod data;

pub use self::data::{
    ContextData, ContextMessage, EraseData, HistoryData, HistoryMessage, NoData, SaveMessageData,
    StateData, StateListData, StateListEntry, StateStatsData,
};

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::failure::{DeadLetterReason, Refusal};
use crate::ids::ActionId;
use crate::json::Json;
use crate::named::named;

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

/// Why an action failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplyError {
    /// The class of the error, for programs.
    pub error_type: ErrorType,
    /// A sentence for people.
    pub message: String,
    /// Further data for programs, such as `{"field": "role"}`.
    #[schemars(with = "Option<serde_json::Value>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Json>,
}

named! {
    /// The classes of errors in replies. The names are published: they never change.
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum ErrorType {
        /// The body is not one JSON object in UTF-8.
        MalformedJson = "malformed_json",
        /// A field is missing, of the wrong type, out of range or contradictory.
        Schema = "schema",
        /// The body is larger than the limit.
        TooLarge = "too_large",
        /// No action has this `action_type`.
        UnknownAction = "unknown_action",
        /// Another message with different content has this id.
        Conflict = "conflict",
        /// The stored version is not the expected one.
        VersionMismatch = "version_mismatch",
        /// The state's profile does not allow this transition; `details` lists the allowed ones.
        TransitionRefused = "transition_refused",
        /// The tenant has no such conversation or state.
        NotFound = "not_found",
        /// The conversation or its user was erased at the message's `timestamp` or later.
        Erased = "erased",
        /// The sender may not do this.
        Forbidden = "forbidden",
        /// A dependency is unavailable; try again later.
        Unavailable = "unavailable",
        /// An unexpected error.
        Internal = "internal",
    }
}

impl<T> Reply<T> {
    /// The reply to the action that has this reply address.
    pub fn to(address: &ReplyAddress, result: Result<T, ReplyError>) -> Self {
        let ReplyAddress { action_id, correlation_id, .. } = address;
        Self { action_id: action_id.clone(), correlation_id: correlation_id.clone(), result }
    }
}

impl From<DeadLetterReason> for ErrorType {
    fn from(reason: DeadLetterReason) -> Self {
        match reason {
            DeadLetterReason::MalformedJson => Self::MalformedJson,
            DeadLetterReason::Schema | DeadLetterReason::Unreadable => Self::Schema,
            DeadLetterReason::TooLarge => Self::TooLarge,
            DeadLetterReason::UnknownAction => Self::UnknownAction,
            DeadLetterReason::Conflict => Self::Conflict,
            DeadLetterReason::Expired => Self::Unavailable,
            DeadLetterReason::AttemptsExhausted | DeadLetterReason::DeliveryLimit => Self::Internal,
        }
    }
}

impl From<&Refusal> for ReplyError {
    /// The texts of internal errors stay with the operators: they may name servers and tables.
    fn from(refusal: &Refusal) -> Self {
        let field =
            |field: &String| Json::parse(serde_json::json!({ "field": field }).to_string()).ok();
        let error_type = refusal.reason.into();
        let message = match error_type {
            ErrorType::Internal => {
                "the action failed for an internal reason, which the operators of the service can see"
                    .to_owned()
            }
            _ => refusal.detail.clone(),
        };
        Self { error_type, message, details: refusal.field.as_ref().and_then(field) }
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
