//! Answers to those who asked, at most once.
//!
//! An answer is a courtesy: the effect of an action does not depend on it, so nobody waits for its
//! confirm and no acknowledgement is held for it. Who gets none asks again. Works with direct
//! reply-to (`amq.rabbitmq.reply-to`) as with a queue of the asker's own.

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use tokio::sync::mpsc;

use crate::connection::{Connection, Endpoints, Error, request};
use crate::panics::catch_panic;
use crate::publication::{TooLong, short};

/// Answers that wait to be sent. More than that means that the broker takes none; the rest is dropped.
const WAITING_REPLIES: usize = 1024;

/// Sends answers; clones share one connection.
#[derive(Debug, Clone)]
pub struct Replier {
    answers: mpsc::Sender<Answer>,
}

/// An answer on its way.
#[derive(Debug)]
struct Answer {
    reply_to: String,
    correlation_id: Option<String>,
    body: Vec<u8>,
}

impl Replier {
    /// A replier that connects when it has something to say. Its task ends with the last clone.
    /// Call it within a tokio runtime.
    #[must_use]
    pub fn new(endpoints: Endpoints) -> Self {
        let (answers, waiting) = mpsc::channel(WAITING_REPLIES);
        tokio::spawn(send_all(endpoints, waiting));
        Self { answers }
    }

    /// Sends an answer to the queue `reply_to`, if that is possible now. Never waits.
    pub fn reply(&self, reply_to: &str, correlation_id: Option<&str>, body: Vec<u8>) {
        let answer = Answer {
            reply_to: reply_to.to_owned(),
            correlation_id: correlation_id.map(str::to_owned),
            body,
        };
        if self.answers.try_send(answer).is_err() {
            tracing::debug!(reply_to, "too many answers wait; this one is dropped");
        }
    }
}

async fn send_all(endpoints: Endpoints, mut waiting: mpsc::Receiver<Answer>) {
    let mut link = None;
    while let Some(answer) = waiting.recv().await {
        let reply_to = answer.reply_to.clone();
        // A bug costs one answer, not all that follow.
        let sent = catch_panic("answering", send(&endpoints, &mut link, answer)).await;
        if let Some(Err(error)) = sent {
            tracing::debug!(reply_to, error = %error, "an answer was not sent");
        }
    }
}

/// Why an answer was not sent.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error(transparent)]
    Broker(#[from] Error),
}

async fn send(
    endpoints: &Endpoints,
    link: &mut Option<(Connection, lapin::Channel)>,
    answer: Answer,
) -> Result<(), Unsent> {
    let reply_to = short("reply_to", &answer.reply_to)?;
    let mut properties = BasicProperties::default().with_content_type("application/json".into());
    if let Some(id) = &answer.correlation_id {
        properties = properties.with_correlation_id(short("correlation_id", id)?);
    }
    // A reply queue that does not exist is no error with the default exchange, but a broken
    // `amq.rabbitmq.reply-to` closes the channel.
    let (connection, channel) = match link.take() {
        Some((connection, channel)) if connection.is_open() && channel.status().connected() => {
            (connection, channel)
        }
        _ => {
            let connection = endpoints.connect("reply").await?;
            let channel = connection.channel().await?;
            (connection, channel)
        }
    };
    let options = BasicPublishOptions::default();
    let publish = channel.basic_publish("".into(), reply_to, options, &answer.body, properties);
    request("take an answer", publish).await?;
    *link = Some((connection, channel));
    Ok(())
}
