//! Closing: conversations whose grace period ended, or that became idle, are archived.
//!
//! Session events store a close request in PostgreSQL, and this sweep finds it by PostgreSQL's clock. A batch
//! of claims goes through these steps together, each a short transaction of its own:
//!
//! claim → count tokens → compute the totals → drop hot copies → publish `conversation.migrated`,
//! confirmed → set `archived` with the totals
//!
//! A conversation without messages is archived, too, without an event: its session events or feedback may have
//! overtaken its messages. Its first message makes it active again, and then it closes with what they said.
//!
//! A process may crash after any step. Repeating a step is harmless, and another closer repeats it when the
//! lease has expired. A message that arrives meanwhile cancels the claim; the conversation closes again
//! later.
//!
//! A conversation that is too slow to close with others, or whose row stays locked, is closed apart, by
//! [`Closer::close_apart`]: with longer time limits, while sweeps go on.

use std::time::{Duration, Instant};

use broker::Publisher;
use database::{Claim, ClaimCriteria, CloseCause, Closed, Database};
use domain::causes::with_causes;
use domain::event::Event;
use domain::failure_policy::{SLOW_LIMITS, SLOW_LOCK_LIMIT};
use domain::ids::ConversationKey;
use failpoints::{Guard, Step};
use hot_store::HotStore;
use metrics::{Counter, Metrics, SlowOutcome, SlowWork, Timing};
use tokio::time::timeout;

use crate::apart::{Apart, Taken};
use crate::background::Background;
use crate::closing::{Closes, Closing, RENEWALS_PER_LEASE, SweepError, publish};
use crate::steps::{Fault, StepError, Steps};

/// How long the last write is tried in a sweep for rows that a saver has locked: longer than an ordinary save. What
/// stays locked is handled apart.
const LAST_WRITE_LIMIT: Duration = Duration::from_millis(500);

/// Reopened conversations announced in one sweep.
const REOPENED_BATCH: u32 = 50;

/// What one sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Conversations archived with messages.
    pub archived: usize,
    /// Conversations archived without a message.
    pub archived_empty: usize,
    /// Archived conversations that were reopened, and announced as `conversation.reopened`.
    pub reopened: usize,
}

/// Closes conversations. Clones share their connections, and what they close apart.
#[derive(Clone)]
pub struct Closer {
    steps: Steps,
    hot: HotStore,
    publisher: Publisher,
    metrics: Metrics,
    criteria: ClaimCriteria,
    apart: Apart<ConversationKey, Claim>,
    slow_limits: [Duration; 2],
}

/// How a close apart ended.
enum Ended {
    Archived(Closed),
    /// A message or an opened session cleared the claim.
    Cancelled,
    Failed(StepError),
    /// PostgreSQL or RabbitMQ is unavailable.
    Unavailable(SweepError),
}

impl Closer {
    /// A closer that uses these servers.
    #[must_use]
    pub fn new(
        database: &Database,
        hot: HotStore,
        publisher: Publisher,
        metrics: Metrics,
        background: Background,
        criteria: ClaimCriteria,
    ) -> Self {
        let steps = Steps::in_turn(database, metrics.clone(), background);
        let apart = Apart::new();
        Self { steps, hot, publisher, metrics, criteria, apart, slow_limits: SLOW_LIMITS }
    }

    /// With other limits than [`SLOW_LIMITS`] for the steps of what is closed apart.
    #[must_use]
    pub fn with_slow_limits(self, slow_limits: [Duration; 2]) -> Self {
        Self { slow_limits, ..self }
    }

