//! Rerouting: publishes copies of deliveries to their own queue, each once.
//!
//! A batch in which one publish fails is handled again as a whole. Invariant: a copy that was confirmed is not
//! published again by the next try. A copy whose confirm was lost is published again as the same message: it
//! carries the resolved id from its decoding.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use broker::{Delivery, Publication, Publisher};
use domain::envelope::Resolved;
use domain::failure::Unavailable;
use metrics::{Counter, Metrics};

/// Whether a step has succeeded, so that it is not repeated.
#[derive(Debug, Default)]
pub(crate) struct Once(AtomicBool);

/// A copy of a delivery for its own queue.
#[derive(Debug)]
pub struct Rerouted {
    copy: Arc<Publication>,
    sent: Once,
}

impl Once {
    pub(crate) fn mark_done(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Rerouted {
    /// A copy of `delivery` for the queue `queue`, by the default exchange. It carries `resolved`, if the
    /// delivery could be decoded.
    pub(crate) fn new(delivery: &Delivery, queue: &str, resolved: Option<Resolved>) -> Self {
        let copy = Publication::copy(delivery, queue).resolved(resolved);
        Self { copy: Arc::new(copy), sent: Once::default() }
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
    messages: Vec<(&Once, Arc<Publication>)>,
    publisher: &Publisher,
) -> (u64, Result<(), Unavailable>) {
    let new = messages.into_iter().filter(|(once, _)| !once.is_done());
    let (flags, messages): (Vec<&Once>, Vec<_>) = new.unzip();
    let (mut confirmed, mut outcome) = (0, Ok(()));
    for (once, result) in flags.into_iter().zip(publisher.publish_all(messages).await) {
        match result {
            Ok(()) => {
                once.mark_done();
                confirmed += 1;
            }
            Err(error) => outcome = Err(error.into()),
        }
    }
    (confirmed, outcome)
}
