//! Checks a whole body, in the order of the contract:
//!
//! 1. A body that is larger than the limit: `too_large`.
//! 2. Text that is not one JSON object: `malformed_json`.
//! 3. An unknown `action_type`: `unknown_action`.
//! 4. Valid JSON that cannot be [stored](first_fault): `schema`.

use serde::de::IgnoredAny;

use super::fault::{FieldError, excerpt, malformed};
use crate::action::ActionKind;
use crate::failure::{DeadLetterReason, Hint, Refusal};
use crate::json::{Fault, Member, first_fault, is_storable, members, path_to, string, type_name};

/// Checks the size of a body against the limit, in bytes.
///
/// # Errors
/// It is `too_large`.
pub fn check_size(body: &[u8], limit: usize) -> Result<(), Refusal> {
    if body.len() <= limit {
        return Ok(());
    }
    let detail = format!(
        "the body has {} bytes, but at most {limit} are accepted; send large content by reference",
        body.len()
    );
    Err(Refusal::new(DeadLetterReason::TooLarge, detail))
}

pub(super) fn read(body: &[u8], limit: usize) -> Result<(ActionKind, Vec<Member<'_>>), Refusal> {
    check_size(body, limit)?;
    let text = std::str::from_utf8(body).map_err(|error| {
        malformed(format!("the body must be UTF-8, but byte {} is not", error.valid_up_to()))
    })?;
    let members = members(text);
    let fault = match &members {
        Ok(members) if is_storable(text, members) => None,
        _ => first_fault(text),
    };
    let members = members.map_err(|error| not_an_object(text, &error, fault))?;
    match (kind(&members), fault) {
        (Err(refusal), _) if refusal.reason == DeadLetterReason::UnknownAction => Err(refusal),
        (_, Some(fault)) => Err(not_storable(text, fault)),
        (kind, None) => Ok((kind?, members)),
    }
}

/// The refusal of a text that serde_json could not read as one JSON object.
fn not_an_object(text: &str, error: &serde_json::Error, fault: Option<Fault>) -> Refusal {
    // serde_json also fails at a key with an unpaired surrogate, although the text is valid JSON.
    let is_object =
        || text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    match fault {
        Some(fault) if is_object() => not_storable(text, fault),
        _ if text.trim_start().is_empty() => {
            malformed("the body must be one JSON object, but is empty".to_owned())
        }
        _ if text.starts_with('\u{feff}') => {
            malformed("the body begins with a byte order mark; send UTF-8 without it".to_owned())
        }
        _ if error.is_data() => {
            malformed(format!("the body must be one JSON object, but is {}", type_name(text)))
        }
        _ => malformed(format!("the body must be one JSON object, but is not valid JSON: {error}")),
    }
}

fn not_storable(text: &str, fault: Fault) -> Refusal {
    FieldError::new(&path_to(text, fault.at), &fault.kind.to_string()).into()
}

/// The action that the `action_type` names, at the top level or under `data`.
fn kind(body: &[Member<'_>]) -> Result<ActionKind, Refusal> {
    const FIELD: &str = "action_type";
    let value = |wanted: &str| {
        body.iter().find(|(name, value)| name == wanted && *value != "null").map(|it| it.1)
    };
    let nested = || {
        let data = members(value("data")?).ok()?;
        data.into_iter().find(|(name, _)| name == FIELD).map(|it| it.1)
    };
    let value = value(FIELD).or_else(nested).ok_or_else(|| FieldError::missing(FIELD))?;
    let name = string(value).ok_or_else(|| FieldError::wrong_type(FIELD, "a string", value))?;
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
