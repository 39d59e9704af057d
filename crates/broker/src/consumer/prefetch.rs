//! How many deliveries may be under way: a budget of bytes, expressed in messages.
//!
//! RabbitMQ limits deliveries by count alone, and lapin buffers whatever comes, so the count must
//! follow the bodies. It starts where even the largest bodies fit, grows with what bodies really
//! measure, and shrinks when larger ones come. A change costs a cancel and a new consumer
//! (`basic.qos` leaves a live one as it was), so small changes are not made.
//!
//! What RabbitMQ had sent before it heard of a change comes all the same: see
//! [`overrun`](Prefetch::overrun).

use std::collections::VecDeque;

/// The policy and what it has seen.
#[derive(Debug)]
pub(super) struct Prefetch {
    budget_bytes: usize,
    largest_body: usize,
    floor: usize,
    ceiling: usize,
    current: usize,
    window: Window,
    /// Mean sizes of the last windows. The largest of them counts: growth waits until all agree.
    means: VecDeque<usize>,
}

/// How a prefetch changes.
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

/// Bodies that are measured together. Fewer than any prefetch it starts with, so that the first
/// window ends before the first prefetch is used up.
const WINDOW_BODIES: usize = 32;
/// Windows whose means are remembered.
const REMEMBERED_WINDOWS: usize = 4;
/// A body is taken for this much larger than the mean: sizes vary.
const HEADROOM: usize = 2;
/// What a message costs in memory beside its body, in bytes: properties, bookkeeping.
const OVERHEAD_BYTES: usize = 1024;
/// A change is made when the prefetch would at least double or halve.
const WORTHWHILE: usize = 2;

impl Prefetch {
    /// A budget in bytes, the largest body expected, and the most that could be used.
    pub(super) fn new(budget_bytes: usize, largest_body: usize, ceiling: usize) -> Self {
        // 0 would mean "without limit", and AMQP has 16 bits for it.
        let ceiling = ceiling.clamp(1, usize::from(u16::MAX));
        let floor = (budget_bytes / largest_body.max(1)).clamp(1, ceiling);
        Self {
            budget_bytes,
            largest_body,
            floor,
            ceiling,
            current: floor,
            window: Window::default(),
            means: VecDeque::with_capacity(REMEMBERED_WINDOWS + 1),
        }
    }

    /// How many deliveries may be under way now.
    pub(super) fn current(&self) -> u16 {
        u16::try_from(self.current).unwrap_or(u16::MAX)
    }

    /// Takes note of a body that came.
    pub(super) fn observe(&mut self, body_bytes: usize) {
        self.window.bodies += 1;
        self.window.bytes += body_bytes;
        if self.window.bodies == WINDOW_BODIES {
            self.means.push_back(self.window.bytes / WINDOW_BODIES);
            if self.means.len() > REMEMBERED_WINDOWS {
                self.means.pop_front();
            }
            self.window = Window::default();
        }
    }

    /// Decides whether to change; [`current`](Self::current) is then the new value. To be followed by
    /// a new consumer.
    pub(super) fn changes(&mut self) -> Option<Change> {
        let target = self.target();
        let grows = target >= self.current * WORTHWHILE
            || (target == self.ceiling && target > self.current);
        let shrinks = target * WORTHWHILE <= self.current;
        if grows || shrinks {
            self.current = target;
        }
        match (grows, shrinks) {
            (true, _) => Some(Change::Grows),
            (_, true) => Some(Change::Shrinks),
            _ => None,
        }
    }

    /// There was no room for what came: as in the beginning, and as if the largest bodies had come.
    /// To be followed by a new consumer.
    pub(super) fn overrun(&mut self) {
        self.current = self.floor;
        self.window = Window::default();
        self.means = VecDeque::from([self.largest_body; REMEMBERED_WINDOWS]);
    }

    fn target(&self) -> usize {
        let Some(largest_mean) = self.means.iter().max() else {
            return self.current;
        };
        let expected = largest_mean * HEADROOM + OVERHEAD_BYTES;
        (self.budget_bytes / expected).clamp(self.floor, self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    fn usual() -> Prefetch {
        Prefetch::new(64 * MIB, MIB, 2500)
    }

    fn seen(prefetch: &mut Prefetch, body_bytes: usize, bodies: usize) {
        (0..bodies).for_each(|_| prefetch.observe(body_bytes));
    }

    #[test]
    fn it_starts_where_even_the_largest_bodies_fit() {
        assert_eq!(usual().current(), 64);
        assert_eq!(Prefetch::new(MIB, 10 * MIB, 2500).current(), 1, "never 0");
        assert_eq!(Prefetch::new(64 * MIB, 1, 3).current(), 3, "never above what can be used");
    }

    #[test]
    fn small_bodies_let_it_grow_to_the_ceiling() {
        let mut prefetch = usual();
        assert_eq!(prefetch.changes(), None, "nothing was measured yet");
        seen(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.changes(), Some(Change::Grows));
        assert_eq!(prefetch.current(), 2500);
        assert_eq!(prefetch.changes(), None, "it settles");
    }

    #[test]
    fn large_bodies_shrink_it_at_once_and_growth_waits_until_they_are_gone() {
        let mut prefetch = usual();
        seen(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.changes(), Some(Change::Grows));
        seen(&mut prefetch, MIB, WINDOW_BODIES);
        assert_eq!(prefetch.changes(), Some(Change::Shrinks));
        assert_eq!(prefetch.current(), 64);
        grows_when_small_ones_have_come_for_a_while(prefetch);
    }

    #[test]
    fn where_there_was_no_room_it_begins_anew_and_growth_waits() {
        let mut prefetch = usual();
        seen(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.changes(), Some(Change::Grows));
        prefetch.overrun();
        assert_eq!(prefetch.current(), 64);
        grows_when_small_ones_have_come_for_a_while(prefetch);
    }

    fn grows_when_small_ones_have_come_for_a_while(mut prefetch: Prefetch) {
        seen(&mut prefetch, 500, WINDOW_BODIES * (REMEMBERED_WINDOWS - 1));
        assert_eq!(prefetch.changes(), None);
        seen(&mut prefetch, 500, WINDOW_BODIES);
        assert_eq!(prefetch.changes(), Some(Change::Grows));
        assert_eq!(prefetch.current(), 2500);
    }

    proptest! {
        #[test]
        fn it_is_never_zero_never_too_large_and_does_not_flutter(
            budget in 0..256 * MIB,
            largest in 0..4 * MIB,
            ceiling in 0..100_000usize,
            bodies in proptest::collection::vec(0..2 * MIB, 1..400),
        ) {
            let mut prefetch = Prefetch::new(budget, largest, ceiling);
            for body in bodies {
                prefetch.observe(body);
                let before = usize::from(prefetch.current());
                if prefetch.changes().is_some() {
                    let after = usize::from(prefetch.current());
                    let capped = after == ceiling.clamp(1, 65_535);
                    prop_assert!(after >= 2 * before || 2 * after <= before || capped);
                }
                prop_assert!(prefetch.current() >= 1);
                prop_assert!(usize::from(prefetch.current()) <= ceiling.max(1));
            }
        }
    }
}
