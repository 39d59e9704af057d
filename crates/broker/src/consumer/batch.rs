//! The outcome of each message of a batch.
//!
//! A batch passes three stages and keeps the stage that it has reached. So nothing is repeated after an
//! outage.
//!
//! | stage | what is done |
//! |---|---|
//! | *read* | each delivery is decoded once, because decoding may generate a random id |
//! | *decided* | the handler returned an outcome for each message |
//! | *copied* | retries, dead letters and suspects are confirmed in their queues; the batch is done |
//!
//! When the handler panics, the messages are handled again one at a time. Only the message that panics
//! again loses an attempt. The panic message is dropped here, because it may quote a body.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Outcome, Refusal, Unavailable};
use domain::failure_policy::{QUARANTINE_AFTER, SUSPECT_LIMIT};
use failpoints::Step;
use futures_util::FutureExt;
use metrics::DeliveryOutcome;
use tokio::time::Instant;

use super::outcome_counts::{OutcomeCounts, outcome_of};
use super::settings::FailurePolicy;
use super::settlement::{Copy, Decision, copy_for, publish};
use super::shared::Shared;
use super::unacked::Tag;
use crate::{Delivery, Handler, Publication};

/// Deliveries that are handled together.
pub(super) struct Batch<I> {
    received: Vec<Received>,
    lane: Lane,
    stage: Stage<I>,
}

/// A delivery and its tag.
pub(super) struct Received {
    pub(super) tag: Tag,
    pub(super) delivery: Delivery,
}

/// The queue from which a message was taken, and how it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The work queue, in batches.
    Main,
    /// The suspect queue: messages that were redelivered there are handled alone.
    Suspects,
}

/// A batch whose deliveries may be acknowledged.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) tags: Vec<Tag>,
    pub(super) counts: OutcomeCounts,
}

enum Stage<I> {
    Received,
    Read(Reading<I>),
    /// `counts` has the outcomes of the messages that are done and of those whose copies are confirmed.
    Decided {
        copies: Vec<Copy>,
        counts: OutcomeCounts,
    },
}

/// Decoded messages. `early` has one entry per delivery; for each `None`, the next of `items` still
/// needs the handler's outcome.
struct Reading<I> {
    items: Vec<I>,
    early: Vec<Option<Decision>>,
}

impl<I> Batch<I> {
    pub(super) fn new(received: Vec<Received>, lane: Lane) -> Self {
        Self { received, lane, stage: Stage::Received }
    }

    /// How many messages it has.
    pub(super) fn len(&self) -> usize {
        self.received.len()
    }

    /// A new copy, for a queue, of each message that is not settled, with the identity resolved so far.
    /// The copies have no redelivery count.
    pub(super) fn new_copies<H>(&self, queue: &str, shared: &Shared<H>) -> Vec<Copy>
    where
        H: Handler<Item = I>,
    {
        let copy = |position: usize, resolved| {
            let delivery = &self.received[position].delivery;
            let publication = Arc::new(Publication::copy(delivery, queue).resolved(resolved));
            Copy { position, publication, outcome: DeliveryOutcome::Requeued }
        };
        match &self.stage {
            Stage::Received => (0..self.len()).map(|position| copy(position, None)).collect(),
            Stage::Read(Reading { items, early }) => {
                let mut items = items.iter();
                let resolved = early.iter().map(|decision| match decision {
                    Some(_) => None,
                    None => items.next().and_then(|item| resolved(item, shared)),
                });
                resolved.enumerate().map(|(position, resolved)| copy(position, resolved)).collect()
            }
            Stage::Decided { copies, .. } => {
                let resolved = |of: &Copy| of.publication.fleet_headers.resolved.clone();
                copies
                    .iter()
                    .map(|unconfirmed| copy(unconfirmed.position, resolved(unconfirmed)))
                    .collect()
            }
        }
    }

    /// The outcomes of the messages that have one already.
    pub(super) fn settled(&self) -> OutcomeCounts {
        match &self.stage {
            Stage::Received | Stage::Read(_) => OutcomeCounts::default(),
            Stage::Decided { counts, .. } => counts.clone(),
        }
    }

    /// Runs all stages that are left.
    ///
    /// # Errors
    /// A dependency is unavailable. The error contains the batch with its current stage; call again
    /// later.
    pub(super) async fn work<H>(
        mut self,
        shared: &Shared<H>,
    ) -> Result<Finished, (Self, Unavailable)>
    where
        H: Handler<Item = I>,
    {
        loop {
            self.stage = match self.stage {
                Stage::Received => Stage::Read(read(&self.received, self.lane, shared)),
                Stage::Read(reading) => match decide(&reading.items, shared).await {
                    Ok(outcomes) => settle(&self.received, reading, outcomes, shared),
                    Err(unavailable) => {
                        self.stage = Stage::Read(reading);
                        return Err((self, unavailable));
                    }
                },
                Stage::Decided { copies, mut counts } => {
                    let sent: Vec<_> = copies.iter().map(|it| (it.position, it.outcome)).collect();
                    match publish(copies, &shared.publisher).await {
                        Ok(()) => {
                            if !sent.is_empty() {
                                failpoints::reached(Step::Copied);
                            }
                            sent.iter().for_each(|(_, outcome)| counts.add(*outcome));
                            let tags = self.received.iter().map(|received| received.tag).collect();
                            return Ok(Finished { tags, counts });
                        }
                        Err((copies, unavailable)) => {
                            let unconfirmed: Vec<_> = copies.iter().map(|it| it.position).collect();
                            for (_, outcome) in
                                sent.iter().filter(|it| !unconfirmed.contains(&it.0))
                            {
                                counts.add(*outcome);
                            }
                            self.stage = Stage::Decided { copies, counts };
                            return Err((self, unavailable));
                        }
                    }
                }
            };
        }
    }
}

