//! One run: slice by slice, batch by batch, with a look at what came back after each.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use database::{Actor, ContentFingerprint, DeadLetterCursor, FailedAgain};
use domain::causes::with_causes;
use domain::failure::Dependency;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Ended, Failed, Progress, ReplayReport, ReplaySettings, Replayer, Sent, StopOnFailure};
use crate::dead_letters::pace::{BatchResult, Growth, Pace};

/// Between two looks at what became of a batch.
const LOOK: Duration = Duration::from_millis(50);
/// Dead letters that a report names; it counts all.
const NAMED: usize = 100;
/// Dead letters in a row, in batches of which nothing took effect, that speak against sending more once others
/// took effect: after one bad dead letter batches begin anew with one, and bad ones are often neighbours.
const FRUITLESS_IN_A_ROW: usize = 5;

/// A run under way.
pub(super) struct Run<'a> {
    replayer: &'a Replayer,
    actor: &'a Actor,
    settings: &'a ReplaySettings,
    stop: &'a CancellationToken,
    /// As it was at the beginning.
    cursor: DeadLetterCursor,
    report: ReplayReport,
    pace: Pace,
    growth: Growth,
    /// What came back, by the dead letter that was sent.
    back: HashMap<Uuid, FailedAgain>,
    /// How many dead letters took effect, as far as can be told.
    well: usize,
    /// Dead letters of the last batches of which nothing took effect.
    fruitless: usize,
}

