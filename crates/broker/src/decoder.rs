//! Decoding the actions of a queue, and checking who sent them.

use domain::action::Action;
use domain::amqp_users::AmqpUsers;
use domain::decode::{DecodeContext, decode};
use domain::failure::Refusal;
use uuid::Uuid;

use crate::Delivery;

/// Decodes deliveries into actions. Every handler of actions decodes with it, so none carries out an action of a tenant
/// that its sender may not name.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// The largest body, in bytes.
    pub max_body_bytes: usize,
    /// Which tenants a user of RabbitMQ may name.
    pub users: AmqpUsers,
}

impl Decoder {
    /// The action of a delivery. Its user is the one that RabbitMQ validated when the action was first published; copies
    /// by the fleet carry it.
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
        let envelope = delivery.envelope();
        let action = decode(&delivery.body, &envelope, &context)?;
        self.users.check(envelope.user_id, &action.common().key.tenant)?;
        Ok(action)
    }
}
