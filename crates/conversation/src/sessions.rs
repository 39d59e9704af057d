//! Recording session events and feedback.
//!
//! Events are applied in batches and by their own times, so it does not matter in which order or
//! how often they arrive.

use std::sync::Arc;
use std::time::Duration;

use database::{Database, Error, SessionUpdate};
use domain::action::{Action, ActionKind};
use domain::failure::{Done, Failure, Outcome, Unavailable};
use domain::fleet::refusal_of;
use domain::ids::ConversationKey;
use domain::session_event::SessionEvent;
use metrics::{Counter, Metrics, SessionEventKind};

use crate::RandomSource;
use crate::background::Background;
use crate::recording::{Change, Recorder};

/// Records session events. Clones share their connections.
#[derive(Clone)]
pub struct Sessions {
    recorder: Recorder,
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
        Self { recorder: Recorder::new(database, metrics, random, background) }
    }

    /// The same with this time limit, for single events that are slow or locked. Other background work does not wait for
    /// them.
    #[must_use]
    pub fn with_time_limit(&self, limit: Duration) -> Self {
        Self { recorder: self.recorder.with_time_limit(limit) }
    }

    /// Checks with a test write whether session events can be recorded.
    ///
    /// # Errors
    /// PostgreSQL is unavailable, or refuses every session event.
    pub async fn check(&self) -> Result<(), Unavailable> {
        self.recorder.check().await
    }

    /// Records a batch of `session_opened`, `session_closed` and `feedback`: one outcome for each,
    /// in their order. Recording one again changes nothing.
    ///
    /// # Errors
    /// PostgreSQL is unavailable; recording the batch again is harmless.
    pub async fn record(&self, actions: &[Action]) -> Result<Vec<Outcome>, Unavailable> {
        let updates: Vec<Option<SessionUpdate>> = actions.iter().map(update).collect();
        let recorded = self.recorder.record(updates.iter().flatten().cloned().collect()).await?;
        let mut recorded = recorded.into_iter();
        let outcomes = actions.iter().zip(updates).map(|(action, update)| match update {
            Some(_) => match recorded.next() {
                Some(outcome) => outcome.map(|()| Done::Applied),
                None => Err(Failure::Retry("an event has no outcome".into())),
            },
            None => Err(Failure::DeadLetter(refusal_of(action.kind()))),
        });
        let outcomes: Vec<Outcome> = outcomes.collect();
        self.count(actions, &outcomes);
        Ok(outcomes)
    }

    fn count(&self, actions: &[Action], outcomes: &[Outcome]) {
        for (kind, event) in [
            (ActionKind::SessionOpened, SessionEventKind::Opened),
            (ActionKind::SessionClosed, SessionEventKind::Closed),
        ] {
            let all = actions.iter().zip(outcomes);
            let n =
                all.filter(|(action, outcome)| action.kind() == kind && outcome.is_ok()).count();
            self.recorder.metrics().add(Counter::SessionEvents { event }, n as u64);
        }
    }
}

impl Change for SessionUpdate {
    type Applied = ();

    fn key(&self) -> &ConversationKey {
        &self.key
    }

    fn id(&self) -> &str {
        self.event.id.as_str()
    }

    async fn apply(
        database: &Database,
        changes: &[Self],
        random: &(dyn Fn() -> i64 + Sync),
    ) -> Result<Vec<()>, Error> {
        database.apply_sessions(changes, random).await?;
        Ok(vec![(); changes.len()])
    }
}

fn update(action: &Action) -> Option<SessionUpdate> {
    let event = SessionEvent::of(action)?;
    let common = action.common();
    let source = common.conversation_is_explicit;
    Some(SessionUpdate::new(common.key.clone(), source, common.time_source, Arc::new(event)))
}
