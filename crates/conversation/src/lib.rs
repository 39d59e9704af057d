//! The use cases of a conversation, over PostgreSQL and the hot copies in Redis: save, read, close.
//!
//! All of them follow one order: PostgreSQL first, then Redis from committed rows, then the acknowledgement.
//! A failure in Redis changes the conversation's generation in PostgreSQL before anything is acknowledged,
//! so a reader never takes an incomplete copy for a complete one.
//!
//! To add a use case: a file here that takes the [`database::Database`] and, where it needs one, the
//! [`hot_store::HotStore`]. Clock and randomness are passed in.

mod apart;
mod background;
mod bisection;
mod closer;
mod closing;
mod deletions;
mod limited_database;
mod lists;
mod locked_conversations;
mod random_source;
mod reader;
mod recording;
mod redis_server;
mod saver;
mod sessions;
mod statistics;
mod steps;
mod transient;
mod view;
mod words;

pub use apart::Taken;
pub use background::Background;
pub use bisection::{Bisection, SetAside, failed_alone};
pub use closer::{Closer, Swept};
pub use closing::SweepError;
pub use database::{Claim, ClaimCriteria, Deleted};
pub use deletions::Deletions;
pub use limited_database::LimitedDatabase;
pub use lists::{SyncOutcome, ToSync};
pub use random_source::RandomSource;
pub use reader::{
    HotCopyError, Reader, Source, Transcript, current_numbers, read_database, read_hot_copy,
};
pub use redis_server::{UnknownServer, check_server, record_server};
pub use saver::{Saver, ToSave};
pub use sessions::Sessions;
pub use statistics::{Stale, Statistics};
pub use transient::retry_transient;
pub use view::{MessageView, TranscriptView};
pub use words::{WordWriter, words_differing};
