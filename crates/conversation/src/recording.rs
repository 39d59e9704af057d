//! Recording changes of conversations that actions bring: in chunks of one transaction each, so that one that is bad, slow
//! or locked delays no other.

use std::collections::HashMap;
use std::time::Duration;

use database::{Database, Error};
use domain::failure::{Failure, Unavailable};
use domain::ids::ConversationKey;
use metrics::Metrics;

use crate::RandomSource;
use crate::background::Background;
use crate::bisection::{Bisection, SetAside, failed_alone};
use crate::limited_database::LimitedDatabase;
use crate::locked_conversations::LockedConversations;
use crate::transient::retry_transient;

/// Changes in one transaction: a few milliseconds of work.
const CHUNK: usize = 50;

/// A change of a conversation.
pub(crate) trait Change: Clone + Send + Sync {
    /// What became of one that was applied.
    type Applied: Send;

    /// The conversation.
    fn key(&self) -> &ConversationKey;

    /// The id of the action.
    fn id(&self) -> &str;

    /// Applies changes in one transaction, and returns what became of each.
    fn apply(
        database: &Database,
        changes: &[Self],
        random: &(dyn Fn() -> i64 + Sync),
    ) -> impl Future<Output = Result<Vec<Self::Applied>, Error>> + Send;
}

/// Records changes. Clones share their connections.
#[derive(Clone)]
pub(crate) struct Recorder {
    database: LimitedDatabase,
    metrics: Metrics,
    random: RandomSource,
    background: Background,
    /// Also those that a recorder of single changes found.
    locked: LockedConversations,
}

impl Recorder {
    pub(crate) fn new(
        database: &Database,
        metrics: Metrics,
        random: RandomSource,
        background: Background,
    ) -> Self {
        let database = LimitedDatabase::of_batches(database);
        let locked = LockedConversations::default();
        Self { database, metrics, random, background, locked }
    }

    /// The same with this time limit, for single changes that are slow or locked. Other background work does not wait for
    /// them.
    pub(crate) fn with_time_limit(&self, limit: Duration) -> Self {
        let database = LimitedDatabase::of_slow_items(self.database.batches(), limit);
        let background = self.background.with_a_turn_of_its_own();
        Self { database, background, locked: self.locked.of_slow_items(), ..self.clone() }
    }

    /// Checks with a test write whether changes can be recorded.
    pub(crate) async fn check(&self) -> Result<(), Unavailable> {
        Ok(self.database.batches().check_sessions().await?)
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Records changes: what became of each, in their order. Recording one again changes nothing.
    pub(crate) async fn record<C: Change>(
        &self,
        changes: Vec<C>,
    ) -> Result<Vec<Result<C::Applied, Failure>>, Unavailable> {
        let mut outcomes = Vec::with_capacity(changes.len());
        // Later chunks do not wait for the locks for which an earlier one waited in vain.
        let mut locked = HashMap::new();
        for chunk in changes.chunks(CHUNK) {
            let recorded = self.record_chunk(chunk, &mut locked);
            outcomes.extend(self.background.throttled(recorded).await?);
        }
        Ok(outcomes)
    }

    async fn record_chunk<C: Change>(
        &self,
        changes: &[C],
        locked: &mut HashMap<ConversationKey, Failure>,
    ) -> Result<Vec<Result<C::Applied, Failure>>, Unavailable> {
        let mut outcomes: Vec<Option<Result<C::Applied, Failure>>> =
            changes.iter().map(|_| None).collect();
        let none_is_locked = self.locked.is_empty();
        let mut open = Vec::with_capacity(changes.len());
        for (index, change) in changes.iter().enumerate() {
            let known = locked.get(change.key()).cloned();
            let found = || self.locked.failure(change.key(), change.id());
            match known.or_else(|| (!none_is_locked).then(found).flatten()) {
                Some(failure) => outcomes[index] = Some(Err(failure)),
                None => open.push((index, change)),
            }
        }
        let mut bisection = Bisection::new(
            &open,
            |(_, change): &(usize, &C)| Some(change.key()),
            &self.database,
            &self.metrics,
        );
        while let Some((part, database)) = bisection.next() {
            let rows: Vec<C> = part.iter().map(|(_, change)| (*change).clone()).collect();
            let random = || self.random.next();
            let applied = retry_transient(&self.metrics, || C::apply(&database, &rows, &random));
            let error = match applied.await {
                Ok(applied) => {
                    bisection.succeeded(part);
                    self.locked.forget(part.iter().map(|(_, change)| change.key()));
                    for ((index, _), applied) in part.iter().zip(applied) {
                        outcomes[*index] = Some(Ok(applied));
                    }
                    continue;
                }
                Err(error) => error,
            };
            let aside = bisection.failed(part, error, Database::check_sessions).await?;
            let Some(SetAside { items, error, are_known_to_be_locked }) = aside else { continue };
            let failure = failed_alone(error);
            if are_known_to_be_locked {
                self.locked.found(items.iter().map(|(_, change)| change.key()), &failure);
            }
            for (index, change) in items {
                self.locked.record(change.key(), change.id(), &failure);
                if matches!(failure, Failure::Locked(_)) {
                    locked.insert(change.key().clone(), failure.clone());
                }
                outcomes[*index] = Some(Err(failure.clone()));
            }
        }
        let missing = || Err(Failure::Retry("the chunk ended without an outcome".into()));
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect())
    }
}
