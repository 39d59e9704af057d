//! The work of `domain.unrouted`: actions that no queue was bound for.
//!
//! A known action lost its way because a queue or binding was missing for a while: it goes to its
//! queue, past the exchange. An action that nobody knows becomes a dead letter, so that a mistyped
//! routing key is never confirmed and gone.

use broker::topology::{WorkQueue, queue_of};
use broker::{Delivery, Handler, Publisher};
use domain::action::ActionKind;
use domain::envelope::Resolved;
use domain::failure::{Done, Outcome, Refusal, Unavailable};
use metrics::{Counter, Metrics, RerouteCause};
use worker::Decoder;

use crate::reroute::{ReroutedCopy, reroute};

/// Sends known actions home.
#[derive(Clone)]
pub(crate) struct RerouteUnrouted {
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
    pub(crate) decoder: Decoder,
}

impl Handler for RerouteUnrouted {
    type Item = ReroutedCopy;

    fn decode(&self, delivery: &Delivery) -> Result<ReroutedCopy, Refusal> {
        // The body says what it is; the routing key is what went wrong.
        let (kind, resolved) = match self.decoder.decode(delivery) {
            Ok(action) => (action.kind(), action.resolved()),
            Err(refusal) => {
                (ActionKind::parse(&delivery.origin().routing_key).ok_or(refusal)?, None)
            }
        };
        Ok(ReroutedCopy::new(delivery, queue_of(kind), resolved))
    }

    fn resolved(&self, item: &ReroutedCopy) -> Option<Resolved> {
        item.resolved()
    }

    /// Publishes each to its queue, once: while a queue is missing the batch is held.
    async fn handle(&self, items: &[ReroutedCopy]) -> Result<Vec<Outcome>, Unavailable> {
        let (queue, cause) = (WorkQueue::Unrouted.name(), RerouteCause::Unrouted);
        let counter = Counter::MessagesRerouted { queue, cause };
        let copies: Vec<_> = items.iter().collect();
        reroute(&copies, &self.publisher, &self.metrics, counter).await?;
        Ok(vec![Outcome::Done(Done::Applied); items.len()])
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        // Only another attempt can tell whether the queue is there again.
        Ok(())
    }
}
