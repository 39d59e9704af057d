//! Decodes bytes to an action, or to a refusal that names the field, its fault and the remedy.
//!
//! The order of the checks is part of the contract: size, JSON, `action_type`, fields. Decoding is
//! pure: the same bytes, envelope and context give the same action on every replica. No JSON tree
//! is built for a valid message; values stay text until a field is read.

mod action;
mod content;
mod context;
mod diagnose;
mod fault;
mod field;
mod fields;
mod identity;
mod json_fields;
pub(crate) mod json_limits;
mod kind;
mod metadata;
mod reply_address;
mod strict_fields;
mod value;

pub use self::context::{DEFAULT_MAX_BODY_BYTES, DecodeContext};
pub(crate) use self::fault::excerpt;
pub use self::reply_address::reply_address;

use self::fault::malformed;
use self::fields::Fields;
use crate::action::Action;
use crate::envelope::Envelope;
use crate::failure::{DeadLetterReason, Refusal};

/// Decodes one action. The refusal's reason is `too_large`, `malformed_json`, `unknown_action` or
/// `schema`, whichever comes first.
pub fn decode(
    body: &[u8],
    envelope: &Envelope<'_>,
    context: &DecodeContext<'_>,
) -> Result<Action, Refusal> {
    let limit = context.max_body_bytes;
    if body.len() > limit {
        let detail = format!(
            "the body has {} bytes, but at most {limit} are accepted; send large content by reference",
            body.len()
        );
        return Err(Refusal::new(DeadLetterReason::TooLarge, detail));
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        malformed(format!("the body must be UTF-8, but byte {} is not", error.valid_up_to()))
    })?;
    let fields = match json_fields::fields(text, "") {
        Some(fields) => fields,
        None => diagnose::fields(text)?,
    };
    let kind = kind::kind(&fields)?;
    let fields = Fields::merged(fields)?;
    Ok(action::read(action::Received { kind, fields, body, envelope, context })?)
}
