//! Copies of deliveries on their way to their queue, each sent once.
//!
//! A batch in which one publish fails is handled again, whole. Invariant: whatever was confirmed is not
//! published again by the next try, and whatever nobody knows about goes again as the same message:
//! it carries the identity that was found when it was decoded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use broker::{Delivery, Publication, Publisher};
use domain::envelope::Resolved;
use domain::failure::Unavailable;
use metrics::{Counter, Metrics};

/// A step that is not to be repeated once it is certain that it was taken.
#[derive(Debug, Default)]
pub(crate) struct Step(AtomicBool);

/// A delivery that goes home.
#[derive(Debug)]
pub(crate) struct ReroutedCopy {
    copy: Arc<Publication>,
    sent: Step,
}

impl Step {
    /// It was taken.
    pub(crate) fn mark_done(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was taken.
    pub(crate) fn is_done(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl ReroutedCopy {
    /// Sends a delivery to a queue, past all exchanges, as what it was resolved to where it could be
    /// decoded.
    pub(crate) fn new(delivery: &Delivery, queue: &str, resolved: Option<Resolved>) -> Self {
        let copy = Publication::copy(delivery, queue).resolved(resolved);
        Self { copy: Arc::new(copy), sent: Step::default() }
    }

    /// What a retry must carry, too.
    pub(crate) fn resolved(&self) -> Option<Resolved> {
        self.copy.fleet_headers.resolved.clone()
    }
}

/// Sends home what was not sent yet, mandatory: while a queue is missing the batch is held. Counts
/// each once, when it is confirmed.
pub(crate) async fn reroute(
    copies: &[&ReroutedCopy],
    publisher: &Publisher,
    metrics: &Metrics,
    counter: Counter,
) -> Result<(), Unavailable> {
    let waiting =
        copies.iter().map(|reroute_copy| (&reroute_copy.sent, Arc::clone(&reroute_copy.copy)));
    let (confirmed, result) = publish_once(waiting.collect(), publisher).await;
    metrics.add(counter, confirmed);
    result
}

/// Publishes the message of each step that is not done, and marks those that are confirmed: how many
/// they are, and what kept the others.
pub(crate) async fn publish_once(
    messages: Vec<(&Step, Arc<Publication>)>,
    publisher: &Publisher,
) -> (u64, Result<(), Unavailable>) {
    let new = messages.into_iter().filter(|(step, _)| !step.is_done());
    let (steps, messages): (Vec<&Step>, Vec<_>) = new.unzip();
    let (mut confirmed, mut outcome) = (0, Ok(()));
    for (step, result) in steps.into_iter().zip(publisher.publish_all(messages).await) {
        match result {
            Ok(()) => {
                step.mark_done();
                confirmed += 1;
            }
            Err(error) => outcome = Err(error.into()),
        }
    }
    (confirmed, outcome)
}
