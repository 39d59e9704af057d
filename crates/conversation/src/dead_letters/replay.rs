//! Sending dead letters back, so that a cause that is still there shows early and nothing is sent twice.
//!
//! take (under a lease) → publish, confirmed → note, in this order; the types allow no other. A dead letter is
//! `replayed` only once RabbitMQ confirmed it; whoever dies before that is noted leaves it open, and
//! another replay sends it again as the same action, whose effect happens once.
//!
//! A run walks over the dead letters that were there when it began, so what comes back is never sent again by
//! the same run. After each batch it looks whether dead letters came back. While none does batches grow; when
//! one does, they begin anew with a single dead letter.

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
use super::{DeadLetterValidator, PAGE, told};
use crate::transient::retried;

/// How long a run has what it takes: far longer than it takes to publish and note some fifty dead letters,
/// whose publish is given up after 10 s; short enough that nobody waits long after one that died.
const LEASE: Duration = Duration::from_secs(60);

/// How a run goes about it.
#[derive(Debug, Clone, Copy)]
pub struct ReplaySettings {
    /// Dead letters a second at most; more than 0.
    pub rate: f64,
    /// Dead letters of a batch at most.
    pub largest_batch: u32,
    /// How long a batch is watched for dead letters that come back. Less, where all its messages are stored
    /// before; not at all, if it is nothing.
    pub watch: Duration,
    /// When to stop because dead letters come back.
    pub stop: StopOnFailure,
}

/// When a run stops because dead letters come back or cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOnFailure {
    /// With the first one.
    First,
    /// When everything did of which anything is known, or five in a row and whole batches: the cause is
    /// still there. A few among many are dead letters that are still bad, and no reason to leave the others.
    WholeBatch,
    /// Never; only when RabbitMQ or PostgreSQL is away.
    Never,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Dead letters that it is about.
    pub matched: u64,
    /// Sent, and confirmed.
    pub replayed: u64,
    /// Not sent: no queue took them.
    pub failed: u64,
    /// Sent, and back.
    pub failed_again: u64,
    /// Dead letters of the present batch at most.
    pub batch: u32,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It went all the way.
    Complete,
    /// It was told to stop.
    Interrupted,
    /// Dead letters came back.
    FailedAgain,
    /// The last dead letters could not be sent, and whole batches of them.
    NothingAccepted,
    /// A server went away.
    Unavailable {
        /// Which one.
        #[serde(serialize_with = "dependency_name")]
        dependency: Dependency,
        /// What it said.
        cause: String,
    },
}

/// A dead letter that could not be sent. It is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Its id.
    pub id: Uuid,
    /// Where it was to go.
    pub queue: String,
    /// Why no queue has it.
    pub fault: String,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Its id, by which the audit log knows it.
    pub run: Uuid,
    /// Open dead letters that were there when it began.
    pub matched: u64,
    /// Sent, confirmed and noted.
    pub replayed: u64,
    /// Not sent; they are open.
    pub failed: u64,
    /// Sent, and back by now, each as a dead letter of its own.
    pub failed_again: u64,
    /// Sent, but somebody else had taken or decided about them meanwhile, since this run was very slow.
    pub decided_elsewhere: u64,
    /// Of a complete run: met by no batch, because another run had them or somebody decided about them.
    pub skipped: u64,
    /// Why it ended.
    pub ended: Ended,
    /// The first of those that failed.
    pub failures: Vec<Failed>,
    /// The first of those that came back.
    pub failed_again_as: Vec<FailedAgain>,
}

/// What a run would send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The dead letter.
    pub id: Uuid,
    /// The queue to which it would go.
    pub queue: String,
    /// The id under which it is known.
    pub message_id: Option<String>,
    /// Its conversation.
    pub conversation_id: Option<String>,
    /// Whether the edited copy would go.
    pub edited: bool,
    /// Bytes of the body.
    pub bytes: usize,
    /// How often it would have been replayed then.
    pub replay: i32,
    /// Why the workers of this version would refuse it again.
    pub refused_as: Option<DeadLetterReason>,
    /// The field at fault then.
    pub field: Option<String>,
    /// And the fault.
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