    /// One bounded sweep, of at most `limit` conversations of each kind. Repeating it has no further effect, and
    /// any number of replicas may run it at once.
    ///
    /// # Errors
    /// A server failed. Unfinished claims are taken over when their lease expires.
    pub async fn sweep(&self, limit: u32) -> Result<Swept, SweepError> {
        let mut swept = Swept { reopened: self.announce_reopened().await?, ..Swept::default() };
        let started = Instant::now();
        // Not retried: if the reply is lost, the claim is taken over when its lease expires.
        let claims = self.steps.paced(self.steps.database.claim(&self.criteria, limit)).await?;
        if claims.is_empty() {
            return Ok(swept);
        }
        failpoints::reached(Step::CloseClaimed);
        let taken_over = claims.iter().filter(|c| c.cause == CloseCause::TakenOver).count();
        self.metrics.add(Counter::CloseTakeovers, taken_over as u64);

        let slow = self.apart.slow_ones();
        let (slow, claims): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| slow.contains(&claim.key));
        for claim in slow {
            // If there is no place, it is taken over when its lease ends.
            self.apart.offer(claim);
        }
        let closing = self.closing(self.steps.clone(), LAST_WRITE_LIMIT);
        let Closes { archived, failed } = closing.close(claims, started).await?;
        for conversation in &archived {
            self.note_archived(conversation, started);
        }
        swept.archived_empty = archived.iter().filter(|it| it.event.is_none()).count();
        swept.archived = archived.len() - swept.archived_empty;
        for (claim, error) in failed {
            self.hand_over(claim, &error);
        }
        Ok(swept)
    }

    /// The next conversation that is to be closed apart, when there is one.
    pub async fn next_apart(&self) -> Taken<Claim> {
        self.apart.next().await
    }

    /// Closes a conversation that was too slow to close with others, or whose row was locked: within the limits of
    /// [`SLOW_LIMITS`], one after the other, for each step. Its lease is renewed meanwhile. If it cannot be closed, or
    /// this is cancelled, it is taken over when the lease ends. The token counts that are stored stay.
    pub async fn close_apart(&self, taken: Taken<Claim>) {
        let (claim, started) = (&taken.item, Instant::now());
        let mut closing = std::pin::pin!(self.close_in_time(claim, started));
        let ended = tokio::select! {
            ended = &mut closing => ended,
            // The last write clears the claim, too.
            () = self.until_cancelled(claim) => {
                timeout(LAST_WRITE_LIMIT, closing).await.unwrap_or(Ended::Cancelled)
            }
        };
        let conversation = &claim.key;
        let outcome = match ended {
            Ended::Archived(closed) => {
                self.note_archived(&closed, started);
                self.apart.forget(conversation);
                SlowOutcome::Done
            }
            Ended::Cancelled => {
                self.apart.forget(conversation);
                SlowOutcome::Cancelled
            }
            Ended::Failed(error) => match error.fault() {
                Fault::TooSlow => {
                    self.apart.remember(conversation.clone());
                    tracing::warn!(
                        %conversation,
                        error = with_causes(&error),
                        "conversation too slow to close: a step was tried within {:?}, apart from others, and did \
                         not end; it is tried again later. See which statement is slow (pg_stat_activity), and why",
                        self.slow_limits
                    );
                    SlowOutcome::TooSlow
                }
                Fault::Locked => {
                    tracing::warn!(
                        %conversation,
                        error = with_causes(&error),
                        "conversation not closed, because its rows are locked; it is closed when they are free. \
                         pg_locks shows who holds the lock"
                    );
                    SlowOutcome::Locked
                }
                Fault::Other => {
                    self.apart.remember(conversation.clone());
                    tracing::warn!(
                        %conversation,
                        error = with_causes(&error),
                        "conversation not closed, apart from others; it is tried again later. If that repeats, \
                         report it as a bug"
                    );
                    SlowOutcome::Failed
                }
            },
            Ended::Unavailable(error) => {
                let error = with_causes(&error);
                tracing::warn!(%conversation, error, "conversation not closed; it is tried again later");
                SlowOutcome::Unavailable
            }
        };
        self.metrics.add(Counter::SlowWork { work: SlowWork::Close, outcome }, 1);
    }

    async fn close_in_time(&self, claim: &Claim, started: Instant) -> Ended {
        let mut last = None;
        for limit in self.slow_limits {
            let closing = self.closing(self.steps.apart(limit), SLOW_LOCK_LIMIT);
            let Closes { mut archived, mut failed } =
                match closing.close(vec![claim.clone()], started).await {
                    Ok(closes) => closes,
                    Err(error) => return Ended::Unavailable(error),
                };
            match (archived.pop(), failed.pop()) {
                (Some(closed), _) => return Ended::Archived(closed),
                (None, None) => return Ended::Cancelled,
                (None, Some((_, error))) if error.fault() == Fault::TooSlow => last = Some(error),
                (None, Some((_, error))) => return Ended::Failed(error),
            }
        }
        last.map_or(Ended::Cancelled, Ended::Failed)
    }

    /// Renews the lease of a claim until the claim is lost.
    async fn until_cancelled(&self, claim: &Claim) {
        loop {
            let renewal = self.steps.usual.renew(std::iter::once(claim), self.criteria.lease);
            let renewed = renewal.await;
            // If PostgreSQL fails, the close fails, too.
            if renewed.is_ok_and(|held| held.is_empty()) {
                return;
            }
            tokio::time::sleep(self.criteria.lease / RENEWALS_PER_LEASE).await;
        }
    }

    /// Hands over a conversation that could not be closed with others.
    fn hand_over(&self, claim: Claim, error: &StepError) {
        if !failpoints::holds(Guard::SlowCloseApart) {
            return;
        }
        let (conversation, reason) = (claim.key.clone(), with_causes(error));
        // One that is not finished continues where it stopped, also with others.
        if error.fault() != Fault::Locked && !matches!(error, StepError::Unfinished(_)) {
            self.apart.remember(claim.key.clone());
        }
        if self.apart.offer(claim) {
            tracing::info!(%conversation, reason, "conversation is closed apart from others");
        } else {
            tracing::info!(
                %conversation,
                reason,
                "conversation not closed with others, and another one is being closed apart; it is tried again later"
            );
        }
    }

    fn closing(&self, steps: Steps, lock_limit: Duration) -> Closing<'_> {
        let (hot, publisher) = (&self.hot, &self.publisher);
        Closing { steps, hot, publisher, lease: self.criteria.lease, lock_limit }
    }

    fn note_archived(&self, Closed { claim, event, .. }: &Closed, started: Instant) {
        let cause = match claim.cause {
            CloseCause::Idle => metrics::CloseCause::Idle,
            CloseCause::Requested => metrics::CloseCause::SessionClosed,
            CloseCause::TakenOver => metrics::CloseCause::TakenOver,
        };
        self.metrics.add(Counter::ConversationsClosed { cause }, 1);
        self.metrics.observe(Timing::Close, started.elapsed());
        let conversation = &claim.key;
        match event {
            Some(event) => tracing::info!(
                %conversation,
                messages = event.message_count,
                tokens = event.total_tokens,
                ?cause,
                "conversation archived"
            ),
            None => {
                self.metrics.add(Counter::ConversationsClosedEmpty, 1);
                tracing::info!(
                    %conversation,
                    ?cause,
                    "conversation archived without messages; a message makes it active again"
                );
            }
        }
    }

    async fn announce_reopened(&self) -> Result<usize, SweepError> {
        let steps = &self.steps;
        let reopened = steps.step(|| steps.database.unannounced(REOPENED_BATCH)).await?;
        if reopened.is_empty() {
            return Ok(0);
        }
        publish(steps, &self.publisher, reopened.iter().cloned().map(Event::Reopened)).await?;
        steps.step(|| steps.database.announced(&reopened)).await?;
        Ok(reopened.len())
    }
}
