//! The work of `conversation.session`: session events, feedback and deletions of messages.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{Decoder, Delivery, Handled, Handler, Processed, Source};
use conversation::{Deleted, Deletions, Sessions};
use domain::action::Action;
use domain::envelope::Resolved;
use domain::failure::{Dependency, Done, Failure, Refusal, Unavailable};
use domain::reply::{DeleteMessageData, NoData, ReplyAddress};

#[derive(Clone)]
pub(crate) struct RecordSessions {
    pub(crate) sessions: Sessions,
    pub(crate) deletions: Deletions,
    pub(crate) decoder: Decoder,
}

impl Handler for RecordSessions {
    type Item = Action;
    const NEEDS: &'static [Dependency] = &[Dependency::PostgreSql];

    fn source(&self) -> Source {
        Source::work(WorkQueue::Session)
    }

    fn with_time_limit(&self, limit: Duration) -> Option<Self> {
        Some(Self {
            sessions: self.sessions.with_time_limit(limit),
            deletions: self.deletions.with_time_limit(limit),
            ..self.clone()
        })
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
        let is_deletion = |action: &&Action| matches!(action, Action::DeleteMessage(..));
        let events: Vec<Action> = actions.iter().filter(|it| !is_deletion(it)).cloned().collect();
        let mut recorded = self.sessions.record(&events).await?.into_iter();
        let deletions = actions.iter().filter_map(|action| match action {
            Action::DeleteMessage(common, payload) => Some((common, &payload.message_id)),
            _ => None,
        });
        let deleted = self.deletions.delete(&deletions.collect::<Vec<_>>()).await?;
        let mut deleted = deleted.into_iter();
        let missing = || Failure::Retry("an action has no outcome".into());
        let handled = actions.iter().map(|action| match action {
            Action::DeleteMessage(common, payload) => {
                let deleted = deleted.next().ok_or_else(missing)??;
                Ok(Processed::from(done(deleted)).replying(&DeleteMessageData {
                    conversation_id: common.key.conversation.clone(),
                    message_id: payload.message_id.clone(),
                    deleted: deleted != Deleted::ByAnother,
                }))
            }
            _ => {
                let done = recorded.next().ok_or_else(missing)??;
                Ok(Processed::from(done).replying(&NoData {}))
            }
        });
        Ok(handled.collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        self.sessions.check().await
    }
}

fn done(deleted: Deleted) -> Done {
    match deleted {
        Deleted::Now => Done::Applied,
        Deleted::Before | Deleted::ByAnother => Done::Duplicate,
    }
}