fn read<H: Handler>(received: &[Received], lane: Lane, shared: &Shared<H>) -> Reading<H::Item> {
    let mut items = Vec::with_capacity(received.len());
    let early = received.iter().map(|Received { delivery, .. }| {
        if let Some(decision) =
            decision_by_delivery_count(delivery, lane, shared.source.failure_policy)
        {
            return Some(decision);
        }
        match catch_unwind(AssertUnwindSafe(|| shared.handler.decode(delivery))) {
            Ok(Ok(item)) => {
                items.push(item);
                None
            }
            Ok(Err(refusal)) => Some(Decision::DeadLetter(refusal)),
            Err(_) => Some(Decision::Retry(shared.observer.panicked("decoding"))),
        }
    });
    let early = early.collect();
    Reading { items, early }
}

/// The decision that follows from the redelivery count alone, if any.
fn decision_by_delivery_count(
    delivery: &Delivery,
    lane: Lane,
    failure_policy: FailurePolicy,
) -> Option<Decision> {
    match (lane, failure_policy) {
        (Lane::Main, FailurePolicy::DeadLetter(_))
            if delivery.delivery_count() >= QUARANTINE_AFTER =>
        {
            Some(Decision::Quarantine)
        }
        (Lane::Suspects, _) if delivery.delivery_count() >= SUSPECT_LIMIT => {
            let redeliveries = delivery.delivery_count();
            Some(Decision::DeadLetter(Refusal {
                reason: DeadLetterReason::DeliveryLimit,
                hint: None,
                field: None,
                detail: format!(
                    "as a suspect it was redelivered {redeliveries} times without an outcome; for all \
                     but the first of them it was handled alone"
                ),
            }))
        }
        _ => None,
    }
}

/// Calls the handler. After a panic or a wrong number of outcomes, it is called once per message.
async fn decide<H: Handler>(
    items: &[H::Item],
    shared: &Shared<H>,
) -> Result<Vec<Outcome>, Unavailable> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let started = Instant::now();
    let outcomes = match call_handler(items, shared).await? {
        Ok(outcomes) => outcomes,
        Err(error) if items.len() == 1 => vec![Outcome::Retry(error)],
        Err(_) => one_by_one(items, shared).await?,
    };
    shared.observer.decided(items.len(), started.elapsed());
    Ok(outcomes)
}

async fn one_by_one<H: Handler>(
    items: &[H::Item],
    shared: &Shared<H>,
) -> Result<Vec<Outcome>, Unavailable> {
    let mut outcomes = Vec::with_capacity(items.len());
    for item in items {
        match call_handler(std::slice::from_ref(item), shared).await? {
            Ok(outcome) => outcomes.extend(outcome),
            Err(error) => outcomes.push(Outcome::Retry(error)),
        }
    }
    Ok(outcomes)
}

/// One call of the handler. The inner error is the text of a panic or of a wrong number of outcomes.
async fn call_handler<H: Handler>(
    items: &[H::Item],
    shared: &Shared<H>,
) -> Result<Result<Vec<Outcome>, String>, Unavailable> {
    let call = AssertUnwindSafe(async { shared.handler.handle(items).await });
    match call.catch_unwind().await {
        Ok(Ok(outcomes)) if outcomes.len() == items.len() => Ok(Ok(outcomes)),
        Ok(Ok(outcomes)) => {
            shared.observer.wrong_outcome_count(items.len(), outcomes.len());
            Ok(Err("the handler returned a wrong number of outcomes".to_owned()))
        }
        Ok(Err(unavailable)) => Err(unavailable),
        Err(_) => Ok(Err(shared.observer.panicked("handling"))),
    }
}

/// The resolved identity that a copy of the message must carry; `None` when the handler panics.
fn resolved<H: Handler>(item: &H::Item, shared: &Shared<H>) -> Option<Resolved> {
    let call = AssertUnwindSafe(|| shared.handler.resolved(item));
    catch_unwind(call).unwrap_or_else(|_| {
        shared.observer.panicked("resolving");
        None
    })
}

/// Turns outcomes into copies to publish and outcomes to count.
fn settle<H: Handler>(
    received: &[Received],
    reading: Reading<H::Item>,
    outcomes: Vec<Outcome>,
    shared: &Shared<H>,
) -> Stage<H::Item> {
    let mut decided = reading.items.iter().zip(outcomes);
    let mut copies = Vec::new();
    let mut counts = OutcomeCounts::default();
    for (position, (Received { delivery, .. }, early)) in
        received.iter().zip(reading.early).enumerate()
    {
        let (decision, item) = match early {
            Some(decision) => (decision, None),
            // There are as many outcomes as messages without an early decision.
            None => match decided.next() {
                Some((_, Outcome::Done(done))) => {
                    counts.add(outcome_of(done));
                    continue;
                }
                Some((item, Outcome::Retry(error))) => (Decision::Retry(error), Some(item)),
                Some((item, Outcome::DeadLetter(refusal))) => {
                    (Decision::DeadLetter(refusal), Some(item))
                }
                None => (Decision::Retry("the handler returned no outcome".to_owned()), None),
            },
        };
        let resolved = item.and_then(|item| resolved(item, shared));
        let (copy, outcome) = copy_for(delivery, decision, resolved, shared);
        copies.push(Copy { position, publication: Arc::new(copy), outcome });
    }
    Stage::Decided { copies, counts }
}
