//! Sending dead letters back, so that a cause that is still there shows early and nothing is sent twice.
//!
//! take (under a lease) → publish, confirmed → note, in this order; the types allow no other. A letter is
//! `replayed` only once RabbitMQ confirmed it; whoever dies before that is noted leaves it open, and
//! another replay sends it again as the same action, whose effect happens once.
//!
//! A run walks over the letters that were there when it began, so what comes back is never sent again by
//! the same run. After each batch it looks whether letters came back. While none does batches grow; when
//! one does, they begin anew with a single letter.

mod run;

use std::sync::Arc;
use std::time::Duration;

use archive::{
    Archive, By, DeadLetterRow, DeadLetterStatus, ReplayOutcome, Returned, Selection, Walk, Words,
};
use broker::{PublishError, Publisher};
use crash_points::Step;
use domain::causes::with_causes;
use domain::failure::{DeadLetterReason, Store};
use metrics::Metrics;
use serde::{Serialize, Serializer};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::run::Run;
use super::{Examiner, PAGE, told};
use crate::transient::retried;

/// How long a run has what it takes: far longer than it takes to publish and note some fifty letters,
/// whose publish is given up after 10 s; short enough that nobody waits long after one that died.
const LEASE: Duration = Duration::from_secs(60);

/// How a run goes about it.
#[derive(Debug, Clone, Copy)]
pub struct ReplaySettings {
    /// Letters a second at most; more than 0.
    pub rate: f64,
    /// Letters of a batch at most.
    pub largest_batch: u32,
    /// How long a batch is watched for letters that come back. Less, where all its messages are stored
    /// before; not at all, if it is nothing.
    pub watch: Duration,
    /// When to stop because letters come back.
    pub stop: StopOnReturn,
}

/// When a run stops because letters come back or cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOnReturn {
    /// With the first one.
    First,
    /// When everything did of which anything is known, or five in a row and whole batches: the cause is
    /// still there. A few among many are letters that are still bad, and no reason to leave the others.
    WholeBatch,
    /// Never; only when RabbitMQ or PostgreSQL is away.
    Never,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Letters that it is about.
    pub matched: u64,
    /// Sent, and confirmed.
    pub replayed: u64,
    /// Not sent: no queue took them.
    pub failed: u64,
    /// Sent, and back.
    pub returned: u64,
    /// Letters of the present batch at most.
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
    /// Letters came back.
    CameBack,
    /// The last letters could not be sent, and whole batches of them.
    NothingGetsThrough,
    /// A server went away.
    Away {
        /// Which one.
        #[serde(serialize_with = "store_name")]
        store: Store,
        /// What it said.
        cause: String,
    },
}

/// A letter that could not be sent. It is open.
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
    /// Open letters that were there when it began.
    pub matched: u64,
    /// Sent, confirmed and noted.
    pub replayed: u64,
    /// Not sent; they are open.
    pub failed: u64,
    /// Sent, and back by now, each as a letter of its own.
    pub returned: u64,
    /// Sent, but somebody else had taken or decided about them meanwhile, since this run was very slow.
    pub overtaken: u64,
    /// Of a complete run: met by no batch, because another run had them or somebody decided about them.
    pub passed_over: u64,
    /// Why it ended.
    pub ended: Ended,
    /// The first of those that failed.
    pub failures: Vec<Failed>,
    /// The first of those that came back.
    pub returns: Vec<Returned>,
}

/// What a run would send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The letter.
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
    archive: Archive,
    publisher: Publisher,
    metrics: Metrics,
    examiner: Examiner,
}

/// Letters that a run has, for as long as its lease.
#[derive(Debug)]
#[must_use = "they wait for their lease to end unless they are sent"]
pub struct Taken {
    letters: Vec<DeadLetterRow>,
    /// The way that is left.
    pub rest: Option<Walk>,
}

/// Letters that were published, and what RabbitMQ said.
#[derive(Debug)]
#[must_use = "they are open until this is noted"]
pub struct Sent {
    outcomes: Vec<ReplayOutcome>,
    /// What is known of each that was confirmed.
    confirmed: Vec<(Uuid, Option<Words>)>,
    away: Option<String>,
}

impl Replayer {
    /// A replayer over the archive.
    #[must_use]
    pub fn new(
        archive: Archive,
        publisher: Publisher,
        metrics: Metrics,
        examiner: Examiner,
    ) -> Self {
        Self { archive, publisher, metrics, examiner }
    }

