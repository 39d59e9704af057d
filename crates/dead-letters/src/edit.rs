//! Setting a field of a JSON body without changing the rest.
//!
//! Parsing a body and serialising it again would sort its fields and round its numbers. So the value is
//! replaced in place, and the rest stays byte for byte.

use std::borrow::Cow;

use domain::json::{Member, members};
use serde_json::value::RawValue;

/// Why a field cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditFault {
    /// The body is not a JSON object, so it has no fields.
    #[error("the body is not a JSON object; replace the whole body")]
    NotAnObject,
    /// What the path leads to does not exist.
    #[error("there is no `{0}` in the body")]
    Missing(String),
    /// The field occurs more than once.
    #[error("`{0}` occurs twice in the body; replace the whole body")]
    Twice(String),
    /// Its bytes look like UTF-16, and are not.
    #[error("the body is not valid UTF-16; replace the whole body")]
    NotUtf16,
    /// The path is invalid.
    #[error(
        "`{0}` is not the path of a field; examples: role, data.role, tool_calls[0].id, /data/role"
    )]
    Name(String),
}

/// The body with a field set to a value.
///
/// The field is a dotted path (`data.role`, `tool_calls[0].id`) or a JSON pointer (`/data/role`); one that
/// is not at the top level is also looked for under `data`. The value is JSON, or else a text. A missing field
/// is added, if the object that it belongs to exists.
///
/// # Errors
/// The field cannot be set; the variant says why.
pub fn set(body: &[u8], field: &str, value: &str) -> Result<Vec<u8>, EditFault> {
    let text = std::str::from_utf8(body).map_err(|_| EditFault::NotAnObject)?;
    let mut path = path(field).ok_or_else(|| EditFault::Name(field.to_owned()))?;
    let value = match serde_json::from_str::<&RawValue>(value) {
        Ok(json) => Cow::from(json.get()),
        Err(_) => serde_json::to_string(value).map_err(|_| EditFault::NotAnObject)?.into(),
    };
    let fields = members(text).map_err(|_| EditFault::NotAnObject)?;
    let has = |fields: &[Member<'_>]| {
        fields.iter().any(|(name, _)| path.first().is_some_and(|first| first == name))
    };
    if !has(&fields)
        && let Some((_, data)) = fields.iter().find(|(name, _)| name == "data")
        && members(data).is_ok_and(|nested| has(&nested))
    {
        path.insert(0, "data".to_owned());
    }
    with(text, &path, &value, field).map(String::into_bytes)
}

/// `text` with the value at a path replaced.
fn with(text: &str, path: &[String], value: &str, field: &str) -> Result<String, EditFault> {
    let Some((name, rest)) = path.split_first() else { return Ok(value.to_owned()) };
    let missing = || EditFault::Missing(field.to_owned());
    let old = if let Ok(fields) = members(text) {
        let mut named = fields.iter().filter(|(found, _)| found == name);
        match (named.next(), named.next()) {
            (Some((_, value)), None) => *value,
            (Some(_), Some(_)) => return Err(EditFault::Twice(field.to_owned())),
            (None, _) if rest.is_empty() => {
                let end = text.rfind('}').ok_or(EditFault::NotAnObject)?;
                let comma = if fields.is_empty() { "" } else { "," };
                let name = serde_json::to_string(name).map_err(|_| missing())?;
                return Ok(format!("{}{comma}{name}:{value}{}", &text[..end], &text[end..]));
            }
            (None, _) => return Err(missing()),
        }
    } else {
        let elements = serde_json::from_str::<Vec<&RawValue>>(text).map_err(|_| missing())?;
        let index: usize = name.parse().map_err(|_| missing())?;
        elements.get(index).ok_or_else(missing)?.get()
    };
    let inner = with(old, rest, value, field)?;
    // `old` is a part of `text`.
    let start = old.as_ptr().addr() - text.as_ptr().addr();
    Ok(format!("{}{inner}{}", &text[..start], &text[start + old.len()..]))
}

/// The names along a path; `None` if it is invalid.
fn path(field: &str) -> Option<Vec<String>> {
    let names: Vec<String> = match field.strip_prefix('/') {
        Some(pointer) => {
            // RFC 6901, section 4.
            pointer.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect()
        }
        None => {
            let dotted = field.replace('[', ".").replace(']', "");
            dotted.split('.').map(str::to_owned).collect()
        }
    };
    names.iter().all(|name| !name.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(body: &str, field: &str, value: &str) -> Result<String, EditFault> {
        set(body.as_bytes(), field, value).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_value_is_replaced_in_place_and_the_rest_stays_byte_for_byte() {
        let body = r#"{ "z":1.50, "role" : "bot","n":1e400 , "text":"\u00e4"}"#;
        let expected = r#"{ "z":1.50, "role" : "assistant","n":1e400 , "text":"\u00e4"}"#;
        assert_eq!(edited(body, "role", "assistant").unwrap(), expected);
        assert_eq!(edited(body, "/role", "\"assistant\"").unwrap(), expected);
    }

    #[test]
    fn a_path_leads_into_objects_and_lists() {
        let body = r#"{"data":{"role":"bot","calls":[{"id":1},{"id":2}],"a/b":0}}"#;
        for (field, value, expected) in [
            (
                "data.role",
                "user",
                r#"{"data":{"role":"user","calls":[{"id":1},{"id":2}],"a/b":0}}"#,
            ),
            // Where a payload is nested, its fields need no prefix.
            ("role", "user", r#"{"data":{"role":"user","calls":[{"id":1},{"id":2}],"a/b":0}}"#),
            (
                "calls[1].id",
                "\"x\"",
                r#"{"data":{"role":"bot","calls":[{"id":1},{"id":"x"}],"a/b":0}}"#,
            ),
            (
                "/data/a~1b",
                "true",
                r#"{"data":{"role":"bot","calls":[{"id":1},{"id":2}],"a/b":true}}"#,
            ),
        ] {
            assert_eq!(edited(body, field, value).unwrap(), expected, "{field}");
        }
    }

    #[test]
    fn a_missing_field_is_added_where_it_belongs() {
        assert_eq!(edited("{}", "role", "user").unwrap(), r#"{"role":"user"}"#);
        assert_eq!(
            edited("{\"a\":{ } }\n", "a.b", "[1, 2]").unwrap(),
            "{\"a\":{ \"b\":[1, 2]} }\n"
        );
        let nested = r#"{"data":{"role":"user"}}"#;
        assert_eq!(
            edited(nested, "tenant_id", "t").unwrap(),
            r#"{"data":{"role":"user"},"tenant_id":"t"}"#
        );
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        let missing = EditFault::Missing("a.b".to_owned());
        assert_eq!(edited(r#"{"c":1}"#, "a.b", "1"), Err(missing.clone()));
        assert_eq!(edited(r#"{"a":1}"#, "a.b", "1"), Err(missing));
        assert_eq!(edited(r#"{"a":[1]}"#, "a[1]", "1"), Err(EditFault::Missing("a[1]".to_owned())));
        assert_eq!(edited(r#"{"a":1,"a":2}"#, "a", "1"), Err(EditFault::Twice("a".to_owned())));
        assert_eq!(edited("hello", "a", "1"), Err(EditFault::NotAnObject));
        assert_eq!(edited("{}", "a..b", "1"), Err(EditFault::Name("a..b".to_owned())));
    }
}
