//! The error of a reply.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::{DeadLetterReason, Refusal};
use crate::json::Json;
use crate::named::named;

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

impl From<DeadLetterReason> for ErrorType {
    fn from(reason: DeadLetterReason) -> Self {
        match reason {
            DeadLetterReason::MalformedJson => Self::MalformedJson,
            DeadLetterReason::Schema | DeadLetterReason::Unreadable => Self::Schema,
            DeadLetterReason::TooLarge => Self::TooLarge,
            DeadLetterReason::UnknownAction => Self::UnknownAction,
            DeadLetterReason::Conflict => Self::Conflict,
            DeadLetterReason::Expired => Self::Unavailable,
            DeadLetterReason::Forbidden => Self::Forbidden,
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
