//! The content of a message: plain text or an array of parts.

use serde_json::value::RawValue;

use super::fault::FieldError;
use super::fields::Fields;
use crate::json::{Json, members, string};
use crate::message::Content;
use crate::wire;

/// Reads the content of a message; `path` is its path in the body.
pub(super) fn read(value: &RawValue, path: impl Fn() -> String) -> Result<Content, FieldError> {
    match value.get().as_bytes().first() {
        Some(b'[') => parts(value, &path()),
        _ => string(value.get()).map(|text| Content::Text(text.into_owned())).ok_or_else(|| {
            FieldError::wrong_type(&path(), "a string or an array of parts", value.get())
        }),
    }
}

fn parts(array: &RawValue, path: &str) -> Result<Content, FieldError> {
    let elements: Vec<&RawValue> = serde_json::from_str(array.get())
        .map_err(|error| FieldError::value(path, array.get(), &error))?;
    let mut lines = Vec::new();
    for (index, element) in elements.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let place = format!("{path}.");
        let members = members(element.get())
            .map_err(|_| FieldError::wrong_type(&path, "an object", element.get()))?;
        let part: wire::Part<'_> =
            Fields::new(members, &place).read().map_err(|error| error.inside(&place))?;
        if part.kind == "text" {
            lines.push(line(&format!("{place}text"), part.text)?);
        }
    }
    Ok(Content::Parts { json: Json::from(array.to_owned()), text: lines.join("\n") })
}

fn line(path: &str, text: Option<&RawValue>) -> Result<String, FieldError> {
    let text = text.ok_or_else(|| FieldError::missing(path))?.get();
    let line = string(text).ok_or_else(|| FieldError::wrong_type(path, "a string", text))?;
    Ok(line.into_owned())
}
