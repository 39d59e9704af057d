//! Which acknowledgements may be sent.
//!
//! Batches finish in any order, but an acknowledgement with `multiple` covers *every* delivery up to
//! its tag. So only the contiguous prefix of finished deliveries may be acknowledged. A delivery that is
//! still being handled ends the prefix. A tag that never arrived here would be acknowledged unhandled,
//! so a gap in the tags ends the session.

use std::collections::VecDeque;

/// The number of a delivery on its channel, growing by one from 1 (AMQP 0-9-1, `delivery-tag`).
pub(super) type Tag = u64;

/// The deliveries of a channel that are not acknowledged, in the order of their tags.
#[derive(Debug, Default)]
pub(super) struct UnackedDeliveries {
    entries: VecDeque<Entry>,
    /// The tag of the last recorded delivery.
    last: Tag,
    /// How many of the entries were requeued or rejected.
    returned: usize,
    bytes: usize,
}

/// A delivery tag that does not follow the previous one. A delivery between them did not arrive here,
/// and an acknowledgement with `multiple` would cover it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("delivery tag {received} received after {last}; at least one delivery is missing")]
pub(super) struct Gap {
    pub(super) last: Tag,
    pub(super) received: Tag,
}

/// A finished prefix: acknowledging its last delivery with `multiple` settles all of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) last: Tag,
    pub(super) count: usize,
}

#[derive(Debug)]
enum Entry {
    /// It is being handled; the size of its body in bytes.
    Open(usize),
    /// It may be acknowledged; the size of its body in bytes.
    Finished(usize),
    /// It was requeued or rejected. RabbitMQ closes the channel when its tag is acknowledged (`PRECONDITION_FAILED -
    /// unknown delivery tag`).
    Returned,
}

impl UnackedDeliveries {
    /// Records a delivery with the size of its body, if its tag follows the previous one.
    pub(super) fn deliver(&mut self, tag: Tag, bytes: usize) -> Result<(), Gap> {
        self.record(tag, Entry::Open(bytes))?;
        self.bytes += bytes;
        Ok(())
    }

    /// Records a delivery that is requeued or rejected, if its tag follows the previous one.
    pub(super) fn requeue_or_reject(&mut self, tag: Tag) -> Result<(), Gap> {
        self.record(tag, Entry::Returned)?;
        self.returned += 1;
        Ok(())
    }

    fn record(&mut self, tag: Tag, entry: Entry) -> Result<(), Gap> {
        if tag != self.last + 1 {
            return Err(Gap { last: self.last, received: tag });
        }
        self.last = tag;
        self.entries.push_back(entry);
        Ok(())
    }

    /// Marks a delivery as finished. An unknown tag changes nothing.
    pub(super) fn finish(&mut self, tag: Tag) {
        if let Some(entry) = self.entry(tag)
            && let Entry::Open(bytes) = *entry
        {
            *entry = Entry::Finished(bytes);
        }
    }

    /// Records that a delivery that was recorded before is requeued. An unknown tag changes nothing.
    pub(super) fn requeue_delivered(&mut self, tag: Tag) {
        if let Some(entry) = self.entry(tag)
            && let Entry::Open(bytes) = *entry
        {
            *entry = Entry::Returned;
            self.bytes -= bytes;
            self.returned += 1;
        }
    }

    fn entry(&mut self, tag: Tag) -> Option<&mut Entry> {
        // Tags are contiguous, so the number of acknowledged tags gives the index.
        let index = tag.checked_sub(self.settled() + 1)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }

    /// Removes and returns the finished prefix, if there is one.
    pub(super) fn take_prefix(&mut self) -> Option<Prefix> {
        let mut prefix = None;
        let mut count = 0;
        while let Some(entry) = self.entries.pop_front_if(|entry| !matches!(entry, Entry::Open(_)))
        {
            if let Entry::Finished(bytes) = entry {
                self.bytes -= bytes;
                count += 1;
                prefix = Some(Prefix { last: self.settled(), count });
            } else {
                self.returned -= 1;
            }
        }
        prefix
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.returned
    }

