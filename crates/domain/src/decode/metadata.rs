//! The `metadata` of an action: the sender's own metadata and the fields that the contract does not
//! define.
//!
//! Nothing is lost: a field whose name the metadata already has is stored as `extra.<name>`, with
//! as many `extra.` as make it unique; the metadata's own entry stays unchanged. Without such
//! fields the metadata is the sender's text byte for byte.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use super::fields::Field;
use crate::json::{Json, members, string};

pub(super) fn extended<'f, 'a: 'f>(
    own: Option<Json>,
    extras: impl Iterator<Item = &'f Field<'a>>,
) -> Option<Json> {
    let mut extras = extras.peekable();
    if extras.peek().is_none() {
        return own;
    }
    let own_text = own.as_ref().map_or("{}", Json::as_str);
    let mut taken: HashSet<Cow<'_, str>> =
        members(own_text).unwrap_or_default().into_iter().map(|(name, _)| name).collect();

    // The own text without its closing brace, so that it stays byte for byte.
    let mut text = own_text.strip_suffix('}').unwrap_or("{").to_owned();
    for field in extras {
        let mut name = field.name.clone();
        while taken.contains(&name) {
            name = format!("extra.{name}").into();
        }
        if !taken.is_empty() {
            text.push(',');
        }
        text.push_str(&Value::from(&*name).to_string());
        text.push(':');
        text.push_str(field.value);
        taken.insert(name);
    }
    text.push('}');
    // Made of valid pieces, so it parses; if it did not, the sender's own metadata would be used.
    Json::parse(text).ok().or(own)
}

/// The metadata's entry of a name, if it is a string.
pub(super) fn string_entry(metadata: &Json, name: &str) -> Option<String> {
    let (_, value) = members(metadata.as_str()).ok()?.into_iter().find(|(own, _)| own == name)?;
    string(value).map(Cow::into_owned)
}
