//! From bytes to an action, or to a refusal that tells the sender what to mend.

use uuid::Uuid;

use crate::action::Action;
use crate::envelope::Envelope;
use crate::failure::Refusal;
use crate::time::Timestamp;

/// The largest body, in bytes, unless a setting says otherwise: 1 MiB holds a long model answer
/// with its tool calls many times over, and 64 of them fit a worker's prefetch.
pub const DEFAULT_MAX_BODY_BYTES: usize = 1_048_576;

/// What decoding needs from outside: a clock's reading, a limit, a source of ids.
pub struct DecodeContext<'a> {
    /// When the delivery was received: the last fallback of an action's time.
    pub received_at: Timestamp,
    /// The largest body, in bytes; exactly as many are fine.
    pub max_body_bytes: usize,
    /// Makes an id for an action that has none and no time either. Called at most once.
    pub fresh_id: &'a dyn Fn() -> Uuid,
}

/// Decodes one action.
pub fn decode(
    body: &[u8],
    envelope: &Envelope,
    context: &DecodeContext<'_>,
) -> Result<Action, Refusal> {
    todo!()
}
