//! The confirmed publisher: a publish has succeeded when the broker said so, and not before.
//!
//! One task owns one connection of its own, because a memory alarm stops the broker from reading a
//! publishing connection, and acknowledgements on it would starve. Publishes that arrive together
//! travel together: a *window* is sent without waiting in between, then all its confirms are awaited,
//! then the next window goes. Between windows nothing is pending, which is what makes it possible to
//! say of every returned message whose it was (see [`window`]).
//!
//! Invariant: `Ok` means confirmed and in a queue. Every doubt is an error.

mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::failure::{FailureClass, Store, Unavailable};
use metrics::{Counter, Metrics, PublishOutcome, Timing};
use tokio::sync::{mpsc, oneshot};

use crate::backoff::Backoff;
use crate::connection::{Connection, Endpoints, Error};
use crate::publication::{Publication, TooLong};
use window::Window;

/// Publishes that travel together at most. A window of 1024 reaches 90 % of what one channel can do
/// (23 000 to 37 000 messages per second on two shared cores).
const WINDOW_MESSAGES: usize = 1024;
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
        Self { store: Store::RabbitMq, source: Box::new(error) }
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
        let driver = Driver { endpoints, metrics, timeout, waiting, link: None };
        tokio::spawn(driver.run());
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
        let publications: Vec<_> = publications.into_iter().collect();
        let mut results = Vec::with_capacity(publications.len());
        for window in publications.chunks(WINDOW_MESSAGES) {
            results.extend(self.call(window.to_vec()).await);
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

/// What a caller wants published, and where it waits.
#[derive(Debug)]
struct Call {
    publications: Vec<Arc<Publication>>,
    called: Instant,
    answer: oneshot::Sender<Vec<Result<(), PublishError>>>,
}

/// The task behind a publisher.
struct Driver {
    endpoints: Endpoints,
    metrics: Metrics,
    timeout: Duration,
    waiting: mpsc::Receiver<Call>,
    link: Option<Link>,
}

/// A connection and its one channel, in confirm mode.
struct Link {
    connection: Connection,
    channel: lapin::Channel,
}

impl Driver {
    async fn run(mut self) {
        while let Some(calls) = self.next_calls().await {
            let publications: Vec<_> =
                calls.iter().flat_map(|call| call.publications.iter().cloned()).collect();
            // The calls of a window came in order: the first one has waited longest.
            let deadline = calls[0].called + self.timeout;
            let mut results = self.publish(&publications, deadline).await.into_iter();
            for call in calls {
                let own = results.by_ref().take(call.publications.len()).collect();
                self.metrics.observe(Timing::Publish, call.called.elapsed());
                // A caller that no longer waits has given up on the answer, not on the message.
                drop(call.answer.send(own));
            }
        }
        if let Some(link) = self.link {
            link.connection.close().await;
        }
    }

    /// The calls of the next window: all that wait, up to its size. `None` when nobody can call.
    async fn next_calls(&mut self) -> Option<Vec<Call>> {
        let mut calls = vec![self.waiting.recv().await?];
        let mut messages = calls[0].publications.len();
        while messages < WINDOW_MESSAGES {
            let Ok(call) = self.waiting.try_recv() else { break };
            messages += call.publications.len();
            calls.push(call);
        }
        Some(calls)
    }

    async fn publish(
        &mut self,
        publications: &[Arc<Publication>],
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let timeout = self.timeout;
        let link = match self.link(deadline).await {
            Ok(link) => link,
            Err(error) => {
                let error = PublishError::Unreachable(with_causes(&error));
                return vec![Err(error); publications.len()];
            }
        };
        // What waited long for a connection still gets its time.
        let limit = deadline.saturating_duration_since(Instant::now()).max(timeout / 2);
        let results = Window::new(publications).publish(&link.channel, limit).await;
        let doubtful = |result: &Result<_, _>| matches!(result, Err(PublishError::Unknown(_)));
        let blocked = link.connection.is_blocked();
        if results.iter().any(doubtful) {
            // What is still pending on this channel must never mix with the next window.
            self.link = None;
        }
        let results: Vec<_> = results
            .into_iter()
            .map(|result| match result {
                Err(PublishError::Unknown(_)) if blocked => Err(PublishError::Blocked),
                result => result,
            })
            .collect();
        self.count(&results);
        results
    }

    /// The open link, or a new one, retried until the deadline.
    async fn link(&mut self, deadline: Instant) -> Result<&Link, Error> {
        let usable = |link: &Link| link.connection.is_open() && link.channel.status().connected();
        if !self.link.as_ref().is_some_and(usable) {
            self.link = None;
            let mut backoff = Backoff::new();
            loop {
                match Link::open(&self.endpoints).await {
                    Ok(link) => {
                        self.metrics.add(Counter::Connections { store: Store::RabbitMq }, 1);
                        self.link = Some(link);
                        break;
                    }
                    Err(error) => {
                        let pause = backoff.next_pause();
                        if Instant::now() + pause >= deadline {
                            return Err(error);
                        }
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
        match &self.link {
            Some(link) => Ok(link),
            None => Err(Error::TimedOut { what: "open a connection", limit: self.timeout }),
        }
    }

    fn count(&self, results: &[Result<(), PublishError>]) {
        for result in results {
            let outcome = match result {
                Ok(()) => PublishOutcome::Confirmed,
                Err(PublishError::Refused) => PublishOutcome::Refused,
                Err(PublishError::Unroutable { exchange, routing_key }) => {
                    tracing::warn!(
                        exchange,
                        routing_key,
                        "a publish was returned: no queue takes it"
                    );
                    PublishOutcome::Unroutable
                }
                Err(PublishError::Blocked | PublishError::Unknown(_)) => PublishOutcome::Unknown,
                Err(PublishError::TooLong(_) | PublishError::Unreachable(_)) => continue,
            };
            self.metrics.add(Counter::Publishes { outcome }, 1);
        }
    }
}

impl Link {
    async fn open(endpoints: &Endpoints) -> Result<Self, Error> {
        let connection = endpoints.connect("publish").await?;
        let channel = connection.channel().await?;
        let confirm = channel.confirm_select(lapin::options::ConfirmSelectOptions::default());
        crate::connection::request("confirm publishes", confirm).await?;
        Ok(Self { connection, channel })
    }
}

fn gone() -> Result<(), PublishError> {
    Err(PublishError::Unknown("the publisher has ended".to_owned()))
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
