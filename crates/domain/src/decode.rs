//! Decodes bytes to an action, or to a refusal that names the field, its fault and the remedy.
//!
//! The order of the checks is part of the contract: size, JSON, `action_type`, fields. Decoding is
//! pure: the same bytes, envelope and context give the same action on every replica. No JSON tree
//! is built for a valid message; values stay text until a field is read.

mod action;
mod content;
mod diagnose;
mod fault;
mod fields;
mod identity;
mod json_fields;
pub(crate) mod json_limits;
mod metadata;
mod value;

pub(crate) use self::fault::excerpt;

use uuid::Uuid;

use self::fault::FieldError;
use self::fields::{Field, Fields};
use crate::action::{Action, ActionKind};
use crate::envelope::Envelope;
use crate::failure::{DeadLetterReason, Hint, Refusal};
use crate::time::Timestamp;

/// The default limit for the size of a body, in bytes. 1 MiB is many times the size of a long model
/// answer with its tool calls, and 64 such bodies fit a worker's prefetch.
pub const DEFAULT_MAX_BODY_BYTES: usize = 1_048_576;

/// The inputs of decoding beside the message: the time of receipt, the size limit, a source of ids.
#[derive(Clone, Copy)]
pub struct DecodeContext<'a> {
    /// When the delivery was received: the last fallback of an action's time.
    pub received_at: Timestamp,
    /// The largest accepted body, in bytes.
    pub max_body_bytes: usize,
    /// Makes an id for an action that has neither an id nor a time. Called at most once.
    pub new_id: &'a dyn Fn() -> Uuid,
}

/// Decodes one action. The refusal's reason is `too_large`, `malformed_json`, `unknown_action` or
/// `schema`, whichever comes first.
pub fn decode(
    body: &[u8],
    envelope: &Envelope<'_>,
    context: &DecodeContext<'_>,
) -> Result<Action, Refusal> {
    let limit = context.max_body_bytes;
    if body.len() > limit {
        let detail = format!(
            "the body has {} bytes, but at most {limit} are accepted; send large content by reference",
            body.len()
        );
        return Err(Refusal::new(DeadLetterReason::TooLarge, detail));
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        malformed(format!("the body must be UTF-8, but byte {} is not", error.valid_up_to()))
    })?;
    let fields = match json_fields::fields(text, "") {
        Some(fields) => fields,
        None => diagnose::fields(text)?,
    };
    let kind = kind(&fields)?;
    let fields = Fields::merged(fields)?;
    Ok(action::read(action::Received { kind, fields, body, envelope, context })?)
}

/// The action that a body's `action_type` names.
fn kind(body: &[Field<'_>]) -> Result<ActionKind, Refusal> {
    const FIELD: &str = "action_type";
    let value = |name: &str| {
        body.iter().find(|field| field.name == name && field.value != "null").map(|it| it.value)
    };
    let nested = || {
        let data = value("data")?;
        let data =
            json_fields::fields(data, "").or_else(|| diagnose::strict_fields(data, "").ok())?;
        data.into_iter().find(|field| field.name == FIELD).map(|field| field.value)
    };
    let value = value(FIELD).or_else(nested).ok_or_else(|| FieldError::missing(FIELD))?;
    let name = json_fields::string(value)
        .ok_or_else(|| FieldError::wrong_type(FIELD, "a string", value))?;
    ActionKind::parse(&name).ok_or_else(|| {
        let sent = excerpt(&name, 80);
        let (remedy, hint) = match ActionKind::meant_by(&name) {
            Some(kind) => (
                format!("did you mean `{kind}`?"),
                Some(Hint::DidYouMean(kind.as_str().to_owned())),
            ),
            None => ("see the wire contract for all actions".to_owned(), None),
        };
        Refusal {
            reason: DeadLetterReason::UnknownAction,
            field: Some(FIELD.to_owned()),
            detail: format!("`{FIELD}` must be a known action, but is {sent:?}; {remedy}"),
            hint,
        }
    })
}

fn malformed(detail: String) -> Refusal {
    Refusal::new(DeadLetterReason::MalformedJson, detail)
}
