//! Decodes bytes to an action, or to a refusal that names the field, its fault and the remedy.
//!
//! The order of the checks is part of the contract: size, JSON, `action_type`, fields. Decoding is
//! pure: the same bytes, envelope and context give the same action on every replica. No JSON tree
//! is built for a valid message; values stay text until a field is read.

mod action;
mod body;
mod content;
mod fault;
mod fields;
mod identity;
mod metadata;
mod reply_address;
mod value;

pub(crate) use self::fault::excerpt;
pub use self::reply_address::reply_address;

use uuid::Uuid;

use self::fields::Fields;
use crate::action::Action;
use crate::envelope::Envelope;
use crate::failure::Refusal;
use crate::time::Timestamp;

/// The default limit for the size of a body, in bytes. 1 MiB is many times the size of a long model
/// answer with its tool calls, and 64 such bodies fit a worker's prefetch.
pub const DEFAULT_MAX_BODY_BYTES: usize = 1_048_576;

/// The inputs of decoding beside the message: the time of receipt, the size limit, a source of ids.
#[derive(Clone, Copy)]
pub struct DecodeContext<'a> {
    /// When the delivery was received: the last fallback of an action's time.
    pub received_at: Timestamp,
    /// The largest accepted body, in bytes.
    pub max_body_bytes: usize,
    /// Makes an id for an action that has neither an id nor a time. Called at most once.
    pub new_id: &'a dyn Fn() -> Uuid,
}

/// Decodes one action. The refusal's reason is `too_large`, `malformed_json`, `unknown_action` or
/// `schema`, whichever comes first.
pub fn decode(
    body: &[u8],
    envelope: &Envelope<'_>,
    context: &DecodeContext<'_>,
) -> Result<Action, Refusal> {
    let (kind, members) = body::read(body, context.max_body_bytes)?;
    let fields = Fields::merged(members)?;
    Ok(action::read(action::Received { kind, fields, body, envelope, context })?)
}
