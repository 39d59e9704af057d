//! PostgreSQL: the durable store of all messages, and the authoritative state of all conversations.
//!
//! This is the only crate that uses sqlx. There is one file per table or concern. Every write is a
//! batch. A statement that locks several rows locks them in key order, so that two batches cannot
//! deadlock.
//!
//! To add a table: add a file under `migrations/` (never edit one that was released), a file here with
//! the statements that use the table, and a line in `docs/architecture.md` if others may query it.

mod api_database;
mod api_keys;
mod api_role;
mod audit;
mod close;
mod connect;
mod connection_settings;
mod conversation_pages;
mod conversations;
mod day_key;
mod dead_letters;
mod delete;
mod durability;
mod epoch;
mod error;
#[cfg(test)]
mod golden;
mod lock_or_insert;
mod locked;
mod messages;
mod operator_database;
#[cfg(test)]
mod plans;
mod pool;
mod pooler;
mod postgresql_identity;
mod read_replica;
mod reopened;
mod rows;
mod save;
mod save_heuristics;
mod schema;
mod scram;
mod sequences;
mod session_events;
mod session_history;
mod session_update;
mod sessions;
mod statistics;
mod sync;
mod tenant_signature;
mod tombstones;
mod totals;
mod trace;
mod transcript_pages;
mod verify;
mod wal_position;
mod word_search;
mod words;
mod write_check;
mod writers;

pub use api_database::{ApiDatabase, Nonce, PresentedKey, SignedRequest};
pub use api_keys::{ApiKeyView, EVERY_TENANT, NewApiKey};
pub use api_role::{ApiRole, ApiRoleChange, ApiRoleKind};
pub use audit::{
    Actor, AuditEntry, AuditFilter, AuditFinding, AuditReport, CHECKPOINT_EVERY, CONVERSATION_READ,
    Checkpoint, DEAD_LETTER_READ, NewAuditEntry,
};
pub use close::{Claim, ClaimCriteria, CloseCause, Closed, Uncounted};
pub use connect::Database;
pub use connection_settings::{Limits, Settings, Statements};
pub use conversation_pages::{
    ConversationPage, ConversationSummary, PageFilter, PagePosition, WALK,
};
pub use conversations::{ConversationFilter, ConversationView};
pub use day_key::DayKey;
pub use dead_letters::{
    CollectedDeadLetter, ContentFingerprint, DeadLetter, DeadLetterCursor, DeadLetterDetail,
    DeadLetterEdit, DeadLetterFilter, DeadLetterGroup, DeadLetterListPage, DeadLetterPage,
    DeadLetterPageFilter, DeadLetterPosition, DeadLetterState, DeadLetterStatus, DeadLetterSummary,
    Decision, FailedAgain, FailedMessage, Omitted, OpenDeadLetters, ReplayOutcome, ReplayedBefore,
    Selection,
};
pub use delete::{Deleted, Deletion};
pub use durability::RequiredDurability;
pub use epoch::{ConversationNumbers, EpochChange, Numbers, OpenSaves, Recorded};
pub use error::{Error, Result, SchemaError};
pub use messages::{Page, Snapshot};
pub use operator_database::OperatorDatabase;
pub use read_replica::ApiReadReplica;
pub use rows::{Place, SaveRow};
pub use save::{HotWrites, Saved, SavedBatch, TOUCH_SECONDS, Wanted};
pub use sequences::AdvancedSequence;
pub use session_events::SessionEventView;
pub use session_update::SessionUpdate;
pub use sessions::SessionView;
pub use statistics::{ConversationStats, DayRefresh, StaleConversation, StaleDay};
pub use sync::{ListToSync, SyncRefusal, Synced, SyncedBatch, SyncedList};
pub use tenant_signature::{TenantKey, secret_hash};
pub use totals::{COUNTED_ACTIVE, GroupedTotals, Totals, TotalsRequest};
pub use trace::{ConversationTrace, MessageTrace};
pub use transcript_pages::{PagedMessage, ReadingOrder, TranscriptPage, TranscriptRequest};
pub use verify::{
    ConversationCheck, DayCheck, Difference, Differences, OrphanedRows, OrphanedStatistics,
    OrphanedWords, Repair, Scope, WordsDifference,
};
pub use wal_position::{History, Lsn, ReplicaState, ReplicaStates, WalPosition};
pub use word_search::WordSearch;
pub use words::{TextOfMessage, TextPosition, WordBlock, WordsDone, WordsDue};
