//! The work of `conversation.session`.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{Decoder, Delivery, Handled, Handler, Processed, Source};
use conversation::Sessions;
use domain::action::Action;
use domain::envelope::Resolved;
use domain::failure::{Dependency, Refusal, Unavailable};
use domain::reply::{NoData, ReplyAddress};

#[derive(Clone)]
pub(crate) struct RecordSessions {
    pub(crate) sessions: Sessions,
    pub(crate) decoder: Decoder,
}

impl Handler for RecordSessions {
    type Item = Action;
    const NEEDS: &'static [Dependency] = &[Dependency::PostgreSql];

    fn source(&self) -> Source {
        Source::work(WorkQueue::Session)
    }

    fn with_time_limit(&self, limit: Duration) -> Option<Self> {
        Some(Self { sessions: self.sessions.with_time_limit(limit), ..self.clone() })
    }

    fn decode(&self, delivery: &Delivery) -> Result<Action, Refusal> {
        self.decoder.decode(delivery)
    }

    fn resolved(&self, action: &Action) -> Option<Resolved> {
        action.resolved()
    }

    fn reply_address(&self, action: &Action) -> Option<ReplyAddress> {
        action.common().reply_address()
    }

    async fn handle(&self, actions: &[Action]) -> Result<Vec<Handled>, Unavailable> {
        let outcomes = self.sessions.record(actions).await?;
        let processed = |done| Processed::from(done).replying(&NoData {});
        Ok(outcomes.into_iter().map(|outcome| outcome.map(processed)).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        self.sessions.check().await
    }
}
