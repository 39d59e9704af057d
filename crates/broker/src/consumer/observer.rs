//! The metrics and log lines of a consumer: one function per event, with its metric and its log line.

use std::fmt::Display;
use std::time::Duration;

use domain::causes::with_causes;
use domain::failure::{Dependency, Failure, Refusal, Unavailable};
use domain::failure_policy::{LONGEST_PAUSE, QUARANTINE_AFTER, REQUEST_TTL};
use domain::ids::ConversationId;
use domain::reply::ErrorType;
use metrics::{
    ConsumerRestart, Counter, DeliveryOutcome, Gauge, Metrics, QueueState, RetryClass, Size, Timing,
};

use super::end::End;
use super::outcome_counts::OutcomeCounts;
use super::settings::Settings;
use crate::Delivery;
use crate::connection::Error;
use crate::topology::RetryQueue;

pub(super) struct Observer {
    queue: &'static str,
    metrics: Metrics,
}

impl Observer {
    pub(super) fn new(queue: &'static str, metrics: Metrics) -> Self {
        Self { queue, metrics }
    }

    /// A session is registered with the queue, after an interruption of `down`; `None` at the start of
    /// the process.
    pub(super) fn consuming(&self, prefetch: u16, down: Option<Duration>) {
        let queue = self.queue;
        self.metrics.add(Counter::BrokerConnections, 1);
        self.metrics.set(Gauge::Prefetch { queue }, f64::from(prefetch));
        match down.map(seconds) {
            None => tracing::info!(queue, prefetch, "consuming with prefetch {prefetch}"),
            Some(after) => tracing::info!(
                queue,
                prefetch,
                "consuming again after {after}, with prefetch {prefetch}"
            ),
        }
    }

    /// How many deliveries this process has not acknowledged. AMQP does not report this number.
    pub(super) fn unacknowledged(&self, deliveries: usize) {
        let (queue, state) = (self.queue, QueueState::Unacknowledged);
        let deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
        self.metrics.set(Gauge::QueueMessages { queue, state }, f64::from(deliveries));
    }

    pub(super) fn prefetch_changed(&self, from: u16, to: u16, settings: &Settings) {
        self.count_prefetch_change(to);
        tracing::info!(
            queue = self.queue,
            prefetch = to,
            max_inflight_bytes = settings.max_inflight_bytes,
            "prefetch changes from {from} to {to}, by the measured body sizes (max_inflight_bytes)"
        );
    }

    pub(super) fn requeued_over_byte_limit(
        &self,
        requeued: usize,
        prefetch: u16,
        settings: &Settings,
    ) {
        let (queue, max_inflight_bytes) = (self.queue, settings.max_inflight_bytes);
        let deliveries = count(requeued, "delivery", "deliveries");
        tracing::warn!(
            queue,
            requeued,
            prefetch,
            max_inflight_bytes,
            "in-flight byte limit reached (max_inflight_bytes); requeuing {deliveries} and \
             lowering prefetch to {prefetch}"
        );
    }

    pub(super) fn count_prefetch_change(&self, prefetch: u16) {
        let (queue, cause) = (self.queue, ConsumerRestart::Prefetch);
        self.metrics.add(Counter::ConsumerRestarts { queue, cause }, 1);
        self.metrics.set(Gauge::Prefetch { queue }, f64::from(prefetch));
    }

    pub(super) fn suspects_unreadable(&self, suspects: &'static str, error: &Error) {
        let error = with_causes(error);
        tracing::error!(
            queue = self.queue,
            suspects,
            error,
            "cannot read the suspect queue {suspects}; its messages are not handled; if it is \
             missing, run `verbatim setup`"
        );
    }

    pub(super) fn redelivered(&self, redelivered: usize) {
        if redelivered > 0 {
            self.metrics.add(Counter::Redeliveries { queue: self.queue }, redelivered as u64);
        }
    }

    pub(super) fn decided(&self, messages: usize, took: Duration) {
        let queue = self.queue;
        self.metrics.observe(Timing::Batch { queue }, took);
        self.metrics.measure(Size::Batch { queue }, messages);
    }

    pub(super) fn settled(&self, counts: &OutcomeCounts) {
        let queue = self.queue;
        for (outcome, number) in counts.iter() {
            self.metrics.add(Counter::Deliveries { queue, outcome }, number);
            if outcome == DeliveryOutcome::Quarantined {
                let messages = count(number, "message", "messages");
                tracing::warn!(
                    queue,
                    quarantined = number,
                    "{messages} requeued {QUARANTINE_AFTER} times without an outcome; moved to \
                     {queue}.suspect, where they are handled apart from the queue"
                );
            }
        }
    }

    /// An attempt failed and another one follows after `retry`. Without `max_attempts` messages of this
    /// queue are retried for ever.
    pub(super) fn retried(
        &self,
        delivery: &Delivery,
        max_attempts: Option<usize>,
        retry: RetryQueue,
        error: &str,
    ) {
        let (queue, class) = (self.queue, RetryClass::Retryable);
        self.metrics.add(Counter::Retries { queue, class }, 1);
        let (attempt, delay) = (delivery.fleet_headers().attempt, retry.delay().as_secs());
        let limit = max_attempts.map_or(", no limit".to_owned(), |most| format!(" of {most}"));
        tracing::warn!(
            queue,
            message_id = delivery.envelope().message_id,
            trace_id = delivery.trace_id(),
            attempt,
            error,
            "message failed (attempt {attempt}{limit}); retrying in {delay} s"
        );
    }

