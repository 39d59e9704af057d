//! Replies, at most one for each delivery.
//!
//! The effect of an action does not depend on its reply. So replies are published without confirms, and no
//! acknowledgement waits for a reply. A requester without a reply repeats its request. Replies work with
//! direct reply-to (`amq.rabbitmq.reply-to`) and with reply queues.
//!
//! RabbitMQ 3.10 closes the connection for a direct reply-to address that it cannot decode, and drops the replies
//! that were sent behind it. So [`addresses`] are checked first, on another connection.

mod addresses;

use std::error::Error;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use domain::causes::with_causes;
use domain::repeated::RepeatedFailure;
use domain::reply::{Reply, ReplyAddress};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, BasicQosOptions};
use metrics::{Counter, Metrics, ReplyOutcome};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use self::addresses::Addresses;
use crate::backoff::Backoff;
use crate::connection::{Endpoints, Link, request};
use crate::handler::ReplyBody;
use crate::panics::catch_panic;
use crate::publication::short;
use crate::topology;

/// How many bytes of replies may wait to be sent. When RabbitMQ is unavailable and more wait, further replies
/// are dropped.
const WAITING_BYTES: u32 = 16 << 20;

/// What a waiting reply takes beside its body, in bytes; an estimate.
const OVERHEAD_BYTES: usize = 512;

/// The most replies that are checked and sent together.
const TOGETHER: usize = 256;

/// How long a stop waits for queued replies.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// A reply in the queue of the sending task.
#[derive(Debug)]
struct Queued {
    address: ReplyAddress,
    body: Vec<u8>,
    /// Its share of [`WAITING_BYTES`], returned when it was sent or dropped.
    _bytes: OwnedSemaphorePermit,
}

/// Sends replies over a connection of its own.
#[derive(Debug)]
pub(crate) struct Replier {
    replies: mpsc::UnboundedSender<Queued>,
    /// The bytes that may still be queued.
    free_bytes: Arc<Semaphore>,
    dropping: Mutex<RepeatedFailure>,
    metrics: Metrics,
}

type BoxedError = Box<dyn Error + Send + Sync>;

impl Replier {
    /// A replier that connects for its first reply. Its task ends when it is dropped. Call it within a tokio
    /// runtime.
    pub(crate) fn new(endpoints: Endpoints, metrics: Metrics) -> Self {
        let (replies, queued) = mpsc::unbounded_channel();
        let addresses = Addresses::new(endpoints.clone());
        let sender = Sender { endpoints, queued, link: None, addresses, metrics: metrics.clone() };
        tokio::spawn(sender.run());
        let free_bytes = Arc::new(Semaphore::new(WAITING_BYTES as usize));
        Self { replies, free_bytes, dropping: Mutex::default(), metrics }
    }

    /// Queues a reply. Never waits; when too many bytes are queued, it is dropped. So is one for a queue of
    /// the fleet, where it would become a dead letter.
    pub(crate) fn reply(&self, address: ReplyAddress, body: ReplyBody) {
        if is_fleet_queue(&address.queue) {
            let reply_to = address.queue;
            tracing::debug!(reply_to, "reply dropped: reply_to names a queue of the fleet");
            return count(&self.metrics, ReplyOutcome::Ignored, 1);
        }
        if let Err(error) = self.queue(address, body) {
            count(&self.metrics, ReplyOutcome::Dropped, 1);
            let mut dropping = self.dropping.lock().unwrap_or_else(PoisonError::into_inner);
            if dropping.failed(Instant::now()) {
                tracing::warn!(error = with_causes(&*error), "replies are dropped");
            }
        }
    }

    fn queue(&self, address: ReplyAddress, body: ReplyBody) -> Result<(), BoxedError> {
        let body = serde_json::to_vec(&Reply::to(&address, body))?;
        let bytes = u32::try_from(body.len() + OVERHEAD_BYTES)?.min(WAITING_BYTES);
        let waiting = |_| format!("{} MiB of replies wait to be sent", WAITING_BYTES >> 20);
        let bytes = self.free_bytes.clone().try_acquire_many_owned(bytes).map_err(waiting)?;
        let reply = Queued { address, body, _bytes: bytes };
        self.replies.send(reply).map_err(|_| "the sending task has ended".into())
    }

    /// Waits until the queued replies are sent, for two seconds at most: their messages are acknowledged, and
    /// nobody else replies.
    pub(crate) async fn flush(&self) {
        let all_returned = self.free_bytes.acquire_many(WAITING_BYTES);
        if tokio::time::timeout(FLUSH_LIMIT, all_returned).await.is_err() {
            tracing::warn!(
                "RabbitMQ did not take all replies within {FLUSH_LIMIT:?}; the rest is lost"
            );
        }
    }
}

fn is_fleet_queue(name: &str) -> bool {
    static NAMES: LazyLock<Vec<&str>> =
        LazyLock::new(|| topology::queues().iter().map(|queue| queue.name).collect());
    NAMES.contains(&name)
}

fn count(metrics: &Metrics, outcome: ReplyOutcome, replies: u64) {
    metrics.add(Counter::Replies { outcome }, replies);
}

/// The sending task.
struct Sender {
    endpoints: Endpoints,
    queued: mpsc::UnboundedReceiver<Queued>,
    link: Option<Link>,
    addresses: Addresses,
    metrics: Metrics,
}

