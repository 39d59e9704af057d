//! Why a session ended.

use domain::failure::Dependency;

use super::unacked::Gap;
use crate::connection::Error;

#[derive(Debug)]
pub(super) enum End {
    /// Shutdown: everything delivered is finished.
    Drained,
    /// A slow queue has been empty for some time: its consumer disconnects.
    QueueEmpty,
    /// A dependency was unavailable for the hold limit; the deliveries are requeued.
    HoldLimitReached(Dependency),
    /// RabbitMQ cancelled the consumer: its queue was deleted or lost its leader. Everything delivered
    /// is finished.
    StreamEnded,
    /// Messages are ready and the prefetch is not full, but there was no delivery for the stall limit.
    NoProgress,
    /// A delivery tag is missing; the session ends so that RabbitMQ redelivers the message.
    Gap(Gap),
    /// The channel closed; an acknowledgement may be lost.
    ChannelClosed,
    /// A task of this crate panicked: a bug. Its messages are not acknowledged and are redelivered.
    TaskPanicked,
    /// The channel or the connection failed.
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
