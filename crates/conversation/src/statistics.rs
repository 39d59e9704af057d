//! Bringing statistics up to date: conversations first, then the days that they fall on.
//!
//! What to recompute is stored in PostgreSQL and worked off in bounded batches. So it does not matter which
//! process runs this, how often, or whether an earlier run was cut off.
//!
//! What is too slow with others, or stays locked, is refreshed apart ([`Statistics::refresh_apart`]), while the others
//! go on. Until then it is not chosen again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use database::{Database, DayKey, DayRefresh, StaleConversation};
use domain::causes::with_causes;
use domain::failure::{Dependency, Unavailable};
use domain::failure_policy::{SLOW_LIMITS, SLOW_LOCK_LIMIT};
use domain::ids::ConversationKey;
use metrics::{Counter, Metrics, SlowOutcome, SlowWork};
use tokio::time::Instant;

use crate::apart::{Apart, Taken};
use crate::background::Background;
use crate::steps::{Fault, StepError, Steps};

/// Conversations in one transaction: a few milliseconds of work.
const BATCH: u32 = 10;

/// Days in one transaction. Each reads all conversations of its day.
const DAYS: u32 = 1;

/// How long what could not be written is not chosen again: another replica may be writing it, or its row is locked.
/// What cannot be written twice in a row is refreshed apart.
const SKIPPED: Duration = SLOW_LOCK_LIMIT;

/// After which time what was too slow is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// The pause before a locked row is tried again.
const LOCKED_PAUSE: Duration = Duration::from_millis(200);

/// Refreshes statistics. Clones share their connections, and what they refresh apart.
#[derive(Clone)]
pub struct Statistics {
    steps: Steps,
    metrics: Metrics,
    apart: Apart<Stale, Stale>,
    skipped: Arc<Mutex<HashMap<Stale, Instant>>>,
    slow_limits: [Duration; 2],
}

/// Statistics that are out of date.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Stale {
    /// Those of a conversation.
    Conversation(ConversationKey),
    /// Those of a day.
    Day(DayKey),
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conversation(key) => write!(f, "conversation {key}"),
            Self::Day(DayKey { tenant_id, agent_id, model_name, day }) => {
                write!(
                    f,
                    "day {day} of agent {agent_id:?}, model {model_name:?}, tenant {tenant_id}"
                )
            }
        }
    }
}

impl Statistics {
    /// Statistics in this database, recomputed in the background.
    #[must_use]
    pub fn new(database: &Database, metrics: Metrics, background: Background) -> Self {
        let steps = Steps::in_turn(database, metrics.clone(), background);
        let (apart, skipped) = (Apart::new(), Arc::default());
        Self { steps, metrics, apart, skipped, slow_limits: SLOW_LIMITS }
    }

    /// With other limits than [`SLOW_LIMITS`] for what is refreshed apart.
    #[must_use]
    pub fn with_slow_limits(self, slow_limits: [Duration; 2]) -> Self {
        Self { slow_limits, ..self }
    }

    /// Recomputes the statistics of at most 10 dirty conversations; returns how many there were. Those that could not
    /// be written are tried again later.
    ///
    /// # Errors
    /// PostgreSQL failed; nothing changed.
    pub async fn refresh_conversations(&self) -> Result<usize, Unavailable> {
        self.try_again();
        let except: Vec<_> = self.not_now().into_iter().filter_map(conversation).collect();
        let steps = &self.steps;
        let stale = steps.step(|| steps.database.stale_conversations(BATCH, &except)).await?;
        let refreshed = steps
            .in_parts(&stale, |part| steps.step(|| steps.database.refresh_conversations(part)))
            .await?;
        self.metrics.add(Counter::StatisticsRecomputed, refreshed.results.len() as u64);
        for (StaleConversation { key, .. }, error) in &refreshed.failed {
            self.hand_over(Stale::Conversation(key.clone()), error);
        }
        for StaleConversation { key, .. } in &stale {
            let stale = Stale::Conversation(key.clone());
            if refreshed.results.contains(key) {
                self.skipped().remove(&stale);
            } else if !refreshed.failed.iter().any(|(failed, _)| failed.key == *key)
                && !refreshed.untried.iter().any(|untried| untried.key == *key)
            {
                self.skip(stale);
            }
        }
        Ok(stale.len())
    }

