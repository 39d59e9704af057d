//! One run: slice by slice, batch by batch, with a look at what came back after each.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use archive::{By, Returned, Walk, Words};
use domain::causes::with_causes;
use domain::failure::Store;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Ended, Failed, Progress, ReplayReport, ReplaySettings, Replayer, Sent, StopOnReturn};
use crate::letters::pace::{Growth, Pace, Verdict};

/// Between two looks at what became of a batch.
const LOOK: Duration = Duration::from_millis(50);
/// Letters that a report names; it counts all.
const NAMED: usize = 100;
/// Letters in a row, in batches of which nothing took effect, that speak against sending more once others
/// took effect: after one bad letter batches begin anew with one, and bad ones are often neighbours.
const FRUITLESS_IN_A_ROW: usize = 5;

/// A run under way.
pub(super) struct Run<'a> {
    replayer: &'a Replayer,
    by: &'a By,
    settings: &'a ReplaySettings,
    stop: &'a CancellationToken,
    /// As it was at the beginning.
    walk: Walk,
    report: ReplayReport,
    pace: Pace,
    growth: Growth,
    /// What came back, by the letter that was sent.
    back: HashMap<Uuid, Returned>,
    /// How many letters took effect, as far as can be told.
    well: usize,
    /// Letters of the last batches of which nothing took effect.
    fruitless: usize,
}