/// Dead letters between two looks.
#[derive(Default)]
struct Batch {
    sent: Vec<(Uuid, Option<ContentFingerprint>)>,
    failed: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        replayer: &'a Replayer,
        actor: &'a Actor,
        settings: &'a ReplaySettings,
        stop: &'a CancellationToken,
        cursor: &DeadLetterCursor,
        matched: u64,
    ) -> Self {
        let report = ReplayReport {
            run: actor.run,
            matched,
            replayed: 0,
            failed: 0,
            failed_again: 0,
            decided_elsewhere: 0,
            skipped: 0,
            ended: Ended::Complete,
            failures: Vec::new(),
            failed_again_as: Vec::new(),
        };
        let (pace, growth) = (Pace::new(settings.rate), Growth::new(settings.largest_batch));
        let (cursor, back) = (cursor.clone(), HashMap::new());
        let (well, fruitless) = (0, 0);
        Self {
            replayer,
            actor,
            settings,
            stop,
            cursor,
            report,
            pace,
            growth,
            back,
            well,
            fruitless,
        }
    }

    /// Sends until all are sent or something speaks against it.
    pub(super) async fn go(
        mut self,
        cursor: DeadLetterCursor,
        progress: &mut impl FnMut(&Progress),
    ) -> ReplayReport {
        self.report.ended = match self.all(cursor, progress).await {
            Ok(ended) => ended,
            Err(error) => {
                let cause = with_causes(&error);
                Ended::Unavailable { dependency: Dependency::PostgreSql, cause }
            }
        };
        if self.report.ended == Ended::Complete {
            let met = self.report.replayed + self.report.failed + self.report.decided_elsewhere;
            self.report.skipped = self.report.matched.saturating_sub(met);
        }
        self.report
    }

    async fn all(
        &mut self,
        cursor: DeadLetterCursor,
        progress: &mut impl FnMut(&Progress),
    ) -> Result<Ended, database::Error> {
        let mut rest = Some(cursor);
        while rest.is_some() {
            let mut batch = Batch::default();
            while let Some(cursor) = rest.as_ref().filter(|_| batch.room(self.growth) > 0) {
                let slice = self.pace.slice(batch.room(self.growth));
                let turn = sleep_until(self.pace.turn(slice));
                if self.stop.run_until_cancelled(turn).await.is_none() || self.stop.is_cancelled() {
                    return Ok(Ended::Interrupted);
                }
                let mut taken = self.replayer.take(cursor, self.actor, slice).await?;
                rest = taken.rest.take();
                let sent = self.replayer.send(taken).await;
                self.note(&sent, &mut batch).await?;
                progress(&self.progress());
                if let Some(cause) = sent.away {
                    return Ok(Ended::Unavailable { dependency: Dependency::RabbitMq, cause });
                }
            }
            let verdict = self.watch(&batch).await?;
            progress(&self.progress());
            if let Some(ended) = self.speaks_against(&batch) {
                return Ok(ended);
            }
            self.growth.follow(verdict);
        }
        Ok(Ended::Complete)
    }

    async fn note(&mut self, sent: &Sent, batch: &mut Batch) -> Result<(), database::Error> {
        let noted = self.replayer.note(sent, self.actor).await?;
        let confirmed = sent.confirmed.len() as u64;
        let lost = (sent.outcomes.len() as u64).saturating_sub(noted);
        self.report.replayed += confirmed.saturating_sub(lost);
        self.report.decided_elsewhere += lost;
        for outcome in &sent.outcomes {
            let Some(fault) = &outcome.fault else { continue };
            self.report.failed += 1;
            batch.failed += 1;
            if self.report.failures.len() < NAMED {
                let (id, queue, fault) =
                    (outcome.dead_letter, outcome.queue.clone(), fault.clone());
                self.report.failures.push(Failed { id, queue, fault });
            }
        }
        batch.sent.extend(sent.confirmed.iter().cloned());
        Ok(())
    }

    /// Looks what becomes of a batch until that is known, or until it was watched for long enough.
    async fn watch(&mut self, batch: &Batch) -> Result<BatchResult, database::Error> {
        let replayer = self.replayer;
        let end = Instant::now() + self.settings.watch;
        let unwatched = self.settings.watch.is_zero();
        let known_before = self.back.len();
        let mut stored: HashSet<Uuid> = HashSet::new();
        loop {
            self.refresh_failed_again().await?;
            let waits = |id: &Uuid| !self.back.contains_key(id) && !stored.contains(id);
            let (ids, fingerprint): (Vec<Uuid>, Vec<ContentFingerprint>) = batch
                .sent
                .iter()
                .filter(|(id, _)| waits(id))
                .filter_map(|(id, fingerprint)| Some((*id, fingerprint.clone()?)))
                .unzip();
            let found = match fingerprint.as_slice() {
                [] => Vec::new(),
                fingerprint => replayer.database.stored_fingerprints(fingerprint).await?,
            };
            let open = ids.len() - found.len();
            stored.extend(found.into_iter().filter_map(|n| ids.get(n).copied()));
            let settled =
                batch.sent.iter().all(|(id, _)| self.back.contains_key(id) || stored.contains(id));
            if settled || Instant::now() >= end || self.stop.is_cancelled() {
                let back = self.back.len() - known_before;
                let verdict = if back > 0 || batch.failed > 0 {
                    BatchResult::Bad
                } else if open == 0 || unwatched {
                    BatchResult::Good
                } else if open * 2 <= batch.sent.len() {
                    BatchResult::Open
                } else {
                    BatchResult::Silent
                };
                // Silence is a good sign only where nothing else can be heard.
                let heard =
                    |fingerprint: &Option<ContentFingerprint>| fingerprint.is_some() && !unwatched;
                let silent = batch.sent.iter().filter(|(id, fingerprint)| {
                    !self.back.contains_key(id) && !stored.contains(id) && !heard(fingerprint)
                });
                self.well += stored.len() + silent.count();
                return Ok(verdict);
            }
            // A stop ends the pause; the next look is the last.
            self.stop.run_until_cancelled(sleep(LOOK)).await;
        }
    }

    /// Learns what came back, of this batch and those before.
    async fn refresh_failed_again(&mut self) -> Result<(), database::Error> {
        let database = &self.replayer.database;
        for dead_letter in database.failed_again_in(self.actor.run, &self.cursor).await? {
            if !self.back.contains_key(&dead_letter.replay_of) {
                if self.report.failed_again_as.len() < NAMED {
                    self.report.failed_again_as.push(dead_letter.clone());
                }
                self.report.failed_again += 1;
                self.back.insert(dead_letter.replay_of, dead_letter);
            }
        }
        Ok(())
    }

    /// Whether what became of a batch is a reason to send no more.
    fn speaks_against(&mut self, batch: &Batch) -> Option<Ended> {
        let back = batch.sent.iter().filter(|(id, _)| self.back.contains_key(id)).count();
        let took_effect = back < batch.sent.len();
        self.fruitless = if took_effect { 0 } else { self.fruitless + back + batch.failed };
        let enough = if self.well == 0 { 1 } else { FRUITLESS_IN_A_ROW };
        match self.settings.stop {
            StopOnFailure::Never => None,
            StopOnFailure::First if self.report.failed_again > 0 => Some(Ended::FailedAgain),
            StopOnFailure::First if batch.failed > 0 => Some(Ended::NothingAccepted),
            _ if self.fruitless >= enough && back > 0 => Some(Ended::FailedAgain),
            _ if self.fruitless >= enough => Some(Ended::NothingAccepted),
            // What is tried again for half a minute comes back long after its batch.
            _ if self.report.failed_again > 0 && self.well == 0 => Some(Ended::FailedAgain),
            _ => None,
        }
    }

    fn progress(&self) -> Progress {
        let ReplayReport { matched, replayed, failed, failed_again, .. } = self.report;
        Progress { matched, replayed, failed, failed_again, batch: self.growth.size() }
    }
}

impl Batch {
    /// How many dead letters it still takes.
    fn room(&self, growth: Growth) -> u32 {
        let taken = u32::try_from(self.sent.len() + self.failed).unwrap_or(u32::MAX);
        growth.size().saturating_sub(taken)
    }
}
