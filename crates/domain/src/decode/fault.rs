//! What is wrong with a field, in words that its sender can act on.

use std::borrow::Cow;
use std::fmt::{self, Display};

use super::json_limits::path_to;
use crate::failure::{DeadLetterReason, Refusal};

/// The longest piece of a value that an error repeats, in characters: enough to recognise it, too
/// little to leak a conversation into a log.
const EXCERPT_CHARS: usize = 60;

/// A field that cannot be accepted, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldError {
    field: Option<String>,
    detail: String,
}

impl FieldError {
    /// `fault` completes a sentence that begins with the field's name.
    pub(super) fn new(field: &str, fault: &str) -> Self {
        let field = excerpt(field, 2 * EXCERPT_CHARS).into_owned();
        let detail = format!("`{field}` {fault}");
        Self { field: Some(field), detail }
    }

    pub(super) fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }

    /// Names the field by its path, where only its name within an object at `place` was known.
    pub(super) fn inside(self, place: &str) -> Self {
        match &self.field {
            Some(name) if !name.starts_with(place) => Self {
                detail: self.detail.replacen(name, &format!("{place}{name}"), 1),
                field: Some(format!("{place}{name}")),
            },
            _ => self,
        }
    }

    pub(super) fn repeated(field: &str) -> Self {
        Self::new(field, "is there twice; send it once")
    }

    pub(super) fn wrong_type(field: &str, expected: &str, value: &str) -> Self {
        let fault = format!("must be {expected}, but is {}", describe(value));
        Self::new(field, &fault)
    }

    /// What serde said about the value of a field.
    pub(super) fn value(field: &str, value: &str, error: &serde_json::Error) -> Self {
        let said = error.to_string();
        // serde_json appends where in the value it was, if it knows; here that becomes a part of the
        // path.
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
            Some(expected) if inner.is_empty() => Self::wrong_type(field, expected, value),
            Some(expected) => Self::new(&joined(field, &inner), &format!("must be {expected}")),
            None => Self::new(&joined(field, &inner), said),
        }
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Self { reason: DeadLetterReason::Schema, field: error.field, detail: error.detail }
    }
}

impl Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for FieldError {}

impl serde::de::Error for FieldError {
    fn custom<T: Display>(message: T) -> Self {
        Self { field: None, detail: message.to_string() }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::missing(field)
    }
}

/// A value in a few words: its type and, where it is short, itself.
pub(super) fn describe(text: &str) -> String {
    match text.as_bytes().first() {
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        Some(b'"') => format!("the string {}", excerpt(text, EXCERPT_CHARS)),
        Some(b't' | b'f') => format!("the boolean {text}"),
        Some(b'n') => "null".to_owned(),
        _ => format!("the number {}", excerpt(text, EXCERPT_CHARS)),
    }
}

/// At most so many characters of a text, with an ellipsis where something is cut.
pub(crate) fn excerpt(text: &str, chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// The offset in bytes at which serde_json stopped, or 0 where it does not say.
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

/// A Rust type in the words of JSON.
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
