//! The handler of `domain.unrouted`, the queue of unroutable actions.
//!
//! A known action was unroutable because its queue or binding was missing: it is rerouted to its own queue by the
//! default exchange. An unknown action becomes a dead letter, so a message with a mistyped routing key is not
//! lost.

use broker::topology::{WorkQueue, queue_of};
use broker::{Decoder, Delivery, Handled, Handler, Publisher, Source};
use domain::action::ActionKind;
use domain::envelope::Resolved;
use domain::failure::{Dependency, Done, Refusal, Unavailable};
use metrics::{Counter, Metrics, RerouteCause};

use crate::reroute::{Rerouted, reroute};

/// Reroutes known actions to their own queue.
#[derive(Clone)]
pub struct RerouteUnrouted {
    publisher: Publisher,
    metrics: Metrics,
    decoder: Decoder,
}

impl RerouteUnrouted {
    /// The handler. Copies are published through `publisher`.
    #[must_use]
    pub fn new(publisher: Publisher, metrics: Metrics, decoder: Decoder) -> Self {
        Self { publisher, metrics, decoder }
    }
}

impl Handler for RerouteUnrouted {
    type Item = Rerouted;
    /// It needs RabbitMQ alone.
    const NEEDS: &'static [Dependency] = &[];

    fn source(&self) -> Source {
        Source::work(WorkQueue::Unrouted)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Rerouted, Refusal> {
        // By its body first, because the routing key may be wrong.
        let (kind, resolved) = match self.decoder.decode(delivery) {
            Ok(action) => (action.kind(), action.resolved()),
            Err(refusal) => {
                (ActionKind::parse(&delivery.origin().routing_key).ok_or(refusal)?, None)
            }
        };
        Ok(Rerouted::new(delivery, queue_of(kind), resolved))
    }

    fn resolved(&self, item: &Rerouted) -> Option<Resolved> {
        item.resolved()
    }

    /// Publishes each once to its own queue, whose worker replies. While a queue is missing the batch is held.
    async fn handle(&self, items: &[Rerouted]) -> Result<Vec<Handled>, Unavailable> {
        let (queue, cause) = (WorkQueue::Unrouted.name(), RerouteCause::Unrouted);
        let counter = Counter::MessagesRerouted { queue, cause };
        let copies: Vec<_> = items.iter().collect();
        reroute(&copies, &self.publisher, &self.metrics, counter).await?;
        Ok(items.iter().map(|_| Ok(Done::Applied.into())).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        Ok(())
    }
}
