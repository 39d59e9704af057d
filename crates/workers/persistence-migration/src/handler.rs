//! The work of `conversation.session`.

use broker::{Decoder, Delivery, Handler};
use conversation::Sessions;
use database::Database;
use domain::action::Action;
use domain::envelope::Resolved;
use domain::failure::{Outcome, Refusal, Unavailable};

/// Records session events and feedback.
#[derive(Clone)]
pub(crate) struct RecordSessions {
    pub(crate) sessions: Sessions,
    pub(crate) database: Database,
    pub(crate) decoder: Decoder,
}

impl Handler for RecordSessions {
    type Item = Action;

    fn decode(&self, delivery: &Delivery) -> Result<Action, Refusal> {
        self.decoder.decode(delivery)
    }

    fn resolved(&self, action: &Action) -> Option<Resolved> {
        action.resolved()
    }

    async fn handle(&self, actions: &[Action]) -> Result<Vec<Outcome>, Unavailable> {
        self.sessions.record(actions).await
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        self.database.probe().await.map_err(Into::into)
    }
}
