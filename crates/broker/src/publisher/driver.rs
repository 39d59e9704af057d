//! The task behind a publisher: one connection, one window at a time.
//!
//! A link is used only while nothing is in doubt on it: a window that did not come to its end takes
//! the link with it, so that a late confirm or return can never be taken for the next window's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::causes::with_causes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::options::ConfirmSelectOptions;
use metrics::{Counter, Metrics, PublishOutcome, Timing};
use tokio::sync::{mpsc, oneshot};

use super::PublishError;
use super::window::{Room, Settled, Window};
use crate::Publication;
use crate::backoff::Backoff;
use crate::connection::{Connection, Endpoints, Error, request};
use crate::panics::catch_panic;

/// What a caller wants published, and where it waits.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) publications: Vec<Arc<Publication>>,
    pub(super) called: Instant,
    pub(super) answer: oneshot::Sender<Vec<Result<(), PublishError>>>,
}

/// The task.
pub(super) struct Driver {
    endpoints: Endpoints,
    metrics: Metrics,
    timeout: Duration,
    waiting: mpsc::Receiver<Call>,
    link: Option<Link>,
    /// A link that is being opened. It may take longer than the call that asked for it has time, and
    /// then it goes on for the next one: otherwise addresses that do not answer would keep every
    /// call from reaching those that do.
    opening: Option<BoxFuture<'static, Result<Link, Error>>>,
}

/// A connection and its one channel, in confirm mode.
struct Link {
    connection: Connection,
    channel: lapin::Channel,
}

impl Driver {
    pub(super) fn new(
        endpoints: Endpoints,
        metrics: Metrics,
        timeout: Duration,
        waiting: mpsc::Receiver<Call>,
    ) -> Self {
        Self { endpoints, metrics, timeout, waiting, link: None, opening: None }
    }

    /// Publishes until nobody can call any more.
    pub(super) async fn run(mut self) {
        while let Some(calls) = self.next_calls().await {
            // A bug must not end publishing for the life of the process. Its callers get no answer.
            if catch_panic("publishing", self.serve(calls)).await.is_none() {
                (self.link, self.opening) = (None, None);
            }
        }
        if let Some(link) = self.link {
            link.connection.close().await;
        }
    }

    /// Publishes one window and answers its calls.
    async fn serve(&mut self, calls: Vec<Call>) {
        let publications: Vec<_> =
            calls.iter().flat_map(|call| call.publications.iter().cloned()).collect();
        // The calls of a window came in order: the first one has waited longest.
        let deadline = calls[0].called + self.timeout;
        let results = self.publish(&publications, deadline).await;
        self.count(&results);
        let mut results = results.into_iter();
        for call in calls {
            let own = results.by_ref().take(call.publications.len()).collect();
            self.metrics.observe(Timing::Publish, call.called.elapsed());
            // A caller that no longer waits has given up on the answer, not on the message.
            drop(call.answer.send(own));
        }
    }

    /// The calls of the next window: all that wait, as far as there is room.
    async fn next_calls(&mut self) -> Option<Vec<Call>> {
        let mut calls = vec![self.waiting.recv().await?];
        let mut room = Room::default();
        calls[0].publications.iter().for_each(|publication| room.take(publication));
        while !room.is_full() {
            let Ok(call) = self.waiting.try_recv() else { break };
            call.publications.iter().for_each(|publication| room.take(publication));
            calls.push(call);
        }
        Some(calls)
    }

    async fn publish(
        &mut self,
        publications: &[Arc<Publication>],
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let link = match self.take_link(deadline).await {
            Ok(link) => link,
            Err(error) => {
                let error = PublishError::Unreachable(with_causes(&error));
                return vec![Err(error); publications.len()];
            }
        };
        // Who waited long for a connection still gets some time for the confirms.
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = left.max(self.timeout / 2);
        let Settled { mut results, complete } =
            Window::new(publications).publish(&link.channel, limit).await;
        // A channel that asked a queue without a leader goes on refusing for it when there is one
        // (RabbitMQ 3.10): the next window gets a new one.
        let refused = results.contains(&Err(PublishError::Refused));
        if complete && !refused {
            self.link = Some(link);
        } else if link.connection.is_blocked() {
            for result in &mut results {
                if matches!(result, Err(PublishError::Unknown(_))) {
                    *result = Err(PublishError::Blocked);
                }
            }
        }
        results
    }

