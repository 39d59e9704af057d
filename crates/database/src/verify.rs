//! Checks of stored totals and statistics against the rows they are computed from. Only `repair.rs` writes.
//!
//! Everything is checked in pages by key, each page in one statement and so in one snapshot: a change by
//! another transaction is visible completely or not at all. The expected values are computed by the same
//! SQL that computes the stored ones.

mod conversations;
mod days;
mod difference;
mod integrity;
mod repair;
mod scope;
mod words;

pub use conversations::{ConversationCheck, Differences};
pub use days::DayCheck;
pub use difference::Difference;
pub use integrity::{OrphanedRows, OrphanedStatistics};
pub use repair::Repair;
pub use scope::Scope;
#[cfg(test)]
pub(crate) use words::DIFFERING as WORDS_DIFFERING;
pub use words::{OrphanedWords, WordsDifference};
