//! Decoding the actions of a queue.

use domain::action::Action;
use domain::decode::{DecodeContext, decode};
use domain::failure::Refusal;
use uuid::Uuid;

use crate::Delivery;

/// Decodes deliveries into actions.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// The largest body, in bytes.
    pub max_body_bytes: usize,
}

impl Decoder {
    /// The action of a delivery.
    ///
    /// # Errors
    /// Why it is refused: the reason of its dead letter.
    pub fn decode(&self, delivery: &Delivery) -> Result<Action, Refusal> {
        failpoints::shown(&delivery.body);
        let context = DecodeContext {
            received_at: delivery.received_at,
            max_body_bytes: self.max_body_bytes,
            new_id: &Uuid::new_v4,
        };
        decode(&delivery.body, &delivery.envelope(), &context)
    }
}
