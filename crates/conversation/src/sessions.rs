//! Recording session events and feedback.
//!
//! Events are applied in batches and by their own times, so it does not matter in which order or
//! how often they arrive.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use database::{Database, SessionUpdate};
use domain::action::{Action, ActionKind};
use domain::failure::{Done, Failure, Outcome, Unavailable};
use domain::fleet::refusal_of;
use domain::ids::ConversationKey;
use domain::session_event::SessionEvent;
use metrics::{Counter, Metrics, SessionEventKind};

use crate::RandomSource;
use crate::background::Background;
use crate::bisection::{Bisection, SetAside, failed_alone};
use crate::limited_database::LimitedDatabase;
use crate::locked_conversations::LockedConversations;
use crate::transient::retry_transient;

/// Events in one transaction: a few milliseconds of work.
const CHUNK: usize = 50;

/// Records session events. Clones share their connections.
#[derive(Clone)]
pub struct Sessions {
    database: LimitedDatabase,
    metrics: Metrics,
    random: RandomSource,
    background: Background,
    /// Also those that a recorder of single events found.
    locked: LockedConversations,
}

impl Sessions {
    /// Records into this database.
    #[must_use]
    pub fn new(
        database: &Database,
        metrics: Metrics,
        random: RandomSource,
        background: Background,
    ) -> Self {
        let database = LimitedDatabase::of_batches(database);
        let locked = LockedConversations::default();
        Self { database, metrics, random, background, locked }
    }

    /// The same with this time limit, for single events that are slow or locked. Other background work does not wait for
    /// them.
    #[must_use]
    pub fn with_time_limit(&self, limit: Duration) -> Self {
        let database = LimitedDatabase::of_slow_items(self.database.batches(), limit);
        let background = self.background.with_a_turn_of_its_own();
        Self { database, background, locked: self.locked.of_slow_items(), ..self.clone() }
    }

    /// Checks with a test write whether session events can be recorded.
    ///
    /// # Errors
    /// PostgreSQL is unavailable, or refuses every session event.
    pub async fn check(&self) -> Result<(), Unavailable> {
        Ok(self.database.batches().check_sessions().await?)
    }

    /// Records a batch of `session_opened`, `session_closed` and `feedback`: one outcome for each,
    /// in their order. Recording one again changes nothing.
    ///
    /// # Errors
    /// PostgreSQL is unavailable; recording the batch again is harmless.
    pub async fn record(&self, actions: &[Action]) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes = Vec::with_capacity(actions.len());
        // Later chunks do not wait for the locks for which an earlier one waited in vain.
        let mut locked = HashMap::new();
        for chunk in actions.chunks(CHUNK) {
            let recorded = self.record_chunk(chunk, &mut locked);
            outcomes.extend(self.background.throttled(recorded).await?);
        }
        Ok(outcomes)
    }

    async fn record_chunk(
        &self,
        actions: &[Action],
        locked: &mut HashMap<ConversationKey, Failure>,
    ) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes = vec![Ok(Done::Applied); actions.len()];
        let none_is_locked = self.locked.is_empty();
        let mut updates = Vec::with_capacity(actions.len());
        for (index, action) in actions.iter().enumerate() {
            match update(action) {
                Some(update) => {
                    let known = locked.get(&update.key).cloned();
                    let found = || self.locked.failure(&update.key, update.event.id.as_str());
                    match known.or_else(|| (!none_is_locked).then(found).flatten()) {
                        Some(failure) => outcomes[index] = Err(failure),
                        None => updates.push((index, update)),
                    }
                }
                None => outcomes[index] = Err(Failure::DeadLetter(refusal_of(action.kind()))),
            }
        }
        let mut bisection = Bisection::new(
            &updates,
            |(_, update)| Some(&update.key),
            &self.database,
            &self.metrics,
        );
        while let Some((part, database)) = bisection.next() {
            let rows: Vec<SessionUpdate> = part.iter().map(|(_, update)| update.clone()).collect();
            let random = || self.random.next();
            let Err(error) =
                retry_transient(&self.metrics, || database.apply_sessions(&rows, &random)).await
            else {
                bisection.succeeded(part);
                self.locked.forget(part.iter().map(|(_, update)| &update.key));
                self.count(&rows);
                continue;
            };
            let aside = bisection.failed(part, error, Database::check_sessions).await?;
            let Some(SetAside { items, error, are_known_to_be_locked }) = aside else { continue };
            let failure = failed_alone(error);
            if are_known_to_be_locked {
                self.locked.found(items.iter().map(|(_, update)| &update.key), &failure);
            }
            for (index, update) in items {
                self.locked.record(&update.key, update.event.id.as_str(), &failure);
                if matches!(failure, Failure::Locked(_)) {
                    locked.insert(update.key.clone(), failure.clone());
                }
                outcomes[*index] = Err(failure.clone());
            }
        }
        Ok(outcomes)
    }

    fn count(&self, updates: &[SessionUpdate]) {
        for (kind, event) in [
            (ActionKind::SessionOpened, SessionEventKind::Opened),
            (ActionKind::SessionClosed, SessionEventKind::Closed),
        ] {
            let n = updates.iter().filter(|update| update.event.kind == kind).count();
            self.metrics.add(Counter::SessionEvents { event }, n as u64);
        }
    }
}

fn update(action: &Action) -> Option<SessionUpdate> {
    let event = SessionEvent::of(action)?;
    let common = action.common();
    let source = common.conversation_is_explicit;
    Some(SessionUpdate::new(common.key.clone(), source, common.time_source, Arc::new(event)))
}
