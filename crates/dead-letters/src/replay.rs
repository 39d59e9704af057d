//! Replaying dead letters, so that a cause that is not fixed yet shows early and nothing takes effect twice.
//!
//! take (under a lease) → confirm the lease → publish, confirmed → record, in this order; the types allow no other. A dead letter
//! becomes `replayed` only after RabbitMQ confirmed it. If a run crashes before it recorded that, it stays open,
//! and another replay sends it again as the same action, which takes effect once.
//!
//! A run covers the dead letters that existed when it began, so it never replays one that failed again because
//! of it. After each batch it checks which replays failed again. While none does, batches grow; after one,
//! they start again with a single dead letter.

mod replayer;
mod report;
mod run;

pub use self::replayer::Replayer;
pub use self::report::{
    Ended, Failed, Planned, Progress, ReplayReport, ReplaySettings, StopOnFailure,
};