    /// Recomputes one dirty day; returns 1, or 0 if there is none. It reads all conversations of that day, so
    /// it is meant for every interval, not for every event.
    ///
    /// # Errors
    /// PostgreSQL failed; nothing changed.
    pub async fn refresh_days(&self) -> Result<usize, Unavailable> {
        self.try_again();
        let except: Vec<_> = self.not_now().into_iter().filter_map(day).collect();
        let steps = &self.steps;
        let stale = steps.step(|| steps.database.stale_days(DAYS, &except)).await?;
        let refreshed = steps
            .in_parts(&stale, |part| async move {
                let mut written = Vec::with_capacity(part.len());
                for day in part {
                    let refreshed = steps.step(|| steps.database.refresh_day(day)).await?;
                    written.push((&day.key, refreshed));
                }
                Ok(written)
            })
            .await?;
        for (day, error) in &refreshed.failed {
            self.hand_over(Stale::Day(day.key.clone()), error);
        }
        for (day, refreshed) in refreshed.results {
            self.note_day(refreshed);
            let stale = Stale::Day(day.clone());
            match refreshed {
                DayRefresh::Current => {
                    self.skipped().remove(&stale);
                }
                // It changes often; once in a while is enough.
                DayRefresh::Changed => {
                    self.skipped().insert(stale, Instant::now());
                }
                DayRefresh::Locked => self.skip(stale),
            }
        }
        Ok(stale.len())
    }

    /// The next statistics that are to be refreshed apart, when there are some.
    pub async fn next_apart(&self) -> Taken<Stale> {
        self.apart.next().await
    }

    /// Refreshes what was too slow with others, or was locked: within the limits of [`SLOW_LIMITS`], one after the
    /// other. If that fails or is cancelled, it is tried again later.
    pub async fn refresh_apart(&self, taken: Taken<Stale>) {
        let stale = &taken.item;
        let work = match stale {
            Stale::Conversation(_) => SlowWork::ConversationStatistics,
            Stale::Day(_) => SlowWork::DailyStatistics,
        };
        let mut refreshed = Ok(());
        for limit in self.slow_limits {
            refreshed = self.refresh_within(stale, limit).await;
            if refreshed.as_ref().err().map(StepError::fault) != Some(Fault::TooSlow) {
                break;
            }
        }
        let outcome = match refreshed {
            Ok(()) => {
                self.apart.forget(stale);
                self.skipped().insert(stale.clone(), Instant::now());
                SlowOutcome::Done
            }
            Err(error) => {
                self.apart.remember(stale.clone());
                self.warn(stale, &error).await
            }
        };
        self.metrics.add(Counter::SlowWork { work, outcome }, 1);
    }

    async fn warn(&self, stale: &Stale, error: &StepError) -> SlowOutcome {
        let (outcome, remedy) = if self.steps.is_of_one(error).await {
            match error.fault() {
                Fault::TooSlow => (
                    SlowOutcome::TooSlow,
                    "see which statement is slow (pg_stat_activity), and why",
                ),
                Fault::Locked => {
                    (SlowOutcome::Locked, "pg_locks shows who holds the lock of its rows")
                }
                Fault::Other => (SlowOutcome::Failed, "if that repeats, report it as a bug"),
            }
        } else {
            (SlowOutcome::Unavailable, "PostgreSQL is unavailable")
        };
        tracing::warn!(
            %stale,
            error = with_causes(error),
            limits = ?self.slow_limits,
            "statistics not refreshed, apart from others; they are tried again later: {remedy}"
        );
        outcome
    }

