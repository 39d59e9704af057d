//! What becomes of each message of a batch.
//!
//! A batch goes through three stages and remembers which one it has reached, so that an outage in the
//! middle repeats nothing that was decided: *read* (decoding may draw a random id, so it happens
//! once), *decided* (the handler said what became of each), and *copied* (retries, dead letters and
//! suspects are confirmed in their queues). Only then is the batch done.
//!
//! A panic costs the guilty message an attempt and its neighbours nothing: the batch is handled
//! again one by one. What a panic says is thrown away here: it may quote the message.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Outcome, Refusal, Unavailable};
use failpoints::Step;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::observer::{OutcomeCounts, outcome_of};
use super::settlement::{Decision, copy_for, publish};
use super::unacked::Tag;
use super::{FailurePolicy, Shared};
use crate::{Delivery, Handler, Publication};

/// Messages that are handled together.
pub(super) struct Batch<I> {
    received: Vec<Received>,
    lane: Lane,
    stage: Stage<I>,
}

/// A delivery and its number on the channel.
pub(super) struct Received {
    pub(super) tag: Tag,
    pub(super) delivery: Delivery,
}

/// Where a message is on its way through the consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The queue itself, in batches.
    Main,
    /// Its suspects, one at a time.
    Suspects,
}

/// A batch of which nothing is left to do.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) tags: Vec<Tag>,
    pub(super) counts: OutcomeCounts,
}

/// Returns to the work queue after which a message is quarantined. Counts say nothing about guilt (each
/// connection loss adds one to every message under way), so they only choose the lane.
const QUARANTINE_AFTER_REDELIVERIES: u64 = 3;
/// Returns to the suspects, where it was alone each time, after which a message is given up.
const SUSPECT_REDELIVERY_LIMIT: u64 = 5;

enum Stage<I> {
    Received,
    Read(Reading<I>),
    Decided { copies: Vec<Arc<Publication>>, counts: OutcomeCounts },
}

/// Decoded messages. Where `early` has no decision, the next of `items` waits for the handler's.
struct Reading<I> {
    items: Vec<I>,
    early: Vec<Option<Decision>>,
}

impl<I> Batch<I> {
    pub(super) fn new(received: Vec<Received>, lane: Lane) -> Self {
        Self { received, lane, stage: Stage::Received }
    }

    /// A fresh copy of its only message for a queue, with what was found out about it: for a message
    /// that cannot be settled and must not count as returned.
    pub(super) fn new_copy<H>(&self, queue: &str, shared: &Shared<H>) -> Option<Publication>
    where
        H: Handler<Item = I>,
    {
        let resolved = match &self.stage {
            Stage::Received => None,
            Stage::Read(reading) => reading.items.first().and_then(|item| resolved(item, shared)),
            Stage::Decided { copies, .. } => {
                copies.first().and_then(|copy| copy.fleet_headers.resolved.clone())
            }
        };
        let Received { delivery, .. } = self.received.first()?;
        Some(Publication::copy(delivery, queue).resolved(resolved))
    }

    /// Takes the batch as far as it goes.
    ///
    /// # Errors
    /// A store is away. The batch comes back as far as it got, to be continued later.
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
                Stage::Decided { copies, counts } => {
                    let copied = !copies.is_empty();
                    match publish(copies, &shared.publisher).await {
                        Ok(()) => {
                            if copied {
                                failpoints::reached(Step::Copied);
                            }
                            let tags = self.received.iter().map(|received| received.tag).collect();
                            return Ok(Finished { tags, counts });
                        }
                        Err((copies, unavailable)) => {
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
        if let Some(decision) = decision_by_returns(delivery, lane, shared.source.failure_policy) {
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

/// What the number of its returns alone decides about a message.
fn decision_by_returns(
    delivery: &Delivery,
    lane: Lane,
    failure_policy: FailurePolicy,
) -> Option<Decision> {
    match (lane, failure_policy) {
        (Lane::Main, FailurePolicy::DeadLetter(_))
            if delivery.delivery_count() >= QUARANTINE_AFTER_REDELIVERIES =>
        {
            Some(Decision::Quarantine)
        }
        (Lane::Suspects, _) if delivery.delivery_count() >= SUSPECT_REDELIVERY_LIMIT => {
            let returns = delivery.delivery_count();
            Some(Decision::DeadLetter(Refusal {
                reason: DeadLetterReason::DeliveryLimit,
                hint: None,
                field: None,
                detail: format!("handled alone, it came back unsettled {returns} times"),
            }))
        }
        _ => None,
    }
}

/// Asks the handler. A panic, or an answer of the wrong length, is narrowed down to its message.
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

/// One call of the handler: as many outcomes as items, or what was wrong with the call.
async fn call_handler<H: Handler>(
    items: &[H::Item],
    shared: &Shared<H>,
) -> Result<Result<Vec<Outcome>, String>, Unavailable> {
    let call = AssertUnwindSafe(async { shared.handler.handle(items).await });
    match call.catch_unwind().await {
        Ok(Ok(outcomes)) if outcomes.len() == items.len() => Ok(Ok(outcomes)),
        Ok(Ok(outcomes)) => {
            shared.observer.answered_wrongly(items.len(), outcomes.len());
            Ok(Err("the handler gave no outcome".to_owned()))
        }
        Ok(Err(unavailable)) => Err(unavailable),
        Err(_) => Ok(Err(shared.observer.panicked("handling"))),
    }
}

/// What a copy of the message must carry; nothing where asking for it panics.
fn resolved<H: Handler>(item: &H::Item, shared: &Shared<H>) -> Option<Resolved> {
    let ask = AssertUnwindSafe(|| shared.handler.resolved(item));
    catch_unwind(ask).unwrap_or_else(|_| {
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
    for (Received { delivery, .. }, early) in received.iter().zip(reading.early) {
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
                None => (Decision::Retry("the handler gave no outcome".to_owned()), None),
            },
        };
        let resolved = item.and_then(|item| resolved(item, shared));
        let (copy, outcome) = copy_for(delivery, decision, resolved, shared);
        copies.push(Arc::new(copy));
        counts.add(outcome);
    }
    Stage::Decided { copies, counts }
}
