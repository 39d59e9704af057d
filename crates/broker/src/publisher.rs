//! The confirmed publisher: a publish has succeeded when the broker said so, and not before.
//!
//! One task owns one connection of its own, because a memory alarm stops the broker from reading a
//! publishing connection, and acknowledgements on it would starve. Publishes that arrive together
//! travel together: a *window* is sent without waiting in between, then all its confirms are awaited,
//! then the next window goes. Between windows nothing is pending, which is what makes it possible to
//! say of every returned message whose it was (see [`window`]).
//!
//! Invariant: `Ok` means confirmed and in a queue. Every doubt is an error.

mod driver;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::failure::{Dependency, FailureClass, Unavailable};
use metrics::Metrics;
use tokio::sync::{mpsc, oneshot};

use crate::connection::Endpoints;
use crate::publication::{Publication, TooLong};
use driver::{Call, Driver};
use window::Room;

/// Callers whose windows wait at most; the next ones wait to be let in.
const WAITING_CALLERS: usize = 4096;
/// From the call to the answer. A queue that elects a new leader takes a few seconds.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Publishes with confirms; clones share one connection.
#[derive(Debug, Clone)]
pub struct Publisher {
    calls: mpsc::Sender<Call>,
}

/// Why a publish did not succeed. In every case the message may be published again; in the unknown
/// ones it may then exist twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It cannot be put into AMQP's terms. It was not sent.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// RabbitMQ cannot be reached. It was not sent.
    #[error("cannot publish: {0}")]
    Unreachable(String),
    /// The broker stopped reading from publishers: a memory or disk alarm. It may still arrive.
    #[error("RabbitMQ blocks publishers (a memory or disk alarm)")]
    Blocked,
    /// No queue took it.
    #[error("no queue takes routing key `{routing_key}` of exchange `{exchange}`")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// The broker refused it: a queue is full or has no leader.
    #[error("RabbitMQ refused the message (a queue is full or without a leader)")]
    Refused,
    /// Nobody knows whether it arrived.
    #[error("unknown whether the message was published: {0}")]
    Unknown(String),
}

impl PublishError {
    /// How it is to be treated. Only a message that AMQP has no words for is at fault itself.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::TooLong(_) => FailureClass::Data,
            Self::Unreachable(_)
            | Self::Blocked
            | Self::Unroutable { .. }
            | Self::Refused
            | Self::Unknown(_) => FailureClass::Unavailable,
        }
    }
}

impl From<PublishError> for Unavailable {
    fn from(error: PublishError) -> Self {
        Self { dependency: Dependency::RabbitMq, source: Box::new(error) }
    }
}

impl Publisher {
    /// A publisher that connects when it is first used, and again whenever it must. Its task ends
    /// when the last clone is gone. Call it within a tokio runtime.
    #[must_use]
    pub fn new(endpoints: Endpoints, metrics: Metrics) -> Self {
        Self::with_timeout(endpoints, metrics, PUBLISH_TIMEOUT)
    }

    /// The same with another limit from a call to its answer.
    #[must_use]
    pub fn with_timeout(endpoints: Endpoints, metrics: Metrics, timeout: Duration) -> Self {
        let (calls, waiting) = mpsc::channel(WAITING_CALLERS);
        tokio::spawn(Driver::new(endpoints, metrics, timeout, waiting).run());
        Self { calls }
    }

    /// Publishes one message and waits until the broker has it.
    ///
    /// # Errors
    /// It is not certain that a queue has it; each variant says what is known.
    pub async fn publish(
        &self,
        publication: impl Into<Arc<Publication>>,
    ) -> Result<(), PublishError> {
        let [result] = self.call([publication.into()].into()).await.try_into().unwrap_or([gone()]);
        result
    }

    /// Publishes many, pipelined: one result per message, in their order.
    pub async fn publish_all(
        &self,
        publications: impl IntoIterator<Item = Arc<Publication>>,
    ) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::new();
        let (mut window, mut room) = (Vec::new(), Room::default());
        for publication in publications {
            room.take(&publication);
            window.push(publication);
            if room.is_full() {
                results.extend(self.call(std::mem::take(&mut window)).await);
                room = Room::default();
            }
        }
        if !window.is_empty() {
            results.extend(self.call(window).await);
        }
        results
    }

    async fn call(&self, publications: Vec<Arc<Publication>>) -> Vec<Result<(), PublishError>> {
        let count = publications.len();
        let (answer, answered) = oneshot::channel();
        let called = Instant::now();
        let sent = self.calls.send(Call { publications, called, answer }).await;
        match (sent, answered.await) {
            (Ok(()), Ok(results)) => results,
            _ => vec![gone(); count],
        }
    }
}

fn gone() -> Result<(), PublishError> {
    Err(PublishError::Unknown("the publisher panicked or has ended".to_owned()))
}
