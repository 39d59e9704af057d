//! The outcome of each message of a batch.
//!
//! A batch passes three stages and keeps the stage that it has reached. So nothing is repeated after an
//! outage.
//!
//! | stage | what is done |
//! |---|---|
//! | *read* | each delivery is decoded once, because decoding may generate a random id |
//! | *decided* | the handler returned a decision about each message |
//! | *copied* | retries, dead letters and suspects are confirmed in their queues; the batch is finished |
//!
//! When the handler panics, the messages are handled again one at a time. Only the message that panics
//! again loses an attempt. The panic message is dropped here, because it may quote a body.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use bytes::Bytes;
use domain::decode::Extent;
use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Dependency, Failure, Refusal, Unavailable};
use domain::failure_policy::{QUARANTINE_AFTER, REQUEST_TTL, SLOW_MESSAGE_LIMIT, SUSPECT_LIMIT};
use domain::time::Timestamp;
use failpoints::{Guard, Step};
use futures_util::FutureExt;
use metrics::DeliveryOutcome;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::outcome_counts::OutcomeCounts;
use super::settlement::{Copy, Decision, ItemFacts, OwedReply, publish, settle};
use super::shared::Shared;
use super::unacked::Tag;
use crate::body_limit::InMemoryBody;
use crate::source::FailurePolicy;
use crate::{Delivery, Handled, Handler, Publication};

pub(super) struct Batch<I> {
    received: Vec<Received>,
    lane: Lane,
    stage: Stage<I>,
}

pub(super) struct Received {
    pub(super) tag: Tag,
    pub(super) delivery: Delivery,
    /// The time of the system clock, by which a request expires. The receipt time of the delivery may be later.
    clock: Timestamp,
    /// Its body counts by itself ([`InMemoryBody`]), those of others by [`Shared::bytes_in_calls`].
    is_large: bool,
    extent: Extent,
}

impl Received {
    /// A delivery that the consumer receives now.
    pub(super) fn new<H>(
        tag: Tag,
        delivery: lapin::message::Delivery,
        large: Option<InMemoryBody>,
        extent: Extent,
        shared: &Shared<H>,
    ) -> Self {
        let clock = shared.clock.now();
        let delivery = shared.receipt_times.receive(delivery, clock, extent.messages);
        let mut received = Self { tag, delivery, clock, is_large: large.is_some(), extent };
        if let Some(large) = large {
            received.delivery.body = large.counting(std::mem::take(&mut received.delivery.body));
        }
        received
    }
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
#[derive(Debug, Default)]
pub(super) struct Finished {
    pub(super) tags: Vec<Tag>,
    pub(super) counts: OutcomeCounts,
    /// To be sent by whoever acknowledges the deliveries.
    pub(super) replies: Vec<OwedReply>,
}

enum Stage<I> {
    Received,
    Read(Reading<I>),
    Decided(Decided),
}

/// Decoded messages. `early` has one entry per delivery; for each `None`, the next of `items` still
/// needs the handler's decision.
struct Reading<I> {
    items: Vec<I>,
    early: Vec<Option<Decision>>,
}

#[derive(Default)]
struct Decided {
    copies: Vec<Copy>,
    replies: Vec<OwedReply>,
    /// The outcomes of the messages that are done and of those whose copies are confirmed.
    counts: OutcomeCounts,
}

impl<I> Batch<I> {
    pub(super) fn new(received: Vec<Received>, lane: Lane) -> Self {
        Self { received, lane, stage: Stage::Received }
    }

    pub(super) fn len(&self) -> usize {
        self.received.len()
    }

    pub(super) fn tags(&self) -> Vec<Tag> {
        self.received.iter().map(|received| received.tag).collect()
    }

    /// The AMQP message ids. Every copy has one.
    pub(super) fn ids(&self) -> Vec<String> {
        self.received.iter().filter_map(|received| id_of(&received.delivery)).collect()
    }

    /// Decodes the deliveries, without I/O.
    pub(super) fn read<H>(&mut self, shared: &Shared<H>)
    where
        H: Handler<Item = I>,
    {
        if matches!(self.stage, Stage::Received) {
            self.stage = Stage::Read(read(&self.received, self.lane, shared));
        }
    }

