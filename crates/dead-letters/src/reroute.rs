//! Rerouting: publishes copies of deliveries to their own queue, each once.
//!
//! A batch in which one publish fails is handled again as a whole. Invariant: a copy that was confirmed is not
//! published again by the next try. A copy whose confirm was lost is published again as the same message: it
//! carries the resolved id from its decoding.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use broker::topology::{WorkQueue, queue_of};
use broker::{Decoder, Delivery, Handled, Handler, Publication, Publisher, Source};
use domain::action::ActionKind;
use domain::envelope::Resolved;
use domain::failure::{Dependency, Done, Refusal, Unavailable};
use failpoints::Guard;
use metrics::{Counter, Metrics, RerouteCause};

/// A copy of a delivery for its own queue.
#[derive(Debug)]
pub struct Rerouted {
    copy: Arc<Publication>,
    sent: AtomicBool,
}

/// The handler of `domain.unrouted`, the queue of unroutable actions.
///
/// A known action was unroutable because its queue or binding was missing: it is rerouted to its own queue by
/// the default exchange. An unknown action becomes a dead letter, so a message with a mistyped routing key is
/// not lost.
#[derive(Clone)]
pub struct RerouteUnrouted {
    publisher: Publisher,
    metrics: Metrics,
    decoder: Decoder,
}

impl Rerouted {
    /// A copy of `delivery` for the queue `queue`, by the default exchange. It carries `resolved`, if the
    /// delivery could be decoded.
    pub(crate) fn new(delivery: &Delivery, queue: &str, resolved: Option<Resolved>) -> Self {
        let copy = Publication::copy(delivery, queue).resolved(resolved);
        Self { copy: Arc::new(copy), sent: AtomicBool::default() }
    }

    /// The resolved id and times, which a retry must carry too.
    pub(crate) fn resolved(&self) -> Option<Resolved> {
        self.copy.fleet_headers.resolved.clone()
    }
}

/// Publishes the copies that were not sent yet, with the AMQP flag `mandatory`: while a queue is missing the
/// batch is held. Counts each copy once, when it is confirmed.
pub(crate) async fn reroute(
    copies: &[&Rerouted],
    publisher: &Publisher,
    metrics: &Metrics,
    counter: Counter,
) -> Result<(), Unavailable> {
    let messages = copies.iter().map(|it| (&it.sent, Arc::clone(&it.copy))).collect();
    let (confirmed, result) = publish_once(messages, publisher).await;
    metrics.add(counter, confirmed);
    result
}

/// Publishes the messages that are not marked as done, and marks those that are confirmed. Returns how many were
/// confirmed, and the error of a publish that failed.
pub(crate) async fn publish_once(
    messages: Vec<(&AtomicBool, Arc<Publication>)>,
    publisher: &Publisher,
) -> (u64, Result<(), Unavailable>) {
    let new = messages.into_iter().filter(|(done, _)| !done.load(Relaxed));
    let (flags, messages): (Vec<&AtomicBool>, Vec<_>) = new.unzip();
    let (mut confirmed, mut outcome) = (0, Ok(()));
    for (done, result) in flags.into_iter().zip(publisher.publish_all(messages).await) {
        match result {
            Ok(()) => {
                done.store(true, Relaxed);
                confirmed += 1;
            }
            Err(error) => outcome = Err(error.into()),
        }
    }
    (confirmed, outcome)
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
        if !failpoints::holds(Guard::UnroutedRerouted) {
            return Ok(items.iter().map(|_| Ok(Done::Applied.into())).collect());
        }
        let copies: Vec<_> = items.iter().collect();
        reroute(&copies, &self.publisher, &self.metrics, counter).await?;
        Ok(items.iter().map(|_| Ok(Done::Applied.into())).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        Ok(())
    }
}
