//! What is wrong with a body that could not be read at once, in the order of the contract.
//!
//! What is no JSON at all is `malformed_json`. Then an action that nobody knows, then what is legal
//! JSON and cannot be kept: a parser would see some of it only where it happens to build a value, and
//! call the rest a syntax error.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fault::FieldError;
use super::fields::Field;
use super::json_limits::{Fault, first_fault, path_to};
use super::{kind, malformed};
use crate::failure::{DeadLetterReason, Refusal};

/// The refusal of a body; its fields, should nothing be wrong with it.
pub(super) fn fields(text: &str) -> Result<Vec<Field<'_>>, Refusal> {
    let fault = first_fault(text);
    let fields = strict_fields(text, "").map_err(|error| not_an_object(text, &error, fault))?;
    match (kind(&fields), fault) {
        (Err(refusal), _) if refusal.reason == DeadLetterReason::UnknownAction => Err(refusal),
        (_, Some(fault)) => Err(unkeepable(text, fault)),
        (_, None) => Ok(fields),
    }
}

/// The fields of an object, with faults or without, as serde_json finds them.
pub(super) fn strict_fields<'a>(
    text: &'a str,
    place: &'a str,
) -> Result<Vec<Field<'a>>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

    struct Members<'a>(&'a str);
    impl<'a> Visitor<'a> for Members<'a> {
        type Value = Vec<Field<'a>>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("one JSON object")
        }
        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some((Key(name), value)) = map.next_entry::<_, &RawValue>()? {
                fields.push(Field::new(name, value.get(), self.0));
            }
            Ok(fields)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields = deserializer.deserialize_map(Members(place))?;
    deserializer.end()?;
    Ok(fields)
}

/// The refusal of a text that is not one JSON object, as far as its parser could tell.
fn not_an_object(text: &str, error: &serde_json::Error, fault: Option<Fault>) -> Refusal {
    // The parser stops at a key that is no text. Were that all, the text would be JSON.
    let is_object =
        || text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    match fault {
        Some(fault) if is_object() => unkeepable(text, fault),
        _ if text.trim_start().is_empty() => malformed("the body is empty".to_owned()),
        _ if text.starts_with('\u{feff}') => {
            malformed("the body begins with a byte order mark; send plain UTF-8".to_owned())
        }
        _ if error.is_data() => malformed("the body is JSON, but not one JSON object".to_owned()),
        _ => malformed(format!("the body is not one JSON object: {error}")),
    }
}

fn unkeepable(text: &str, fault: Fault) -> Refusal {
    FieldError::new(&path_to(text, fault.at), &fault.kind.to_string()).into()
}