    /// Takes out the requests that need no dependency: those that are refused, and those that are older than
    /// [`REQUEST_TTL`] and so have expired. `None` if there are none.
    pub(super) fn take_decided(&mut self, now: Timestamp, dependency: Dependency) -> Option<Self> {
        let Stage::Read(reading) = &mut self.stage else { return None };
        let mut items = std::mem::take(&mut reading.items).into_iter();
        let early = std::mem::take(&mut reading.early);
        let (mut decided, mut decisions) = (Vec::new(), Vec::new());
        for (received, decision) in std::mem::take(&mut self.received).into_iter().zip(early) {
            let item = if decision.is_none() { items.next() } else { None };
            let expired = || {
                let detail = format!("{dependency} was unavailable for {REQUEST_TTL:?}");
                let refusal = Refusal::new(DeadLetterReason::Expired, detail);
                let has_expired = has_expired(&received, now);
                has_expired.then(|| Decision::Handled(Err(Failure::DeadLetter(refusal))))
            };
            match decision.or_else(expired) {
                Some(decision) => {
                    decided.push(received);
                    decisions.push(Some(decision));
                }
                None => {
                    self.received.push(received);
                    reading.early.push(None);
                    reading.items.extend(item);
                }
            }
        }
        let stage = Stage::Read(Reading { items: Vec::new(), early: decisions });
        (!decided.is_empty()).then_some(Self { received: decided, lane: self.lane, stage })
    }

    /// A new copy, for a queue, of each message that is not settled, with the identity resolved so far.
    /// The copies have no redelivery count.
    pub(super) fn new_copies<H>(&self, queue: &str, shared: &Shared<H>) -> Vec<Copy>
    where
        H: Handler<Item = I>,
    {
        let copy = |position: usize, resolved: Option<Resolved>| {
            let delivery = &self.received[position].delivery;
            let copy = Publication::copy(delivery, queue).resolved(Option::clone(&resolved));
            // In its slow queue it keeps its time limit.
            let in_slow_queue = shared.source.is_slow() && queue == shared.source.queue();
            let level = if in_slow_queue { delivery.fleet_headers().slow_level } else { 0 };
            let copy = copy.slow(level);
            let publication = Arc::new(copy);
            let outcome = DeliveryOutcome::Requeued;
            Copy { position, resolved, publication, outcome }
        };
        match &self.stage {
            Stage::Received => (0..self.len()).map(|position| copy(position, None)).collect(),
            Stage::Read(Reading { items, early }) => {
                let mut items = items.iter();
                let resolved = early.iter().map(|decision| match decision {
                    Some(_) => None,
                    None => items.next().and_then(|item| facts_of(item, shared).resolved),
                });
                resolved.enumerate().map(|(position, resolved)| copy(position, resolved)).collect()
            }
            Stage::Decided(Decided { copies, .. }) => {
                let mut unconfirmed: Vec<&Copy> = copies.iter().collect();
                // Several elements of one message may be unconfirmed.
                unconfirmed.sort_by_key(|it| it.position);
                unconfirmed.dedup_by_key(|it| it.position);
                unconfirmed.into_iter().map(|it| copy(it.position, it.resolved.clone())).collect()
            }
        }
    }

    /// Takes what is known of the messages that have an outcome already.
    pub(super) fn take_outcomes(&mut self) -> (OutcomeCounts, Vec<OwedReply>) {
        let Stage::Decided(decided) = &mut self.stage else { return Default::default() };
        let Decided { copies, mut replies, counts } = std::mem::take(decided);
        replies.retain(|reply| copies.iter().all(|it| it.position != reply.position));
        (counts, replies)
    }

