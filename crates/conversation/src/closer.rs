//! Closing: conversations whose grace period ended, or that fell idle, become archived.
//!
//! Event-hinted, timer-guaranteed: session events leave a close request in PostgreSQL, and this
//! sweep finds it by PostgreSQL's clock. A batch of claims goes through the steps together, each a
//! short transaction of its own:
//!
//! claim → count tokens → sum up, and drop those without messages → drop hot copies → publish
//! `conversation.migrated`, confirmed → `archived`, with the totals
//!
//! Every step may be the last one of a process. What it did is harmless to repeat, and the lease
//! lets another closer repeat it. A message that arrives meanwhile takes the claim away, and the
//! conversation closes again later.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ConstantBuilder};
use broker::{Publication, PublishError, Publisher};
use database::{Claim, ClaimCriteria, CloseCause, Closed, Database, Uncounted};
use domain::causes::with_causes;
use domain::event::{Event, Migrated};
use domain::ids::{ConversationKey, MessageId};
use failpoints::Step;
use hot_store::HotStore;
use metrics::{Counter, Metrics, Timing};
use tokens::Encoding;

use crate::background::Background;

/// How a closer works.
#[derive(Debug, Clone, Copy)]
pub struct ClosingSettings {
    /// How long a close request waits for a reconnection.
    pub grace: Duration,
    /// After how long without a message a conversation closes by itself; the coarseness of the
    /// activity time (a minute) comes on top.
    pub idle: Duration,
    /// How long a closer may be silent before another takes its claims over.
    pub lease: Duration,
    /// At most so many conversations of each kind to a sweep.
    pub batch: u32,
}

impl Default for ClosingSettings {
    /// 30 s of grace, 30 min of idleness, leases of 30 s, 20 conversations to a sweep.
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            idle: Duration::from_secs(30 * 60),
            lease: Duration::from_secs(30),
            batch: 20,
        }
    }
}

/// Messages whose tokens are counted between two statements, and their bytes: a millisecond or a few of
/// counting at 20 MB/s, and as much in PostgreSQL. Whoever saves meanwhile waits no longer than that for a
/// core.
const COUNT_MESSAGES: u32 = 100;
const COUNT_BYTES: usize = 64 * 1024;

/// How often a lease is renewed while its claims are worked on. Rarely, because it rewrites a row of each.
const RENEWALS_IN_A_LEASE: u32 = 3;

/// How often, and after which pause, the last write is tried for rows that a saver holds at that
/// moment. Longer than an ordinary save; what is held longer is taken over later.
const LAST_WRITE_TRIES: usize = 10;
const LAST_WRITE_PAUSE: Duration = Duration::from_millis(50);

/// Reopened conversations announced at once.
const ANNOUNCED: u32 = 50;

/// What one sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Conversations that it claimed.
    pub claimed: usize,
    /// Claims without a message, dropped.
    pub dropped: usize,
    /// Claims archived.
    pub archived: usize,
    /// Claims that a message or an opened session took back, or that a saver still held.
    pub withdrawn: usize,
    /// Conversations whose return from the archive was announced.
    pub reopened: usize,
}