    /// Says what a run over a selection would send where, oldest first; how many letters that is. Changes
    /// nothing.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn plan(
        &self,
        selection: Selection,
        mut each: impl FnMut(Planned),
    ) -> Result<u64, archive::Error> {
        let (mut rest, mut count) = (Some(self.archive.walk_dead_letters(selection).await?), 0);
        while let Some(walk) = rest {
            let open = [DeadLetterStatus::Open];
            let page = self.archive.next_dead_letters(&walk, &open, PAGE).await?;
            for letter in page.letters {
                each(self.planned(&letter));
                count += 1;
            }
            rest = page.rest;
        }
        Ok(count)
    }

    /// Sends the open letters of a selection back, until all are sent or something speaks against it.
    /// `stop` ends it between two slices of a batch.
    ///
    /// # Errors
    /// PostgreSQL failed before anything was sent. What fails later is told in the report.
    pub async fn run(
        &self,
        selection: Selection,
        by: &By,
        settings: &ReplaySettings,
        stop: &CancellationToken,
        mut progress: impl FnMut(&Progress),
    ) -> Result<ReplayReport, archive::Error> {
        let walk = self.archive.walk_dead_letters(selection).await?;
        let matched = self.archive.count_ahead(&walk, &[DeadLetterStatus::Open]).await?;
        let run = Run::new(self, by, settings, stop, &walk, matched);
        if matched > 0 {
            let detail = json!({
                "letters": matched, "selection": told(walk.selection()), "rate": settings.rate,
            });
            self.archive.note_run(by, "dead_letters.replay", &detail).await?;
        }
        let report = run.go(walk, &mut progress).await;
        if matched > 0 {
            self.note_end(&report, by).await;
        }
        Ok(report)
    }

    /// Takes the next open letters of a walk, at most `limit`.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn take(&self, walk: &Walk, by: &By, limit: u32) -> Result<Taken, archive::Error> {
        let take = || self.archive.take_dead_letters(walk, by, LEASE, limit);
        let taken = retried(&self.metrics, take).await?;
        Ok(Taken { letters: taken.letters, rest: taken.rest })
    }

    /// Publishes what was taken, and waits for the confirms.
    pub async fn send(&self, taken: Taken) -> Sent {
        let prepared: Vec<_> =
            taken.letters.iter().map(|letter| (letter, self.examiner.prepare(letter))).collect();
        let publications =
            prepared.iter().map(|(letter, prepared)| Arc::new(prepared.publication(letter)));
        let results = self.publisher.publish_all(publications).await;
        crash_points::reached(Step::ReplayConfirmed);
        let (mut outcomes, mut confirmed, mut away) = (Vec::new(), Vec::new(), None);
        for ((letter, prepared), result) in prepared.into_iter().zip(results) {
            let fault = result.err();
            match &fault {
                None => confirmed.push((letter.id, prepared.words)),
                Some(error @ (PublishError::Unreachable(_) | PublishError::Blocked)) => {
                    away = Some(error.to_string());
                }
                Some(_) => {}
            }
            outcomes.push(ReplayOutcome {
                letter: letter.id,
                queue: prepared.queue,
                fault: fault.map(|error| error.to_string()),
            });
        }
        Sent { outcomes, confirmed, away }
    }

    /// Notes what came of letters: how many of them the run still had.
    ///
    /// # Errors
    /// PostgreSQL failed. What was sent is open, and sending it again is harmless.
    pub async fn note(&self, sent: &Sent, by: &By) -> Result<u64, archive::Error> {
        let note = || self.archive.note_replayed(&sent.outcomes, by);
        let noted = retried(&self.metrics, note).await?;
        crash_points::reached(Step::ReplayMarked);
        Ok(noted)
    }

    /// The letters have their own lines already: this one only sums up.
    async fn note_end(&self, report: &ReplayReport, by: &By) {
        let ReplayReport { replayed, failed, returned, ended, .. } = report;
        let detail = json!({
            "replayed": replayed, "failed": failed, "returned": returned, "ended": ended,
        });
        let note = self.archive.note_run(by, "dead_letters.replay_ended", &detail);
        if let Err(error) = note.await {
            let (run, error) = (by.run, with_causes(&error));
            tracing::warn!(%run, error, "the end of a replay was not noted");
        }
    }

    fn planned(&self, letter: &DeadLetterRow) -> Planned {
        let prepared = self.examiner.prepare(letter);
        let resolved = prepared.resolved.as_ref();
        let (refused_as, field, refusal) = match prepared.refusal {
            Some(refusal) => (Some(refusal.reason), refusal.field, Some(refusal.detail)),
            None => (None, None, None),
        };
        Planned {
            id: letter.id,
            message_id: resolved.map(|it| it.id.to_string()).or_else(|| letter.message_id.clone()),
            conversation_id: resolved
                .map(|it| it.conversation.to_string())
                .or_else(|| letter.conversation_id.clone()),
            queue: prepared.queue,
            edited: letter.edited_body.is_some(),
            bytes: letter.body_to_send().len(),
            replay: letter.replay_count.saturating_add(1),
            refused_as,
            field,
            refusal,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn store_name<S: Serializer>(store: &Store, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(store.as_str())
}
