//! Replies, at most one for each delivery.
//!
//! The effect of an action does not depend on its reply. So replies are published without confirms, and no
//! acknowledgement waits for a reply. A requester without a reply repeats its request. Replies work with
//! direct reply-to (`amq.rabbitmq.reply-to`) and with reply queues.

use std::error::Error;

use domain::reply::{Reply, ReplyAddress};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use metrics::{Counter, Metrics, ReplyOutcome};
use tokio::sync::mpsc;

use crate::connection::{Endpoints, Link, request};
use crate::handler::ReplyBody;
use crate::panics::catch_panic;
use crate::publication::short;
use crate::topology;

/// The most replies that wait to be sent: more than a consumer has deliveries by default. When RabbitMQ is
/// unavailable and more wait, further replies are dropped.
const WAITING_REPLIES: usize = 16_384;

/// Sends replies. Clones share one connection.
#[derive(Debug, Clone)]
pub(crate) struct Replier {
    replies: mpsc::Sender<(ReplyAddress, ReplyBody)>,
    metrics: Metrics,
}

impl Replier {
    /// A replier that connects for its first reply. Its task ends when the last clone is dropped. Call it
    /// within a tokio runtime.
    pub(crate) fn new(endpoints: Endpoints, metrics: Metrics) -> Self {
        let (replies, queued) = mpsc::channel(WAITING_REPLIES);
        tokio::spawn(send_all(endpoints, queued, metrics.clone()));
        Self { replies, metrics }
    }

    /// Queues a reply. Never waits; when too many replies are queued, it is dropped. So is one for a queue of
    /// the fleet, where it would become a dead letter.
    pub(crate) fn reply(&self, address: ReplyAddress, body: ReplyBody) {
        let count = |outcome| self.metrics.add(Counter::Replies { outcome }, 1);
        if topology::queues().iter().any(|queue| queue.name == address.queue) {
            tracing::debug!(
                reply_to = address.queue,
                "reply dropped: reply_to names a queue of the fleet"
            );
            return count(ReplyOutcome::Ignored);
        }
        if let Err(error) = self.replies.try_send((address, body)) {
            let (address, _) = error.into_inner();
            tracing::debug!(
                reply_to = address.queue,
                "reply dropped: {WAITING_REPLIES} replies wait to be sent"
            );
            count(ReplyOutcome::Dropped);
        }
    }
}

async fn send_all(
    endpoints: Endpoints,
    mut queued: mpsc::Receiver<(ReplyAddress, ReplyBody)>,
    metrics: Metrics,
) {
    let mut link = None;
    while let Some((address, body)) = queued.recv().await {
        // A panic loses one reply, not the following ones.
        let sent = catch_panic("replying", send(&endpoints, &mut link, &address, body)).await;
        let outcome = match sent {
            Some(Ok(())) => ReplyOutcome::Sent,
            Some(Err(error)) => {
                tracing::debug!(reply_to = address.queue, error = %error, "reply not sent");
                ReplyOutcome::Dropped
            }
            None => ReplyOutcome::Dropped,
        };
        metrics.add(Counter::Replies { outcome }, 1);
    }
}

async fn send(
    endpoints: &Endpoints,
    link: &mut Option<Link>,
    address: &ReplyAddress,
    body: ReplyBody,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let queue = short("reply_to", &address.queue)?;
    let mut properties = BasicProperties::default().with_content_type("application/json".into());
    if let Some(id) = &address.correlation_id {
        properties = properties.with_correlation_id(short("correlation_id", id)?);
    }
    let body = serde_json::to_vec(&Reply::to(address, body))?;
    // Publishing to a reply queue that does not exist is no error, but an invalid
    // `amq.rabbitmq.reply-to` address closes the channel.
    let open = match link.take().filter(Link::is_usable) {
        Some(open) => open,
        None => Link::open(endpoints, "reply").await?,
    };
    let options = BasicPublishOptions::default();
    let publish = open.channel.basic_publish("".into(), queue, options, &body, properties);
    request("publish a reply", publish).await?;
    *link = Some(open);
    Ok(())
}
