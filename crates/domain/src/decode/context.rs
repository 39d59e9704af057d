//! The inputs of decoding beside the message.

use uuid::Uuid;

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
