//! What a save expects of a batch, based on the batches before it.
//!
//! All saves of a process share these expectations. A wrong one costs time and changes no result.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How many batches without a stored message are compared first after one with a stored message. A
/// crash's redeliveries (some batches) are over within this number. In the worst case one batch in 65
/// is sent twice.
const BATCHES: u32 = 64;

/// Whether the messages of the next batch may already be stored.
///
/// Nearly all messages are new. A plain insert of them costs PostgreSQL a quarter less than
/// `ON CONFLICT DO NOTHING`, which looks up and confirms each row. A batch that holds a stored message
/// fails as a whole and is repeated: the stored messages are read and left out first. The next
/// [`BATCHES`] batches are then compared with the stored messages before they are sent, so that a
/// publisher that sends everything twice does not make every batch run twice.
#[derive(Debug, Default)]
pub(crate) struct ExpectDuplicates(AtomicU32);

impl ExpectDuplicates {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Records a batch that was compared, or that failed: how many of its messages were stored before.
    pub(crate) fn record_batch(&self, stored: usize) {
        if stored > 0 {
            self.0.store(BATCHES, Ordering::Relaxed);
        } else {
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
        }
    }
}

/// Whether the next batch is expected to change no conversation row, as the last one did not.
///
/// Then a smaller statement is enough, which PostgreSQL starts in half the time.
#[derive(Debug, Default)]
pub(crate) struct ExpectSettled(AtomicBool);

impl ExpectSettled {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Records a batch that was sent with the full statement. `settled`: it changed no conversation, and
    /// there are no tombstones.
    pub(crate) fn record_batch(&self, settled: bool) {
        self.0.store(settled, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_expected_until_enough_batches_held_only_new_messages() {
        let expect_duplicates = ExpectDuplicates::default();
        assert!(!expect_duplicates.is_set());
        expect_duplicates.record_batch(3);
        for _ in 0..BATCHES {
            assert!(expect_duplicates.is_set());
            expect_duplicates.record_batch(0);
        }
        assert!(!expect_duplicates.is_set());
        expect_duplicates.record_batch(0);
        assert!(!expect_duplicates.is_set());
    }
}
