//! Dead letters: stored with body, headers, reason and times, so that operators can inspect, edit and
//! replay them. The dead-letter queues only transport them here.
//!
//! `record` has the record and its views, `reading` the queries that only read, `pages` those of the conversation-api. `store` and `columns` are used by the
//! dead-letter collector.
//! `decisions` and `replays` are used by operators; their statements also write the audit log.

mod columns;
mod decisions;
pub(crate) mod pages;
mod reading;
mod record;
mod replays;
mod selection;
mod store;

pub use columns::Omitted;
pub use decisions::Decision;
pub use pages::{DeadLetterListPage, DeadLetterPageFilter, DeadLetterPosition};
pub(crate) use reading::LISTED;
pub use record::{
    CollectedDeadLetter, DeadLetter, DeadLetterDetail, DeadLetterEdit, DeadLetterGroup,
    DeadLetterState, DeadLetterStatus, DeadLetterSummary, FailedMessage, OpenDeadLetters,
};
pub use replays::{ContentFingerprint, FailedAgain, ReplayOutcome};
pub use selection::{
    DeadLetterCursor, DeadLetterFilter, DeadLetterPage, ReplayedBefore, Selection,
};
pub(crate) use store::insert_one;
