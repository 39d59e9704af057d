//! How fast dead letters are replayed: a rate per second, in batches that grow while no replay fails again.
//!
//! So a cause that is not fixed yet shows after one dead letter rather than after 10 000.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct RateLimit {
    rate: f64,
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchSize {
    size: u32,
    largest: u32,
}

/// What is known about the replays of a batch when its watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchResult {
    /// None failed, as far as is known.
    Succeeded,
    /// None failed; at most half are neither stored nor failed again.
    PartlyPending,
    /// None failed; more than half are neither stored nor failed again: no worker consumes them, or they wait
    /// for a retry.
    MostlyPending,
    /// At least one failed again or could not be sent.
    Failed,
}

/// A slice is what is taken, sent and recorded together: the dead letters of a tenth of a second, and few
/// enough that their bodies fit into memory.
const SLICES_PER_SECOND: f64 = 10.0;
const MAX_SLICE: u32 = 50;

impl RateLimit {
    /// At most `rate` dead letters a second.
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, next: Instant::now() }
    }

    /// How many of `wanted` dead letters are sent together.
    pub(super) fn slice(&self, wanted: u32) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is clamped"
        )]
        let slice = (self.rate / SLICES_PER_SECOND).clamp(1.0, f64::from(MAX_SLICE)) as u32;
        wanted.min(slice)
    }

    /// When the next `dead_letters` may be sent. Unused time, as while a batch is watched, is not caught up.
    pub(super) fn reserve(&mut self, dead_letters: u32) -> Instant {
        let start = self.next.max(Instant::now());
        self.next = start + Duration::from_secs_f64(f64::from(dead_letters) / self.rate);
        start
    }
}

impl BatchSize {
    /// Starts with one dead letter, and doubles up to `largest`.
    pub(super) fn new(largest: u32) -> Self {
        Self { size: 1, largest: largest.max(1) }
    }

    pub(super) fn get(self) -> u32 {
        self.size
    }

    pub(super) fn update(&mut self, result: BatchResult) {
        self.size = match result {
            BatchResult::Succeeded => self.size.saturating_mul(2).min(self.largest),
            BatchResult::PartlyPending => self.size,
            BatchResult::MostlyPending | BatchResult::Failed => 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_replays_succeed_and_start_with_one_again_after_a_failure() {
        let mut batch_size = BatchSize::new(5);
        let mut sizes = Vec::new();
        for result in [
            BatchResult::Succeeded,
            BatchResult::Succeeded,
            BatchResult::PartlyPending,
            BatchResult::Succeeded,
            BatchResult::Succeeded,
            BatchResult::Failed,
            BatchResult::Succeeded,
            BatchResult::MostlyPending,
            BatchResult::Succeeded,
        ] {
            sizes.push(batch_size.get());
            batch_size.update(result);
        }
        assert_eq!(sizes, [1, 2, 4, 4, 5, 5, 1, 2, 1]);
        assert_eq!(batch_size.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_dead_letters_are_sent_in_a_second_than_the_rate_allows() {
        let (began, mut limit) = (Instant::now(), RateLimit::new(100.0));
        assert_eq!((limit.slice(1_000), limit.slice(3)), (10, 3));
        let mut sent = 0;
        while sent < 200 {
            tokio::time::sleep_until(limit.reserve(10)).await;
            sent += 10;
        }
        // The first slice is sent at once.
        assert_eq!(began.elapsed(), Duration::from_millis(1_900));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let waits = [limit.reserve(10), limit.reserve(10)].map(|start| start - Instant::now());
        assert_eq!(waits, [Duration::ZERO, Duration::from_millis(100)]);
    }
}
