//! How fast dead letters go back: so many a second, in batches that grow while nothing comes back.
//!
//! A cause that is still there shows after one dead letter rather than after 10 000.

use std::time::Duration;

use tokio::time::Instant;

/// The pace of a run.
#[derive(Debug)]
pub(super) struct Pace {
    rate: f64,
    next: Instant,
}

/// The size of the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    size: u32,
    largest: u32,
}

/// What is known of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchResult {
    /// Nothing is wrong with it, as far as can be told.
    Good,
    /// A few messages of it are neither stored nor back.
    Open,
    /// Most messages of it are neither stored nor back: nobody takes them, or all are tried again.
    Silent,
    /// Something came back, or could not be sent.
    Bad,
}

/// Dead letters that are taken, sent and noted together: a tenth of a second's, and few enough that their
/// bodies fit into memory.
const SLICES_A_SECOND: f64 = 10.0;
const LARGEST_SLICE: u32 = 50;

impl Pace {
    /// At most `rate` dead letters a second.
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, next: Instant::now() }
    }

    /// How many of `wanted` dead letters go together.
    pub(super) fn slice(&self, wanted: u32) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is clamped"
        )]
        let slice = (self.rate / SLICES_A_SECOND).clamp(1.0, f64::from(LARGEST_SLICE)) as u32;
        wanted.min(slice)
    }

    /// When so many dead letters may go. Time that was spent otherwise, as with watching, is not made up for.
    pub(super) fn turn(&mut self, dead_letters: u32) -> Instant {
        let turn = self.next.max(Instant::now());
        self.next = turn + Duration::from_secs_f64(f64::from(dead_letters) / self.rate);
        turn
    }
}

impl Growth {
    /// One dead letter, then two, up to `largest`.
    pub(super) fn new(largest: u32) -> Self {
        Self { size: 1, largest: largest.max(1) }
    }

    pub(super) fn size(self) -> u32 {
        self.size
    }

    /// The next size, after what became of a batch.
    pub(super) fn follow(&mut self, verdict: BatchResult) {
        self.size = match verdict {
            BatchResult::Good => self.size.saturating_mul(2).min(self.largest),
            BatchResult::Open => self.size,
            BatchResult::Silent | BatchResult::Bad => 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_all_is_well_and_begin_anew_when_something_comes_back() {
        let mut growth = Growth::new(5);
        let mut sizes = Vec::new();
        for verdict in [
            BatchResult::Good,
            BatchResult::Good,
            BatchResult::Open,
            BatchResult::Good,
            BatchResult::Good,
            BatchResult::Bad,
            BatchResult::Good,
            BatchResult::Silent,
            BatchResult::Good,
        ] {
            sizes.push(growth.size());
            growth.follow(verdict);
        }
        assert_eq!(sizes, [1, 2, 4, 4, 5, 5, 1, 2, 1]);
        assert_eq!(growth.size(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_dead_letters_go_in_a_second_than_the_rate_says() {
        let (began, mut pace) = (Instant::now(), Pace::new(100.0));
        assert_eq!((pace.slice(1_000), pace.slice(3)), (10, 3));
        let mut sent = 0;
        while sent < 200 {
            tokio::time::sleep_until(pace.turn(10)).await;
            sent += 10;
        }
        // The first slice went at once.
        assert_eq!(began.elapsed(), Duration::from_millis(1_900));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let turns = [pace.turn(10), pace.turn(10)].map(|turn| turn - Instant::now());
        assert_eq!(turns, [Duration::ZERO, Duration::from_millis(100)]);
    }
}
