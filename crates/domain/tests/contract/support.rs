//! The inputs of every test of decoding: a fixed time of receipt and a fixed new id.

use domain::action::Action;
use domain::decode::{DEFAULT_MAX_BODY_BYTES, DecodeContext, decode};
use domain::envelope::Envelope;
use domain::failure::Refusal;
use domain::time::Timestamp;
use uuid::Uuid;

/// The id of a message that has neither an id nor a timestamp.
pub(crate) const NEW_ID: Uuid = Uuid::from_u128(0xfeed);

pub(crate) fn received_at() -> Timestamp {
    Timestamp::parse("2026-11-20T12:00:00Z").expect("a timestamp")
}

pub(crate) fn decoded_with(body: &[u8], envelope: &Envelope<'_>) -> Result<Action, Refusal> {
    let context = DecodeContext {
        received_at: received_at(),
        max_body_bytes: DEFAULT_MAX_BODY_BYTES,
        new_id: &|| NEW_ID,
    };
    decode(body, envelope, &context)
}

pub(crate) fn decoded(body: &str) -> Result<Action, Refusal> {
    decoded_with(body.as_bytes(), &Envelope::default())
}
