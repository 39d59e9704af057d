//! One run: batches of slices; after each batch it checks which replays failed again.

use std::collections::HashSet;
use std::time::Duration;

use database::{Actor, ContentFingerprint, DeadLetterCursor, DeadLetterStatus, Selection};
use domain::causes::with_causes;
use domain::failure::Dependency;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::replayer::{Replayer, Sent};
use super::report::{Ended, Failed, Progress, ReplayReport, ReplaySettings, StopOnFailure};
use crate::operations::describe_selection;
use crate::rate::{BatchResult, BatchSize, RateLimit};

/// The pause between two checks of what became of a batch.
const POLL: Duration = Duration::from_millis(50);
/// The most dead letters that a report lists; it counts all.
const LISTED: usize = 100;
/// After how many consecutive failures, in batches without any success, a run stops although earlier replays
/// succeeded. More than one, because batches start again with one dead letter after a failure, and dead letters
/// with the same fault are often adjacent.
const MAX_FAILURES_IN_A_ROW: usize = 5;

pub(super) struct Run<'a> {
    replayer: &'a Replayer,
    actor: &'a Actor,
    settings: &'a ReplaySettings,
    stop: &'a CancellationToken,
    cursor: DeadLetterCursor,
    report: ReplayReport,
    rate_limit: RateLimit,
    batch_size: BatchSize,
    /// The dead letters whose replays failed again.
    failed_again: HashSet<Uuid>,
    /// How many replays succeeded, as far as is known.
    succeeded: usize,
    /// Failures in the last batches, all of them without any success.
    failures_in_a_row: usize,
}

#[derive(Default)]
struct Batch {
    sent: Vec<(Uuid, Option<ContentFingerprint>)>,
    failed: usize,
}

impl Replayer {
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
        let report = ReplayReport { run: actor.run, matched, ..ReplayReport::default() };
        let run = Run {
            replayer: self,
            actor,
            settings,
            stop,
            cursor: cursor.clone(),
            report,
            rate_limit: RateLimit::new(settings.rate.unwrap_or(f64::INFINITY)),
            batch_size: BatchSize::new(settings.largest_batch),
            failed_again: HashSet::new(),
            succeeded: 0,
            failures_in_a_row: 0,
        };
        if matched > 0 {
            let mut detail = json!({
                "dead_letters": matched, "selection": describe_selection(cursor.selection()),
            });
            if let Some(rate) = settings.rate {
                detail["rate"] = rate.into();
            }
            self.database.record_run(actor, "dead_letters.replay", &detail).await?;
        }
        let report = run.run(cursor, &mut progress).await;
        if matched > 0 {
            self.record_end(&report, actor).await;
        }
        Ok(report)
    }

    /// Writes a summary to the audit log. Each dead letter has its own line already.
    async fn record_end(&self, report: &ReplayReport, actor: &Actor) {
        let ReplayReport { replayed, failed, failed_again, no_longer_held, ended, .. } = report;
        let detail = json!({
            "replayed": replayed, "failed": failed, "failed_again": failed_again,
            "no_longer_held": no_longer_held, "ended": ended,
        });
        let record = self.database.record_run(actor, "dead_letters.replay_ended", &detail);
        if let Err(error) = record.await {
            let (run, error) = (actor.run, with_causes(&error));
            tracing::warn!(%run, error, "the summary of a replay run could not be written to the audit log");
        }
    }
}

