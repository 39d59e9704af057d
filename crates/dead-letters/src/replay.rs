//! Replaying dead letters, so that a cause that is not fixed yet shows early and nothing takes effect twice.
//!
//! take (under a lease) → publish, confirmed → record, in this order; the types allow no other. A dead letter
//! becomes `replayed` only after RabbitMQ confirmed it. If a run crashes before it recorded that, it stays open,
//! and another replay sends it again as the same action, which takes effect once.
//!
//! A run covers the dead letters that existed when it began, so it never replays one that failed again because
//! of it. After each batch it checks which replays failed again. While none does, batches grow; after one,
//! they start again with a single dead letter.

mod run;

use std::sync::Arc;
use std::time::Duration;

use broker::{PublishError, Publisher};
use database::{
    Actor, ContentFingerprint, Database, DeadLetterCursor, DeadLetterRow, DeadLetterStatus,
    FailedAgain, ReplayOutcome, Selection,
};
use domain::causes::with_causes;
use domain::failure::{DeadLetterReason, Dependency};
use failpoints::Step;
use metrics::Metrics;
use serde::{Serialize, Serializer};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::run::Run;
use super::{DeadLetterValidator, PAGE, describe_selection};
use conversation::retry_transient;

/// How long a run holds the dead letters that it takes: far longer than publishing and recording some fifty of
/// them, which times out after 10 s; short enough that another run need not wait long after a crash.
const LEASE: Duration = Duration::from_secs(60);

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub struct ReplaySettings {
    /// The most dead letters per second; more than 0.
    pub rate: f64,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All dead letters of the selection were processed.
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
        #[serde(serialize_with = "dependency_name")]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Its id, as in the audit log.
    pub run: Uuid,
    /// Open dead letters that matched when it began.
    pub matched: u64,
    /// Sent, confirmed and recorded.
    pub replayed: u64,
    /// Not sent; they are open.
    pub failed: u64,
    /// Sent, and failed again by now, each as a new dead letter.
    pub failed_again: u64,
    /// Sent, but no longer this run's when recorded: its lease had expired, and another run took them or an
    /// operator decided about them.
    pub decided_elsewhere: u64,
    /// Of a complete run: in no batch, because another run held them or an operator decided about them.
    pub skipped: u64,
    /// Why it ended.
    pub ended: Ended,
    /// The first of those that failed.
    pub failures: Vec<Failed>,
    /// The first of those that failed again.
    pub failed_again_as: Vec<FailedAgain>,
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

/// Replays dead letters. Clones share their connections.
#[derive(Clone)]
pub struct Replayer {
    database: Database,
    publisher: Publisher,
    metrics: Metrics,
    validator: DeadLetterValidator,
}

/// Dead letters that a run has leased.
#[derive(Debug)]
#[must_use = "unless they are sent, no run can take them until their lease expires"]
pub struct Taken {
    dead_letters: Vec<DeadLetterRow>,
    /// The rest of the selection.
    pub rest: Option<DeadLetterCursor>,
}

/// Dead letters that were published, with RabbitMQ's replies.
#[derive(Debug)]
#[must_use = "they stay open until this is recorded"]
pub struct Sent {
    outcomes: Vec<ReplayOutcome>,
    /// Each one that was confirmed, with the content fingerprint of its message.
    confirmed: Vec<(Uuid, Option<ContentFingerprint>)>,
    /// Why RabbitMQ was unavailable, if it was.
    unavailable: Option<String>,
}

impl Replayer {
    /// A replayer of the dead letters in this database.
    #[must_use]
    pub fn new(
        database: Database,
        publisher: Publisher,
        metrics: Metrics,
        validator: DeadLetterValidator,
    ) -> Self {
        Self { database, publisher, metrics, validator }
    }

    /// Calls `each` with what a run would send, and to which queue, oldest first; returns how many dead letters
    /// that are. Changes nothing.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn plan(
        &self,
        selection: Selection,
        mut each: impl FnMut(Planned),
    ) -> Result<u64, database::Error> {
        let (mut rest, mut count) = (Some(self.database.dead_letter_cursor(selection).await?), 0);
        while let Some(cursor) = rest {
            let open = [DeadLetterStatus::Open];
            let page = self.database.next_dead_letters(&cursor, &open, PAGE).await?;
            for dead_letter in page.dead_letters {
                each(self.planned(&dead_letter));
                count += 1;
            }
            rest = page.rest;
        }
        Ok(count)
    }

    /// Replays the open dead letters of a selection, until all are sent or `settings.stop` ends the run. `stop`
    /// interrupts it between two slices of a batch.
    ///
    /// # Errors
    /// PostgreSQL failed before anything was sent. A later failure is in the report.
    pub async fn run(
        &self,
        selection: Selection,
        actor: &Actor,
        settings: &ReplaySettings,
        stop: &CancellationToken,
        mut progress: impl FnMut(&Progress),
    ) -> Result<ReplayReport, database::Error> {
        let cursor = self.database.dead_letter_cursor(selection).await?;
        let matched = self.database.count_ahead(&cursor, &[DeadLetterStatus::Open]).await?;
        let run = Run::new(self, actor, settings, stop, &cursor, matched);
        if matched > 0 {
            let detail = json!({
                "dead_letters": matched, "selection": describe_selection(cursor.selection()),
                "rate": settings.rate,
            });
            self.database.record_run(actor, "dead_letters.replay", &detail).await?;
        }
        let report = run.run(cursor, &mut progress).await;
        if matched > 0 {
            self.record_end(&report, actor).await;
        }
        Ok(report)
    }

    /// Leases the next open dead letters after the cursor, at most `limit`.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn take(
        &self,
        cursor: &DeadLetterCursor,
        actor: &Actor,
        limit: u32,
    ) -> Result<Taken, database::Error> {
        let take = || self.database.take_dead_letters(cursor, actor, LEASE, limit);
        let taken = retry_transient(&self.metrics, take).await?;
        Ok(Taken { dead_letters: taken.dead_letters, rest: taken.rest })
    }

    /// Publishes what was taken, and waits for the confirms.
    pub async fn send(&self, taken: Taken) -> Sent {
        let plan: Vec<_> = taken
            .dead_letters
            .iter()
            .map(|dead_letter| (dead_letter, self.validator.plan(dead_letter)))
            .collect();
        let publications =
            plan.iter().map(|(dead_letter, plan)| Arc::new(plan.publication(dead_letter)));
        let results = self.publisher.publish_all(publications).await;
        failpoints::reached(Step::ReplayConfirmed);
        let (mut outcomes, mut confirmed, mut unavailable) = (Vec::new(), Vec::new(), None);
        for ((dead_letter, plan), result) in plan.into_iter().zip(results) {
            let fault = result.err();
            match &fault {
                None => confirmed.push((dead_letter.id, plan.fingerprint)),
                Some(error @ (PublishError::Unreachable(_) | PublishError::Blocked)) => {
                    unavailable = Some(error.to_string());
                }
                Some(_) => {}
            }
            outcomes.push(ReplayOutcome {
                dead_letter: dead_letter.id,
                queue: plan.queue,
                fault: fault.map(|error| error.to_string()),
            });
        }
        Sent { outcomes, confirmed, unavailable }
    }

    /// Records the result of each dead letter; returns how many of them the run still held.
    ///
    /// # Errors
    /// PostgreSQL failed. What was sent stays open; sending it again is harmless.
    pub async fn record(&self, sent: &Sent, actor: &Actor) -> Result<u64, database::Error> {
        let record = || self.database.note_replayed(&sent.outcomes, actor);
        let recorded = retry_transient(&self.metrics, record).await?;
        failpoints::reached(Step::ReplayMarked);
        Ok(recorded)
    }

    /// Writes a summary to the audit log. Each dead letter has its own line already.
    async fn record_end(&self, report: &ReplayReport, actor: &Actor) {
        let ReplayReport { replayed, failed, failed_again, ended, .. } = report;
        let detail = json!({
            "replayed": replayed, "failed": failed, "failed_again": failed_again, "ended": ended,
        });
        let record = self.database.record_run(actor, "dead_letters.replay_ended", &detail);
        if let Err(error) = record.await {
            let (run, error) = (actor.run, with_causes(&error));
            tracing::warn!(%run, error, "the summary of a replay run could not be written to the audit log");
        }
    }

    fn planned(&self, dead_letter: &DeadLetterRow) -> Planned {
        let plan = self.validator.plan(dead_letter);
        let resolved = plan.resolved.as_ref();
        let (refused_as, field, refusal) = match plan.refusal {
            Some(refusal) => (Some(refusal.reason), refusal.field, Some(refusal.detail)),
            None => (None, None, None),
        };
        Planned {
            id: dead_letter.id,
            message_id: resolved
                .map(|it| it.id.to_string())
                .or_else(|| dead_letter.message_id.clone()),
            conversation_id: resolved
                .map(|it| it.conversation.to_string())
                .or_else(|| dead_letter.conversation_id.clone()),
            queue: plan.queue,
            edited: dead_letter.edited_body.is_some(),
            bytes: dead_letter.body_to_send().len(),
            replay: dead_letter.replay_count.saturating_add(1),
            refused_as,
            field,
            refusal,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn dependency_name<S: Serializer>(
    dependency: &Dependency,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dependency.as_str())
}
