//! The use cases of a conversation, over the archive and its hot copies: save, read, close.
//!
//! One sentence rules them all: PostgreSQL first, Redis only from committed rows, then the
//! acknowledgement. Whatever fails in Redis changes a number in PostgreSQL before anything is
//! acknowledged, so a reader never takes an incomplete copy for a complete one.
//!
//! To add a use case: a file here that takes the [`database::Database`] and, where it needs one, the
//! [`hot_store::HotStore`]; what it needs of the clock or of chance is handed to it.

mod background;
mod bisection;
mod closer;
pub mod dead_letters;
mod random_source;
mod reader;
mod redis_server;
mod saver;
mod sessions;
mod statistics;
mod trace;
mod transient;
mod verify;

pub use background::{Background, InvalidShare};
pub use closer::{Closer, ClosingSettings, SweepError, Swept};
pub use random_source::RandomSource;
pub use reader::{Reader, ReadingSettings, Source, Transcript};
pub use redis_server::{UnknownServer, check_server, record_server};
pub use saver::Saver;
pub use sessions::Sessions;
pub use statistics::Statistics;
pub use trace::{
    HotCopyState, Matched, State, TraceEvent, TraceReport, TracedItem, Tracer, Waiting,
};
pub use transient::retried;
pub use verify::{
    Finding, Incomplete, Kind, RepairOutcome, Repairs, Section, Verified, Verifier, VerifyProgress,
    VerifyingSettings,
};