impl Run<'_> {
    pub(super) async fn run(
        mut self,
        cursor: DeadLetterCursor,
        progress: &mut impl FnMut(&Progress),
    ) -> ReplayReport {
        self.report.ended = match self.send_all(cursor, progress).await {
            Ok(ended) => ended,
            Err(error) => {
                let cause = with_causes(&error);
                Ended::Unavailable { dependency: Dependency::PostgreSql, cause }
            }
        };
        self.report
    }

    /// Counts the dead letters that were in no batch of a complete run.
    async fn count_skipped(&mut self) -> Result<(), database::Error> {
        let report = &mut self.report;
        let processed =
            report.replayed + report.failed + report.decided_elsewhere + report.no_longer_held;
        report.skipped = report.matched.saturating_sub(processed);
        if report.skipped > 0 {
            let held =
                self.replayer.database.count_held_by_others(&self.cursor, self.actor).await?;
            report.skipped_open = held.min(report.skipped);
        }
        Ok(())
    }

    async fn send_all(
        &mut self,
        cursor: DeadLetterCursor,
        progress: &mut impl FnMut(&Progress),
    ) -> Result<Ended, database::Error> {
        let mut rest = Some(cursor);
        while rest.is_some() {
            let mut batch = Batch::default();
            while let Some(cursor) = rest.as_ref().filter(|_| batch.room(self.batch_size) > 0) {
                let slice = self.rate_limit.slice(batch.room(self.batch_size));
                let wait = sleep_until(self.rate_limit.reserve(slice));
                if self.stop.run_until_cancelled(wait).await.is_none() || self.stop.is_cancelled() {
                    return Ok(Ended::Interrupted);
                }
                let taken = self.replayer.take(cursor, self.actor, slice).await?;
                rest = taken.rest;
                let sent = self.replayer.send(&taken.dead_letters, self.actor).await?;
                self.record(&sent, &mut batch).await?;
                progress(&self.progress());
                if let Some(cause) = sent.unavailable {
                    return Ok(Ended::Unavailable { dependency: Dependency::RabbitMq, cause });
                }
            }
            let result = self.watch(&batch).await?;
            progress(&self.progress());
            if let Some(ended) = self.reason_to_stop(&batch) {
                return Ok(ended);
            }
            self.batch_size.update(result);
        }
        self.count_skipped().await?;
        Ok(Ended::Complete)
    }

    async fn record(&mut self, sent: &Sent, batch: &mut Batch) -> Result<(), database::Error> {
        let recorded = self.replayer.record(sent, self.actor).await?;
        let confirmed = sent.confirmed.len() as u64;
        let lost = (sent.outcomes.len() as u64).saturating_sub(recorded);
        self.report.replayed += confirmed.saturating_sub(lost);
        self.report.decided_elsewhere += lost;
        for outcome in &sent.outcomes {
            let Some(fault) = &outcome.fault else { continue };
            self.report.failed += 1;
            batch.failed += 1;
            if self.report.failures.len() < LISTED {
                let (id, queue, fault) =
                    (outcome.dead_letter, outcome.queue.clone(), fault.clone());
                self.report.failures.push(Failed { id, queue, fault });
            }
        }
        self.report.of_another_tenant += sent.of_another_tenant;
        self.report.no_longer_held += sent.no_longer_held.len() as u64;
        let listed = LISTED.saturating_sub(self.report.no_longer_held_ids.len());
        self.report.no_longer_held_ids.extend(sent.no_longer_held.iter().take(listed));
        batch.sent.extend(sent.confirmed.iter().cloned());
        Ok(())
    }

    /// Polls until the result of every replay of a batch is known, or the time to watch it is over.
    async fn watch(&mut self, batch: &Batch) -> Result<BatchResult, database::Error> {
        let replayer = self.replayer;
        let end = Instant::now() + self.settings.watch;
        let unwatched = self.settings.watch.is_zero();
        let failed_before = self.failed_again.len();
        let mut stored: HashSet<Uuid> = HashSet::new();
        loop {
            self.refresh_failed_again().await?;
            let pending = |id: &Uuid| !self.failed_again.contains(id) && !stored.contains(id);
            let (ids, fingerprints): (Vec<Uuid>, Vec<ContentFingerprint>) = batch
                .sent
                .iter()
                .filter(|(id, _)| pending(id))
                .filter_map(|(id, fingerprint)| Some((*id, fingerprint.clone()?)))
                .unzip();
            let found = match fingerprints.as_slice() {
                [] => Vec::new(),
                fingerprints => replayer.database.stored_fingerprints(fingerprints).await?,
            };
            let unknown = ids.len() - found.len();
            stored.extend(found.into_iter().filter_map(|n| ids.get(n).copied()));
            let settled = batch
                .sent
                .iter()
                .all(|(id, _)| self.failed_again.contains(id) || stored.contains(id));
            if settled || Instant::now() >= end || self.stop.is_cancelled() {
                let failed_again = self.failed_again.len() - failed_before;
                let result = if failed_again > 0 || batch.failed > 0 {
                    BatchResult::Failed
                } else if unknown == 0 || unwatched {
                    BatchResult::Succeeded
                } else if unknown * 2 <= batch.sent.len() {
                    BatchResult::PartlyPending
                } else {
                    BatchResult::MostlyPending
                };
                // A replay that did not fail again counts as a success only if its message cannot be looked up.
                let assumed = batch.sent.iter().filter(|(id, fingerprint)| {
                    let can_be_checked = fingerprint.is_some() && !unwatched;
                    !self.failed_again.contains(id) && !stored.contains(id) && !can_be_checked
                });
                self.succeeded += stored.len() + assumed.count();
                return Ok(result);
            }
            // A stop ends the pause; the next check is the last.
            self.stop.run_until_cancelled(sleep(POLL)).await;
        }
    }

    /// Reads which replays failed again, of this batch and those before.
    async fn refresh_failed_again(&mut self) -> Result<(), database::Error> {
        let database = &self.replayer.database;
        for dead_letter in database.failed_again_in(self.actor.run, &self.cursor).await? {
            if self.failed_again.insert(dead_letter.replay_of) {
                self.report.failed_again += 1;
                if self.report.failed_again_as.len() < LISTED {
                    self.report.failed_again_as.push(dead_letter);
                }
            }
        }
        Ok(())
    }

    fn reason_to_stop(&mut self, batch: &Batch) -> Option<Ended> {
        let failed_again =
            batch.sent.iter().filter(|(id, _)| self.failed_again.contains(id)).count();
        if failed_again < batch.sent.len() {
            self.failures_in_a_row = 0;
        } else {
            self.failures_in_a_row += failed_again + batch.failed;
        }
        let limit = if self.succeeded == 0 { 1 } else { MAX_FAILURES_IN_A_ROW };
        let limit_reached = self.failures_in_a_row >= limit;
        match self.settings.stop {
            StopOnFailure::Never => None,
            StopOnFailure::First if self.report.failed_again > 0 => Some(Ended::FailedAgain),
            StopOnFailure::First if batch.failed > 0 => Some(Ended::NothingAccepted),
            _ if limit_reached && failed_again > 0 => Some(Ended::FailedAgain),
            _ if limit_reached => Some(Ended::NothingAccepted),
            // A message that is retried for half a minute fails again long after its batch.
            _ if self.report.failed_again > 0 && self.succeeded == 0 => Some(Ended::FailedAgain),
            _ => None,
        }
    }

    fn progress(&self) -> Progress {
        let ReplayReport { matched, replayed, failed, failed_again, .. } = self.report;
        Progress { matched, replayed, failed, failed_again, batch: self.batch_size.get() }
    }
}

impl Batch {
    fn room(&self, size: BatchSize) -> u32 {
        let taken = u32::try_from(self.sent.len() + self.failed).unwrap_or(u32::MAX);
        size.get().saturating_sub(taken)
    }
}