/// Letters between two looks.
#[derive(Default)]
struct Batch {
    sent: Vec<(Uuid, Option<Words>)>,
    failed: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        replayer: &'a Replayer,
        by: &'a By,
        settings: &'a ReplaySettings,
        stop: &'a CancellationToken,
        walk: &Walk,
        matched: u64,
    ) -> Self {
        let report = ReplayReport {
            run: by.run,
            matched,
            replayed: 0,
            failed: 0,
            returned: 0,
            overtaken: 0,
            passed_over: 0,
            ended: Ended::Complete,
            failures: Vec::new(),
            returns: Vec::new(),
        };
        let (pace, growth) = (Pace::new(settings.rate), Growth::new(settings.largest_batch));
        let (walk, back) = (walk.clone(), HashMap::new());
        let (well, fruitless) = (0, 0);
        Self { replayer, by, settings, stop, walk, report, pace, growth, back, well, fruitless }
    }

    /// Sends until all are sent or something speaks against it.
    pub(super) async fn go(
        mut self,
        walk: Walk,
        progress: &mut impl FnMut(&Progress),
    ) -> ReplayReport {
        self.report.ended = match self.all(walk, progress).await {
            Ok(ended) => ended,
            Err(error) => {
                let cause = with_causes(&error);
                Ended::Away { store: Store::PostgreSql, cause }
            }
        };
        if self.report.ended == Ended::Complete {
            let met = self.report.replayed + self.report.failed + self.report.overtaken;
            self.report.passed_over = self.report.matched.saturating_sub(met);
        }
        self.report
    }

    async fn all(
        &mut self,
        walk: Walk,
        progress: &mut impl FnMut(&Progress),
    ) -> Result<Ended, archive::Error> {
        let mut rest = Some(walk);
        while rest.is_some() {
            let mut batch = Batch::default();
            while let Some(walk) = rest.as_ref().filter(|_| batch.room(self.growth) > 0) {
                let slice = self.pace.slice(batch.room(self.growth));
                let turn = sleep_until(self.pace.turn(slice));
                if self.stop.run_until_cancelled(turn).await.is_none() || self.stop.is_cancelled() {
                    return Ok(Ended::Interrupted);
                }
                let mut taken = self.replayer.take(walk, self.by, slice).await?;
                rest = taken.rest.take();
                let sent = self.replayer.send(taken).await;
                self.note(&sent, &mut batch).await?;
                progress(&self.progress());
                if let Some(cause) = sent.away {
                    return Ok(Ended::Away { store: Store::RabbitMq, cause });
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

    async fn note(&mut self, sent: &Sent, batch: &mut Batch) -> Result<(), archive::Error> {
        let noted = self.replayer.note(sent, self.by).await?;
        let confirmed = sent.confirmed.len() as u64;
        let lost = (sent.outcomes.len() as u64).saturating_sub(noted);
        self.report.replayed += confirmed.saturating_sub(lost);
        self.report.overtaken += lost;
        for outcome in &sent.outcomes {
            let Some(fault) = &outcome.fault else { continue };
            self.report.failed += 1;
            batch.failed += 1;
            if self.report.failures.len() < NAMED {
                let (id, queue, fault) = (outcome.letter, outcome.queue.clone(), fault.clone());
                self.report.failures.push(Failed { id, queue, fault });
            }
        }
        batch.sent.extend(sent.confirmed.iter().cloned());
        Ok(())
    }

    /// Looks what becomes of a batch until that is known, or until it was watched for long enough.
    async fn watch(&mut self, batch: &Batch) -> Result<Verdict, archive::Error> {
        let replayer = self.replayer;
        let end = Instant::now() + self.settings.watch;
        let unwatched = self.settings.watch.is_zero();
        let known_before = self.back.len();
        let mut stored: HashSet<Uuid> = HashSet::new();
        loop {
            self.hear().await?;
            let waits = |id: &Uuid| !self.back.contains_key(id) && !stored.contains(id);
            let (ids, words): (Vec<Uuid>, Vec<Words>) = batch
                .sent
                .iter()
                .filter(|(id, _)| waits(id))
                .filter_map(|(id, words)| Some((*id, words.clone()?)))
                .unzip();
            let found = match words.as_slice() {
                [] => Vec::new(),
                words => replayer.archive.stored_words(words).await?,
            };
            let open = ids.len() - found.len();
            stored.extend(found.into_iter().filter_map(|n| ids.get(n).copied()));
            let settled =
                batch.sent.iter().all(|(id, _)| self.back.contains_key(id) || stored.contains(id));
            if settled || Instant::now() >= end || self.stop.is_cancelled() {
                let back = self.back.len() - known_before;
                let verdict = if back > 0 || batch.failed > 0 {
                    Verdict::Bad
                } else if open == 0 || unwatched {
                    Verdict::Good
                } else if open * 2 <= batch.sent.len() {
                    Verdict::Open
                } else {
                    Verdict::Silent
                };
                // Silence is a good sign only where nothing else can be heard.
                let heard = |words: &Option<Words>| words.is_some() && !unwatched;
                let silent = batch.sent.iter().filter(|(id, words)| {
                    !self.back.contains_key(id) && !stored.contains(id) && !heard(words)
                });
                self.well += stored.len() + silent.count();
                return Ok(verdict);
            }
            // A stop ends the pause; the next look is the last.
            self.stop.run_until_cancelled(sleep(LOOK)).await;
        }
    }

    /// Learns what came back, of this batch and those before.
    async fn hear(&mut self) -> Result<(), archive::Error> {
        let archive = &self.replayer.archive;
        for letter in archive.returned_letters(self.by.run, &self.walk).await? {
            if !self.back.contains_key(&letter.replay_of) {
                if self.report.returns.len() < NAMED {
                    self.report.returns.push(letter.clone());
                }
                self.report.returned += 1;
                self.back.insert(letter.replay_of, letter);
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
            StopOnReturn::Never => None,
            StopOnReturn::First if self.report.returned > 0 => Some(Ended::CameBack),
            StopOnReturn::First if batch.failed > 0 => Some(Ended::NothingGetsThrough),
            _ if self.fruitless >= enough && back > 0 => Some(Ended::CameBack),
            _ if self.fruitless >= enough => Some(Ended::NothingGetsThrough),
            // What is tried again for half a minute comes back long after its batch.
            _ if self.report.returned > 0 && self.well == 0 => Some(Ended::CameBack),
            _ => None,
        }
    }

    fn progress(&self) -> Progress {
        let ReplayReport { matched, replayed, failed, returned, .. } = self.report;
        Progress { matched, replayed, failed, returned, batch: self.growth.size() }
    }
}

impl Batch {
    /// How many letters it still takes.
    fn room(&self, growth: Growth) -> u32 {
        let taken = u32::try_from(self.sent.len() + self.failed).unwrap_or(u32::MAX);
        growth.size().saturating_sub(taken)
    }
}
