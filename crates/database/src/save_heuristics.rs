//! What a saver expects of a batch, after those before it.
//!
//! All savers of a process share their guesses. A wrong one costs time and nothing else.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How many batches without any stored message end the doubt: at most every 65th batch is done twice
/// for nothing, and a crash's redeliveries (some batches) are over within the first dozens.
const BATCHES: u32 = 64;

/// Whether messages that are to be saved may be stored already.
///
/// Nearly all messages are new, and inserting them plainly is a quarter cheaper for PostgreSQL than
/// `ON CONFLICT DO NOTHING`, which looks up and confirms each row. A batch that holds a stored one
/// fails as a whole and is done again, with a question first. So that publishers who send everything
/// twice do not make every batch run twice, doubt stays for a while: the next batches are asked about
/// at once.
#[derive(Debug, Default)]
pub(crate) struct ExpectDuplicates(AtomicU32);

impl ExpectDuplicates {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// A batch was asked about, or failed: so many of its messages were stored.
    pub(crate) fn learn(&self, stored: usize) {
        if stored > 0 {
            self.0.store(BATCHES, Ordering::Relaxed);
        } else {
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
        }
    }
}

/// Whether conversations stay as they are when messages come, as those of the last batch did.
///
/// Then a smaller statement is enough, which PostgreSQL begins in half the time.
#[derive(Debug, Default)]
pub(crate) struct ExpectSettled(AtomicBool);

impl ExpectSettled {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// A batch went through: whether all conversations stayed as they were, and nothing was ever erased.
    pub(crate) fn learn(&self, stayed: bool) {
        self.0.store(stayed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_ends_after_enough_batches_of_new_messages() {
        let expect_duplicates = ExpectDuplicates::default();
        assert!(!expect_duplicates.is_set());
        expect_duplicates.learn(3);
        for _ in 0..BATCHES {
            assert!(expect_duplicates.is_set());
            expect_duplicates.learn(0);
        }
        assert!(!expect_duplicates.is_set());
        expect_duplicates.learn(0);
        assert!(!expect_duplicates.is_set());
    }
}
