//! Decodes bytes to an action, or to a refusal that names the field, its fault and the remedy.
//!
//! The order of the checks is part of the contract: size, JSON, `action_type`, fields. Decoding is
//! pure: the same bytes, envelope and context give the same action on every replica. No JSON tree
//! is built for a valid message; values stay text until a field is read.

mod action;
mod body;
mod body_format;
mod content;
mod context;
mod elements;
mod fault;
mod fields;
mod grouping;
mod identity;
mod listed;
mod metadata;
mod received;
mod reply_address;
mod sent_fields;
mod value;

pub use self::body::check_size;
pub use self::content::INSTEAD_OF_CONTENT;
pub use self::context::{DEFAULT_MAX_BODY_BYTES, DecodeContext};
pub use self::elements::{Extent, MAX_ELEMENTS, MAX_LISTED, elements_as_actions};
pub use self::grouping::Grouping;
pub use self::listed::listed_messages;
pub use self::reply_address::reply_address;
pub use self::sent_fields::SentFields;

use self::fields::Fields;
use crate::action::{Action, ActionKind};
use crate::envelope::Envelope;
use crate::failure::Refusal;

/// The kind of an action whose other fields need not be valid. `None` for a body that [`decode`] refuses with another
/// reason than `schema`, or that cannot be stored.
#[must_use]
pub fn kind(body: &[u8], max_body_bytes: usize) -> Option<ActionKind> {
    body::read(body, max_body_bytes, None).ok().map(|(kind, _)| kind)
}

/// Decodes one action. The refusal's reason is `too_large`, `malformed_json`, `unknown_action` or
/// `schema`, whichever comes first.
pub fn decode(
    body: &[u8],
    envelope: &Envelope<'_>,
    context: &DecodeContext<'_>,
) -> Result<Action, Refusal> {
    let (kind, members) = body::read(body, context.max_body_bytes, envelope.content_encoding)?;
    let fields = Fields::merged(members)?;
    Ok(action::read(received::Received { kind, fields, body, envelope, context })?)
}
