//! The settings of a run, its progress and its report.

use std::time::Duration;

use database::FailedAgain;
use domain::failure::{DeadLetterReason, Dependency};
use serde::Serialize;
use uuid::Uuid;

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub struct ReplaySettings {
    /// The most dead letters per second; more than 0. `None`: no limit.
    pub rate: Option<f64>,
    /// The most dead letters in a batch.
    pub largest_batch: u32,
    /// How long a batch is watched for replays that fail again. The watch ends earlier when all its messages
    /// are stored; zero turns it off.
    pub watch: Duration,
    /// When to stop because replays fail.
    pub stop: StopOnFailure,
}

/// When a run stops because replays fail again or cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOnFailure {
    /// At the first failure.
    First,
    /// When every replay with a known result failed, or when at least five in a row failed, as whole batches:
    /// the cause is not fixed. A few failures among many successes do not stop the run.
    WholeBatch,
    /// Never; only when RabbitMQ or PostgreSQL is unavailable.
    Never,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Dead letters that match the selection.
    pub matched: u64,
    /// Sent and confirmed.
    pub replayed: u64,
    /// Not sent: RabbitMQ did not accept them.
    pub failed: u64,
    /// Sent, and failed again.
    pub failed_again: u64,
    /// The size of the current batch, in dead letters.
    pub batch: u32,
}

/// Why a run ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All dead letters of the selection were processed.
    #[default]
    Complete,
    /// It was asked to stop.
    Interrupted,
    /// Replays failed again.
    FailedAgain,
    /// RabbitMQ accepted none of the last dead letters.
    NothingAccepted,
    /// A server became unavailable.
    Unavailable {
        /// Which one.
        dependency: Dependency,
        /// The error.
        cause: String,
    },
}

/// A dead letter that could not be sent. It is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Its id.
    pub id: Uuid,
    /// The queue that it was to be sent to.
    pub queue: String,
    /// Why it could not be sent.
    pub fault: String,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Its id, as in the audit log.
    pub run: Uuid,
    /// Open dead letters that matched when it began.
    pub matched: u64,
    /// Sent, confirmed and recorded.
    pub replayed: u64,
    /// Not sent; they are open.
    pub failed: u64,
    /// How many of `failed` name another tenant than the one to which the run is limited: an edit changed it. Commands
    /// are limited to none.
    #[serde(skip)]
    pub of_another_tenant: u64,
    /// Sent, and failed again by now, each as a new dead letter.
    pub failed_again: u64,
    /// Sent, but no longer this run's when recorded: its lease had expired, and another run took them or an
    /// operator decided about them.
    pub decided_elsewhere: u64,
    /// Taken and not sent: this process was stopped for longer than its lease, so that operators or another run
    /// may have decided about them.
    pub no_longer_held: u64,
    /// Of a complete run: in no batch, because another run held them, or because they were discarded or replayed
    /// meanwhile.
    pub skipped: u64,
    /// How many of `skipped` were open when the run ended: another run holds them, or died less than a lease ago.
    pub skipped_open: u64,
    /// Why it ended.
    pub ended: Ended,
    /// The first of those that failed.
    pub failures: Vec<Failed>,
    /// The first of those that failed again.
    pub failed_again_as: Vec<FailedAgain>,
    /// The first of those that this run no longer held.
    pub no_longer_held_ids: Vec<Uuid>,
}

/// What a run would send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The dead letter.
    pub id: Uuid,
    /// The queue that it would be sent to.
    pub queue: String,
    /// The id of its message.
    pub message_id: Option<String>,
    /// Its conversation.
    pub conversation_id: Option<String>,
    /// Whether the edited copy would be sent.
    pub edited: bool,
    /// Bytes of the body.
    pub bytes: usize,
    /// How often it would then have been replayed.
    pub replay: i32,
    /// Why the workers of this version would refuse it again; `None`: they would accept it.
    pub refused_as: Option<DeadLetterReason>,
    /// The field at fault, if it would be refused.
    pub field: Option<String>,
    /// What is wrong with it, if it would be refused.
    pub refusal: Option<String>,
}
