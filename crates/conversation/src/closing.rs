//! The steps of a close, for a batch of claims or for one that is handled apart.
//!
//! Each step is repeated for each conversation by itself if it fails for the batch ([`Steps::in_parts`]). A
//! conversation that fails by itself leaves the batch, and the others are closed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{Publication, PublishError, Publisher};
use database::{Claim, Closed, Uncounted};
use domain::causes::with_causes;
use domain::event::Event;
use domain::ids::{ConversationKey, MessageId};
use failpoints::Step;
use hot_store::HotStore;
use tokens::Encoding;

use crate::steps::{StepError, Steps};

/// The most messages, and bytes, whose tokens are counted between two statements: a few milliseconds of
/// counting at 20 MB/s, and as much in PostgreSQL. A saver waits no longer than that for a core.
const COUNT_MESSAGES: u32 = 100;
const COUNT_BYTES: usize = 64 * 1024;

/// Renewals during one lease. Few, because each rewrites a row of every claim.
pub(crate) const RENEWALS_PER_LEASE: u32 = 3;

/// The pause before the last write is tried again for rows that a saver has locked.
const LAST_WRITE_PAUSE: Duration = Duration::from_millis(50);

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
    /// A step failed that no single conversation is the cause of.
    #[error("closing sweep: a step failed: {0}")]
    Step(String),
}

/// What the steps of a close need.
pub(crate) struct Closing<'a> {
    pub(crate) steps: Steps,
    pub(crate) hot: &'a HotStore,
    pub(crate) publisher: &'a Publisher,
    pub(crate) lease: Duration,
    /// How long the last write is tried for rows that a saver has locked.
    pub(crate) lock_limit: Duration,
}

/// What became of claims. Those that are nowhere here were lost: a message or an opened session cleared their token.
#[derive(Default)]
pub(crate) struct Closes {
    pub(crate) archived: Vec<Closed>,
    /// Claims that failed by themselves, and why.
    pub(crate) failed: Vec<(Claim, StepError)>,
}

/// Whether the tokens of a conversation are counted.
enum Counted {
    Whole(Claim),
    /// It is so long that others would wait.
    InPart(Claim, Duration),
}

/// Whether the last write found the row of a conversation locked.
enum Written {
    Archived(Closed),
    Locked(Closed),
}

