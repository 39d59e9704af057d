//! The publisher with confirms: a publish succeeds when RabbitMQ confirmed it.
//!
//! One task owns a connection of its own, because RabbitMQ stops reading a publishing connection during a
//! memory alarm, and acknowledgements on it would not be sent. Publishes that wait at the same time form a
//! *window*: all of them are sent, then all confirms are awaited, then the next window starts. Between
//! windows no publish is pending. So each returned message can be matched to its publish (see
//! [`window`]).
//!
//! Invariant: `Ok` means confirmed and in a queue. If this is not certain, the result is an error.

mod driver;
mod error;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::Metrics;
use tokio::sync::{mpsc, oneshot};

use crate::connection::Endpoints;
use crate::publication::Publication;
use driver::{Call, Driver};
use window::WindowSize;

pub use error::PublishError;
pub(crate) use window::{Outgoing, Window};

/// The most calls that are queued for the task; further callers wait.
const QUEUED_CALLS: usize = 4096;
/// The limit from the call to its result. A queue that elects a new leader needs a few seconds.
pub(crate) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Publishes with confirms. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Publisher {
    calls: mpsc::Sender<Call>,
}

impl Publisher {
    /// A publisher that connects at its first use, and reconnects when needed. Its task ends when the last
    /// clone is dropped. Call it within a tokio runtime.
    #[must_use]
    pub fn new(endpoints: Endpoints, metrics: Metrics) -> Self {
        Self::with_timeout(endpoints, metrics, PUBLISH_TIMEOUT)
    }

    /// The same with this limit from a call to its result.
    #[must_use]
    pub fn with_timeout(endpoints: Endpoints, metrics: Metrics, timeout: Duration) -> Self {
        let (calls, queued) = mpsc::channel(QUEUED_CALLS);
        tokio::spawn(Driver::new(endpoints, metrics, timeout, queued).run());
        Self { calls }
    }

    /// Publishes one message and waits for its confirm.
    ///
    /// # Errors
    /// It is not certain that a queue has the message; see the variants.
    pub async fn publish(
        &self,
        publication: impl Into<Arc<Publication>>,
    ) -> Result<(), PublishError> {
        let message = Outgoing { publication: publication.into(), not_after: None };
        let [result] = self.call([message].into()).await.try_into().unwrap_or([publisher_ended()]);
        result
    }

    /// Publishes many messages in windows. Returns one result per message, in their order.
    pub async fn publish_all(
        &self,
        publications: impl IntoIterator<Item = Arc<Publication>>,
    ) -> Vec<Result<(), PublishError>> {
        self.publish_messages(publications, None).await
    }

    /// [`Self::publish_all`] of messages that must not be sent at `deadline` or later, also if the process gets no
    /// time for a while. Each is compared with the clock when it is passed to the client library, which writes it
    /// to the connection at once. In between a message can still be delayed, and afterwards in the network.
    pub async fn publish_all_before(
        &self,
        deadline: Instant,
        publications: impl IntoIterator<Item = Arc<Publication>>,
    ) -> Vec<Result<(), PublishError>> {
        self.publish_messages(publications, Some(deadline)).await
    }

    async fn publish_messages(
        &self,
        publications: impl IntoIterator<Item = Arc<Publication>>,
        not_after: Option<Instant>,
    ) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::new();
        let (mut window, mut size) = (Vec::new(), WindowSize::default());
        for publication in publications {
            size.add(&publication);
            window.push(Outgoing { publication, not_after });
            if size.is_full() {
                results.extend(self.call(std::mem::take(&mut window)).await);
                size = WindowSize::default();
            }
        }
        if !window.is_empty() {
            results.extend(self.call(window).await);
        }
        results
    }

    async fn call(&self, messages: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let count = messages.len();
        let (results, received) = oneshot::channel();
        let called = Instant::now();
        let sent = self.calls.send(Call { messages, called, results }).await;
        match (sent, received.await) {
            (Ok(()), Ok(results)) => results,
            _ => vec![publisher_ended(); count],
        }
    }
}

fn publisher_ended() -> Result<(), PublishError> {
    Err(PublishError::Unknown("the publisher panicked or has ended".to_owned()))
}
