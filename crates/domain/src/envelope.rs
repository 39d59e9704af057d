//! The AMQP properties of an action that matter for decoding, without types of an AMQP client.

use crate::ids::{ConversationId, MessageId};
use crate::time::Timestamp;

/// The AMQP properties and fleet headers that decoding uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The `message_id` property: the action's id where the body has none. Empty counts as absent: see
    /// [`sent_message_id`](Self::sent_message_id).
    pub message_id: Option<&'a str>,
    /// The `timestamp` property, in whole seconds since 1970. 0 counts as absent: see
    /// [`sent_second`](Self::sent_second).
    pub timestamp: Option<u64>,
    /// The microseconds, up to 999 999, that complete the second of `timestamp`. The consumer that receives the
    /// message determines them, so that messages of one second keep the order of their receipt.
    pub timestamp_micros: u32,
    /// The `correlation_id` property; takes precedence over the body's, unless it is empty.
    pub correlation_id: Option<&'a str>,
    /// The `reply_to` property; takes precedence over the body's `callback_queue_name`, unless it is empty.
    pub reply_to: Option<&'a str>,
    /// The `content_encoding` property. It is used only to say what a body is that cannot be read: no encoding but
    /// UTF-8 is supported.
    pub content_encoding: Option<&'a str>,
    /// The `user_id` property, which RabbitMQ has validated against the connection's user.
    pub user_id: Option<&'a str>,
    /// The id and times from the first attempt. A later attempt must use them: its own random id or
    /// time of receipt would differ, and the message would be stored twice.
    pub resolved: Option<&'a Resolved>,
    /// Whether a worker may have handled it before: RabbitMQ redelivers it, or it is a copy that the fleet
    /// published.
    pub redelivered: bool,
}

impl<'a> Envelope<'a> {
    /// The second in which the sender published, by the `timestamp` property. `None` for 0: a client that is
    /// configured to send no time may set that (JMS 1.1, 3.4.4).
    #[must_use]
    pub fn sent_second(&self) -> Option<u64> {
        self.timestamp.filter(|seconds| *seconds != 0)
    }

    /// The `message_id` property. `None` for an empty one, which identifies nothing: a client may send that for a
    /// property that nobody set.
    #[must_use]
    pub fn sent_message_id(&self) -> Option<&'a str> {
        self.message_id.filter(|id| !id.is_empty())
    }

    /// The `correlation_id` property, if it is not empty.
    #[must_use]
    pub fn sent_correlation_id(&self) -> Option<&'a str> {
        self.correlation_id.filter(|id| !id.is_empty())
    }

    /// The `reply_to` property, if it is not empty: no queue has an empty name.
    #[must_use]
    pub fn sent_reply_to(&self) -> Option<&'a str> {
        self.reply_to.filter(|queue| !queue.is_empty())
    }
}

/// The id and times that the first attempt gave to an action. A retry or dead letter carries them
/// in the fleet headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The id, from the sender or generated.
    pub id: MessageId,
    /// The conversation it belongs to.
    pub conversation: ConversationId,
    /// When it happened.
    pub timestamp: Timestamp,
    /// When the first attempt received it.
    pub received_at: Timestamp,
}
