//! Rerouting: publishes copies of deliveries to their own queue, each once.
//!
//! A batch in which one publish fails is handled again as a whole. Invariant: a copy that was confirmed is not
//! published again by the next try. A copy whose confirm was lost is published again as the same message: it
//! carries the resolved id from its decoding.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use broker::topology::{REQUESTS, WorkQueue, queue_of};
use broker::{Decoder, Delivery, Handled, Handler, Processed, Publication, Publisher, Source};
use domain::action::ActionKind;
use domain::decode::{self, reply_address};
use domain::envelope::Resolved;
use domain::failure::{Dependency, Done, Refusal, Unavailable};
use domain::reply::{ErrorType, ReplyAddress, ReplyError};
use failpoints::Guard;
use metrics::{Counter, Metrics, RerouteCause};

/// A copy of a delivery for its own queue.
#[derive(Debug)]
pub struct Rerouted {
    copy: Arc<Publication>,
    sent: AtomicBool,
}

/// The handler of `domain.unrouted`, the queue of unroutable actions and of those that expired among the requests.
///
/// | action | what happens |
/// |---|---|
/// | a known one, unroutable | its queue or binding was missing: it is rerouted to its own queue by the default exchange |
/// | a write that expired among the requests | its routing key was a request's: it is rerouted to its own queue |
/// | a request that expired | its sender gets the error `unavailable`, or what is wrong with it; nothing of it is kept |
/// | an unknown or unreadable one | it becomes a dead letter |
#[derive(Clone)]
pub struct RerouteUnrouted {
    publisher: Publisher,
    metrics: Metrics,
    decoder: Decoder,
}

/// A delivery from `domain.unrouted`.
pub enum Unrouted {
    /// An action for its own queue.
    Known(Rerouted),
    /// A request that nobody took, and the reply, if its sender wants one.
    ExpiredRequest(Option<(ReplyAddress, ReplyError)>),
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
    type Item = Unrouted;
    /// It needs RabbitMQ alone.
    const NEEDS: &'static [Dependency] = &[];

    fn source(&self) -> Source {
        Source::work(WorkQueue::Unrouted)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Unrouted, Refusal> {
        let was_request = delivery.expired_among_requests();
        // A copy for the requests would come back here.
        let expired = |kind: &ActionKind| was_request && kind.is_request();
        // By its body first, because the routing key may be wrong.
        let (kind, action) = match self.decoder.decode(delivery) {
            Ok(action) => (action.kind(), Ok(action)),
            Err(refusal) => {
                let by_body = decode::kind(&delivery.body, self.decoder.max_body_bytes);
                let by_key = ActionKind::parse(&delivery.origin().routing_key);
                match by_body.or(by_key.filter(|kind| !expired(kind))) {
                    Some(kind) => (kind, Err(refusal)),
                    None => return Err(refusal),
                }
            }
        };
        if expired(&kind) {
            let address = reply_address(&delivery.body, &delivery.envelope());
            let error = action.err().map_or_else(nobody_took_it, |refusal| (&refusal).into());
            return Ok(Unrouted::ExpiredRequest(address.map(|address| (address, error))));
        }
        let resolved = action.ok().and_then(|action| action.resolved());
        Ok(Unrouted::Known(Rerouted::new(delivery, queue_of(kind), resolved)))
    }

    fn resolved(&self, item: &Unrouted) -> Option<Resolved> {
        item.known()?.resolved()
    }

    fn reply_address(&self, item: &Unrouted) -> Option<ReplyAddress> {
        item.reply().map(|(address, _)| address.clone())
    }

    /// Publishes each known action once to its own queue, whose worker replies. While a queue is missing the batch
    /// is held.
    async fn handle(&self, items: &[Unrouted]) -> Result<Vec<Handled>, Unavailable> {
        let (queue, cause) = (WorkQueue::Unrouted.name(), RerouteCause::Unrouted);
        let counter = Counter::MessagesRerouted { queue, cause };
        let copies: Vec<_> = items.iter().filter_map(Unrouted::known).collect();
        if failpoints::holds(Guard::UnroutedRerouted) {
            reroute(&copies, &self.publisher, &self.metrics, counter).await?;
        }
        let expired = (items.len() - copies.len()) as u64;
        self.metrics.add(Counter::RequestsExpired, expired);
        let handled = |item: &Unrouted| {
            let reply = item.reply().map(|(_, error)| Err(error.clone()));
            Ok(Processed { reply, ..Done::Applied.into() })
        };
        Ok(items.iter().map(handled).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        Ok(())
    }
}

impl Unrouted {
    fn known(&self) -> Option<&Rerouted> {
        match self {
            Self::Known(rerouted) => Some(rerouted),
            Self::ExpiredRequest(_) => None,
        }
    }

    fn reply(&self) -> Option<&(ReplyAddress, ReplyError)> {
        match self {
            Self::Known(_) => None,
            Self::ExpiredRequest(reply) => reply.as_ref(),
        }
    }
}

/// What the sender of an expired request gets.
fn nobody_took_it() -> ReplyError {
    let message =
        format!("no worker took the request from {REQUESTS} before it expired; send it again");
    ReplyError { error_type: ErrorType::Unavailable, message, details: None }
}
