//! The use cases of a conversation, over the archive and its hot copies: save, read, close.
//!
//! One sentence rules them all: PostgreSQL first, Redis only from committed rows, then the
//! acknowledgement. Whatever fails in Redis changes a number in PostgreSQL before anything is
//! acknowledged, so a reader never takes an incomplete copy for a complete one.
//!
//! To add a use case: a file here that takes the [`archive::Archive`] and, where it needs one, the
//! [`hot_store::HotStore`]; what it needs of the clock or of chance is handed to it.

mod admission;
mod background;
mod bisection;
mod closer;
mod fresh;
pub mod letters;
mod reader;
mod saver;
mod sessions;
mod statistics;
mod transient;
mod verify;
mod whereabouts;

pub use admission::{NotTheFleets, admission, visit};
pub use background::{Background, InvalidShare};
pub use closer::{Closer, ClosingSettings, SweepError, Swept};
pub use fresh::Fresh;
pub use reader::{Reader, ReadingSettings, Source, Transcript};
pub use saver::Saver;
pub use sessions::Sessions;
pub use statistics::Statistics;
pub use transient::retried;
pub use verify::{
    BrokenOff, Finding, Kind, Mended, Repairs, Section, Told, Verified, Verifier, VerifyingSettings,
};
pub use whereabouts::{HotPlace, Life, Matched, Moment, State, Traced, Tracer, Waiting};
