//! The work of `conversation.save_message`.

use archive::Archive;
use broker::{Delivery, Handler, Replier};
use conversation::Saver;
use domain::action::{Action, SaveMessage};
use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Done, Outcome, Refusal, Unavailable};
use domain::reply::{Reply, SaveMessageData};
use worker::Decoder;

/// Saves the messages of a batch and answers those who asked.
#[derive(Clone)]
pub(crate) struct SaveMessages {
    pub(crate) saver: Saver,
    pub(crate) archive: Archive,
    pub(crate) decoder: Decoder,
    pub(crate) replier: Replier,
}

impl Handler for SaveMessages {
    type Item = SaveMessage;

    fn decode(&self, delivery: &Delivery) -> Result<SaveMessage, Refusal> {
        match self.decoder.decode(delivery)? {
            Action::SaveMessage(save) => Ok(*save),
            other => Err(Refusal {
                reason: DeadLetterReason::UnknownAction,
                field: Some("action_type".to_owned()),
                detail: format!("{} is not a message to save", other.kind().as_str()),
            }),
        }
    }

    fn resolved(&self, save: &SaveMessage) -> Option<Resolved> {
        Some(save.common.resolved())
    }

    async fn handle(&self, saves: &[SaveMessage]) -> Result<Vec<Outcome>, Unavailable> {
        let outcomes = self.saver.save(saves).await?;
        for (save, outcome) in saves.iter().zip(&outcomes) {
            if let (Some(reply_to), Outcome::Done(done)) = (&save.common.reply_to, outcome) {
                self.answer(reply_to, save, *done);
            }
        }
        Ok(outcomes)
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        self.archive.probe().await.map_err(Into::into)
    }
}

impl SaveMessages {
    fn answer(&self, reply_to: &str, save: &SaveMessage, done: Done) {
        let data = SaveMessageData {
            conversation_id: save.common.key.conversation.clone(),
            message_id: save.message.id.clone(),
            duplicate: done == Done::Duplicate,
        };
        match serde_json::to_vec(&Reply::success(&save.common, data)) {
            Ok(body) => self.replier.reply(reply_to, save.common.correlation_id.as_deref(), body),
            Err(error) => tracing::error!(%error, "a reply could not be encoded"),
        }
    }
}
