//! PostgreSQL: where every message is durable and every conversation's state is true.
//!
//! The only crate that names sqlx. One file per table or concern; every write is a batch, and
//! everything that locks several rows locks them in key order, so that no two batches wait for each
//! other in a circle.
//!
//! To add a table: a new file under `migrations/` (never edit one that was released), a file here
//! with the statements that touch it, and a line in `docs/architecture.md` if others may query it.

mod audit;
mod close;
mod connect;
mod conversations;
mod dead_letters;
mod epoch;
mod error;
mod messages;
mod pool;
mod reopened;
mod rows;
mod save;
mod save_heuristics;
mod schema;
mod sessions;
mod statistics;
mod tombstones;
mod trace;
mod verify;
mod writers;

pub use audit::{Actor, AuditEntry};
pub use close::{Claim, CloseCause, Closed, Due, Uncounted, UncountedPage};
pub use connect::{Database, Settings};
pub use conversations::{ConversationFilter, ConversationRow};
pub use dead_letters::{
    ContentFingerprint, DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterGroup,
    DeadLetterPage, DeadLetterRow, DeadLetterStatus, Decision, FailedAgain, ListedDeadLetter,
    OpenDeadLetters, ReplayOutcome, ReplayedBefore, Selection, UnknownStatus,
};
pub use epoch::{ConversationNumbers, EpochChange, Numbers};
pub use error::{Error, SchemaError};
pub use messages::{Page, Snapshot};
pub use rows::SaveRow;
pub use save::{HotWrites, Saved, SavedBatch, TOUCH_SECONDS};
pub use sessions::{SessionChange, SessionRow, SessionUpdate};
pub use statistics::{ConversationStats, DailyStats};
pub use trace::{ConversationTrace, MessageTrace};
pub use verify::{
    ConversationCheck, DayCheck, DayKey, Difference, Differences, OrphanedRows, OrphanedStatistics,
    Repair, Scope,
};

/// The result of a statement.
pub type Result<T, E = Error> = std::result::Result<T, E>;
