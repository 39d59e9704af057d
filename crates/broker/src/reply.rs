//! Replies, at most one for each delivery.
//!
//! The effect of an action does not depend on its reply. So replies are published without confirms, and no
//! acknowledgement waits for a reply. A requester without a reply repeats its request. Replies work with
//! direct reply-to (`amq.rabbitmq.reply-to`) and with reply queues.

use std::collections::HashSet;
use std::error::Error;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use domain::causes::with_causes;
use domain::repeated::RepeatedFailure;
use domain::reply::{Reply, ReplyAddress};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, BasicQosOptions};
use metrics::{Counter, Metrics, ReplyOutcome};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

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

/// How the addresses of direct reply-to begin. RabbitMQ appends the encoded channel of the requester.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to.";

/// How many addresses of direct reply-to are remembered as valid. Each requester has one for its channel.
const VALID_ADDRESSES: usize = 4096;

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
    metrics: Metrics,
}

impl Replier {
    /// A replier that connects for its first reply. Its task ends when it is dropped. Call it within a tokio
    /// runtime.
    pub(crate) fn new(endpoints: Endpoints, metrics: Metrics) -> Self {
        let (replies, queued) = mpsc::unbounded_channel();
        tokio::spawn(send_all(endpoints, queued, metrics.clone()));
        Self { replies, free_bytes: Arc::new(Semaphore::new(WAITING_BYTES as usize)), metrics }
    }

    /// Queues a reply. Never waits; when too many bytes are queued, it is dropped. So is one for a queue of
    /// the fleet, where it would become a dead letter.
    pub(crate) fn reply(&self, address: ReplyAddress, body: ReplyBody) {
        if is_fleet_queue(&address.queue) {
            tracing::debug!(
                reply_to = address.queue,
                "reply dropped: reply_to names a queue of the fleet"
            );
            return count(&self.metrics, ReplyOutcome::Ignored);
        }
        if let Err(error) = self.queue(address, body) {
            tracing::debug!(error = with_causes(&*error), "reply dropped");
            count(&self.metrics, ReplyOutcome::Dropped);
        }
    }

    fn queue(&self, address: ReplyAddress, body: ReplyBody) -> Result<(), BoxedError> {
        let body = serde_json::to_vec(&Reply::to(&address, body))?;
        let bytes = u32::try_from(body.len() + OVERHEAD_BYTES)?.min(WAITING_BYTES);
        let waiting = |_| format!("{} MiB of replies wait to be sent", WAITING_BYTES >> 20);
        let bytes = self.free_bytes.clone().try_acquire_many_owned(bytes).map_err(waiting)?;
        self.replies
            .send(Queued { address, body, _bytes: bytes })
            .map_err(|_| "the sending task has ended".into())
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

type BoxedError = Box<dyn Error + Send + Sync>;

fn count(metrics: &Metrics, outcome: ReplyOutcome) {
    metrics.add(Counter::Replies { outcome }, 1);
}

async fn send_all(
    endpoints: Endpoints,
    mut queued: mpsc::UnboundedReceiver<Queued>,
    metrics: Metrics,
) {
    let mut link = None;
    let mut valid = HashSet::new();
    while let Some(reply) = queued.recv().await {
        let open = match link.take().filter(Link::is_usable) {
            Some(open) => open,
            None => match connect(&endpoints, &queued).await {
                Some(open) => open,
                None => return,
            },
        };
        // A panic loses one reply, not the following ones. After an error it is unknown whether the reply was
        // sent: a second one might be one too many.
        let sent = catch_panic("replying", send(&open, &reply, &mut valid)).await;
        if let Some(Err(error)) = &sent {
            let reply_to = &reply.address.queue;
            tracing::debug!(reply_to, error = with_causes(&**error), "reply not sent");
        }
        let is_sent = matches!(sent, Some(Ok(())));
        count(&metrics, if is_sent { ReplyOutcome::Sent } else { ReplyOutcome::Dropped });
        link = Some(open);
    }
}

/// Connects, however long that takes, while replies wait. `None`: the replier was dropped.
async fn connect(endpoints: &Endpoints, queued: &mpsc::UnboundedReceiver<Queued>) -> Option<Link> {
    let (mut backoff, mut failure) = (Backoff::new(), RepeatedFailure::default());
    loop {
        // Replies have short headers, so small frames suffice.
        let open = async { Link::on(endpoints.connect_for_requests("reply").await?).await };
        let error = match open.await {
            Ok(link) => return Some(link),
            Err(error) => error,
        };
        if failure.failed(Instant::now()) {
            let (waiting, error) = (queued.len() + 1, with_causes(&error));
            tracing::warn!(waiting, error, "cannot connect to RabbitMQ to send replies; retrying");
        }
        if queued.is_closed() {
            return None;
        }
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

async fn send(link: &Link, reply: &Queued, valid: &mut HashSet<String>) -> Result<(), BoxedError> {
    let address = &reply.address.queue;
    let queue = short("reply_to", address)?;
    let mut properties = BasicProperties::default().with_content_type("application/json".into());
    // One that is too long for AMQP is in the body alone.
    let correlation_id = reply.address.correlation_id.as_deref();
    if let Some(Ok(id)) = correlation_id.map(|id| short("correlation_id", id)) {
        properties = properties.with_correlation_id(id);
    }
    // Publishing to a reply queue that does not exist is no error.
    let options = BasicPublishOptions::default();
    let publish = link.channel.basic_publish("".into(), queue, options, &reply.body, properties);
    request("publish a reply", publish).await?;
    if address.starts_with(DIRECT_REPLY_TO) && !valid.contains(address) {
        // RabbitMQ 3.10 closes the connection for an address that it cannot decode, and drops what was sent
        // behind the reply. So nothing is sent before RabbitMQ has answered a request that it receives after
        // the reply.
        let qos = link.channel.basic_qos(1, BasicQosOptions::default());
        request("check a reply address", qos).await?;
        if valid.len() >= VALID_ADDRESSES {
            valid.clear();
        }
        valid.insert(address.clone());
    }
    Ok(())
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