    /// A message that fails by itself, and not by its fault, is moved to the slow queue, or gets the next longer limit
    /// there.
    pub(super) fn moved_to_slow_queue(
        &self,
        delivery: &Delivery,
        conversation: Option<&ConversationId>,
        slow_queue: &'static str,
        limit: Duration,
        failure: &Failure,
    ) {
        let why = match failure {
            Failure::Locked(_) => "another transaction holds a row that it needs",
            Failure::Unavailable(_) => "PostgreSQL fails with it, and accepts others",
            _ => "it is too slow",
        };
        tracing::warn!(
            queue = self.queue,
            message_id = delivery.envelope().message_id,
            conversation = conversation.map(tracing::field::display),
            trace_id = delivery.trace_id(),
            error = %failure,
            "message moved to {slow_queue}, because {why}; others go on. It is handled again there, with a time limit of \
             {limit:?}, without a counted attempt"
        );
    }

    /// A message of a slow queue is still locked, or PostgreSQL still fails with it. This repeats for as long as that lasts.
    pub(super) fn still_fails(
        &self,
        delivery: &Delivery,
        conversation: Option<&ConversationId>,
        delay: Duration,
        failure: &Failure,
    ) {
        let (queue, delay) = (self.queue, delay.as_secs());
        tracing::debug!(
            queue,
            message_id = delivery.envelope().message_id,
            conversation = conversation.map(tracing::field::display),
            trace_id = delivery.trace_id(),
            error = %failure,
            "message still locked or not accepted; handled again in {delay} s"
        );
    }

    /// Nothing of a request is kept; its sender gets the refusal. What is no fault of the sender is for the
    /// operators.
    pub(super) fn request_refused(&self, delivery: &Delivery, refusal: &Refusal) {
        let (queue, trace_id) = (self.queue, delivery.trace_id());
        let message_id = delivery.envelope().message_id;
        match ErrorType::from(refusal.reason) {
            ErrorType::Internal => {
                tracing::warn!(queue, message_id, trace_id, error = %refusal, "request failed");
            }
            _ => tracing::debug!(queue, message_id, trace_id, error = %refusal, "request refused"),
        }
    }

    /// A body over the limit: RabbitMQ dead-letters its message.
    pub(super) fn body_too_large(&self, bytes: u64) {
        let (queue, outcome) = (self.queue, DeliveryOutcome::DeadLettered);
        self.metrics.add(Counter::Deliveries { queue, outcome }, 1);
        tracing::warn!(
            queue,
            bytes,
            "a body of {bytes} bytes is larger than VERBATIM_MAX_BODY_BYTES; the message was rejected, and RabbitMQ \
             dead-letters it"
        );
    }

    /// Counts and logs a caught panic of the handler. Returns the text for the message's history. The
    /// panic message is left out, because it may quote a body. The location is in the log line of the
    /// process's panic hook, which also counts panics of every kind.
    pub(super) fn panicked(&self, what: &'static str) -> String {
        let queue = self.queue;
        self.metrics.add(Counter::HandlerPanics { queue }, 1);
        tracing::error!(
            queue,
            what,
            "the handler panicked while {what}; the log line of the panic hook before this one names \
             the location"
        );
        format!("the handler panicked while {what}; the worker's log names the location")
    }

    pub(super) fn wrong_outcome_count(&self, items: usize, outcomes: usize) {
        let queue = self.queue;
        tracing::error!(
            queue,
            items,
            outcomes,
            "the handler returned {outcomes} outcomes for {items} messages; it must return one for each"
        );
    }

    /// A batch or a suspect is held, for `limit` at most; `None`: each request until it expires. `unacked`
    /// counts all unacknowledged deliveries of this process.
    pub(super) fn held(&self, unavailable: &Unavailable, unacked: usize, limit: Option<Duration>) {
        let (queue, dependency) = (self.queue, unavailable.dependency);
        self.metrics.add(Counter::Holds { queue, dependency }, 1);
        self.metrics.add(Counter::Retries { queue, class: RetryClass::Unavailable }, 1);
        let cause = with_causes(unavailable);
        let then = match limit {
            Some(limit) => format!(
                "consumption paused, {} unacknowledged, requeued after {} (hold_limit)",
                count(unacked, "message", "messages"),
                seconds(limit)
            ),
            None => format!(
                "{} unacknowledged, each refused {} after it was received",
                count(unacked, "request", "requests"),
                seconds(REQUEST_TTL)
            ),
        };
        tracing::warn!(
            queue,
            dependency = dependency.as_str(),
            unacked,
            cause,
            "{dependency} unavailable; {then}"
        );
    }

