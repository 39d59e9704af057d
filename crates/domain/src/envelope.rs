//! What the transport says about an action, beside its body; free of any transport's types.

use crate::ids::{ConversationId, MessageId};
use crate::time::Timestamp;

/// The parts of an AMQP message that give an action its meaning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The `message_id` property: the last fallback of an action's identity.
    pub message_id: Option<&'a str>,
    /// The `timestamp` property, in whole seconds.
    pub timestamp: Option<u64>,
    /// The `correlation_id` property; wins over the body's.
    pub correlation_id: Option<&'a str>,
    /// The `reply_to` property; wins over the body's `callback_queue_name`.
    pub reply_to: Option<&'a str>,
    /// The `user_id` property, which the broker has checked against the connection's user.
    pub user_id: Option<&'a str>,
    /// What an earlier attempt made of it. Later attempts must not decide anew: a random id or a
    /// time of receipt would differ, and the message be stored twice.
    pub resolved: Option<&'a Resolved>,
}

/// The identity that the first attempt gave to an action; travels in our own headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The id, given or made.
    pub id: MessageId,
    /// The conversation it belongs to.
    pub conversation: ConversationId,
    /// When it happened.
    pub timestamp: Timestamp,
    /// When the first attempt received it.
    pub received_at: Timestamp,
}
