//! Replies to requests, at most once.
//!
//! The effect of an action does not depend on its reply. So replies are published without confirms, and no
//! acknowledgement waits for a reply. A requester without a reply repeats its request. Replies work with
//! direct reply-to (`amq.rabbitmq.reply-to`) and with reply queues.

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use tokio::sync::mpsc;

use crate::connection::{Connection, Endpoints, Error, request};
use crate::panics::catch_panic;
use crate::publication::{TooLong, short};
use crate::topology;

/// The most replies that wait to be sent. When RabbitMQ is unavailable and more wait, further replies are
/// dropped.
const WAITING_REPLIES: usize = 1024;

/// Sends replies. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Replier {
    replies: mpsc::Sender<Reply>,
}

/// A reply that waits to be sent.
#[derive(Debug)]
struct Reply {
    reply_to: String,
    correlation_id: Option<String>,
    body: Vec<u8>,
}

impl Replier {
    /// A replier that connects for its first reply. Its task ends when the last clone is dropped. Call it
    /// within a tokio runtime.
    #[must_use]
    pub fn new(endpoints: Endpoints) -> Self {
        let (replies, queued) = mpsc::channel(WAITING_REPLIES);
        tokio::spawn(send_all(endpoints, queued));
        Self { replies }
    }

    /// Queues a reply to `reply_to`. Never waits; when too many replies are queued, it is dropped. So is one
    /// for a queue of the fleet, where it would become a dead letter.
    pub fn reply(&self, reply_to: &str, correlation_id: Option<&str>, body: Vec<u8>) {
        if topology::queues().iter().any(|queue| queue.name == reply_to) {
            tracing::debug!(reply_to, "reply dropped: reply_to names a queue of the fleet");
            return;
        }
        let reply = Reply {
            reply_to: reply_to.to_owned(),
            correlation_id: correlation_id.map(str::to_owned),
            body,
        };
        if self.replies.try_send(reply).is_err() {
            tracing::debug!(reply_to, "reply dropped: {WAITING_REPLIES} replies wait to be sent");
        }
    }
}

async fn send_all(endpoints: Endpoints, mut queued: mpsc::Receiver<Reply>) {
    let mut link = None;
    while let Some(reply) = queued.recv().await {
        let reply_to = reply.reply_to.clone();
        // A panic loses one reply, not the following ones.
        let sent = catch_panic("replying", send(&endpoints, &mut link, reply)).await;
        if let Some(Err(error)) = sent {
            tracing::debug!(reply_to, error = %error, "reply not sent");
        }
    }
}

/// Why a reply was not sent.
#[derive(Debug, thiserror::Error)]
enum ReplyError {
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error(transparent)]
    Broker(#[from] Error),
}

async fn send(
    endpoints: &Endpoints,
    link: &mut Option<(Connection, lapin::Channel)>,
    reply: Reply,
) -> Result<(), ReplyError> {
    let reply_to = short("reply_to", &reply.reply_to)?;
    let mut properties = BasicProperties::default().with_content_type("application/json".into());
    if let Some(id) = &reply.correlation_id {
        properties = properties.with_correlation_id(short("correlation_id", id)?);
    }
    // Publishing to a reply queue that does not exist is no error, but an invalid
    // `amq.rabbitmq.reply-to` address closes the channel.
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
    let publish = channel.basic_publish("".into(), reply_to, options, &reply.body, properties);
    request("publish a reply", publish).await?;
    *link = Some((connection, channel));
    Ok(())
}
