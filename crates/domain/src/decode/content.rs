//! What was said: plain text, an array of parts, or nothing beside tool calls.

use serde_json::value::RawValue;

use super::fault::FieldError;
use super::fields::{Fields, members};
use crate::message::{Content, Json};
use crate::wire;

/// Reads the content of a message; `path` is where it stands in the body.
pub(super) fn read(path: &str, value: &RawValue) -> Result<Content, FieldError> {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str(text)
            .map(Content::Text)
            .map_err(|error| FieldError::value(path, value, &error)),
        Some(b'[') => parts(path, value),
        _ => Err(FieldError::wrong_type(path, "a string or an array of parts", value)),
    }
}

fn parts(path: &str, array: &RawValue) -> Result<Content, FieldError> {
    let elements: Vec<&RawValue> = serde_json::from_str(array.get())
        .map_err(|error| FieldError::value(path, array, &error))?;
    let mut lines = Vec::new();
    for (index, element) in elements.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let members = members(element.get())
            .map_err(|_| FieldError::wrong_type(&path, "an object", element))?;
        let place = format!("{path}.");
        let mut fields = Fields::new(members, &place)?;
        let part: wire::Part<'_> = fields.read().map_err(|error| error.inside(&place))?;
        if part.kind == "text" {
            lines.push(line(&format!("{place}text"), part.text)?);
        }
    }
    Ok(Content::Parts { json: Json::from(array.to_owned()), text: lines.join("\n") })
}

fn line(path: &str, text: Option<&RawValue>) -> Result<String, FieldError> {
    let text = text.ok_or_else(|| FieldError::missing(path))?;
    serde_json::from_str(text.get()).map_err(|_| FieldError::wrong_type(path, "a string", text))
}