    /// The link of the last window, or a new one, tried for until the deadline.
    async fn take_link(&mut self, deadline: Instant) -> Result<Link, Error> {
        if let Some(link) = self.link.take().filter(Link::is_usable) {
            return Ok(link);
        }
        let mut backoff = Backoff::new();
        loop {
            let endpoints = &self.endpoints;
            let opening = self.opening.get_or_insert_with(|| Link::open(endpoints.clone()).boxed());
            let Ok(opened) = tokio::time::timeout_at(deadline.into(), opening).await else {
                return Err(Error::TimedOut { what: "let us in", limit: self.timeout });
            };
            self.opening = None;
            match opened {
                Ok(link) if !link.is_usable() => {}
                Ok(link) => {
                    self.metrics.add(Counter::BrokerConnections, 1);
                    return Ok(link);
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

    fn count(&self, results: &[Result<(), PublishError>]) {
        if results.contains(&Err(PublishError::Blocked)) {
            tracing::warn!("RabbitMQ blocks publishers: it has a memory or a disk alarm");
        }
        for result in results {
            let outcome = match result {
                Ok(()) => PublishOutcome::Confirmed,
                Err(PublishError::Refused) => PublishOutcome::Refused,
                Err(PublishError::Unroutable { exchange, routing_key }) => {
                    tracing::warn!(exchange, routing_key, "a publish came back: no queue takes it");
                    PublishOutcome::Unroutable
                }
                Err(PublishError::Blocked) => PublishOutcome::Blocked,
                Err(PublishError::Unknown(_)) => PublishOutcome::Unknown,
                Err(PublishError::TooLong(_) | PublishError::Unreachable(_)) => continue,
            };
            self.metrics.add(Counter::Publishes { outcome }, 1);
        }
    }
}

impl Link {
    async fn open(endpoints: Endpoints) -> Result<Self, Error> {
        let connection = endpoints.connect("publish").await?;
        let channel = connection.channel().await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions::default());
        request("confirm publishes", confirm).await?;
        Ok(Self { connection, channel })
    }

    fn is_usable(&self) -> bool {
        self.connection.is_open() && self.channel.status().connected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So late that any time-out after it is more than a clock can tell: the driver panics.
    fn end_of_time() -> Instant {
        let mut end = Instant::now();
        for power in (0..63).rev() {
            end = end.checked_add(Duration::from_secs(1 << power)).unwrap_or(end);
        }
        end
    }

    #[tokio::test]
    async fn a_panic_costs_its_callers_their_answer_and_the_next_ones_nothing() {
        // Port 9 (discard) is not served here.
        let endpoints = Endpoints::parse("amqp://127.0.0.1:9", "test").unwrap();
        let (calls, waiting) = mpsc::channel(1);
        let driver = Driver::new(endpoints, Metrics::new(), Duration::from_secs(1), waiting);
        let task = tokio::spawn(driver.run());
        let mut answers = Vec::new();
        for called in [end_of_time(), Instant::now()] {
            let publications = vec![Arc::new(Publication::to_queue("queue", Vec::new()))];
            let (answer, answered) = oneshot::channel();
            calls.send(Call { publications, called, answer }).await.unwrap();
            answers.push(answered.await);
        }
        assert!(answers[0].is_err(), "{answers:?}");
        let told = answers[1].as_deref();
        assert!(matches!(told, Ok([Err(PublishError::Unreachable(_))])), "{answers:?}");
        drop(calls);
        task.await.unwrap();
    }
}
