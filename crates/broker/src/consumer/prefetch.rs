//! How many deliveries may be unacknowledged: a byte limit (`max_inflight_bytes`), expressed in messages.
//!
//! RabbitMQ limits deliveries by count alone, and lapin buffers every delivery. So the prefetch follows
//! the sizes of the bodies. It starts at a value where the largest bodies fit, grows when the measured
//! bodies are smaller, and shrinks when larger ones arrive. A change costs a cancel and a new consumer
//! (`basic.qos` does not change an existing one), so small changes are not made.
//!
//! Deliveries that RabbitMQ sent before a change still arrive: see [`overrun`](Prefetch::overrun).

use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Prefetch {
    budget_bytes: usize,
    largest_body: usize,
    min: usize,
    max: usize,
    current: usize,
    window: Window,
    /// The mean body sizes of the last windows. The largest of them counts, so the prefetch grows only
    /// when all of them allow it.
    means: VecDeque<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Grows,
    Shrinks,
}

#[derive(Debug, Default)]
struct Window {
    bodies: usize,
    bytes: usize,
}

/// The bodies of one window. Fewer than the usual first prefetch (64), so that the first window is
/// complete before the first prefetch is full.
const WINDOW_BODIES: usize = 32;
const REMEMBERED_WINDOWS: usize = 4;
/// Bodies are assumed to be this many times larger than the mean, because sizes vary.
const HEADROOM: usize = 2;
/// The memory of a message beside its body, in bytes: properties and bookkeeping.
const OVERHEAD_BYTES: usize = 1024;
/// The prefetch changes when it would grow or shrink by at least this factor.
const MIN_CHANGE_FACTOR: usize = 2;

impl Prefetch {
    /// `budget_bytes` is the byte limit, `largest_body` the largest expected body in bytes, `max` the
    /// largest useful prefetch.
    pub(super) fn new(budget_bytes: usize, largest_body: usize, max: usize) -> Self {
        // In AMQP 0 means "without limit", and the field has 16 bits.
        let max = max.clamp(1, usize::from(u16::MAX));
        let min = (budget_bytes / largest_body.max(1)).clamp(1, max);
        Self {
            budget_bytes,
            largest_body,
            min,
            max,
            current: min,
            window: Window::default(),
            means: VecDeque::with_capacity(REMEMBERED_WINDOWS + 1),
        }
    }

    pub(super) fn current(&self) -> u16 {
        u16::try_from(self.current).unwrap_or(u16::MAX)
    }

    /// A delivery of so many bytes, with so many messages.
    pub(super) fn observe(&mut self, body_bytes: usize, messages: usize) {
        self.window.bodies += 1;
        self.window.bytes += body_bytes + messages.saturating_sub(1) * OVERHEAD_BYTES;
        if self.window.bodies == WINDOW_BODIES {
            self.means.push_back(self.window.bytes / WINDOW_BODIES);
            if self.means.len() > REMEMBERED_WINDOWS {
                self.means.pop_front();
            }
            self.window = Window::default();
        }
    }

    /// Decides whether to change; [`current`](Self::current) is then the new value. The caller must
    /// register a new consumer.
    pub(super) fn change(&mut self) -> Option<Change> {
        let target = self.target();
        let grows = target >= self.current * MIN_CHANGE_FACTOR
            || (target == self.max && target > self.current);
        let shrinks = target * MIN_CHANGE_FACTOR <= self.current;
        if !grows && !shrinks {
            return None;
        }
        self.current = target;
        Some(if grows { Change::Grows } else { Change::Shrinks })
    }

    /// A message of so many bytes is to be expected: the first prefetch is one that fits it.
    pub(super) fn expect_bodies_of(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.largest_body = self.largest_body.max(bytes);
        self.min = (self.budget_bytes / self.largest_body.max(1)).clamp(1, self.max);
    }

    /// The byte limit was exceeded: sets the first prefetch again and assumes the largest bodies. The
    /// caller must register a new consumer.
    pub(super) fn overrun(&mut self) {
        self.current = self.min;
        self.window = Window::default();
        self.means = VecDeque::from([self.largest_body; REMEMBERED_WINDOWS]);
    }

