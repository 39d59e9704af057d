//! Replies to many actions at once, for a process that publishes them with a [`crate::Publisher`].
//!
//! The process has one queue of its own, which ends with its connection. Whoever expects a reply gets its address and a
//! correlation id before it publishes. A reply that nobody expects any more is dropped. After a lost connection there is
//! another queue: the replies to what was published before are lost, and who waits for them waits until its limit.
//! [`crate::Requester`] is for a program that publishes one action after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::causes::with_causes;
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::{Backoff, pause};
use crate::connection::{Endpoints, Error, Link, request};

/// The replies of a process. Clones share its queue.
#[derive(Clone)]
pub struct Replies {
    /// The queue; `None` while there is no connection.
    queue: Arc<watch::Sender<Option<String>>>,
    expected: Arc<Mutex<HashMap<String, oneshot::Sender<Vec<u8>>>>>,
}

/// A reply that is expected. Nobody expects it after this is dropped.
pub struct ExpectedReply {
    /// The queue to which it is to be sent: `reply_to`.
    pub queue: String,
    /// By which it is known: `correlation_id`.
    pub correlation_id: String,
    replies: Replies,
    received: oneshot::Receiver<Vec<u8>>,
}

impl Replies {
    /// Receives replies until the shutdown begins; connects again whenever the connection is lost.
    pub async fn receive(&self, endpoints: Endpoints, shutdown: CancellationToken) {
        let mut backoff = Backoff::new();
        while !shutdown.is_cancelled() {
            let receiving = self.receive_once(&endpoints, &mut backoff);
            let ended = shutdown.run_until_cancelled(receiving).await;
            self.queue.send_replace(None);
            let Some(ended) = ended else { return };
            let error = ended
                .err()
                .map_or_else(|| "RabbitMQ ended the consumer".to_owned(), |it| with_causes(&it));
            tracing::warn!(error, "replies cannot be received; connecting again");
            pause(backoff.next_pause(), &shutdown).await;
        }
    }

    /// Expects a reply. Waits for a connection, as at the start of the process; `None` if there is none within the limit.
    pub async fn expect(&self, limit: Duration) -> Option<ExpectedReply> {
        let mut connected = self.queue.subscribe();
        let queue =
            timeout(limit, connected.wait_for(Option::is_some)).await.ok()?.ok()?.clone()?;
        let correlation_id = Uuid::new_v4().to_string();
        let (reply, received) = oneshot::channel();
        self.expected().insert(correlation_id.clone(), reply);
        Some(ExpectedReply { queue, correlation_id, replies: self.clone(), received })
    }

    async fn receive_once(
        &self,
        endpoints: &Endpoints,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        let link = Link::on(endpoints.connect("replies").await?).await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let declare = link.channel.queue_declare("".into(), options, FieldTable::default());
        let queue = request("declare a queue for replies", declare).await?.name().to_string();
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consume = link.channel.basic_consume(
            queue.as_str().into(),
            "".into(),
            options,
            FieldTable::default(),
        );
        let mut replies = request("consume replies", consume).await?;
        self.queue.send_replace(Some(queue));
        *backoff = Backoff::new();
        while let Some(reply) = replies.next().await {
            let Ok(reply) = reply else { break };
            let of = reply.properties.correlation_id().as_ref().map(ToString::to_string);
            let expected = of.and_then(|of| self.expected().remove(&of));
            if let Some(expected) = expected {
                // Fails when nobody waits any more.
                drop(expected.send(reply.data));
            }
        }
        Ok(())
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Vec<u8>>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Replies {
    fn default() -> Self {
        Self { queue: Arc::new(watch::Sender::new(None)), expected: Arc::default() }
    }
}

impl ExpectedReply {
    /// The body of the reply; `None` if there is none within the limit.
    pub async fn within(mut self, limit: Duration) -> Option<Vec<u8>> {
        timeout(limit, &mut self.received).await.ok()?.ok()
    }
}

impl Drop for ExpectedReply {
    fn drop(&mut self) {
        self.replies.expected().remove(&self.correlation_id);
    }
}
