//! The work of `conversation.save_message`.

use broker::{Decoder, Delivery, Handler, Replier};
use conversation::Saver;
use database::Database;
use domain::action::{Action, SaveMessage};
use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Done, Outcome, Refusal, Unavailable};
use domain::reply::{ErrorType, Reply, ReplyError, SaveMessageData};

/// Saves the messages of a batch and replies where a reply was requested.
#[derive(Clone)]
pub(crate) struct SaveMessages {
    pub(crate) saver: Saver,
    pub(crate) database: Database,
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
                hint: None,
                field: Some("action_type".to_owned()),
                detail: format!(
                    "{} is not conversation.save_message, the only action of this queue",
                    other.kind().as_str()
                ),
            }),
        }
    }

    fn resolved(&self, save: &SaveMessage) -> Option<Resolved> {
        Some(save.common.resolved())
    }

    async fn handle(&self, saves: &[SaveMessage]) -> Result<Vec<Outcome>, Unavailable> {
        let outcomes = self.saver.save(saves).await?;
        for (save, outcome) in saves.iter().zip(&outcomes) {
            if let Some(reply_to) = &save.common.reply_to
                && let Some(reply) = reply(save, outcome)
            {
                self.send(reply_to, save, &reply);
            }
        }
        Ok(outcomes)
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        self.database.probe().await.map_err(Into::into)
    }
}

impl SaveMessages {
    fn send(&self, reply_to: &str, save: &SaveMessage, reply: &Reply<SaveMessageData>) {
        match serde_json::to_vec(reply) {
            Ok(body) => self.replier.reply(reply_to, save.common.correlation_id.as_deref(), body),
            Err(error) => {
                tracing::error!(%error, "a reply could not be encoded as JSON; it is not sent");
            }
        }
    }
}

/// The reply to the sender; `None` while another attempt follows.
fn reply(save: &SaveMessage, outcome: &Outcome) -> Option<Reply<SaveMessageData>> {
    match outcome {
        Outcome::Done(done @ (Done::Applied | Done::Duplicate)) => {
            let data = SaveMessageData {
                conversation_id: save.common.key.conversation.clone(),
                message_id: save.message.id.clone(),
                duplicate: *done == Done::Duplicate,
            };
            Some(Reply::success(&save.common, data))
        }
        Outcome::Done(Done::Erased) => Some(Reply::failure(
            &save.common,
            ReplyError {
                error_type: ErrorType::Erased,
                message: "the conversation or its user was erased after this message was sent"
                    .to_owned(),
                details: None,
            },
        )),
        Outcome::DeadLetter(refusal) => Some(Reply::failure(&save.common, refusal.into())),
        Outcome::Retry(_) => None,
    }
}