    /// The size of their bodies, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The last tag that was removed.
    fn settled(&self) -> Tag {
        self.last - self.entries.len() as Tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn delivered(count: Tag) -> UnackedDeliveries {
        let mut unacked = UnackedDeliveries::default();
        (1..=count).for_each(|tag| unacked.deliver(tag, 10).unwrap());
        unacked
    }

    #[test]
    fn an_unfinished_delivery_ends_the_acknowledged_prefix() {
        let mut unacked = delivered(5);
        [2, 3, 5].into_iter().for_each(|tag| unacked.finish(tag));
        assert_eq!(unacked.take_prefix(), None);
        unacked.finish(1);
        assert_eq!(unacked.take_prefix(), Some(Prefix { last: 3, count: 3 }));
        assert_eq!((unacked.len(), unacked.bytes()), (2, 20));
        unacked.finish(4);
        assert_eq!(unacked.take_prefix(), Some(Prefix { last: 5, count: 2 }));
        assert!(unacked.is_empty());
    }

    #[test]
    fn a_gap_in_the_tags_is_an_error_even_when_everything_before_it_is_acknowledged() {
        let mut unacked = delivered(2);
        assert_eq!(unacked.deliver(4, 10), Err(Gap { last: 2, received: 4 }));
        assert_eq!(unacked.deliver(2, 10), Err(Gap { last: 2, received: 2 }));
        [1, 2].into_iter().for_each(|tag| unacked.finish(tag));
        assert_eq!(unacked.take_prefix(), Some(Prefix { last: 2, count: 2 }));
        assert_eq!(unacked.deliver(4, 10), Err(Gap { last: 2, received: 4 }));
        assert_eq!(unacked.deliver(3, 10), Ok(()));
        // Unknown tags: acknowledged before, or not delivered yet.
        [0, 2, 4].into_iter().for_each(|tag| unacked.finish(tag));
        assert_eq!((unacked.take_prefix(), unacked.len()), (None, 1));
    }

    #[test]
    fn a_delivery_that_is_requeued_later_ends_the_prefix_until_then() {
        let mut unacked = delivered(3);
        [2, 3].into_iter().for_each(|tag| unacked.finish(tag));
        assert_eq!(unacked.take_prefix(), None);
        [1, 7].into_iter().for_each(|tag| unacked.requeue_delivered(tag));
        assert_eq!((unacked.len(), unacked.bytes()), (2, 20));
        assert_eq!(unacked.take_prefix(), Some(Prefix { last: 3, count: 2 }));
        assert!(unacked.is_empty());
    }

    #[test]
    fn a_requeued_delivery_is_never_acknowledged_and_delays_no_other() {
        let mut unacked = delivered(2);
        assert_eq!(unacked.requeue_or_reject(4), Err(Gap { last: 2, received: 4 }));
        unacked.requeue_or_reject(3).unwrap();
        unacked.deliver(4, 10).unwrap();
        unacked.requeue_or_reject(5).unwrap();
        assert_eq!((unacked.len(), unacked.bytes()), (3, 30));
        [1, 2, 3].into_iter().for_each(|tag| unacked.finish(tag));
        assert_eq!(unacked.take_prefix(), Some(Prefix { last: 2, count: 2 }));
        assert_eq!((unacked.len(), unacked.bytes()), (1, 10));
        unacked.finish(4);
        assert_eq!(unacked.take_prefix(), Some(Prefix { last: 4, count: 1 }));
        assert!(unacked.is_empty());
        assert_eq!((unacked.len(), unacked.bytes()), (0, 0));
        unacked.requeue_or_reject(6).unwrap();
        assert_eq!(unacked.take_prefix(), None);
    }

    proptest! {
        #[test]
        fn everything_is_acknowledged_once_and_only_when_all_before_it_is_finished(
            order in Just((1..=60u64).collect::<Vec<_>>()).prop_shuffle(),
            take_after in proptest::collection::vec(any::<bool>(), 60),
        ) {
            let mut unacked = delivered(60);
            let mut finished = BTreeSet::new();
            let mut acknowledged = 0;
            for (tag, take) in order.into_iter().zip(take_after) {
                unacked.finish(tag);
                finished.insert(tag);
                if !take {
                    continue;
                }
                if let Some(prefix) = unacked.take_prefix() {
                    prop_assert_eq!(prefix.last, acknowledged + prefix.count as u64);
                    acknowledged = prefix.last;
                    prop_assert!((1..=acknowledged).all(|tag| finished.contains(&tag)));
                }
                // Nothing that could be acknowledged is left.
                prop_assert!(!finished.contains(&(acknowledged + 1)));
            }
            let rest = unacked.take_prefix().map_or(0, |prefix| prefix.count as u64);
            prop_assert_eq!(acknowledged + rest, 60);
            prop_assert_eq!(unacked.bytes(), 0);
        }
    }
}
