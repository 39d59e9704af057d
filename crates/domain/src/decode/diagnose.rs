//! Finds the fault of a body that [`json_fields`](super::json_fields) could not read, in the order
//! of the contract:
//!
//! 1. Text that is not one JSON object: `malformed_json`.
//! 2. An unknown `action_type`: `unknown_action`.
//! 3. Valid JSON that cannot be stored: `schema`. serde_json reports these limits only for values
//!    that it builds, and reports some of them as syntax errors, so
//!    [`json_limits`](super::json_limits) finds them.

use serde::de::IgnoredAny;

use super::fault::{FieldError, malformed};
use super::field::Field;
use super::json_limits::{Fault, first_fault, path_to};
use super::kind::kind;
use super::strict_fields::strict_fields;
use crate::failure::{DeadLetterReason, Refusal};

/// The refusal of a body, or its fields if it has no fault.
pub(super) fn fields(text: &str) -> Result<Vec<Field<'_>>, Refusal> {
    let fault = first_fault(text);
    let fields = strict_fields(text, "").map_err(|error| not_an_object(text, &error, fault))?;
    match (kind(&fields), fault) {
        (Err(refusal), _) if refusal.reason == DeadLetterReason::UnknownAction => Err(refusal),
        (_, Some(fault)) => Err(not_storable(text, fault)),
        (_, None) => Ok(fields),
    }
}

/// The refusal of a text that serde_json could not read as one JSON object.
fn not_an_object(text: &str, error: &serde_json::Error, fault: Option<Fault>) -> Refusal {
    // serde_json also fails at a key with an unpaired surrogate, although the text is valid JSON.
    let is_object =
        || text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok();
    match fault {
        Some(fault) if is_object() => not_storable(text, fault),
        _ if text.trim_start().is_empty() => {
            malformed("the body must be one JSON object, but is empty".to_owned())
        }
        _ if text.starts_with('\u{feff}') => {
            malformed("the body begins with a byte order mark; send UTF-8 without it".to_owned())
        }
        _ if error.is_data() => {
            malformed(format!("the body must be one JSON object, but is {}", json_type(text)))
        }
        _ => malformed(format!("the body must be one JSON object, but is not valid JSON: {error}")),
    }
}

/// The type of a JSON text that is not an object.
fn json_type(text: &str) -> &'static str {
    match text.trim_start().as_bytes().first() {
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn not_storable(text: &str, fault: Fault) -> Refusal {
    FieldError::new(&path_to(text, fault.at), &fault.kind.to_string()).into()
}