    /// Refreshes what is still out of date, and waits for its row if that is locked.
    async fn refresh_within(&self, stale: &Stale, limit: Duration) -> Result<(), StepError> {
        let (steps, began) = (self.steps.apart(limit), Instant::now());
        loop {
            let written = match stale {
                Stale::Conversation(key) => self.refresh_conversation(key, &steps).await?,
                Stale::Day(key) => self.refresh_day(key, &steps).await?,
            };
            if written {
                return Ok(());
            }
            if began.elapsed() >= SLOW_LOCK_LIMIT {
                return Err(StepError::Locked(SLOW_LOCK_LIMIT));
            }
            tokio::time::sleep(LOCKED_PAUSE).await;
        }
    }

    async fn refresh_conversation(
        &self,
        key: &ConversationKey,
        steps: &Steps,
    ) -> Result<bool, StepError> {
        let stale = steps.step(|| steps.database.stale_conversation(key)).await?;
        let Some(stale) = stale.map(|it| [it]) else { return Ok(true) };
        let written = steps.step(|| steps.database.refresh_conversations(&stale)).await?;
        self.metrics.add(Counter::StatisticsRecomputed, written.len() as u64);
        Ok(!written.is_empty())
    }

    async fn refresh_day(&self, key: &DayKey, steps: &Steps) -> Result<bool, StepError> {
        let stale = steps.step(|| steps.database.stale_day(key)).await?;
        let Some(stale) = stale else { return Ok(true) };
        let refreshed = steps.step(|| steps.database.refresh_day(&stale)).await?;
        self.note_day(refreshed);
        Ok(refreshed != DayRefresh::Locked)
    }

    fn note_day(&self, refreshed: DayRefresh) {
        let written = refreshed != DayRefresh::Locked;
        self.metrics.add(Counter::DailyBucketsRecomputed, u64::from(written));
    }

    /// What is too slow is not chosen again; it is refreshed apart, now or in turn.
    fn hand_over(&self, stale: Stale, error: &StepError) {
        self.apart.remember(stale.clone());
        self.offer(stale, &with_causes(error));
    }

    /// What could not be written twice in a row is refreshed apart.
    fn skip(&self, stale: Stale) {
        let before = self.skipped().insert(stale.clone(), Instant::now());
        if before.is_some() {
            self.skipped().remove(&stale);
            self.hand_over(stale, &StepError::Locked(SKIPPED));
        }
    }

    /// Offers again what was too slow before.
    fn try_again(&self) {
        if let Some(stale) = self.apart.tried_before(AGAIN) {
            self.offer(stale, "it was too slow or locked before");
        }
    }

    fn offer(&self, stale: Stale, reason: &str) {
        let name = stale.to_string();
        if self.apart.offer(stale) {
            tracing::info!(stale = name, reason, "statistics are refreshed apart from others");
        }
    }

    /// What is not to be chosen now.
    fn not_now(&self) -> Vec<Stale> {
        let mut not_now = self.apart.slow_ones();
        let skipped = self.skipped();
        let recent = skipped.iter().filter(|(_, since)| since.elapsed() < SKIPPED);
        not_now.extend(recent.map(|(stale, _)| stale.clone()));
        not_now
    }

    /// What was skipped lately, once.
    fn skipped(&self) -> MutexGuard<'_, HashMap<Stale, Instant>> {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.retain(|_, since| since.elapsed() < 2 * SKIPPED);
        skipped
    }
}

impl From<StepError> for Unavailable {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Database(error) => error.into(),
            other => Self { dependency: Dependency::PostgreSql, source: Box::new(other) },
        }
    }
}

fn conversation(stale: Stale) -> Option<ConversationKey> {
    match stale {
        Stale::Conversation(key) => Some(key),
        Stale::Day(_) => None,
    }
}

fn day(stale: Stale) -> Option<DayKey> {
    match stale {
        Stale::Day(key) => Some(key),
        Stale::Conversation(_) => None,
    }
}