/// Why a sweep stopped. What it did is stored; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// PostgreSQL failed.
    #[error("a sweep could not use PostgreSQL")]
    Database(#[from] database::Error),
    /// RabbitMQ did not confirm an event.
    #[error("a sweep could not publish an event")]
    Publish(#[from] PublishError),
    /// An event could not be written down.
    #[error("an event could not be encoded")]
    Encode(#[from] serde_json::Error),
    /// Counting tokens panicked.
    #[error("tokens could not be counted")]
    Count(#[from] tokio::task::JoinError),
}

/// Closes conversations. Clones share their connections.
#[derive(Clone)]
pub struct Closer {
    database: Database,
    hot: HotStore,
    publisher: Publisher,
    metrics: Metrics,
    background: Background,
    settings: ClosingSettings,
}

impl Closer {
    /// A closer over the stores.
    #[must_use]
    pub fn new(
        database: Database,
        hot: HotStore,
        publisher: Publisher,
        metrics: Metrics,
        background: Background,
        settings: ClosingSettings,
    ) -> Self {
        Self { database, hot, publisher, metrics, background, settings }
    }

    /// One bounded sweep. Running it twice does nothing the second time; any number of replicas may
    /// run it at once.
    ///
    /// # Errors
    /// A store failed. Claims that were not finished are taken over when their lease ends.
    pub async fn sweep(&self) -> Result<Swept, SweepError> {
        self.sweep_at_most(self.settings.batch).await
    }

    /// [`Self::sweep`] with at most `limit` conversations of each kind: after a failure, smaller
    /// sweeps keep what fails apart from what does not.
    ///
    /// # Errors
    /// As [`Self::sweep`].
    pub async fn sweep_at_most(&self, limit: u32) -> Result<Swept, SweepError> {
        let mut swept = Swept { reopened: self.announce_reopened().await?, ..Swept::default() };
        let started = Instant::now();
        let due = ClaimCriteria {
            grace: self.settings.grace,
            idle: self.settings.idle,
            lease: self.settings.lease,
            limit,
        };
        // Not retried: a claim whose answer got lost is taken over when its lease ends.
        let mut claims = self.background.throttled(self.database.claim(&due)).await?;
        swept.claimed = claims.len();
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
        self.keep(&mut claims, &mut renewed).await?;
        let mut closed = self.step(|| self.database.totals(&claims)).await?;
        if closed.len() < claims.len() {
            swept.dropped = self.drop_empty(&claims, &closed).await?;
        }
        self.keep(&mut closed, &mut renewed).await?;
        if !closed.is_empty() {
            self.drop_copies(&closed).await;
            failpoints::reached(Step::CloseDropped);
            self.publish(closed.iter().map(migrated)).await?;
            failpoints::reached(Step::CloseAnnounced);
        }
        let archived = self.write_archived(closed).await?;
        failpoints::reached(Step::CloseArchived);

        for conversation in &archived {
            let cause = match conversation.claim.cause {
                CloseCause::Idle => metrics::CloseCause::Idle,
                CloseCause::Requested | CloseCause::TakenOver => metrics::CloseCause::SessionClosed,
            };
            self.metrics.add(Counter::ConversationsClosed { cause }, 1);
            self.metrics.observe(Timing::Close, started.elapsed());
            tracing::info!(
                conversation = %conversation.claim.key,
                messages = conversation.message_count,
                tokens = conversation.total_tokens,
                ?cause,
                "conversation archived"
            );
        }
        swept.archived = archived.len();
        swept.withdrawn = swept.claimed - swept.dropped - swept.archived;
        Ok(swept)
    }

    /// Drops the claims that have no messages; returns how many there were. They are among those that
    /// have no totals, which may also be lost.
    async fn drop_empty(&self, claims: &[Claim], closed: &[Closed]) -> Result<usize, SweepError> {
        let totalled: HashSet<&ConversationKey> = closed.iter().map(|it| &it.claim.key).collect();
        let others: Vec<Claim> =
            claims.iter().filter(|claim| !totalled.contains(&claim.key)).cloned().collect();
        let dropped = self.step(|| self.database.drop_empty(&others)).await?.len();
        self.metrics.add(Counter::ConversationsDroppedEmpty, dropped as u64);
        Ok(dropped)
    }

    async fn drop_copies(&self, closed: &[Closed]) {
        let keys: Vec<ConversationKey> = closed.iter().map(|it| it.claim.key.clone()).collect();
        if let Err(error) =
            self.background.throttled_without_turn(self.hot.drop_copies(&keys)).await
        {
            // They expire by themselves, and their marks keep them from being misread.
            let error = with_causes(&error);
            tracing::warn!(conversations = keys.len(), error, "hot copies could not be dropped");
        }
    }

    /// Counts what nobody has counted; claims that were lost meanwhile are let go.
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
            let page = self
                .step(|| self.database.uncounted(rest, after, COUNT_MESSAGES, COUNT_BYTES))
                .await?;
            let Some(end) = page.messages.last() else { return Ok(()) };
            last = Some((end.key.clone(), end.id.clone()));
            // Spawned within the piece: it would not wait for its turn otherwise.
            let counting = async { tokio::task::spawn_blocking(|| count(page.messages)).await };
            let counted = self.background.throttled(counting).await?;
            let counts: Vec<(&Uncounted, i64)> =
                counted.iter().map(|(message, tokens)| (message, *tokens)).collect();
            self.step(|| self.database.store_tokens(&counts)).await?;
            if !page.more {
                return Ok(());
            }
            self.keep(claims, renewed).await?;
        }
    }

    /// Renews the lease of what is held when it is time, and lets go of what is lost.
    async fn keep<T: AsRef<Claim>>(
        &self,
        held: &mut Vec<T>,
        renewed: &mut Instant,
    ) -> Result<(), SweepError> {
        if renewed.elapsed() < self.settings.lease / RENEWALS_IN_A_LEASE {
            return Ok(());
        }
        *renewed = Instant::now();
        self.renew(held).await
    }

    async fn renew<T: AsRef<Claim>>(&self, held: &mut Vec<T>) -> Result<(), SweepError> {
        let claims = || held.iter().map(AsRef::as_ref);
        let mine = self.step(|| self.database.renew(claims(), self.settings.lease)).await?;
        let mine: HashSet<ConversationKey> = mine.into_iter().collect();
        held.retain(|it| mine.contains(&it.as_ref().key));
        Ok(())
    }

    /// The last write, again for those that a saver holds at that moment; returns what is archived.
    async fn write_archived(&self, mut closed: Vec<Closed>) -> Result<Vec<Closed>, SweepError> {
        let mut archived = Vec::with_capacity(closed.len());
        let mut pauses = ConstantBuilder::default()
            .with_delay(LAST_WRITE_PAUSE)
            .with_max_times(LAST_WRITE_TRIES)
            .build();
        while !closed.is_empty() {
            let reached = self.step(|| self.database.archive_closed(&closed)).await?;
            archived.extend(closed.extract_if(.., |it| reached.contains(&it.claim.key)));
            let Some(pause) = pauses.next().filter(|_| !closed.is_empty()) else { break };
            tokio::time::sleep(pause).await;
            self.renew(&mut closed).await?;
        }
        Ok(archived)
    }

    /// One step in PostgreSQL and the rest after it.
    async fn step<T, F>(&self, work: impl FnMut() -> F) -> Result<T, database::Error>
    where
        F: Future<Output = database::Result<T>>,
    {
        self.background.step(&self.metrics, work).await
    }

    async fn announce_reopened(&self) -> Result<usize, SweepError> {
        let reopened = self.step(|| self.database.unannounced(ANNOUNCED)).await?;
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

/// Real counts by each message's model; where no model is named, the default encoding's.
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

fn migrated(closed: &Closed) -> Event {
    let Claim { key, token, .. } = &closed.claim;
    Event::Migrated(Migrated {
        tenant_id: key.tenant.clone(),
        conversation_id: key.conversation.clone(),
        session_id: closed.session_id.clone(),
        agent_id: closed.agent_id.clone(),
        user_id: closed.user_id.clone(),
        message_count: closed.message_count,
        total_tokens: closed.total_tokens,
        created_at: closed.created_at,
        last_message_at: closed.last_message_at,
        closed_at: closed.closed_at,
        close_reason: closed.close_reason.clone(),
        close_token: *token,
    })
}
