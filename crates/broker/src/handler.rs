//! The contract between a worker and the [`Consumer`](crate::Consumer), the same for work and for requests.
//!
//! A handler names its queue, decodes a delivery into an item, and decides about a batch of items. The consumer
//! publishes what must outlive a delivery, acknowledges it and sends the reply. So a handler cannot acknowledge a
//! message too early, and nobody who asked for a reply is forgotten.

use std::future::Future;
use std::time::Duration;

use domain::decode::Extent;
use domain::envelope::Resolved;
use domain::failure::{Dependency, Done, Failure, Refusal, Unavailable};
use domain::reply::{ErrorType, ReplyAddress, ReplyError};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::Delivery;
use crate::source::Source;

/// The work of one queue.
pub trait Handler: Send + Sync + 'static {
    /// A decoded delivery.
    type Item: Send + Sync + 'static;

    /// The dependencies without which it can handle nothing. [`probe`](Self::probe) is called for these, and for
    /// the one that made [`handle`](Self::handle) fail.
    const NEEDS: &'static [Dependency];

    /// The queue that it consumes, and what happens to messages that it cannot handle.
    fn source(&self) -> Source;

    /// The same handler with this time limit for a single item, and a short one for locks, which handles the slow queue
    /// of its queue. `None`: its items never fail with [`Failure::TimedOut`] or [`Failure::Locked`].
    fn with_time_limit(&self, _limit: Duration) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// How many messages the body has for which this handler works, and their bytes. Batches and the prefetch count them.
    fn extent(&self, body: &[u8]) -> Extent {
        Extent::of_one(body)
    }

    /// Decodes a delivery, without I/O. A refused message becomes a dead letter; the rest of the batch is
    /// handled.
    fn decode(&self, delivery: &Delivery) -> Result<Self::Item, Refusal>;

    /// The id, conversation and times of the item, which a retry or dead letter carries, so that a later
    /// attempt resolves the same identity.
    fn resolved(&self, _item: &Self::Item) -> Option<Resolved> {
        None
    }

    /// Where the sender of the item wants a reply; `None` if it wants none.
    fn reply_address(&self, _item: &Self::Item) -> Option<ReplyAddress> {
        None
    }

    /// Handles the items. Returns one decision per item, in their order.
    ///
    /// Is called again with the same items after an outage, and with single items after a panic. So it
    /// must be idempotent.
    ///
    /// # Errors
    /// A dependency is unavailable, and no item has a decision. The consumer keeps the batch
    /// unacknowledged, waits until [`probe`](Self::probe) succeeds, and calls again.
    fn handle(
        &self,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Handled>, Unavailable>> + Send;

    /// Checks with a cheap request whether a dependency is available. RabbitMQ is never asked for: the consumer
    /// finds out by itself.
    ///
    /// # Errors
    /// It is unavailable.
    fn probe(&self, dependency: Dependency)
    -> impl Future<Output = Result<(), Unavailable>> + Send;
}

/// What a handler decided about a delivery: processed, or why not.
pub type Handled = Result<Processed, Failure>;

/// A delivery that needs no further work.
#[derive(Debug)]
pub struct Processed {
    /// Why it needs none.
    pub done: Done,
    /// The reply; `None`: another process replies, or nobody does.
    pub reply: Option<ReplyBody>,
    /// Elements of the delivery that failed by themselves.
    pub parts: Vec<Part>,
}

/// The data of a reply as JSON, or an error.
pub type ReplyBody = Result<Box<RawValue>, ReplyError>;

/// An element of a delivery that is retried or dead-lettered by itself. RabbitMQ confirms its message before the
/// delivery is acknowledged. Nobody gets a reply to it: the reply to the delivery says what became of it.
#[derive(Debug)]
pub struct Part {
    /// The element as an action of its own.
    pub body: Vec<u8>,
    /// Its identity; `None`: that of its body, without the AMQP message id of the delivery. An element without any
    /// identity may become a dead letter twice, if the process ends before the acknowledgement.
    pub resolved: Option<Resolved>,
    /// Why it failed.
    pub failure: Failure,
}

impl Processed {
    /// With this data in the reply.
    #[must_use]
    pub fn replying<T: Serialize>(self, data: &T) -> Self {
        let reply = to_raw_value(data).map_err(|error| ReplyError {
            error_type: ErrorType::Internal,
            message: format!("the action took effect; its reply could not be encoded: {error}"),
            details: None,
        });
        Self { reply: Some(reply), ..self }
    }
}

impl From<Done> for Processed {
    /// Without a reply.
    fn from(done: Done) -> Self {
        Self { done, reply: None, parts: Vec::new() }
    }
}