    /// Runs all stages that are left. While a dependency is unavailable, the error contains the batch with
    /// its current stage; call again later.
    pub(super) async fn work<H>(
        mut self,
        shared: &Arc<Shared<H>>,
    ) -> Result<Finished, (Self, Unavailable)>
    where
        H: Handler<Item = I>,
    {
        loop {
            self.stage = match self.stage {
                Stage::Received => Stage::Read(read(&self.received, self.lane, shared)),
                Stage::Read(Reading { items, early }) => {
                    let (items, handled) = decide_whole(items, &self.received, shared).await;
                    let reading = Reading { items, early };
                    match handled {
                        Ok(handled) => {
                            Stage::Decided(settle_all(&self.received, reading, handled, shared))
                        }
                        Err(unavailable) if !failpoints::holds(Guard::HoldInOutage) => {
                            let failed = || Err(Failure::Retry(unavailable.to_string().into()));
                            let handled = reading.items.iter().map(|_| failed()).collect();
                            Stage::Decided(settle_all(&self.received, reading, handled, shared))
                        }
                        Err(unavailable) => {
                            self.stage = Stage::Read(reading);
                            return Err((self, unavailable));
                        }
                    }
                }
                Stage::Decided(Decided { copies, replies, mut counts }) => {
                    let has_copies = !copies.is_empty();
                    let published = publish(copies, &shared.publisher, &mut counts).await;
                    if let Err((copies, unavailable)) = published {
                        self.stage = Stage::Decided(Decided { copies, replies, counts });
                        return Err((self, unavailable));
                    }
                    if has_copies {
                        failpoints::reached(Step::Copied);
                    }
                    let tags = self.received.iter().map(|received| received.tag).collect();
                    return Ok(Finished { tags, counts, replies });
                }
            };
        }
    }
}

/// The number of the time limit that a batch gets. A batch from a slow queue has one message; in other queues the number
/// is 0.
fn slow_level(received: &[Received]) -> u32 {
    let levels = received.iter().map(|it| it.delivery.fleet_headers().slow_level);
    levels.max().unwrap_or(0)
}

fn has_expired(received: &Received, now: Timestamp) -> bool {
    let age = now.micros().saturating_sub(received.clock.micros());
    u128::try_from(age).is_ok_and(|age| age >= REQUEST_TTL.as_micros())
}

fn read<H: Handler>(received: &[Received], lane: Lane, shared: &Shared<H>) -> Reading<H::Item> {
    let mut items = Vec::with_capacity(received.len());
    let early = received.iter().map(|Received { delivery, .. }| {
        let failure_policy = shared.source.failure_policy;
        if let Some(refusal) = refusal_of_unreadable(delivery, failure_policy) {
            return Some(Decision::Handled(Err(Failure::DeadLetter(refusal))));
        }
        if let Some(decision) = decision_by_delivery_count(delivery, lane, shared) {
            return Some(decision);
        }
        match catch_unwind(AssertUnwindSafe(|| shared.handler.decode(delivery))) {
            Ok(Ok(item)) => {
                items.push(item);
                None
            }
            Ok(Err(refusal)) => Some(Decision::Handled(Err(Failure::DeadLetter(refusal)))),
            Err(_) => {
                let panicked = Failure::Retry(shared.observer.panicked("decoding").into());
                Some(Decision::Handled(Err(panicked)))
            }
        }
    });
    let early = early.collect();
    Reading { items, early }
}

/// The decision that follows from the redelivery count alone, if any.
fn decision_by_delivery_count<H>(
    delivery: &Delivery,
    lane: Lane,
    shared: &Shared<H>,
) -> Option<Decision> {
    let redeliveries = delivery.delivery_count();
    let is_recorded = || id_of(delivery).is_some_and(|id| shared.broker_requeues.contains(&id));
    let refuse = |detail: String| {
        let refusal = Refusal::new(DeadLetterReason::DeliveryLimit, detail);
        Some(Decision::Handled(Err(Failure::DeadLetter(refusal))))
    };
    match (lane, shared.source.failure_policy) {
        // It is no suspect: it is alone in its consumer already, and as a suspect it would come back with count 0.
        (Lane::Main, FailurePolicy::DeadLetter(_)) if shared.source.is_slow() => {
            if redeliveries < SLOW_MESSAGE_LIMIT || is_recorded() {
                return None;
            }
            refuse(format!(
                "in the slow queue it was redelivered {redeliveries} times without an outcome"
            ))
        }
        (Lane::Main, FailurePolicy::DeadLetter(queue))
            if redeliveries >= QUARANTINE_AFTER && failpoints::holds(Guard::Quarantine) =>
        {
            Some(Decision::Quarantine(queue))
        }
        (Lane::Main, FailurePolicy::Expire) if redeliveries >= QUARANTINE_AFTER => {
            refuse(format!("the request was redelivered {redeliveries} times without an outcome"))
        }
        (Lane::Suspects, _) if redeliveries >= SUSPECT_LIMIT => refuse(format!(
            "as a suspect it was redelivered {redeliveries} times without an outcome; for all but the first \
             of them it was handled alone"
        )),
        _ => None,
    }
}

/// The AMQP message id. Every copy has one, also a copy of a message that had none.
pub(super) fn id_of(delivery: &Delivery) -> Option<String> {
    delivery.amqp_properties().message_id().as_ref().map(ToString::to_string)
}

/// Why a message is refused of which the client library cannot read all. A dead letter is stored with what cannot be
/// read.
fn refusal_of_unreadable(delivery: &Delivery, failure_policy: FailurePolicy) -> Option<Refusal> {
    match failure_policy {
        FailurePolicy::DeadLetter(_) | FailurePolicy::Expire => delivery.unreadable(),
        FailurePolicy::RetryForever(_) => None,
    }
}

/// Calls the handler in a task of its own: a session that ends drops its batches, and a handler must not be dropped
/// between two of its effects. A drain waits for it; only the end of the process stops it. Until it ends, what it was
/// called with counts as in memory.
async fn decide_whole<H: Handler>(
    items: Vec<H::Item>,
    received: &[Received],
    shared: &Arc<Shared<H>>,
) -> (Vec<H::Item>, Result<Vec<Handled>, Unavailable>) {
    let slow_level = slow_level(received);
    let large = received.iter().filter(|it| it.is_large);
    let large: Vec<Bytes> = large.map(|it| it.delivery.body.clone()).collect();
    // Headers do not count: they are dropped with the session.
    let small = received.iter().filter(|it| !it.is_large).map(|it| it.extent.bytes);
    let in_memory = (shared.bytes_in_calls.room_for(small.sum()).await, large);
    let (calls, shared) = (shared.calls.clone(), shared.clone());
    let work = async move {
        let handled = decide(&items, shared.handler(slow_level), &shared).await;
        drop(in_memory);
        (items, handled)
    };
    match calls.spawn(work.in_current_span()).await {
        Ok(decided) => decided,
        Err(ended) => match ended.try_into_panic() {
            // A bug of this crate: panics of the handler are caught.
            Ok(panic) => resume_unwind(panic),
            // The process ends.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Calls the handler. After a panic or a wrong number of decisions, it is called once per message.
async fn decide<H: Handler>(
    items: &[H::Item],
    handler: &H,
    shared: &Shared<H>,
) -> Result<Vec<Handled>, Unavailable> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let started = Instant::now();
    let handled = match call_handler(items, handler, shared).await? {
        Ok(handled) => handled,
        Err(failure) if items.len() == 1 => vec![Err(failure)],
        Err(_) => {
            let mut handled = Vec::with_capacity(items.len());
            for item in items {
                match call_handler(std::slice::from_ref(item), handler, shared).await? {
                    Ok(one) => handled.extend(one),
                    Err(failure) => handled.push(Err(failure)),
                }
            }
            handled
        }
    };
    shared.observer.decided(items.len(), started.elapsed());
    Ok(handled)
}

/// One call of the handler. The inner error is a panic or a wrong number of decisions.
async fn call_handler<H: Handler>(
    items: &[H::Item],
    handler: &H,
    shared: &Shared<H>,
) -> Result<Result<Vec<Handled>, Failure>, Unavailable> {
    // Boxed: the compiler computes the size of a future from all futures inside, down to those of the stores, and
    // gives up at a depth of 128.
    let call = AssertUnwindSafe(async { Box::pin(handler.handle(items)).await });
    match call.catch_unwind().await {
        Ok(Ok(handled)) if handled.len() == items.len() => Ok(Ok(handled)),
        Ok(Ok(handled)) => {
            shared.observer.wrong_outcome_count(items.len(), handled.len());
            let cause = "the handler returned a wrong number of outcomes";
            Ok(Err(Failure::Retry(cause.into())))
        }
        Ok(Err(unavailable)) => Err(unavailable),
        Err(_) => Ok(Err(Failure::Retry(shared.observer.panicked("handling").into()))),
    }
}

/// What the item says about its message; nothing when the handler panics.
fn facts_of<H: Handler>(item: &H::Item, shared: &Shared<H>) -> ItemFacts {
    let call = AssertUnwindSafe(|| ItemFacts {
        resolved: shared.handler.resolved(item),
        reply_address: shared.handler.reply_address(item),
    });
    catch_unwind(call).unwrap_or_else(|_| {
        shared.observer.panicked("resolving");
        ItemFacts::default()
    })
}

/// Turns decisions into copies to publish, replies to send and outcomes to count.
fn settle_all<H: Handler>(
    received: &[Received],
    reading: Reading<H::Item>,
    handled: Vec<Handled>,
    shared: &Shared<H>,
) -> Decided {
    let mut handled = reading.items.iter().zip(handled);
    let mut decided = Decided::default();
    for (position, (Received { delivery, .. }, early)) in
        received.iter().zip(reading.early).enumerate()
    {
        let (decision, item) = match early {
            Some(decision) => (decision, None),
            // There are as many decisions as messages without an early one.
            None => match handled.next() {
                Some((item, handled)) => (Decision::Handled(handled), Some(item)),
                None => {
                    let missing = Failure::Retry("the handler returned no outcome".into());
                    (Decision::Handled(Err(missing)), None)
                }
            },
        };
        let facts = || item.map(|item| facts_of(item, shared));
        let settlement = settle(position, delivery, decision, facts, shared);
        settlement.outcome.into_iter().for_each(|outcome| decided.counts.add(outcome));
        decided.copies.extend(settlement.copies);
        decided.replies.extend(settlement.reply);
    }
    decided
}
