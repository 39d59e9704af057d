//! From bytes to an action, or to a refusal that tells the sender what to mend.
//!
//! The order of the checks is part of the contract: size, JSON, `action_type`, fields. Decoding is
//! pure: the same bytes, envelope and context give the same action on every replica. On the way of
//! a good message no JSON tree is built; values stay text until a field wants them.

mod action;
mod content;
mod fault;
mod fields;
mod identity;
mod metadata;
pub(crate) mod scan;

pub(crate) use self::fault::excerpt;

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use uuid::Uuid;

use self::fault::FieldError;
use self::fields::{Fields, members};
use self::scan::{Fault, first_fault, path_to};
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
    pub fresh_id: &'a dyn Fn() -> Uuid,
}

/// Decodes one action. The refusal's reason is `too_large`, `malformed_json`, `unknown_action` or
/// `schema`, whichever comes first.
pub fn decode(
    body: &[u8],
    envelope: &Envelope,
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
    let fault = first_fault(text);
    let members = match members(text) {
        Ok(members) => members,
        Err(error) => return Err(not_an_object(text, &error, fault)),
    };
    let kind = match (kind(&members), fault) {
        (Err(refusal), _) if refusal.reason == DeadLetterReason::UnknownAction => Err(refusal),
        (_, Some(fault)) => Err(unkeepable(text, fault)),
        (kind, None) => kind,
    }?;
    let fields = Fields::merged(members)?;
    Ok(action::read(action::Received { kind, fields, body, envelope, context })?)
}

/// Which action a body is.
fn kind(body: &[(Cow<'_, str>, &RawValue)]) -> Result<ActionKind, Refusal> {
    const FIELD: &str = "action_type";
    let value = |name: &str| {
        let said = |(key, value): &&(Cow<'_, str>, &RawValue)| key == name && value.get() != "null";
        body.iter().find(said).map(|(_, value)| *value)
    };
    let nested = || {
        let data = members(value("data")?.get()).ok()?;
        data.into_iter().find(|(key, _)| key == FIELD).map(|(_, value)| value)
    };
    let value = value(FIELD).or_else(nested).ok_or_else(|| FieldError::missing(FIELD))?;
    let name: Cow<'_, str> = serde_json::from_str(value.get())
        .map_err(|_| FieldError::wrong_type(FIELD, "a string", value))?;
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

/// The refusal of a text that is not one JSON object, as far as its parser could tell.
fn not_an_object(text: &str, error: &serde_json::Error, fault: Option<Fault>) -> Refusal {
    // The parser stops at a key that is no text. Were that all, the text would be JSON.
    let is_object =
        || text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    match fault {
        Some(fault) if is_object() => unkeepable(text, fault),
        _ if text.trim_start().is_empty() => malformed("the body is empty".to_owned()),
        _ if text.starts_with('\u{feff}') => {
            malformed("the body begins with a byte order mark; send plain UTF-8".to_owned())
        }
        _ if error.is_data() => malformed("the body is JSON, but not one JSON object".to_owned()),
        _ => malformed(format!("the body is not one JSON object: {error}")),
    }
}

fn unkeepable(text: &str, fault: Fault) -> Refusal {
    FieldError::new(&path_to(text, fault.at), &fault.kind.to_string()).into()
}

fn malformed(detail: String) -> Refusal {
    refusal(DeadLetterReason::MalformedJson, detail)
}

fn refusal(reason: DeadLetterReason, detail: String) -> Refusal {
    Refusal { reason, field: None, detail }
}
