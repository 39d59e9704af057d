//! From bytes to an action, or to a refusal that tells the sender what to mend.
//!
//! The order of the checks is part of the contract: size, JSON, `action_type`, fields. Decoding is
//! pure: the same bytes, envelope and context give the same action on every replica. On the way of
//! a good message no JSON tree is built; values stay text until a field wants them.

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
use crate::failure::{DeadLetterReason, Refusal};
use crate::time::Timestamp;

/// The largest body, in bytes, unless a setting says otherwise: 1 MiB holds a long model answer
/// with its tool calls many times over, and 64 of them fit a worker's prefetch.
pub const DEFAULT_MAX_BODY_BYTES: usize = 1_048_576;

/// What decoding needs from outside: a clock's reading, a limit, a source of ids.
#[derive(Clone, Copy)]
pub struct DecodeContext<'a> {
    /// When the delivery was received: the last fallback of an action's time.
    pub received_at: Timestamp,
    /// The largest body, in bytes; exactly as many are fine.
    pub max_body_bytes: usize,
    /// Makes an id for an action that has none and no time either. Called at most once.
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
        let detail = format!("the body has {} bytes; at most {limit} are accepted", body.len());
        return Err(refusal(DeadLetterReason::TooLarge, detail));
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        malformed(format!("the body is not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    let fields = match json_fields::fields(text, "") {
        Some(fields) => fields,
        None => diagnose::fields(text)?,
    };
    let kind = kind(&fields)?;
    let fields = Fields::merged(fields)?;
    Ok(action::read(action::Received { kind, fields, body, envelope, context })?)
}

/// Which action a body is.
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
        let hint = ActionKind::meant_by(&name)
            .map_or_else(String::new, |kind| format!("; did you mean `{kind}`?"));
        Refusal {
            reason: DeadLetterReason::UnknownAction,
            field: Some(FIELD.to_owned()),
            detail: format!("no action is called {:?}{hint}", excerpt(&name, 80)),
        }
    })
}

fn malformed(detail: String) -> Refusal {
    refusal(DeadLetterReason::MalformedJson, detail)
}

fn refusal(reason: DeadLetterReason, detail: String) -> Refusal {
    Refusal { reason, field: None, detail }
}
