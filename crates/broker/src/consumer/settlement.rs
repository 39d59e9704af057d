//! From a decision to what it asks for: the copies that must be confirmed before the original may be
//! acknowledged, and the reply.
//!
//! A retry, a dead letter and a suspect are copies, published with confirms. After a crash between the
//! confirm and the acknowledgement both the copy and the original exist. The message still takes
//! effect once, because the copy carries the identity that the first attempt resolved.

use std::sync::Arc;
use std::time::Duration;

use domain::decode::{self, reply_address};
use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Done, Failure, Refusal, Unavailable};
use domain::failure_policy::SLOW_LIMITS;
use domain::fleet::{Arrivals, WorkQueue};
use domain::reply::ReplyAddress;
use failpoints::Guard;
use metrics::DeliveryOutcome;

use super::outcome_counts::OutcomeCounts;
use super::shared::Shared;
use crate::handler::{Part, ReplyBody};
use crate::source::{FailurePolicy, Source};
use crate::topology::{RetryQueue, UNROUTED, queue_of};
use crate::{Delivery, Handled, Handler, Processed, Publication, PublishError, Publisher};

#[derive(Debug)]
pub(super) enum Decision {
    /// The handler's, or a failure before the handler.
    Handled(Handled),
    /// It was redelivered too often to be handled in a batch: to the suspect queue of this queue.
    Quarantine(WorkQueue),
}

/// What the decoded item says about its message.
#[derive(Debug, Default)]
pub(super) struct ItemFacts {
    pub(super) resolved: Option<Resolved>,
    pub(super) reply_address: Option<ReplyAddress>,
}

#[derive(Default)]
pub(super) struct Settlement {
    /// What became of the message; `None`: its one copy says so once it is confirmed.
    pub(super) outcome: Option<DeliveryOutcome>,
    pub(super) copies: Vec<Copy>,
    pub(super) reply: Option<OwedReply>,
}

/// A copy that RabbitMQ has not confirmed.
#[derive(Clone)]
pub(super) struct Copy {
    pub(super) position: usize,
    pub(super) resolved: Option<Resolved>,
    pub(super) publication: Arc<Publication>,
    /// The outcome of its original, or of an element of it, once it is confirmed.
    pub(super) outcome: DeliveryOutcome,
}

/// A reply that is sent when its message is settled.
#[derive(Debug)]
pub(super) struct OwedReply {
    pub(super) position: usize,
    pub(super) address: ReplyAddress,
    pub(super) body: ReplyBody,
}

/// What the decision about the delivery at `position` asks for. `facts` reads the item, if there is one, and is
/// called only where that is needed.
pub(super) fn settle<H: Handler>(
    position: usize,
    delivery: &Delivery,
    decision: Decision,
    facts: impl Fn() -> Option<ItemFacts>,
    shared: &Shared<H>,
) -> Settlement {
    let copy = |resolved, (publication, outcome)| Copy {
        position,
        resolved,
        publication: Arc::new(publication),
        outcome,
    };
    match decision {
        Decision::Quarantine(queue) => {
            let suspect = Publication::copy(delivery, queue.suspect());
            let copies = vec![copy(None, (suspect, DeliveryOutcome::Quarantined))];
            Settlement { copies, ..Settlement::default() }
        }
        Decision::Handled(Ok(Processed { done, reply, parts })) => {
            let whole = || facts().and_then(|facts| facts.resolved);
            let parts = parts.into_iter().filter_map(|Part { body, resolved, failure }| {
                let failed = fail(&delivery.element(body), failure, resolved, shared);
                let (mut publication, outcome) = failed.copy?;
                // The reply to the whole says what became of its elements.
                publication.reply_to = None;
                Some(copy(whole(), (publication, outcome)))
            });
            let reply = reply.and_then(|body| {
                let address = facts()?.reply_address?;
                Some(OwedReply { position, address, body })
            });
            let outcome = match done {
                Done::Applied => DeliveryOutcome::Applied,
                Done::Duplicate => DeliveryOutcome::Duplicate,
                Done::Erased => DeliveryOutcome::Erased,
            };
            Settlement { outcome: Some(outcome), copies: parts.collect(), reply }
        }
        Decision::Handled(Err(failure)) => {
            let facts = facts().unwrap_or_else(|| ItemFacts {
                resolved: None,
                reply_address: reply_address(&delivery.body, &delivery.envelope()),
            });
            let failed = fail(delivery, failure, facts.resolved.clone(), shared);
            let reply = facts.reply_address.zip(failed.refusal.as_ref());
            let reply = reply.map(|(address, refusal)| OwedReply {
                position,
                address,
                body: Err(refusal.into()),
            });
            let nothing_kept = match failed.refusal {
                Some(Refusal { reason: DeadLetterReason::Expired, .. }) => DeliveryOutcome::Expired,
                _ => DeliveryOutcome::Refused,
            };
            let outcome = failed.copy.is_none().then_some(nothing_kept);
            let copies = failed.copy.map(|failed| copy(facts.resolved, failed));
            Settlement { outcome, copies: copies.into_iter().collect(), reply }
        }
    }
}