impl Closing<'_> {
    /// Closes the claimed conversations. `renewed` is when they were claimed.
    pub(crate) async fn close(
        &self,
        mut claims: Vec<Claim>,
        mut renewed: Instant,
    ) -> Result<Closes, SweepError> {
        claims.sort_by(|a, b| a.key.cmp(&b.key));
        let mut closes = Closes::default();
        let claims = self.count_tokens(&claims, renewed, &mut closes).await?;
        failpoints::reached(Step::CloseCounted);

        let claims = self.renew_if_due(claims, |it| it, &mut renewed).await?;
        let totals = self
            .steps
            .in_parts(&claims, |part| self.steps.step(|| self.steps.database.totals(part)))
            .await?;
        closes.note_failed(totals.failed, |claim| claim);
        let closed = self.renew_if_due(totals.results, |it| &it.claim, &mut renewed).await?;
        if !closed.is_empty() {
            self.drop_copies(&closed).await;
            failpoints::reached(Step::CloseDropped);
            let events = closed.iter().filter_map(|it| it.event.clone());
            publish(&self.steps, self.publisher, events.map(Event::Migrated)).await?;
            failpoints::reached(Step::CloseAnnounced);
        }
        let written = self.steps.in_parts(&closed, |part| self.write_archived(part)).await?;
        failpoints::reached(Step::CloseArchived);
        closes.note_failed(written.failed, |it| &it.claim);
        for written in written.results {
            match written {
                Written::Archived(closed) => closes.archived.push(closed),
                Written::Locked(closed) => {
                    closes.failed.push((closed.claim, StepError::Locked(self.lock_limit)));
                }
            }
        }
        Ok(closes)
    }

    /// Counts the tokens of messages that have no count yet; returns the claims whose messages are counted.
    async fn count_tokens(
        &self,
        claims: &[Claim],
        renewed: Instant,
        closes: &mut Closes,
    ) -> Result<Vec<Claim>, StepError> {
        let counted = self.steps.in_parts(claims, |part| self.count_each(part, renewed)).await?;
        closes.note_failed(counted.failed, |claim| claim);
        let mut whole = Vec::with_capacity(claims.len());
        for counted in counted.results {
            match counted {
                Counted::Whole(claim) => whole.push(claim),
                Counted::InPart(claim, limit) => {
                    closes.failed.push((claim, StepError::Unfinished(limit)));
                }
            }
        }
        Ok(whole)
    }

    async fn count_each(
        &self,
        claims: &[Claim],
        mut renewed: Instant,
    ) -> Result<Vec<Counted>, StepError> {
        let steps = &self.steps;
        let (mut held, mut counted) = (claims.to_vec(), Vec::with_capacity(claims.len()));
        let mut last: Option<(ConversationKey, MessageId)> = None;
        let mut began = Instant::now();
        loop {
            let (first, after) = match &last {
                None => (0, None),
                Some((key, id)) => {
                    let first = held.partition_point(|claim| claim.key < *key);
                    let same = held.get(first).is_some_and(|claim| claim.key == *key);
                    (first, same.then_some(id))
                }
            };
            let rest = &held[first..];
            let (messages, more) = steps
                .step(|| steps.database.uncounted(rest, after, COUNT_MESSAGES, COUNT_BYTES))
                .await?;
            let Some(end) = messages.last() else { break };
            if last.as_ref().is_none_or(|(key, _)| *key != end.key) {
                began = Instant::now();
            }
            last = Some((end.key.clone(), end.id.clone()));
            // Spawned inside the throttled step: outside it would start before its turn.
            let counting = async { tokio::task::spawn_blocking(|| count(messages)).await };
            let counts = steps.paced(counting).await.map_err(|_| StepError::Count)?;
            let counts: Vec<(&Uncounted, i64)> =
                counts.iter().map(|(message, tokens)| (message, *tokens)).collect();
            steps.step(|| steps.database.store_tokens(&counts)).await?;
            if !more {
                break;
            }
            if let (Some(limit), Some((key, _))) = (steps.time_with_others(), &last)
                && began.elapsed() >= limit
            {
                let long = held.extract_if(.., |claim| claim.key == *key);
                counted.extend(long.map(|claim| Counted::InPart(claim, limit)));
            }
            held = self.renew_if_due(held, |it| it, &mut renewed).await?;
        }
        counted.extend(held.into_iter().map(Counted::Whole));
        Ok(counted)
    }

    /// The last write, repeated for rows that a saver has locked.
    async fn write_archived(&self, closed: &[Closed]) -> Result<Vec<Written>, StepError> {
        let steps = &self.steps;
        let (mut closed, mut written) = (closed.to_vec(), Vec::with_capacity(closed.len()));
        let began = Instant::now();
        loop {
            let keys = steps.step(|| steps.database.archive_closed(&closed)).await?;
            let archived = closed.extract_if(.., |it| keys.contains(&it.claim.key));
            written.extend(archived.map(Written::Archived));
            if closed.is_empty() {
                break;
            }
            closed = self.renew(closed, |it| &it.claim).await?;
            if began.elapsed() >= self.lock_limit {
                break;
            }
            tokio::time::sleep(LAST_WRITE_PAUSE).await;
        }
        written.extend(closed.into_iter().map(Written::Locked));
        Ok(written)
    }

    /// Renews the leases when a third of their time has passed; returns what is still held.
    async fn renew_if_due<T>(
        &self,
        held: Vec<T>,
        claim: fn(&T) -> &Claim,
        renewed: &mut Instant,
    ) -> Result<Vec<T>, StepError> {
        if renewed.elapsed() < self.lease / RENEWALS_PER_LEASE {
            return Ok(held);
        }
        *renewed = Instant::now();
        self.renew(held, claim).await
    }

    async fn renew<T>(
        &self,
        mut held: Vec<T>,
        claim: fn(&T) -> &Claim,
    ) -> Result<Vec<T>, StepError> {
        let claims = || held.iter().map(claim);
        let steps = &self.steps;
        let mine = steps.step(|| steps.database.renew(claims(), self.lease)).await?;
        let mine: HashSet<ConversationKey> = mine.into_iter().collect();
        held.retain(|it| mine.contains(&claim(it).key));
        Ok(held)
    }

    async fn drop_copies(&self, closed: &[Closed]) {
        let keys: Vec<ConversationKey> = closed.iter().map(|it| it.claim.key.clone()).collect();
        let dropped = self.hot.drop_copies(&keys);
        if let Err(error) = self.steps.background.throttled_without_turn(dropped).await {
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
}

impl From<StepError> for SweepError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Database(error) => error.into(),
            other => Self::Step(other.to_string()),
        }
    }
}

impl Closes {
    fn note_failed<T>(&mut self, failed: Vec<(&T, StepError)>, claim: fn(&T) -> &Claim) {
        self.failed.extend(failed.into_iter().map(|(it, error)| (claim(it).clone(), error)));
    }
}

/// Publishes events, and waits for their confirms.
pub(crate) async fn publish(
    steps: &Steps,
    publisher: &Publisher,
    events: impl Iterator<Item = Event>,
) -> Result<(), SweepError> {
    let publications = events
        .map(|event| {
            let body = serde_json::to_vec(&event)?;
            Ok(Arc::new(Publication::event(event.routing_key(), body)))
        })
        .collect::<Result<Vec<_>, serde_json::Error>>()?;
    let published = publisher.publish_all(publications);
    for result in steps.background.throttled_without_turn(published).await {
        result?;
    }
    Ok(())
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
