//! Why a publish failed.

use domain::failure::{Dependency, Unavailable};

use crate::publication::TooLong;

/// Why a publish failed. The message may be published again. After [`Blocked`](Self::Blocked) or
/// [`Unknown`](Self::Unknown) it may then exist twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A property is too long for AMQP: the only failure that is the message's own fault. It was not sent.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Its deadline had passed before it could be sent. It was not sent.
    #[error("not sent: its deadline had passed")]
    TooLate,
    /// RabbitMQ is unreachable. The message was not sent.
    #[error("cannot publish: {0}")]
    Unreachable(String),
    /// RabbitMQ blocks publishers: a memory or disk alarm. The message may still be queued later.
    #[error("RabbitMQ blocks publishers (a memory or disk alarm)")]
    Blocked,
    /// RabbitMQ returned it: no queue is bound for its routing key.
    #[error("no queue takes routing key `{routing_key}` of exchange `{exchange}`")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// RabbitMQ refused it (`basic.nack`): a queue is full or has no leader.
    #[error("RabbitMQ refused the message (a queue is full or without a leader)")]
    Refused,
    /// There was no confirm: the message may be in a queue or not.
    #[error("unknown whether the message was published: {0}")]
    Unknown(String),
}

impl From<PublishError> for Unavailable {
    fn from(error: PublishError) -> Self {
        Self { dependency: Dependency::RabbitMq, source: Box::new(error) }
    }
}
