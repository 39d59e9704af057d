//! The content of a message: plain text or an array of parts.
//!
//! Parts are stored as they were sent. The text that a part holds is read for search and token counts; which parts hold
//! text is part of the contract.

use serde_json::value::RawValue;

use super::fault::FieldError;
use super::fields::Fields;
use crate::json::{Json, is_empty_array, members, string};
use crate::message::{Content, Role};
use crate::wire;

/// What to do with JSON that is no content.
const AS_A_STRING: &str = "send its text, such as its JSON as a string";

/// Reads the content of a message; `path` is its path in the body.
pub(super) fn read(value: &str, path: impl Fn() -> String) -> Result<Content, FieldError> {
    const CONTENT: &str = "a string or an array of parts";
    match value.as_bytes().first() {
        Some(b'[') => {
            let mut lines = Vec::new();
            parts(value, &path(), Place::Content, &mut lines)?;
            let json = Json::parse(value.to_owned());
            let json = json.map_err(|_| FieldError::wrong_type(&path(), CONTENT, value))?;
            Ok(Content::Parts { json, text: lines.join("\n") })
        }
        Some(b'{') => {
            let fault =
                format!("must be a string or an array of parts, but is an object; {AS_A_STRING}");
            Err(FieldError::new(&path(), &fault))
        }
        _ => string(value)
            .map(|text| Content::Text(text.into_owned()))
            .ok_or_else(|| FieldError::wrong_type(&path(), CONTENT, value)),
    }
}

fn has_calls(tool_calls: Option<&Json>) -> bool {
    tool_calls.is_some_and(|calls| !is_empty_array(calls.as_str()))
}

/// The content of a message that was sent without it, from the message's other fields.
pub(super) fn absent(
    role: Role,
    tool_calls: Option<&Json>,
    fields: &Fields<'_>,
) -> Result<Content, FieldError> {
    if fields.value("parts").is_some() {
        let fault = "is missing or null; send the array `parts` as `content`";
        return Err(fields.error("content", fault));
    }
    if has_calls(tool_calls) {
        return Ok(Content::Text(String::new()));
    }
    if role != Role::Assistant && tool_calls.is_none() {
        let fault = "is missing or null; add it, or add `tool_calls`";
        return Err(fields.error("content", fault));
    }
    // OpenAI's Chat Completions: a refusal, or spoken words, stand beside a null content.
    let transcript = || {
        let audio = members(fields.value("audio")?).ok()?;
        audio.into_iter().find(|(name, _)| name == "transcript").map(|(_, value)| value)
    };
    let refusal = fields.value("refusal").and_then(string).filter(|refusal| !refusal.is_empty());
    let said = refusal.or_else(|| string(transcript()?));
    Ok(Content::Text(said.unwrap_or_default().into_owned()))
}

/// Fields in which an assistant says something instead of content: of OpenAI's Chat Completions, and of servers that are
/// compatible with it.
pub const INSTEAD_OF_CONTENT: [&str; 6] =
    ["refusal", "audio", "function_call", "reasoning", "reasoning_content", "reasoning_details"];

/// What a message without content and tool calls says instead, as an object.
pub(super) fn instead(tool_calls: Option<&Json>, fields: &Fields<'_>) -> Option<Json> {
    if has_calls(tool_calls) {
        return None;
    }
    let said = INSTEAD_OF_CONTENT.into_iter().filter_map(|name| Some((name, fields.value(name)?)));
    let members: Vec<String> = said.map(|(name, value)| format!("\"{name}\":{value}")).collect();
    // Made of valid pieces, so it parses.
    if members.is_empty() { None } else { Json::parse(format!("{{{}}}", members.join(","))).ok() }
}

/// Where parts are. A result within a result is not read: reading each level again would take the square of the depth.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Content,
    ToolResult,
}

/// Adds the text of parts, one line for each.
fn parts(array: &str, path: &str, place: Place, lines: &mut Vec<String>) -> Result<(), FieldError> {
    let elements: Vec<&RawValue> =
        serde_json::from_str(array).map_err(|error| FieldError::value(path, array, &error))?;
    for (index, element) in elements.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        match string(element.get()) {
            Some(text) => lines.push(text.into_owned()),
            None => part(element.get(), &path, place, lines)?,
        }
    }
    Ok(())
}

fn part(object: &str, path: &str, place: Place, lines: &mut Vec<String>) -> Result<(), FieldError> {
    let members = members(object).map_err(|_| {
        let expected = format!("a part: an object or a string ({AS_A_STRING})");
        FieldError::wrong_type(path, &expected, object)
    })?;
    let start = format!("{path}.");
    let part: wire::PartFields<'_> =
        Fields::new(members, &start).read().map_err(|error| error.inside(&start))?;
    let at = |name: &str| format!("{start}{name}");
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
        Some("tool_result") if place == Place::Content => match part.content.map(RawValue::get) {
            None => {}
            Some(array) if array.starts_with('[') => {
                parts(array, &at("content"), Place::ToolResult, lines)?;
            }
            Some(other) => lines.push(string(other).map(Into::into).ok_or_else(|| {
                let expected = format!("a string or an array of parts ({AS_A_STRING})");
                FieldError::wrong_type(&at("content"), &expected, other)
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
