//! What a worker supplies to the [`Consumer`](crate::Consumer): how to read a delivery and what to do
//! with a batch of them.
//!
//! The handler decides, the loop obeys: no handler ever sees an acknowledgement, a retry queue or a
//! dead letter, so none can settle a message before the step that makes it safe.

use std::future::Future;

use domain::envelope::Resolved;
use domain::failure::{Outcome, Refusal, Unavailable};

use crate::Delivery;

/// The work of one queue.
pub trait Handler: Send + Sync + 'static {
    /// What a delivery means, decoded.
    type Item: Send + Sync + 'static;

    /// Reads a delivery. Pure: no I/O. A refusal becomes a dead letter; the rest of the batch goes on.
    fn decode(&self, delivery: &Delivery) -> Result<Self::Item, Refusal>;

    /// What a retry or dead letter of the item must carry, so that a later attempt decides the same:
    /// its id, its conversation and its times.
    fn resolved(&self, _item: &Self::Item) -> Option<Resolved> {
        None
    }

    /// Does the work: one outcome per item, in their order.
    ///
    /// May be called again with the same items: after an outage, or one by one after a panic. So
    /// it must be idempotent for items that it has handled before.
    ///
    /// # Errors
    /// A store is away, and nothing can be said about any of the items. The loop keeps the batch
    /// unacknowledged, waits until [`probe`](Self::probe) succeeds, and calls again.
    fn handle(
        &self,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Outcome>, Unavailable>> + Send;

    /// Checks cheaply whether what made [`handle`](Self::handle) fail is back.
    ///
    /// # Errors
    /// It is not.
    fn probe(&self) -> impl Future<Output = Result<(), Unavailable>> + Send;
}