/// Dead letters that a run has, for as long as its lease.
#[derive(Debug)]
#[must_use = "they wait for their lease to end unless they are sent"]
pub struct Taken {
    dead_letters: Vec<DeadLetterRow>,
    /// The way that is left.
    pub rest: Option<DeadLetterCursor>,
}

/// Dead letters that were published, and what RabbitMQ said.
#[derive(Debug)]
#[must_use = "they are open until this is noted"]
pub struct Sent {
    outcomes: Vec<ReplayOutcome>,
    /// What is known of each that was confirmed.
    confirmed: Vec<(Uuid, Option<ContentFingerprint>)>,
    away: Option<String>,
}

impl Replayer {
    /// A replayer over the archive.
    #[must_use]
    pub fn new(
        database: Database,
        publisher: Publisher,
        metrics: Metrics,
        validator: DeadLetterValidator,
    ) -> Self {
        Self { database, publisher, metrics, validator }
    }

    /// Says what a run over a selection would send where, oldest first; how many dead letters that is. Changes
    /// nothing.
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

    /// Sends the open dead letters of a selection back, until all are sent or something speaks against it.
    /// `stop` ends it between two slices of a batch.
    ///
    /// # Errors
    /// PostgreSQL failed before anything was sent. What fails later is told in the report.
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
                "dead_letters": matched, "selection": told(cursor.selection()), "rate": settings.rate,
            });
            self.database.record_run(actor, "dead_letters.replay", &detail).await?;
        }
        let report = run.go(cursor, &mut progress).await;
        if matched > 0 {
            self.note_end(&report, actor).await;
        }
        Ok(report)
    }

    /// Takes the next open dead letters of a walk, at most `limit`.
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
        let taken = retried(&self.metrics, take).await?;
        Ok(Taken { dead_letters: taken.dead_letters, rest: taken.rest })
    }

    /// Publishes what was taken, and waits for the confirms.
    pub async fn send(&self, taken: Taken) -> Sent {
        let plan: Vec<_> = taken
            .dead_letters
            .iter()
            .map(|dead_letter| (dead_letter, self.validator.prepare(dead_letter)))
            .collect();
        let publications =
            plan.iter().map(|(dead_letter, plan)| Arc::new(plan.publication(dead_letter)));
        let results = self.publisher.publish_all(publications).await;
        failpoints::reached(Step::ReplayConfirmed);
        let (mut outcomes, mut confirmed, mut away) = (Vec::new(), Vec::new(), None);
        for ((dead_letter, plan), result) in plan.into_iter().zip(results) {
            let fault = result.err();
            match &fault {
                None => confirmed.push((dead_letter.id, plan.fingerprint)),
                Some(error @ (PublishError::Unreachable(_) | PublishError::Blocked)) => {
                    away = Some(error.to_string());
                }
                Some(_) => {}
            }
            outcomes.push(ReplayOutcome {
                dead_letter: dead_letter.id,
                queue: plan.queue,
                fault: fault.map(|error| error.to_string()),
            });
        }
        Sent { outcomes, confirmed, away }
    }

    /// Notes what came of dead letters: how many of them the run still had.
    ///
    /// # Errors
    /// PostgreSQL failed. What was sent is open, and sending it again is harmless.
    pub async fn note(&self, sent: &Sent, actor: &Actor) -> Result<u64, database::Error> {
        let note = || self.database.note_replayed(&sent.outcomes, actor);
        let noted = retried(&self.metrics, note).await?;
        failpoints::reached(Step::ReplayMarked);
        Ok(noted)
    }

    /// The dead letters have their own lines already: this one only sums up.
    async fn note_end(&self, report: &ReplayReport, actor: &Actor) {
        let ReplayReport { replayed, failed, failed_again, ended, .. } = report;
        let detail = json!({
            "replayed": replayed, "failed": failed, "failed_again": failed_again, "ended": ended,
        });
        let note = self.database.record_run(actor, "dead_letters.replay_ended", &detail);
        if let Err(error) = note.await {
            let (run, error) = (actor.run, with_causes(&error));
            tracing::warn!(%run, error, "the end of a replay was not noted");
        }
    }

    fn planned(&self, dead_letter: &DeadLetterRow) -> Planned {
        let plan = self.validator.prepare(dead_letter);
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn dependency_name<S: Serializer>(store: &Dependency, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(store.as_str())
}