struct Failed {
    /// The copy that outlives it; `None` for a request.
    copy: Option<(Publication, DeliveryOutcome)>,
    /// What its sender gets; `None` while another attempt follows.
    refusal: Option<Refusal>,
}

fn fail<H: Handler>(
    delivery: &Delivery,
    failure: Failure,
    resolved: Option<Resolved>,
    shared: &Shared<H>,
) -> Failed {
    let own_queue = shared.source.usual_queue();
    let now = shared.clock.now();
    let slow = shared.source.slow_queue().zip(slow_turn(&failure, delivery, shared.source));
    if let Some((queue, turn)) = slow {
        let conversation = resolved.as_ref().map(|it| &it.conversation);
        let observer = &shared.observer;
        match turn.after {
            None => {
                let limit = turn.limit();
                observer.moved_to_slow_queue(delivery, conversation, queue, limit, &failure);
            }
            Some(retry) => observer.still_fails(delivery, conversation, retry.delay(), &failure),
        }
    }
    let copy_to = |queue| Publication::copy(delivery, queue).resolved(resolved);
    let retries = &shared.settings.retries;
    let retry = next_retry(retries, delivery.fleet_headers().attempt);
    if let Some((queue, turn)) = slow {
        let mut copy = copy_to(queue).slow(turn.level);
        if let FailurePolicy::RetryForever(dead_in) = shared.source.failure_policy {
            copy = copy.same_dead_letter(delivery, dead_in);
        }
        if let Some(retry) = turn.after {
            copy = copy.after(retry);
        }
        return Failed { copy: Some((copy, DeliveryOutcome::Slow)), refusal: None };
    }
    match (failure, shared.source.failure_policy) {
        (failure, FailurePolicy::Expire) => {
            let refusal = failure.into_refusal();
            shared.observer.request_refused(delivery, &refusal);
            Failed { copy: None, refusal: Some(refusal) }
        }
        // A dead letter has no further queue, so it is retried for ever.
        (failure, FailurePolicy::RetryForever(queue)) => {
            let error = failure.to_string();
            let retry = retry.or(retries.last().copied()).unwrap_or(RetryQueue::HalfMinute);
            shared.observer.retried(delivery, None, retry, &error);
            let again = copy_to(own_queue).same_dead_letter(delivery, queue);
            let again = again.with_failed_attempt(&error, now).delayed(retry);
            Failed { copy: Some((again, DeliveryOutcome::Retried)), refusal: None }
        }
        (Failure::DeadLetter(refusal), FailurePolicy::DeadLetter(queue))
            if refusal.reason == DeadLetterReason::UnknownAction
                && is_for_another_queue(delivery, queue) =>
        {
            // Not to that queue itself: while it is missing, this consumer would hold all of its messages. The worker
            // that handles the action replies.
            let copy = copy_to(UNROUTED).rerouted();
            Failed { copy: Some((copy, DeliveryOutcome::Rerouted)), refusal: None }
        }
        (failure, FailurePolicy::DeadLetter(queue)) => match (failure.cause(), retry) {
            (Some(cause), Some(retry)) => {
                let error = cause.to_string();
                shared.observer.retried(delivery, Some(retries.len() + 1), retry, &error);
                let again = copy_to(own_queue).with_failed_attempt(&error, now).delayed(retry);
                Failed { copy: Some((again, DeliveryOutcome::Retried)), refusal: None }
            }
            (cause, _) => {
                let mut dead_letter = copy_to(queue.dlq());
                if let Some(cause) = cause {
                    dead_letter = dead_letter.with_failed_attempt(&cause.to_string(), now);
                }
                let refusal = failure.into_refusal();
                let dead_letter = dead_letter.dead_lettered(own_queue, refusal.clone(), now);
                let copy = Some((dead_letter, DeliveryOutcome::DeadLettered));
                Failed { copy, refusal: Some(refusal) }
            }
        },
    }
}

/// How a message is handled again apart from others.
#[derive(Debug, Clone, Copy)]
struct SlowTurn {
    /// Which of [`SLOW_LIMITS`] it gets, from 1.
    level: u32,
    /// The delay before that.
    after: Option<RetryQueue>,
}

impl SlowTurn {
    /// Its time limit.
    fn limit(self) -> Duration {
        let limit = usize::try_from(self.level)
            .ok()
            .and_then(|level| SLOW_LIMITS.get(level.checked_sub(1)?));
        limit.copied().unwrap_or_default()
    }
}

