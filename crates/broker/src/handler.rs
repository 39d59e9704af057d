//! What a worker supplies to the [`Consumer`](crate::Consumer): how to decode a delivery and how to handle
//! a batch.
//!
//! A handler returns outcomes. The consumer acknowledges, retries and dead-letters. So a handler cannot
//! acknowledge a message too early.

use std::future::Future;

use domain::envelope::Resolved;
use domain::failure::{Outcome, Refusal, Unavailable};

use crate::Delivery;

/// The work of one queue.
pub trait Handler: Send + Sync + 'static {
    /// A decoded delivery.
    type Item: Send + Sync + 'static;

    /// Decodes a delivery, without I/O. A refused message becomes a dead letter; the rest of the batch is
    /// handled.
    fn decode(&self, delivery: &Delivery) -> Result<Self::Item, Refusal>;

    /// The id, conversation and times of the item, which a retry or dead letter carries, so that a later
    /// attempt resolves the same identity.
    fn resolved(&self, _item: &Self::Item) -> Option<Resolved> {
        None
    }

    /// Handles the items. Returns one outcome per item, in their order.
    ///
    /// Is called again with the same items after an outage, and with single items after a panic. So it
    /// must be idempotent.
    ///
    /// # Errors
    /// A dependency is unavailable, and no item has an outcome. The consumer keeps the batch
    /// unacknowledged, waits until [`probe`](Self::probe) succeeds, and calls again.
    fn handle(
        &self,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Outcome>, Unavailable>> + Send;

    /// Checks with a cheap request whether the dependency that made [`handle`](Self::handle) fail is
    /// available again.
    ///
    /// # Errors
    /// It is still unavailable.
    fn probe(&self) -> impl Future<Output = Result<(), Unavailable>> + Send;
}
