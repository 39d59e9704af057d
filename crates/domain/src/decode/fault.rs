//! Refusals of single fields: a sentence with field, fault and remedy, and the remedy as a typed
//! hint.

use std::borrow::Cow;
use std::fmt::Display;

use crate::excerpt::excerpt;
use crate::failure::{DeadLetterReason, Hint, Refusal};
use crate::ids::MAX_ID_BYTES;
use crate::json::{path_to, string, type_name};
use crate::message::Role;
use crate::time::since_1970;

/// The longest piece of a value that an error repeats, in characters: enough to recognise the
/// value, too little to copy a conversation into a log.
const EXCERPT_CHARS: usize = 60;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(super) struct FieldError {
    field: Option<String>,
    detail: String,
    hint: Option<Hint>,
}

impl FieldError {
    /// `fault` completes a sentence that begins with the field's path.
    pub(super) fn new(field: &str, fault: &str) -> Self {
        let field = excerpt(field, 2 * EXCERPT_CHARS).into_owned();
        let detail = format!("`{field}` {fault}");
        Self { field: Some(field), detail, hint: None }
    }

    pub(super) fn missing(field: &str) -> Self {
        Self { hint: Some(Hint::AddField), ..Self::new(field, "is missing") }
    }

    /// The refusal of a value that other systems write, with the value of the contract that it means or with what to
    /// send instead. `None` for every other field and value.
    pub(super) fn with_meaning(name: &str, path: &str, value: &str) -> Option<Self> {
        let (expected, meant) = match name {
            "conversation_id" | "message_id" | "action_id" | "user_id" | "agent_id"
                if value == "\"\"" =>
            {
                let fault = format!("is empty; leave it out, or send 1 to {MAX_ID_BYTES} bytes");
                return Some(Self::new(path, &fault));
            }
            "role" => ("a role", Role::meant_by(&string(value)?)?.as_str().to_owned()),
            "timestamp" => {
                let sent = string(value).unwrap_or(value.into());
                // Programs in Java write 1.795167E9.
                let number = match sent.parse::<f64>() {
                    Ok(number) if sent.contains(['e', 'E']) => number.to_string().into(),
                    _ => sent,
                };
                match since_1970(&number) {
                    Some(time) => ("an RFC 3339 date and time", time.to_string()),
                    None if value.starts_with('"') => return None,
                    None => {
                        let expected = "an RFC 3339 string such as \"2026-01-31T09:30:00.250Z\"";
                        return Some(Self::wrong_type(path, expected, value));
                    }
                }
            }
            _ => return None,
        };
        let sent = excerpt(value, EXCERPT_CHARS);
        let fault = format!("must be {expected}, but is {sent}; did you mean `{meant}`?");
        Some(Self { hint: Some(Hint::DidYouMean(meant)), ..Self::new(path, &fault) })
    }

    /// Completes the field's name to its path, where only the name within the object at `place` was
    /// known.
    pub(super) fn inside(self, place: &str) -> Self {
        match &self.field {
            // A path that was cut is complete.
            Some(name) if !name.starts_with(place) && !name.ends_with('…') => Self {
                detail: self.detail.replacen(name, &format!("{place}{name}"), 1),
                field: Some(format!("{place}{name}")),
                hint: self.hint,
            },
            _ => self,
        }
    }

    pub(super) fn wrong_type(field: &str, expected: &str, value: &str) -> Self {
        let fault = format!("must be {expected}, but is {}", describe(value));
        Self::new(field, &fault)
    }

    pub(super) fn value(field: &str, value: &str, error: &serde_json::Error) -> Self {
        let said = error.to_string();
        // serde_json appends the position within the value, if it has one. Here the position
        // becomes part of the path.
        let said = match error.line() {
            0 => said.as_str(),
            _ => said.rsplit_once(" at line ").map_or(said.as_str(), |(message, _)| message),
        };
        let inner = path_to(value, offset(value, error));
        let by_serde = ["invalid type", "invalid value", "unknown variant", "missing field"];
        let expected = said
            .rsplit_once(", expected ")
            .filter(|(start, _)| by_serde.iter().any(|known| start.starts_with(known)))
            .map(|(_, expected)| plain_type(expected));
        match expected {
            None if said == "number out of range" => {
                let fault =
                    "is beyond the range of a double; send a number from -1.7e308 to 1.7e308";
                Self::new(&joined(field, &inner), fault)
            }
            Some(expected) if inner.is_empty() => Self::wrong_type(field, expected, value),
            Some(expected) => Self::new(&joined(field, &inner), &format!("must be {expected}")),
            None => Self::new(&joined(field, &inner), said),
        }
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        let FieldError { field, detail, hint } = error;
        Self { reason: DeadLetterReason::Schema, field, detail, hint }
    }
}

impl serde::de::Error for FieldError {
    fn custom<T: Display>(message: T) -> Self {
        Self { field: None, detail: message.to_string(), hint: None }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::missing(field)
    }
}

pub(super) fn malformed(detail: String) -> Refusal {
    Refusal::new(DeadLetterReason::MalformedJson, detail)
}

/// The type of a value and, where it is a scalar, the beginning of the value.
fn describe(text: &str) -> String {
    let name = type_name(text);
    match name.strip_prefix("a ") {
        Some(scalar) => format!("the {scalar} {}", excerpt(text, EXCERPT_CHARS)),
        None => name.to_owned(),
    }
}

/// The offset in bytes at which serde_json stopped, or 0 where its error has none.
fn offset(text: &str, error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let offset = lines.map(str::len).sum::<usize>() + error.column();
    offset.min(text.len())
}

fn joined<'a>(field: &'a str, inner: &str) -> Cow<'a, str> {
    match inner.as_bytes().first() {
        None => field.into(),
        Some(b'[') => format!("{field}{inner}").into(),
        Some(_) => format!("{field}.{inner}").into(),
    }
}

/// The JSON name of a type that serde named.
fn plain_type(expected: &str) -> &str {
    match expected {
        "str" | "string" => "a string",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "an object",
        other => other,
    }
}
