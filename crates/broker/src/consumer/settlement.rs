//! From a decision to the copy that must be confirmed before the original may be acknowledged.
//!
//! A retry, a dead letter and a suspect are copies, published with confirms. After a crash between the
//! confirm and the acknowledgement both the copy and the original exist. The message still takes
//! effect once, because the copy carries the identity that the first attempt resolved.

use std::sync::Arc;

use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, FailureClass, Refusal, Unavailable};
use metrics::DeliveryOutcome;

use super::settings::FailurePolicy;
use super::shared::Shared;
use crate::topology::RetryQueue;
use crate::{Delivery, Handler, Publication, Publisher};

/// The decision about a message that is not done.
pub(super) enum Decision {
    /// Another attempt after a delay, because of this error.
    Retry(String),
    /// No further attempt can succeed.
    DeadLetter(Refusal),
    /// It was redelivered too often to be handled in a batch: to the suspect queue.
    Quarantine,
}

/// A copy that RabbitMQ has not confirmed.
#[derive(Clone)]
pub(super) struct Copy {
    /// The position of its original in the batch.
    pub(super) position: usize,
    pub(super) publication: Arc<Publication>,
    /// The outcome of its original, once it is confirmed.
    pub(super) outcome: DeliveryOutcome,
}

/// The copy that must be confirmed before the original may be acknowledged.
pub(super) fn copy_for<H: Handler>(
    delivery: &Delivery,
    decision: Decision,
    resolved: Option<Resolved>,
    shared: &Shared<H>,
) -> (Publication, DeliveryOutcome) {
    let own_queue = shared.source.queue();
    let now = shared.clock.now();
    let copy_to = |queue| Publication::copy(delivery, queue).resolved(resolved);
    let message_id = delivery.envelope().message_id;
    let attempt = delivery.fleet_headers().attempt;
    match (decision, shared.source.failure_policy) {
        (Decision::Quarantine, FailurePolicy::DeadLetter(queue)) => {
            (copy_to(queue.suspect()), DeliveryOutcome::Quarantined)
        }
        (Decision::DeadLetter(refusal), FailurePolicy::DeadLetter(queue)) => {
            let dead_letter = copy_to(queue.dlq()).dead_lettered(own_queue, refusal, now);
            (dead_letter, DeliveryOutcome::DeadLettered)
        }
        (Decision::Retry(error), FailurePolicy::DeadLetter(queue)) => {
            match next_retry(&shared.settings.retries, attempt) {
                Some(retry) => {
                    let max_attempts = Some(shared.settings.retries.len() + 1);
                    shared.observer.retried(message_id, attempt, max_attempts, retry, &error);
                    let again = copy_to(own_queue).with_failed_attempt(&error, now).delayed(retry);
                    (again, DeliveryOutcome::Retried)
                }
                None => {
                    let exhausted = DeadLetterReason::AttemptsExhausted;
                    let refusal = Refusal::new(exhausted, error.clone());
                    let dead_letter = copy_to(queue.dlq()).with_failed_attempt(&error, now);
                    (
                        dead_letter.dead_lettered(own_queue, refusal, now),
                        DeliveryOutcome::DeadLettered,
                    )
                }
            }
        }
        // A dead letter has no further queue, so it is retried for ever.
        (failed, FailurePolicy::RetryForever) => {
            let error = failed.to_string();
            let longest = shared.settings.retries.last().copied();
            let retry = next_retry(&shared.settings.retries, attempt).or(longest);
            let retry = retry.unwrap_or(RetryQueue::HalfMinute);
            shared.observer.retried(message_id, attempt, None, retry, &error);
            let again =
                copy_to(own_queue).with_reason_of(delivery).with_failed_attempt(&error, now);
            (again.delayed(retry), DeliveryOutcome::Retried)
        }
    }
}

/// The delay after this attempt (the first is 1); `None` after the last.
fn next_retry(retries: &[RetryQueue], attempt: u32) -> Option<RetryQueue> {
    let index = usize::try_from(attempt).ok()?.checked_sub(1)?;
    retries.get(index).copied()
}

/// Publishes the copies.
///
/// A copy that does not fit into AMQP's limits is published as a minimal copy, because it would never
/// fit.
///
/// # Errors
/// RabbitMQ did not confirm some of the copies; the error contains these.
pub(super) async fn publish(
    copies: Vec<Copy>,
    publisher: &Publisher,
) -> Result<(), (Vec<Copy>, Unavailable)> {
    let (mut to_send, mut unconfirmed) = (copies, Vec::new());
    let mut failure = None;
    while !to_send.is_empty() {
        let publications: Vec<_> = to_send.iter().map(|it| it.publication.clone()).collect();
        let results = publisher.publish_all(publications).await;
        let mut minimal = Vec::new();
        for (copy, result) in to_send.into_iter().zip(results) {
            let Err(error) = result else { continue };
            let shorter = (error.class() == FailureClass::Data)
                .then(|| copy.publication.minimal())
                .filter(|shorter| *shorter != *copy.publication);
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

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retry(error) => f.write_str(error),
            Self::DeadLetter(refusal) => refusal.fmt(f),
            Self::Quarantine => f.write_str("redelivered too often"),
        }
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
            publication: Arc::new(publication),
            outcome: DeliveryOutcome::DeadLettered,
        });
        assert!(publish(copies.collect(), &publisher).await.is_ok());
        let connection = endpoints.connect("inspect").await.unwrap();
        assert_eq!(crate::inspect::depth(&connection, queue).await.unwrap().ready, 2);
    }
}
