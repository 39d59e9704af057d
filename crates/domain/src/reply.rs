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
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::failure::{DeadLetterReason, Refusal};
use crate::ids::ActionId;
use crate::json::Json;

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

/// The classes of errors in replies. The names are published: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// The body is not one JSON object in UTF-8.
    MalformedJson,
    /// A field is missing, of the wrong type, out of range or contradictory.
    Schema,
    /// The body is larger than the limit.
    TooLarge,
    /// No action has this `action_type`.
    UnknownAction,
    /// Another message with different content has this id.
    Conflict,
    /// The stored version is not the expected one.
    VersionMismatch,
    /// The state's profile does not allow this transition; `details` lists the allowed ones.
    TransitionRefused,
    /// The tenant has no such conversation or state.
    NotFound,
    /// The conversation or its user was erased at the message's `timestamp` or later.
    Erased,
    /// The sender may not do this.
    Forbidden,
    /// A dependency is unavailable; try again later.
    Unavailable,
    /// An unexpected error.
    Internal,
}

impl ErrorType {
    /// Every error type, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::MalformedJson,
        Self::Schema,
        Self::TooLarge,
        Self::UnknownAction,
        Self::Conflict,
        Self::VersionMismatch,
        Self::TransitionRefused,
        Self::NotFound,
        Self::Erased,
        Self::Forbidden,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The name in replies.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::Schema => "schema",
            Self::TooLarge => "too_large",
            Self::UnknownAction => "unknown_action",
            Self::Conflict => "conflict",
            Self::VersionMismatch => "version_mismatch",
            Self::TransitionRefused => "transition_refused",
            Self::NotFound => "not_found",
            Self::Erased => "erased",
            Self::Forbidden => "forbidden",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
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
            DeadLetterReason::Schema => Self::Schema,
            DeadLetterReason::TooLarge => Self::TooLarge,
            DeadLetterReason::UnknownAction => Self::UnknownAction,
            DeadLetterReason::Conflict => Self::Conflict,
            DeadLetterReason::Expired => Self::Unavailable,
            DeadLetterReason::AttemptsExhausted | DeadLetterReason::DeliveryLimit => Self::Internal,
        }
    }
}

impl From<&Refusal> for ReplyError {
    fn from(refusal: &Refusal) -> Self {
        let field =
            |field: &String| Json::parse(serde_json::json!({ "field": field }).to_string()).ok();
        Self {
            error_type: refusal.reason.into(),
            message: refusal.detail.clone(),
            details: refusal.field.as_ref().and_then(field),
        }
    }
}

/// The wire form; `D` and `E` are references when writing.
#[derive(Serialize, Deserialize)]
struct Wire<A, C, D, E> {
    action_id: Option<A>,
    correlation_id: Option<C>,
    success: bool,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    data: Option<D>,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    error: Option<E>,
}

impl<T: Serialize> Serialize for Reply<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire {
            action_id: self.action_id.as_ref(),
            correlation_id: self.correlation_id.as_ref(),
            success: self.result.is_ok(),
            data: self.result.as_ref().ok(),
            error: self.result.as_ref().err(),
        }
        .serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Reply<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::<ActionId, String, T, ReplyError>::deserialize(deserializer)?;
        let result = match (wire.success, wire.data, wire.error) {
            (true, Some(data), None) => Ok(data),
            (false, None, Some(error)) => Err(error),
            _ => {
                return Err(serde::de::Error::custom(
                    "a reply must have `data` and no `error` if `success` is true, else `error` and no `data`",
                ));
            }
        };
        Ok(Self { action_id: wire.action_id, correlation_id: wire.correlation_id, result })
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