/// What is too slow goes to the slow queue, and gets the next longer time limit there; what is locked, or fails as in an
/// outage, gets the same again after others. After the longest limit it is an ordinary failure: one attempt is counted.
fn slow_turn(failure: &Failure, delivery: &Delivery, source: Source) -> Option<SlowTurn> {
    if !failpoints::holds(Guard::SlowQueue) {
        return None;
    }
    // From another queue it begins anew.
    let level = if source.is_slow() { delivery.fleet_headers().slow_level.max(1) } else { 0 };
    match failure {
        Failure::TimedOut(_) if usize::try_from(level).is_ok_and(|it| it < SLOW_LIMITS.len()) => {
            Some(SlowTurn { level: level + 1, after: None })
        }
        Failure::Locked(_) | Failure::Unavailable(_) if level == 0 => {
            Some(SlowTurn { level: 1, after: None })
        }
        Failure::Locked(_) | Failure::Unavailable(_) => {
            Some(SlowTurn { level, after: Some(RetryQueue::FiveSeconds) })
        }
        Failure::TimedOut(_) | Failure::Retry(_) | Failure::DeadLetter(_) => None,
    }
}

/// Whether a refused message is an action that was published with the routing key of another one.
fn is_for_another_queue(delivery: &Delivery, queue: WorkQueue) -> bool {
    let is_of_actions = queue.arrivals() == Arrivals::Actions;
    is_of_actions
        && !delivery.fleet_headers().rerouted
        && decode::kind(&delivery.body, usize::MAX)
            .is_some_and(|kind| queue_of(kind) != queue.name())
}

/// The delay after this attempt (the first is 1); `None` after the last.
fn next_retry(retries: &[RetryQueue], attempt: u32) -> Option<RetryQueue> {
    let index = usize::try_from(attempt).ok()?.checked_sub(1)?;
    retries.get(index).copied()
}

/// Publishes the copies and counts the outcomes of those that RabbitMQ confirmed; the error contains the
/// others. A copy that does not fit into AMQP's limits is published as a minimal copy, because it would never
/// fit.
pub(super) async fn publish(
    copies: Vec<Copy>,
    publisher: &Publisher,
    counts: &mut OutcomeCounts,
) -> Result<(), (Vec<Copy>, Unavailable)> {
    if !failpoints::holds(Guard::CopyBeforeAcknowledgement) {
        return Ok(());
    }
    let (mut to_send, mut unconfirmed) = (copies, Vec::new());
    let mut failure = None;
    while !to_send.is_empty() {
        let publications: Vec<_> = to_send.iter().map(|it| it.publication.clone()).collect();
        let results = publisher.publish_all(publications).await;
        let mut minimal = Vec::new();
        for (copy, result) in to_send.into_iter().zip(results) {
            let Err(error) = result else {
                counts.add(copy.outcome);
                continue;
            };
            let shorter = matches!(error, PublishError::TooLong(_))
                .then(|| copy.publication.minimal())
                .flatten();
            match shorter {
                Some(shorter) => minimal.push(Copy { publication: Arc::new(shorter), ..copy }),
                None => {
                    unconfirmed.push(copy);
                    failure = Some(error);
                }
            }
        }
        to_send = minimal;
    }
    match failure {
        Some(error) => Err((unconfirmed, error.into())),
        None => Ok(()),
    }
}

/// Queues the replies to settled messages. Nothing waits for them.
pub(super) fn reply<H>(replies: Vec<OwedReply>, shared: &Shared<H>) {
    for OwedReply { address, body, .. } in replies {
        shared.replier.reply(address, body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Endpoints;
    use crate::topology::{self, WorkQueue};

    #[tokio::test]
    async fn a_copy_with_a_property_too_long_for_amqp_is_published_without_it() {
        let env = testkit::TestEnv::new().await;
        let endpoints = Endpoints::parse(&env.amqp_url, "test").unwrap();
        topology::declare(&endpoints).await.unwrap();
        let publisher = Publisher::new(endpoints.clone(), metrics::Metrics::new());
        let queue = WorkQueue::Session.dlq();
        let fits = Publication::to_queue(queue, b"fits".to_vec());
        let mut long = Publication::to_queue(queue, b"long".to_vec());
        long.correlation_id = Some("x".repeat(256));
        let copies = [long, fits].into_iter().enumerate().map(|(position, publication)| Copy {
            position,
            resolved: None,
            publication: Arc::new(publication),
            outcome: DeliveryOutcome::DeadLettered,
        });
        let mut counts = OutcomeCounts::default();
        assert!(publish(copies.collect(), &publisher, &mut counts).await.is_ok());
        assert_eq!(counts.of(DeliveryOutcome::DeadLettered), 2);
        let connection = endpoints.connect("inspect").await.unwrap();
        assert_eq!(crate::inspect::depth(&connection, queue).await.unwrap().ready, 2);
    }
}
