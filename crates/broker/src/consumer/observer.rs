//! What a consumer counts and logs: each event in one place, its log line and its metric together.

use std::time::Duration;

use domain::causes::with_causes;
use domain::failure::{Dependency, Done, Unavailable};
use metrics::{
    ConsumerRestart, Counter, DeliveryOutcome, Gauge, Metrics, QueueState, RetryClass, Size, Timing,
};

use super::batch::Received;
use super::session::End;
use crate::connection::Error;

/// The consumer's voice; knows its queue.
pub(super) struct Observer {
    queue: &'static str,
    metrics: Metrics,
}

/// How the messages of a batch ended, by outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OutcomeCounts(Vec<(DeliveryOutcome, u64)>);

impl OutcomeCounts {
    pub(super) fn add(&mut self, outcome: DeliveryOutcome) {
        match self.0.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, count)) => *count += 1,
            None => self.0.push((outcome, 1)),
        }
    }
}

/// The label of a final and good outcome.
pub(super) fn outcome_of(done: Done) -> DeliveryOutcome {
    match done {
        Done::Applied => DeliveryOutcome::Applied,
        Done::Duplicate => DeliveryOutcome::Duplicate,
        Done::Erased => DeliveryOutcome::Erased,
    }
}

impl Observer {
    pub(super) fn new(queue: &'static str, metrics: Metrics) -> Self {
        Self { queue, metrics }
    }

    pub(super) fn consuming(&self, prefetch: u16) {
        let queue = self.queue;
        self.metrics.add(Counter::BrokerConnections, 1);
        self.metrics.set(Gauge::Prefetch { queue }, f64::from(prefetch));
        tracing::info!(queue, prefetch, "consuming");
    }

    /// How many deliveries this process has not acknowledged: what AMQP tells nobody else.
    pub(super) fn holds(&self, deliveries: usize) {
        let (queue, state) = (self.queue, QueueState::Unacknowledged);
        let deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
        self.metrics.set(Gauge::QueueMessages { queue, state }, f64::from(deliveries));
    }

    pub(super) fn prefetch_changes(&self, prefetch: u16) {
        let (queue, cause) = (self.queue, ConsumerRestart::Prefetch);
        self.metrics.add(Counter::ConsumerRestarts { queue, cause }, 1);
        self.metrics.set(Gauge::Prefetch { queue }, f64::from(prefetch));
        tracing::info!(queue, prefetch, "prefetch changes to what bodies measure");
    }

    pub(super) fn overrun(&self, prefetch: u16) {
        self.prefetch_changes(prefetch);
        let queue = self.queue;
        tracing::warn!(queue, "no room for all that comes; what there is none for goes back");
    }

    pub(super) fn suspects_unreadable(&self, suspects: &'static str, error: &Error) {
        let error = with_causes(error);
        tracing::error!(queue = self.queue, suspects, error, "cannot read the suspects");
    }

    pub(super) fn received(&self, messages: &[Received]) {
        let redelivered = messages.iter().filter(|it| it.delivery.redelivered).count();
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
        for &(outcome, count) in &counts.0 {
            self.metrics.add(Counter::Deliveries { queue, outcome }, count);
        }
    }

    pub(super) fn retried(&self, message_id: Option<&str>, attempt: u32, error: &str) {
        let (queue, class) = (self.queue, RetryClass::Retryable);
        self.metrics.add(Counter::Retries { queue, class }, 1);
        tracing::warn!(queue, message_id, attempt, error, "an attempt failed; another one follows");
    }

    /// Says that a panic of the handler was contained, and gives the sentence for the message's
    /// history. The panic's own words are not in it: they may quote the message's. Its place is in
    /// the line of the process's panic hook, which also counts panics of every kind.
    pub(super) fn panicked(&self, what: &'static str) -> String {
        let queue = self.queue;
        self.metrics.add(Counter::HandlerPanics { queue }, 1);
        tracing::error!(queue, what, "a panic was contained; the line before says where it was");
        format!("{what} panicked; the worker's log says where")
    }

    pub(super) fn answered_wrongly(&self, items: usize, outcomes: usize) {
        let queue = self.queue;
        tracing::error!(queue, items, outcomes, "the handler must give one outcome per item");
    }

    pub(super) fn held(&self, unavailable: &Unavailable) {
        let (queue, dependency) = (self.queue, unavailable.dependency);
        self.metrics.add(Counter::Holds { queue, dependency }, 1);
        self.metrics.add(Counter::Retries { queue, class: RetryClass::Unavailable }, 1);
        let cause = with_causes(unavailable);
        tracing::warn!(queue, dependency = dependency.as_str(), cause, "holding a batch");
    }

    pub(super) fn hold_ended(&self, dependency: Dependency, held: Duration) {
        let queue = self.queue;
        self.metrics.observe(Timing::Hold { queue, dependency }, held);
        let held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(queue, dependency = dependency.as_str(), held_ms, "the store is back");
    }

    pub(super) fn acks_lost(&self, count: usize) {
        let queue = self.queue;
        self.metrics.add(Counter::AcksLost { queue }, count as u64);
        tracing::warn!(queue, count, "acknowledgements lost with their channel; they come again");
    }

    pub(super) fn requeued(&self, count: usize) {
        let (queue, outcome) = (self.queue, DeliveryOutcome::Requeued);
        self.metrics.add(Counter::Deliveries { queue, outcome }, count as u64);
    }

    pub(super) fn session_ended(&self, end: &End) {
        let queue = self.queue;
        let (cause, error) = match end {
            End::Drained => {
                tracing::info!(queue, "drained");
                return;
            }
            End::HeldTooLong(dependency) => {
                (ConsumerRestart::Hold, format!("{dependency} stays away"))
            }
            End::StreamEnded => {
                (ConsumerRestart::StreamEnded, "the broker cancelled the consumer".to_owned())
            }
            End::NoProgress => {
                (ConsumerRestart::NoProgress, "messages are ready and none comes".to_owned())
            }
            End::Gap(gap) => (ConsumerRestart::Error, gap.to_string()),
            End::ChannelDied => (ConsumerRestart::Error, "the channel died".to_owned()),
            End::TaskDied => (ConsumerRestart::Error, "a task of the consumer died".to_owned()),
            End::IsolatedMessagePassed => {
                (ConsumerRestart::Prefetch, "messages can be read again".to_owned())
            }
            End::Failed(error) => (ConsumerRestart::Error, with_causes(error)),
        };
        self.metrics.add(Counter::ConsumerRestarts { queue, cause }, 1);
        tracing::warn!(queue, error, "the consumer ended and will be built anew");
    }
}
