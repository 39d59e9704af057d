//! The message of a slow queue that is being handled: what becomes of it if the session ends first.
//!
//! Handling may take minutes, and a stop does not wait for it. A requeue by RabbitMQ would count as a crash, and a
//! rollout may stop one replica after the other while each has the message. In an outage one replica after the other may
//! hold it until the hold limit. So then it is published again, and its copy has no redelivery count. Where RabbitMQ requeues it while this process lives, the next delivery does not count
//! either.

use std::time::Duration;

use tokio::time::timeout;

use super::state::{Session, SlowMessage};
use crate::Handler;
use crate::consumer::batch::Batch;
use crate::consumer::end::End;
use crate::consumer::outcome_counts::OutcomeCounts;
use crate::consumer::settlement::publish;
use crate::source::FailurePolicy;

/// How long a stop waits for the confirm of the copy.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);

impl<H: Handler> Session<H> {
    /// Keeps what is needed to requeue the message as a new copy. Dead letters have no limit of redeliveries.
    pub(super) fn keep_slow_message(&mut self, batch: &mut Batch<H::Item>) {
        let source = self.shared.source;
        if source.is_slow() && matches!(source.failure_policy, FailurePolicy::DeadLetter(_)) {
            // With the identity that it has now: this call may still store it.
            batch.read(&self.shared);
            self.slow = SlowMessage {
                tags: batch.tags(),
                ids: batch.ids(),
                copies: batch.new_copies(source.queue(), &self.shared),
            };
        }
    }

    /// Publishes the message again and acknowledges it. If RabbitMQ does not confirm that, it requeues the message.
    pub(super) async fn requeue_slow_message(&mut self) {
        let tags = std::mem::take(&mut self.slow.tags);
        let copies = std::mem::take(&mut self.slow.copies);
        let mut counts = OutcomeCounts::default();
        let published = publish(copies, &self.shared.publisher, &mut counts);
        if !tags.is_empty() && matches!(timeout(CONFIRM_LIMIT, published).await, Ok(Ok(()))) {
            self.slow.ids.clear();
            self.shared.observer.settled(&counts);
            tags.into_iter().for_each(|tag| self.unacked.finish(tag));
            // If it is not sent, RabbitMQ requeues the original, too: one of the two is a duplicate.
            drop(self.send_acknowledgements().await);
        }
    }

    /// RabbitMQ requeues the message, but this process did not crash.
    pub(super) fn note_requeued_by_rabbitmq(&mut self, end: &End) {
        if !matches!(end, End::Drained) {
            let SlowMessage { ids, .. } = std::mem::take(&mut self.slow);
            ids.iter().for_each(|id| self.shared.broker_requeues.record(id));
        }
    }
}
