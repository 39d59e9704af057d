//! How deliveries become batches: at once while nothing is being handled, else until the batch is
//! full or has waited long enough.
//!
//! So a single message never waits needlessly, and a stream of them makes large batches by itself:
//! while one batch is handled, the next one gathers.

use std::time::Duration;

use tokio::time::Instant;

/// Deliveries that will form the next batch.
#[derive(Debug)]
pub(super) struct Gathering<T> {
    limits: Limits,
    items: Vec<T>,
    bytes: usize,
    oldest: Option<Instant>,
}

/// When a batch is full, and how long it waits otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) messages: usize,
    pub(super) bytes: usize,
    pub(super) linger: Duration,
}

/// When the batch may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// There is nothing to send.
    Never,
    /// Now.
    Now,
    /// At this moment, if nothing else comes.
    At(Instant),
}

impl<T> Gathering<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, items: Vec::new(), bytes: 0, oldest: None }
    }

    pub(super) fn push(&mut self, item: T, bytes: usize, now: Instant) {
        self.oldest.get_or_insert(now);
        self.items.push(item);
        self.bytes += bytes;
    }

    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= self.limits.messages || self.bytes >= self.limits.bytes
    }

    /// When the batch may go, while others are `in_flight`.
    pub(super) fn due(&self, now: Instant, in_flight: usize) -> Due {
        let Some(oldest) = self.oldest else { return Due::Never };
        let at = oldest + self.limits.linger;
        if in_flight == 0 || self.is_full() || at <= now { Due::Now } else { Due::At(at) }
    }

    /// Takes the batch; the next one begins.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.oldest = None;
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_millis(5);

    fn gathering(now: Instant) -> Gathering<u8> {
        let limits = Limits { messages: 3, bytes: 100, linger: LINGER };
        let mut gathering = Gathering::new(limits);
        gathering.push(1, 10, now);
        gathering
    }

    #[test]
    fn a_single_message_does_not_wait_while_nothing_is_being_handled() {
        let now = Instant::now();
        assert_eq!(gathering(now).due(now, 0), Due::Now);
    }

    #[test]
    fn a_message_waits_for_company_while_others_are_handled_but_not_for_ever() {
        let now = Instant::now();
        let mut gathering = gathering(now);
        gathering.push(2, 10, now + LINGER / 2);
        assert_eq!(gathering.due(now, 1), Due::At(now + LINGER));
        assert_eq!(gathering.due(now + LINGER, 1), Due::Now);
    }

    #[test]
    fn a_batch_is_full_by_count_or_by_bytes() {
        let now = Instant::now();
        let mut by_count = gathering(now);
        by_count.push(2, 0, now);
        assert!(!by_count.is_full());
        by_count.push(3, 0, now);
        assert!(by_count.is_full());
        let mut by_bytes = gathering(now);
        by_bytes.push(2, 90, now);
        assert_eq!(by_bytes.due(now, 1), Due::Now);
    }

    #[test]
    fn the_next_batch_begins_empty() {
        let now = Instant::now();
        let mut gathering = gathering(now);
        assert_eq!(gathering.take(), [1]);
        assert_eq!(gathering.due(now, 0), Due::Never);
    }
}
