//! When deliveries become a batch: at once while no batch is being handled; otherwise when the batch
//! is full or its oldest message has waited for `linger`.
//!
//! So a single message is handled at once, and under load batches grow: deliveries collect while
//! another batch is being handled.

use std::collections::VecDeque;
use std::time::Duration;

use domain::decode::Extent;
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct BatchBuilder<T> {
    limits: Limits,
    pending: VecDeque<Pending<T>>,
    messages: usize,
    bytes: usize,
}

/// When a batch is full, and how long its oldest message waits otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) messages: usize,
    pub(super) bytes: usize,
    pub(super) linger: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchReady {
    /// There are no messages.
    Never,
    Now,
    /// At this time, if no further message makes the batch full before.
    At(Instant),
}

#[derive(Debug)]
struct Pending<T> {
    item: T,
    extent: Extent,
    since: Instant,
}

impl<T> BatchBuilder<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, pending: VecDeque::new(), messages: 0, bytes: 0 }
    }

    pub(super) fn push(&mut self, item: T, extent: Extent, now: Instant) {
        self.pending.push_back(Pending { item, extent, since: now });
        self.messages += extent.messages;
        self.bytes += extent.bytes;
    }

    /// When the next batch is ready, while `in_flight` batches are being handled.
    pub(super) fn ready(&self, now: Instant, in_flight: usize) -> BatchReady {
        let Some(oldest) = self.pending.front() else { return BatchReady::Never };
        let at = oldest.since + self.limits.linger;
        let is_full = self.messages >= self.limits.messages || self.bytes >= self.limits.bytes;
        if in_flight == 0 || is_full || at <= now { BatchReady::Now } else { BatchReady::At(at) }
    }

    /// Takes the oldest deliveries: as many as the limits allow, at least one.
    pub(super) fn take(&mut self) -> Vec<T> {
        let (mut messages, mut bytes) = (0, 0);
        let fits = |(index, pending): &(usize, &Pending<T>)| {
            messages += pending.extent.messages;
            bytes += pending.extent.bytes;
            *index == 0 || (messages <= self.limits.messages && bytes <= self.limits.bytes)
        };
        let count = self.pending.iter().enumerate().take_while(fits).count();
        let batch = self.pending.drain(..count).inspect(|pending| {
            self.messages -= pending.extent.messages;
            self.bytes -= pending.extent.bytes;
        });
        batch.map(|pending| pending.item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_millis(5);

    fn one(bytes: usize) -> Extent {
        Extent { messages: 1, bytes }
    }

    fn batch_builder(now: Instant) -> BatchBuilder<u8> {
        let limits = Limits { messages: 3, bytes: 100, linger: LINGER };
        let mut batch_builder = BatchBuilder::new(limits);
        batch_builder.push(1, one(10), now);
        batch_builder
    }

    #[test]
    fn a_single_message_does_not_wait_while_nothing_is_being_handled() {
        let now = Instant::now();
        assert_eq!(batch_builder(now).ready(now, 0), BatchReady::Now);
    }

    #[test]
    fn while_others_are_handled_a_message_waits_for_linger_at_most() {
        let now = Instant::now();
        let mut batch_builder = batch_builder(now);
        batch_builder.push(2, one(10), now + LINGER / 2);
        assert_eq!(batch_builder.ready(now, 1), BatchReady::At(now + LINGER));
        assert_eq!(batch_builder.ready(now + LINGER, 1), BatchReady::Now);
    }

    #[test]
    fn a_batch_is_full_by_count_or_by_bytes() {
        let now = Instant::now();
        let mut by_count = batch_builder(now);
        by_count.push(2, one(0), now);
        assert_eq!(by_count.ready(now, 1), BatchReady::At(now + LINGER));
        by_count.push(3, one(0), now);
        assert_eq!(by_count.ready(now, 1), BatchReady::Now);
        let mut by_bytes = batch_builder(now);
        by_bytes.push(2, one(90), now);
        assert_eq!(by_bytes.ready(now, 1), BatchReady::Now);
    }

    #[test]
    fn a_batch_respects_its_limits_and_later_messages_linger_from_their_own_arrival() {
        let now = Instant::now();
        let mut batch_builder = batch_builder(now);
        let later = now + LINGER / 2;
        for (item, bytes) in [(2, 80), (3, 20), (4, 500), (5, 1)] {
            batch_builder.push(item, one(bytes), later);
        }
        assert_eq!(batch_builder.take(), [1, 2]);
        assert_eq!(batch_builder.take(), [3]);
        assert_eq!(batch_builder.take(), [4], "a message above the byte limit forms a batch alone");
        assert_eq!(batch_builder.ready(later, 1), BatchReady::At(later + LINGER));
        assert_eq!(batch_builder.take(), [5]);
        assert_eq!(batch_builder.ready(later, 0), BatchReady::Never);
    }

    #[test]
    fn a_batch_counts_the_messages_of_its_deliveries() {
        let now = Instant::now();
        let mut batch_builder = batch_builder(now);
        let of = |messages| Extent { messages, bytes: 1 };
        batch_builder.push(2, of(1), now);
        assert_eq!(batch_builder.ready(now, 1), BatchReady::At(now + LINGER));
        batch_builder.push(3, of(2), now);
        assert_eq!(batch_builder.ready(now, 1), BatchReady::Now);
        assert_eq!(batch_builder.take(), [1, 2]);
        batch_builder.push(4, of(100), now);
        assert_eq!(batch_builder.take(), [3]);
        assert_eq!(batch_builder.take(), [4], "a delivery with more messages forms a batch alone");
    }
}