    pub(super) fn hold_ended(&self, dependency: Dependency, held: Duration) {
        let held_ms = self.observe_hold(dependency, held);
        let after = seconds(held);
        tracing::info!(
            queue = self.queue,
            dependency = dependency.as_str(),
            held_ms,
            "{dependency} available again after {after}; consumption resumed"
        );
    }

    pub(super) fn suspects_handled(&self, suspects: &'static str, handled: u64, took: Duration) {
        let (messages, took) = (count(handled, "suspect", "suspects"), seconds(took));
        tracing::info!(
            queue = self.queue,
            suspects,
            handled,
            "{messages} from {suspects} handled in {took}"
        );
    }

    /// Held suspects are requeued as new copies, because of a shutdown or of the hold limit.
    pub(super) fn suspects_requeued(
        &self,
        requeued: u64,
        dependency: Dependency,
        held: Duration,
        shutdown: bool,
    ) {
        let held_ms = self.observe_hold(dependency, held);
        let (queue, after) = (self.queue, seconds(held));
        let suspects = count(requeued, "suspect", "suspects");
        let why = if shutdown { "shutdown" } else { "hold_limit" };
        tracing::warn!(
            queue,
            dependency = dependency.as_str(),
            held_ms,
            requeued,
            "{dependency} unavailable for {after} ({why}); {suspects} requeued as new copies"
        );
    }

    /// Measures a hold that is over; its duration in milliseconds.
    fn observe_hold(&self, dependency: Dependency, held: Duration) -> u64 {
        self.metrics.observe(Timing::Hold { queue: self.queue, dependency }, held);
        u64::try_from(held.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn acks_lost(&self, count: usize) {
        let queue = self.queue;
        self.metrics.add(Counter::AcksLost { queue }, count as u64);
        tracing::warn!(
            queue,
            count,
            "acknowledgements lost with their channel: {count}; RabbitMQ redelivers the messages"
        );
    }

    pub(super) fn requeued(&self, count: usize) {
        let (queue, outcome) = (self.queue, DeliveryOutcome::Requeued);
        self.metrics.add(Counter::Deliveries { queue, outcome }, count as u64);
    }

    /// No session could be opened. `log`: whether this failure is worth a line, among others like it.
    pub(super) fn not_registered(&self, error: &Error, log: bool) {
        let (queue, cause) = (self.queue, ConsumerRestart::Error);
        self.metrics.add(Counter::ConsumerRestarts { queue, cause }, 1);
        let error = with_causes(error);
        if log {
            let pause = seconds(LONGEST_PAUSE);
            tracing::warn!(queue, error, "cannot consume; connecting again at most every {pause}");
        } else {
            tracing::debug!(queue, error, "cannot consume");
        }
    }

    pub(super) fn session_ended(&self, end: &End, requeued: usize, settings: &Settings) {
        let queue = self.queue;
        let messages = count(requeued, "message", "messages");
        let (hold, stall) = (seconds(settings.hold_limit), seconds(settings.stall_limit));
        let restarts = |cause| self.metrics.add(Counter::ConsumerRestarts { queue, cause }, 1);
        let (cause, error) = match end {
            End::Drained => {
                tracing::info!(queue, requeued, "consumer drained; {messages} requeued");
                return;
            }
            End::QueueEmpty => {
                self.metrics.set(Gauge::Prefetch { queue }, 0.0);
                tracing::info!(
                    queue,
                    "the slow queue is empty; consumed again once it has messages"
                );
                return;
            }
            End::HoldLimitReached(dependency) => {
                restarts(ConsumerRestart::Hold);
                tracing::warn!(
                    queue,
                    dependency = dependency.as_str(),
                    requeued,
                    "{dependency} unavailable for {hold} (hold_limit); {messages} requeued; consumption \
                     resumes when {dependency} is available"
                );
                return;
            }
            End::StreamEnded => (
                ConsumerRestart::StreamEnded,
                "RabbitMQ cancelled the consumer: its queue was deleted or lost its leader"
                    .to_owned(),
            ),
            End::NoProgress => (
                ConsumerRestart::NoProgress,
                format!("no delivery for {stall} (stall_limit) although messages are ready"),
            ),
            End::Gap(gap) => (ConsumerRestart::Error, gap.to_string()),
            End::ChannelClosed => (ConsumerRestart::Error, "the channel closed".to_owned()),
            End::TaskPanicked => {
                (ConsumerRestart::Error, "a task of the consumer panicked".to_owned())
            }
            End::Failed(error) => (ConsumerRestart::Error, with_causes(error)),
        };
        restarts(cause);
        tracing::warn!(queue, requeued, error, "consumer restarting; {messages} requeued");
    }
}

fn count<N: Copy + Display + PartialEq + From<u8>>(number: N, one: &str, many: &str) -> String {
    let noun = if number == N::from(1) { one } else { many };
    format!("{number} {noun}")
}

/// A duration in seconds, to the tenth.
fn seconds(duration: Duration) -> String {
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_log_lines_have_their_unit() {
        assert_eq!(count(1_u64, "message", "messages"), "1 message");
        assert_eq!(count(0_usize, "message", "messages"), "0 messages");
        assert_eq!(seconds(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(seconds(Duration::from_mins(5)), "300 s");
    }
}