    fn target(&self) -> usize {
        let Some(largest_mean) = self.means.iter().max() else {
            return self.current;
        };
        let expected = largest_mean * HEADROOM + OVERHEAD_BYTES;
        (self.budget_bytes / expected).clamp(self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    fn usual_prefetch() -> Prefetch {
        Prefetch::new(64 * MIB, MIB, 2500)
    }

    fn observe_many(prefetch: &mut Prefetch, body_bytes: usize, bodies: usize) {
        (0..bodies).for_each(|_| prefetch.observe(body_bytes, 1));
    }

    #[test]
    fn the_first_prefetch_fits_the_largest_bodies() {
        assert_eq!(usual_prefetch().current(), 64);
        assert_eq!(Prefetch::new(MIB, 10 * MIB, 2500).current(), 1, "never 0");
        assert_eq!(Prefetch::new(64 * MIB, 1, 3).current(), 3, "never above the maximum");
    }

    #[test]
    fn small_bodies_let_it_grow_to_its_maximum() {
        let mut prefetch = usual_prefetch();
        assert_eq!(prefetch.change(), None, "no window is complete");
        observe_many(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.change(), Some(Change::Grows));
        assert_eq!(prefetch.current(), 2500);
        assert_eq!(prefetch.change(), None, "it is stable");
    }

    #[test]
    fn large_bodies_shrink_it_at_once_and_it_grows_after_four_windows_of_small_ones() {
        let mut prefetch = usual_prefetch();
        observe_many(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.change(), Some(Change::Grows));
        observe_many(&mut prefetch, MIB, WINDOW_BODIES);
        assert_eq!(prefetch.change(), Some(Change::Shrinks));
        assert_eq!(prefetch.current(), 64);
        it_grows_after_four_windows_of_small_bodies(prefetch);
    }

    #[test]
    fn after_an_overrun_the_first_prefetch_applies_and_growth_waits() {
        let mut prefetch = usual_prefetch();
        observe_many(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.change(), Some(Change::Grows));
        prefetch.overrun();
        assert_eq!(prefetch.current(), 64);
        it_grows_after_four_windows_of_small_bodies(prefetch);
    }

    #[test]
    fn a_body_that_does_not_fit_is_waited_for_with_the_smallest_prefetch() {
        let mut prefetch = usual_prefetch();
        prefetch.expect_bodies_of(128 << 20);
        prefetch.overrun();
        assert_eq!(prefetch.current(), 1);
        observe_many(&mut prefetch, 128 * MIB, WINDOW_BODIES);
        assert_eq!((prefetch.change(), prefetch.current()), (None, 1));
        it_grows_after_four_windows_of_small_bodies(prefetch);
    }

    fn it_grows_after_four_windows_of_small_bodies(mut prefetch: Prefetch) {
        observe_many(&mut prefetch, 500, WINDOW_BODIES * (REMEMBERED_WINDOWS - 1));
        assert_eq!(prefetch.change(), None);
        observe_many(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.change(), Some(Change::Grows));
        assert_eq!(prefetch.current(), 2500);
    }

    proptest! {
        #[test]
        fn it_stays_between_one_and_its_maximum_and_makes_no_small_changes(
            budget in 0..256 * MIB,
            largest in 0..4 * MIB,
            max in 0..100_000usize,
            bodies in proptest::collection::vec(0..2 * MIB, 1..400),
        ) {
            let mut prefetch = Prefetch::new(budget, largest, max);
            for body in bodies {
                prefetch.observe(body, 1);
                let before = usize::from(prefetch.current());
                if prefetch.change().is_some() {
                    let after = usize::from(prefetch.current());
                    let capped = after == max.clamp(1, 65_535);
                    prop_assert!(after >= 2 * before || 2 * after <= before || capped);
                }
                prop_assert!(prefetch.current() >= 1);
                prop_assert!(usize::from(prefetch.current()) <= max.max(1));
            }
        }
    }
}
