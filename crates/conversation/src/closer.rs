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

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ConstantBuilder};
use broker::{Publication, PublishError, Publisher};
use database::{Claim, ClaimCriteria, CloseCause, Closed, Database, Uncounted};
use domain::causes::with_causes;
use domain::event::Event;
use domain::ids::{ConversationKey, MessageId};
use failpoints::Step;
use hot_store::HotStore;
use metrics::{Counter, Metrics, Timing};
use tokens::Encoding;

use crate::background::Background;

/// The most messages, and bytes, whose tokens are counted between two statements: a few milliseconds of
/// counting at 20 MB/s, and as much in PostgreSQL. A saver waits no longer than that for a core.
const COUNT_MESSAGES: u32 = 100;
const COUNT_BYTES: usize = 64 * 1024;

/// Renewals during one lease. Few, because each rewrites a row of every claim.
const RENEWALS_PER_LEASE: u32 = 3;

/// How often, and after which pause, the last write is tried for rows that a saver has locked. Together
/// longer than an ordinary save; rows that stay locked are taken over by a later sweep.
const LAST_WRITE_TRIES: usize = 10;
const LAST_WRITE_PAUSE: Duration = Duration::from_millis(50);

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

/// Why a sweep stopped. What it did so far is stored; the next sweep continues.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// PostgreSQL failed.
    #[error("closing sweep: PostgreSQL failed")]
    Database(#[from] database::Error),
    /// RabbitMQ did not confirm an event.
    #[error("closing sweep: RabbitMQ did not confirm an event")]
    Publish(#[from] PublishError),
    /// An event could not be encoded as JSON.
    #[error("closing sweep: an event could not be encoded as JSON")]
    Encode(#[from] serde_json::Error),
    /// Counting tokens panicked. Without its source: the message of a panic may contain content.
    #[error("closing sweep: counting tokens panicked; the worker's log names the location")]
    Count,
}

/// Closes conversations. Clones share their connections.
#[derive(Clone)]
pub struct Closer {
    database: Database,
    hot: HotStore,
    publisher: Publisher,
    metrics: Metrics,
    background: Background,
    criteria: ClaimCriteria,
}

impl Closer {
    /// A closer that uses these servers.
    #[must_use]
    pub fn new(
        database: Database,
        hot: HotStore,
        publisher: Publisher,
        metrics: Metrics,
        background: Background,
        criteria: ClaimCriteria,
    ) -> Self {
        Self { database, hot, publisher, metrics, background, criteria }
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
        let mut claims =
            self.background.throttled(self.database.claim(&self.criteria, limit)).await?;
        if claims.is_empty() {
            return Ok(swept);
        }
        failpoints::reached(Step::CloseClaimed);
        claims.sort_by(|a, b| a.key.cmp(&b.key));
        let mut renewed = started;
        let taken_over = claims.iter().filter(|c| c.cause == CloseCause::TakenOver).count();
        self.metrics.add(Counter::CloseTakeovers, taken_over as u64);

        self.count_tokens(&mut claims, &mut renewed).await?;
        failpoints::reached(Step::CloseCounted);
        self.renew_if_due(&mut claims, |it| it, &mut renewed).await?;
        let mut closed = self.step(|| self.database.totals(&claims)).await?;
        self.renew_if_due(&mut closed, |it| &it.claim, &mut renewed).await?;
        if !closed.is_empty() {
            self.drop_copies(&closed).await;
            failpoints::reached(Step::CloseDropped);
            let events = closed.iter().filter_map(|it| it.event.clone());
            self.publish(events.map(Event::Migrated)).await?;
            failpoints::reached(Step::CloseAnnounced);
        }
        let archived = self.write_archived(closed).await?;
        failpoints::reached(Step::CloseArchived);

        for conversation in &archived {
            self.note_archived(conversation, started);
        }
        swept.archived_empty = archived.iter().filter(|it| it.event.is_none()).count();
        swept.archived = archived.len() - swept.archived_empty;
        Ok(swept)
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

    async fn drop_copies(&self, closed: &[Closed]) {
        let keys: Vec<ConversationKey> = closed.iter().map(|it| it.claim.key.clone()).collect();
        if let Err(error) =
            self.background.throttled_without_turn(self.hot.drop_copies(&keys)).await
        {
            // Until they expire, their completeness markers keep readers from trusting outdated ones.
            let error = with_causes(&error);
            tracing::warn!(
                conversations = keys.len(),
                error,
                "hot copies of {} closing conversations could not be dropped; they expire later \
                 (VERBATIM_HOT_EXPIRY)",
                keys.len()
            );
        }
    }

    /// Counts the tokens of messages that have no count yet. Claims that were lost meanwhile are removed.
    async fn count_tokens(
        &self,
        claims: &mut Vec<Claim>,
        renewed: &mut Instant,
    ) -> Result<(), SweepError> {
        let mut last: Option<(ConversationKey, MessageId)> = None;
        loop {
            let (first, after) = match &last {
                None => (0, None),
                Some((key, id)) => {
                    let first = claims.partition_point(|claim| claim.key < *key);
                    let same = claims.get(first).is_some_and(|claim| claim.key == *key);
                    (first, same.then_some(id))
                }
            };
            let rest = &claims[first..];
            let (messages, more) = self
                .step(|| self.database.uncounted(rest, after, COUNT_MESSAGES, COUNT_BYTES))
                .await?;
            let Some(end) = messages.last() else { return Ok(()) };
            last = Some((end.key.clone(), end.id.clone()));
            // Spawned inside the throttled step: outside it would start before its turn.
            let counting = async { tokio::task::spawn_blocking(|| count(messages)).await };
            let counted =
                self.background.throttled(counting).await.map_err(|_| SweepError::Count)?;
            let counts: Vec<(&Uncounted, i64)> =
                counted.iter().map(|(message, tokens)| (message, *tokens)).collect();
            self.step(|| self.database.store_tokens(&counts)).await?;
            if !more {
                return Ok(());
            }
            self.renew_if_due(claims, |it| it, renewed).await?;
        }
    }

    /// Renews the leases when a third of their time has passed, and removes the claims that were lost.
    async fn renew_if_due<T>(
        &self,
        held: &mut Vec<T>,
        claim: fn(&T) -> &Claim,
        renewed: &mut Instant,
    ) -> Result<(), SweepError> {
        if renewed.elapsed() < self.criteria.lease / RENEWALS_PER_LEASE {
            return Ok(());
        }
        *renewed = Instant::now();
        self.renew(held, claim).await
    }

    async fn renew<T>(&self, held: &mut Vec<T>, claim: fn(&T) -> &Claim) -> Result<(), SweepError> {
        let claims = || held.iter().map(claim);
        let mine = self.step(|| self.database.renew(claims(), self.criteria.lease)).await?;
        let mine: HashSet<ConversationKey> = mine.into_iter().collect();
        held.retain(|it| mine.contains(&claim(it).key));
        Ok(())
    }

    /// The last write, repeated for rows that a saver has locked; returns what was archived.
    async fn write_archived(&self, mut closed: Vec<Closed>) -> Result<Vec<Closed>, SweepError> {
        let mut archived = Vec::with_capacity(closed.len());
        let mut pauses = ConstantBuilder::default()
            .with_delay(LAST_WRITE_PAUSE)
            .with_max_times(LAST_WRITE_TRIES)
            .build();
        while !closed.is_empty() {
            let written = self.step(|| self.database.archive_closed(&closed)).await?;
            archived.extend(closed.extract_if(.., |it| written.contains(&it.claim.key)));
            let Some(pause) = pauses.next().filter(|_| !closed.is_empty()) else { break };
            tokio::time::sleep(pause).await;
            self.renew(&mut closed, |it| &it.claim).await?;
        }
        Ok(archived)
    }

    async fn step<T, F>(&self, work: impl FnMut() -> F) -> Result<T, database::Error>
    where
        F: Future<Output = database::Result<T>>,
    {
        self.background.step(&self.metrics, work).await
    }

    async fn announce_reopened(&self) -> Result<usize, SweepError> {
        let reopened = self.step(|| self.database.unannounced(REOPENED_BATCH)).await?;
        if reopened.is_empty() {
            return Ok(0);
        }
        self.publish(reopened.iter().cloned().map(Event::Reopened)).await?;
        self.step(|| self.database.announced(&reopened)).await?;
        Ok(reopened.len())
    }

    async fn publish(&self, events: impl Iterator<Item = Event>) -> Result<(), SweepError> {
        let publications = events
            .map(|event| {
                let body = serde_json::to_vec(&event)?;
                Ok(Arc::new(Publication::event(event.routing_key(), body)))
            })
            .collect::<Result<Vec<_>, serde_json::Error>>()?;
        for result in
            self.background.throttled_without_turn(self.publisher.publish_all(publications)).await
        {
            result?;
        }
        Ok(())
    }
}

/// Token counts with the encoding of each message's model; without a model, with the default encoding.
fn count(uncounted: Vec<Uncounted>) -> Vec<(Uncounted, i64)> {
    uncounted
        .into_iter()
        .map(|message| {
            let (encoding, _) = Encoding::for_model(message.model_name.as_deref().unwrap_or(""));
            let tokens = i64::try_from(tokens::count(encoding, &message.text)).unwrap_or(i64::MAX);
            (message, tokens)
        })
        .collect()
}
