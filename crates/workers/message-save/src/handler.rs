//! The work of `conversation.save_message`.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{Decoder, Delivery, Handled, Handler, Processed, Source};
use conversation::Saver;
use domain::action::{Action, SaveMessage};
use domain::envelope::Resolved;
use domain::failure::{Dependency, Done, Refusal, Unavailable};
use domain::fleet::refusal_of;
use domain::reply::{ErrorType, ReplyAddress, ReplyError, SaveMessageData};

#[derive(Clone)]
pub(crate) struct SaveMessages {
    pub(crate) saver: Saver,
    pub(crate) decoder: Decoder,
}

impl Handler for SaveMessages {
    type Item = SaveMessage;
    const NEEDS: &'static [Dependency] = &[Dependency::PostgreSql];

    fn source(&self) -> Source {
        Source::work(WorkQueue::SaveMessage)
    }

    fn with_time_limit(&self, limit: Duration) -> Option<Self> {
        Some(Self { saver: self.saver.with_time_limit(limit), ..self.clone() })
    }

    fn decode(&self, delivery: &Delivery) -> Result<SaveMessage, Refusal> {
        match self.decoder.decode(delivery)? {
            Action::SaveMessage(save) => Ok(*save),
            other => Err(refusal_of(other.kind())),
        }
    }

    fn resolved(&self, save: &SaveMessage) -> Option<Resolved> {
        Some(save.common.resolved())
    }

    fn reply_address(&self, save: &SaveMessage) -> Option<ReplyAddress> {
        save.common.reply_address()
    }

    async fn handle(&self, saves: &[SaveMessage]) -> Result<Vec<Handled>, Unavailable> {
        let outcomes = self.saver.save(saves).await?;
        let handled = |(save, outcome): (&SaveMessage, Result<Done, _>)| {
            outcome.map(|done| processed(save, done))
        };
        Ok(saves.iter().zip(outcomes).map(handled).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        self.saver.check().await
    }
}

/// The decision with its reply, for a sender who wants one.
fn processed(save: &SaveMessage, done: Done) -> Processed {
    let processed = Processed::from(done);
    if save.common.reply_to.is_none() {
        return processed;
    }
    match done {
        Done::Applied | Done::Duplicate => processed.replying(&SaveMessageData {
            conversation_id: save.common.key.conversation.clone(),
            message_id: save.message.id.clone(),
            duplicate: done == Done::Duplicate,
        }),
        Done::Erased => {
            let error = ReplyError {
                error_type: ErrorType::Erased,
                message: "the conversation or its user was erased after this message was sent"
                    .to_owned(),
                details: None,
            };
            Processed { reply: Some(Err(error)), ..processed }
        }
    }
}
