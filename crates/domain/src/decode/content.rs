//! The content of a message: plain text or an array of parts.
//!
//! Parts are stored as they were sent. The text that a part holds is read for search and token counts; which parts hold
//! text is part of the contract.

use serde_json::value::RawValue;

use super::fault::FieldError;
use super::fields::Fields;
use crate::json::{Json, members, string};
use crate::message::{Content, Role};
use crate::wire;

/// Reads the content of a message; `path` is its path in the body.
pub(super) fn read(value: &RawValue, path: impl Fn() -> String) -> Result<Content, FieldError> {
    match value.get().as_bytes().first() {
        Some(b'[') => {
            let mut lines = Vec::new();
            parts(value.get(), &path(), &mut lines)?;
            Ok(Content::Parts { json: Json::from(value.to_owned()), text: lines.join("\n") })
        }
        Some(b'{') => {
            let fault = "must be a string or an array of parts, but is an object; send its text, such as its JSON \
                         as a string";
            Err(FieldError::new(&path(), fault))
        }
        _ => string(value.get()).map(|text| Content::Text(text.into_owned())).ok_or_else(|| {
            FieldError::wrong_type(&path(), "a string or an array of parts", value.get())
        }),
    }
}

/// The content of a message that was sent without it, from the message's other fields.
pub(super) fn absent(
    role: Role,
    has_tool_calls: bool,
    fields: &Fields<'_>,
) -> Result<Content, FieldError> {
    if has_tool_calls {
        return Ok(Content::Text(String::new()));
    }
    if fields.value("parts").is_some() {
        let fault = "is missing or null; send the array `parts` as `content`";
        return Err(fields.error("content", fault));
    }
    if role != Role::Assistant {
        let fault = "is missing or null; add it, or add `tool_calls`";
        return Err(fields.error("content", fault));
    }
    // OpenAI's Chat Completions: a refusal, or spoken words, stand beside a null content.
    let transcript = || {
        let audio = members(fields.value("audio")?).ok()?;
        audio.into_iter().find(|(name, _)| name == "transcript").map(|(_, value)| value)
    };
    let said = fields.value("refusal").and_then(string).or_else(|| string(transcript()?));
    Ok(Content::Text(said.unwrap_or_default().into_owned()))
}

/// Adds the text of parts, one line for each.
fn parts(array: &str, path: &str, lines: &mut Vec<String>) -> Result<(), FieldError> {
    let elements: Vec<&RawValue> =
        serde_json::from_str(array).map_err(|error| FieldError::value(path, array, &error))?;
    for (index, element) in elements.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        match string(element.get()) {
            Some(text) => lines.push(text.into_owned()),
            None => part(element.get(), &path, lines)?,
        }
    }
    Ok(())
}

fn part(object: &str, path: &str, lines: &mut Vec<String>) -> Result<(), FieldError> {
    let place = format!("{path}.");
    let members = members(object)
        .map_err(|_| FieldError::wrong_type(path, "an object or a string", object))?;
    let part: wire::PartFields<'_> =
        Fields::new(members, &place).read().map_err(|error| error.inside(&place))?;
    let at = |name: &str| format!("{place}{name}");
    match part.kind.as_deref() {
        Some("text" | "output_text" | "input_text") => {
            let text = part.text.ok_or_else(|| FieldError::missing(&at("text")))?;
            lines.push(text_or_value(text.get(), &at("text"))?);
        }
        None => {
            if let Some(text) = part.text {
                lines.push(text_or_value(text.get(), &at("text"))?);
            }
        }
        Some("refusal") => lines.extend(text(part.refusal, &at("refusal"))?),
        Some("thinking") => lines.extend(text(part.thinking, &at("thinking"))?),
        Some("tool_result") => match part.content.map(RawValue::get) {
            None => {}
            Some(array) if array.starts_with('[') => parts(array, &at("content"), lines)?,
            Some(other) => lines.push(string(other).map(Into::into).ok_or_else(|| {
                FieldError::wrong_type(&at("content"), "a string or an array of parts", other)
            })?),
        },
        Some(_) => {}
    }
    Ok(())
}

fn text(value: Option<&RawValue>, path: &str) -> Result<Option<String>, FieldError> {
    let Some(value) = value.map(RawValue::get) else { return Ok(None) };
    let text = string(value).ok_or_else(|| FieldError::wrong_type(path, "a string", value))?;
    Ok(Some(text.into_owned()))
}

/// A string, or the `value` of an object, in which OpenAI's Assistants write it.
fn text_or_value(json: &str, path: &str) -> Result<String, FieldError> {
    if let Some(text) = string(json) {
        return Ok(text.into_owned());
    }
    let members = members(json)
        .map_err(|_| FieldError::wrong_type(path, "a string or an object with `value`", json))?;
    let path = format!("{path}.value");
    let value = members.into_iter().find(|(name, value)| name == "value" && *value != "null");
    let (_, value) = value.ok_or_else(|| FieldError::missing(&path))?;
    let text = string(value).ok_or_else(|| FieldError::wrong_type(&path, "a string", value))?;
    Ok(text.into_owned())
}