impl Sender {
    async fn run(mut self) {
        let mut replies = Vec::new();
        while self.queued.recv_many(&mut replies, TOGETHER).await > 0 {
            let Some(link) = self.link().await else { return };
            // A panic loses these replies, not the following ones. After an error it is unknown which of them
            // were sent: a second one might be one too many.
            let sent = catch_panic("replying", send(&link, &mut self.addresses, &replies)).await;
            if let Some(Err(error)) = &sent {
                let (error, replies) = (with_causes(&**error), replies.len());
                tracing::warn!(
                    error,
                    replies,
                    "RabbitMQ failed while replies were sent; some are lost"
                );
            }
            let sent = sent.and_then(Result::ok).unwrap_or(0);
            count(&self.metrics, ReplyOutcome::Sent, sent);
            count(&self.metrics, ReplyOutcome::Dropped, replies.len() as u64 - sent);
            self.link = Some(link);
            replies.clear();
        }
    }

    /// Connects, however long that takes, while replies wait. `None`: the replier was dropped.
    async fn link(&mut self) -> Option<Link> {
        if let Some(open) = self.link.take().filter(Link::is_usable) {
            return Some(open);
        }
        let (mut backoff, mut failure) = (Backoff::new(), RepeatedFailure::default());
        loop {
            // Replies have short headers, so small frames suffice.
            let open =
                async { Link::on(self.endpoints.connect_for_requests("reply").await?).await };
            let error = match open.await {
                Ok(link) => return Some(link),
                Err(error) => error,
            };
            if failure.failed(Instant::now()) {
                let (waiting, error) = (self.queued.len(), with_causes(&error));
                tracing::warn!(
                    waiting,
                    error,
                    "cannot connect to RabbitMQ to send replies; retrying"
                );
            }
            if self.queued.is_closed() {
                return None;
            }
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }
}

/// Sends replies, and waits until RabbitMQ has processed them. Returns how many it sent; the others have no
/// requester.
async fn send(
    link: &Link,
    addresses: &mut Addresses,
    replies: &[Queued],
) -> Result<u64, BoxedError> {
    let unreachable = addresses.unreachable(replies.iter().map(|it| &*it.address.queue)).await;
    let mut sent = 0;
    for Queued { address, body, .. } in replies {
        let Ok(queue) = short("reply_to", &address.queue) else { continue };
        if unreachable.contains(&*address.queue) {
            continue;
        }
        let mut properties =
            BasicProperties::default().with_content_type("application/json".into());
        // One that is too long for AMQP is in the body alone.
        let correlation_id = address.correlation_id.as_deref();
        if let Some(Ok(id)) = correlation_id.map(|id| short("correlation_id", id)) {
            properties = properties.with_correlation_id(id);
        }
        // Publishing to a reply queue that does not exist is no error.
        let options = BasicPublishOptions::default();
        let publish = link.channel.basic_publish("".into(), queue, options, body, properties);
        request("publish a reply", publish).await?;
        sent += 1;
    }
    let behind = link.channel.basic_qos(1, BasicQosOptions::default());
    request("process replies", behind).await?;
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use testkit::wait::eventually;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_correlation_id_too_long_for_amqp_is_in_the_body_alone() {
        let env = testkit::TestEnv::new().await;
        let endpoints = Endpoints::parse(&env.amqp_url, "test").unwrap();
        let link = Link::on(endpoints.connect("test").await.unwrap()).await.unwrap();
        let queue = link.channel.queue_declare("".into(), Default::default(), Default::default());
        let queue = queue.await.unwrap().name().to_string();
        let long = "x".repeat(256);
        let replier = Replier::new(endpoints, Metrics::new());
        let address = ReplyAddress {
            queue: queue.clone(),
            correlation_id: Some(long.clone()),
            action_id: None,
        };
        replier.reply(address, Ok(serde_json::value::to_raw_value(&1).unwrap()));
        replier.flush().await;
        let reply = eventually("the reply", LIMIT, async || {
            let get = link.channel.basic_get(queue.as_str().into(), Default::default());
            get.await.unwrap().ok_or_else(|| "the queue is empty".to_owned())
        });
        let reply = reply.await.delivery;
        assert_eq!(reply.properties.correlation_id(), &None);
        let body: serde_json::Value = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(body["correlation_id"], long);
    }

    #[tokio::test]
    async fn waiting_replies_are_bounded_by_bytes_and_sent_once_rabbitmq_is_back() {
        let env = testkit::TestEnv::new().await;
        let proxy = testkit::proxy::Proxy::before(&env.amqp_url).await.unwrap();
        proxy.cut().await.unwrap();
        let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
        let metrics = Metrics::new();
        let replier = Replier::new(endpoints, metrics.clone());
        let body = serde_json::value::to_raw_value(&"x".repeat(1 << 20)).unwrap();
        let reply = || {
            let (queue, correlation_id) = ("nobody.listens.here".to_owned(), None);
            let address = ReplyAddress { queue, correlation_id, action_id: None };
            replier.reply(address, Ok(body.clone()));
        };
        (0..20).for_each(|_| reply());
        let count = |outcome| metrics.count(Counter::Replies { outcome });
        assert_eq!(
            count(ReplyOutcome::Dropped),
            5,
            "15 replies of more than 1 MiB fit into 16 MiB"
        );
        proxy.restore().await.unwrap();
        eventually("15 replies", LIMIT, async || match count(ReplyOutcome::Sent) {
            15 => Ok(()),
            sent => Err(format!("{sent} are sent")),
        })
        .await;
    }

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
