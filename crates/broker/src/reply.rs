//! Replies, at most one for each delivery.
//!
//! The effect of an action does not depend on its reply. So replies are published without confirms, and no
//! acknowledgement waits for a reply. A requester without a reply repeats its request. Replies work with
//! direct reply-to (`amq.rabbitmq.reply-to`) and with reply queues.

use std::error::Error;
use std::time::Duration;

use domain::reply::{Reply, ReplyAddress};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use metrics::{Counter, Metrics, ReplyOutcome};
use tokio::sync::{mpsc, oneshot};

use crate::connection::{Endpoints, Link, request};
use crate::handler::ReplyBody;
use crate::panics::catch_panic;
use crate::publication::short;
use crate::topology;

/// The most replies that wait to be sent: more than a consumer has deliveries by default. When RabbitMQ is
/// unavailable and more wait, further replies are dropped.
const WAITING_REPLIES: usize = 16_384;

/// How long a stop waits for queued replies.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// What waits in the queue of the sending task.
#[derive(Debug)]
enum Queued {
    Reply(ReplyAddress, ReplyBody),
    /// Everything before it was sent or dropped.
    Flush(oneshot::Sender<()>),
}

/// Sends replies. Clones share one connection.
#[derive(Debug, Clone)]
pub(crate) struct Replier {
    replies: mpsc::Sender<Queued>,
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
        if self.replies.try_send(Queued::Reply(address, body)).is_err() {
            tracing::debug!("reply dropped: {WAITING_REPLIES} replies wait to be sent");
            count(ReplyOutcome::Dropped);
        }
    }

    /// Waits until the queued replies are sent, for two seconds at most: their messages are acknowledged, and
    /// nobody else replies.
    pub(crate) async fn flush(&self) {
        let flushed = async {
            let (done, flushed) = oneshot::channel();
            self.replies.send(Queued::Flush(done)).await.ok();
            flushed.await.ok();
        };
        if tokio::time::timeout(FLUSH_LIMIT, flushed).await.is_err() {
            tracing::warn!("replies still wait to be sent after {FLUSH_LIMIT:?}; they are lost");
        }
    }
}

async fn send_all(endpoints: Endpoints, mut queued: mpsc::Receiver<Queued>, metrics: Metrics) {
    let mut link = None;
    while let Some(next) = queued.recv().await {
        let (address, body) = match next {
            Queued::Reply(address, body) => (address, body),
            Queued::Flush(done) => {
                done.send(()).ok();
                continue;
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn after_a_flush_every_queued_reply_is_sent() {
        let env = testkit::TestEnv::new().await;
        let endpoints = Endpoints::parse(&env.amqp_url, "test").unwrap();
        let metrics = Metrics::new();
        let replier = Replier::new(endpoints, metrics.clone());
        for _ in 0..500 {
            let address = ReplyAddress {
                queue: "nobody.listens.here".to_owned(),
                correlation_id: None,
                action_id: None,
            };
            replier.reply(address, Ok(serde_json::value::to_raw_value(&1).unwrap()));
        }
        let sent = Counter::Replies { outcome: ReplyOutcome::Sent };
        assert_eq!(metrics.count(sent), 0, "they are sent in the background");
        replier.flush().await;
        assert_eq!(metrics.count(sent), 500);
    }
}
