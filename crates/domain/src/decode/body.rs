//! Checks a whole body, in the order of the contract:
//!
//! 1. A body that is larger than the limit: `too_large`.
//! 2. Text that is not one JSON object: `malformed_json`.
//! 3. An unknown `action_type`: `unknown_action`.
//! 4. Valid JSON that cannot be [stored](first_fault): `schema`.

use serde::de::IgnoredAny;

use super::body_format::BodyFormat;
use super::fault::{FieldError, malformed};
use super::sent_fields::SentFields;
use crate::action::ActionKind;
use crate::excerpt::excerpt;
use crate::failure::{DeadLetterReason, Hint, Refusal};
use crate::json::{
    Fault, FaultKind, Member, first_fault, is_storable, members, not_a_number, path_to,
    replace_unstorable, string, type_name,
};

/// Checks the size of a body against the limit, in bytes.
///
/// # Errors
/// It is `too_large`.
pub fn check_size(body: &[u8], limit: usize) -> Result<(), Refusal> {
    if body.len() <= limit {
        return Ok(());
    }
    let sent = SentFields::of(body);
    let remedy = if sent.text("action_type").as_deref() == Some(ActionKind::SyncMessages.as_str()) {
        "send only the messages behind a stored one, with its id as `after`: the reply to a list names its last message as \
         `tail`"
    } else {
        "send large content by reference"
    };
    let detail =
        format!("the body has {} bytes, but at most {limit} are accepted; {remedy}", body.len());
    Err(Refusal::new(DeadLetterReason::TooLarge, detail))
}

/// The action and the members of a body. The AMQP `content_encoding` is used only to say what a body is that cannot
/// be read.
pub(super) fn read<'a>(
    body: &'a [u8],
    limit: usize,
    content_encoding: Option<&str>,
) -> Result<(ActionKind, Vec<Member<'a>>), Refusal> {
    check_size(body, limit)?;
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        recognised(body, content_encoding).unwrap_or_else(|| {
            malformed(format!("the body must be UTF-8, but byte {at} is not; encode it in UTF-8"))
        })
    })?;
    let members = members(text);
    let fault = match &members {
        Ok(members) if is_storable(text, members) => None,
        _ => first_fault(text),
    };
    let members = members.map_err(|error| not_an_object(text, &error, fault, content_encoding))?;
    match (kind(&members), fault) {
        (Err(refusal), _) if refusal.reason == DeadLetterReason::UnknownAction => Err(refusal),
        (_, Some(fault)) => Err(not_storable(text, fault)),
        (kind, None) => Ok((kind?, members)),
    }
}

/// The refusal of a text that serde_json could not read as one JSON object.
fn not_an_object(
    text: &str,
    error: &serde_json::Error,
    fault: Option<Fault>,
    content_encoding: Option<&str>,
) -> Refusal {
    // serde_json also fails at a key with an unpaired surrogate, although the text is valid JSON.
    let is_object =
        || text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    if let Some(fault) = fault.filter(|_| is_object()) {
        return not_storable(text, fault);
    }
    if let Some((at, word)) =
        not_a_number(text).filter(|_| members(&replace_unstorable(text, "")).is_ok())
    {
        let field = excerpt(&path_to(text, at), 80).into_owned();
        let detail = format!("`{field}` is {word}, which JSON does not have; send null");
        let (field, hint) = (Some(field), Some(Hint::ReplaceUnstorable));
        return Refusal { field, hint, ..malformed(detail) };
    }
    if text.trim_start().is_empty() {
        return malformed("the body must be one JSON object, but is empty".to_owned());
    }
    recognised(text.as_bytes(), content_encoding).unwrap_or_else(|| {
        malformed(if error.is_data() {
            format!("the body must be one JSON object, but is {}", type_name(text))
        } else {
            format!("the body must be one JSON object, but is not valid JSON: {error}")
        })
    })
}

/// The refusal of a body that is something else than JSON in UTF-8, if that is recognised.
fn recognised(body: &[u8], content_encoding: Option<&str>) -> Option<Refusal> {
    let format = BodyFormat::of(body, content_encoding)?;
    Some(Refusal { hint: format.hint(), ..malformed(format.to_string()) })
}

fn not_storable(text: &str, fault: Fault) -> Refusal {
    let error = FieldError::new(&path_to(text, fault.at), &fault.kind.to_string());
    let hint = match fault.kind {
        FaultKind::Nul | FaultKind::Surrogate => Some(Hint::ReplaceUnstorable),
        FaultKind::Repeated | FaultKind::Depth => None,
    };
    Refusal { hint, ..error.into() }
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
