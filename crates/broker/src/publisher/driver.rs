//! The task of a publisher: one connection, one window at a time.
//!
//! After a window without all its confirms the connection is closed. So a late confirm or return is never
//! matched to a publish of the next window.

use std::time::{Duration, Instant};

use domain::causes::with_causes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::options::ConfirmSelectOptions;
use metrics::{Counter, Metrics, PublishOutcome, Timing};
use tokio::sync::{mpsc, oneshot};

use super::error::PublishError;
use super::window::{Outgoing, Settled, Window, WindowSize};
use crate::backoff::Backoff;
use crate::connection::{Endpoints, Error, Link, request};
use crate::panics::catch_panic;

#[derive(Debug)]
pub(super) struct Call {
    pub(super) messages: Vec<Outgoing>,
    pub(super) called: Instant,
    pub(super) results: oneshot::Sender<Vec<Result<(), PublishError>>>,
}

pub(super) struct Driver {
    endpoints: Endpoints,
    metrics: Metrics,
    timeout: Duration,
    calls: mpsc::Receiver<Call>,
    link: Option<Link>,
    /// A link that is being opened. It is kept when the call times out before it is open, and the next
    /// call continues with it. Otherwise unresponsive addresses at the start of the list would use up the
    /// time of every call.
    opening: Option<BoxFuture<'static, Result<Link, Error>>>,
}

impl Driver {
    pub(super) fn new(
        endpoints: Endpoints,
        metrics: Metrics,
        timeout: Duration,
        calls: mpsc::Receiver<Call>,
    ) -> Self {
        Self { endpoints, metrics, timeout, calls, link: None, opening: None }
    }

    pub(super) async fn run(mut self) {
        while let Some(calls) = self.next_calls().await {
            // A panic must not end publishing for the whole process. Its callers get an error.
            if catch_panic("publishing", self.serve(calls)).await.is_none() {
                (self.link, self.opening) = (None, None);
            }
        }
        if let Some(link) = self.link {
            link.connection.close().await;
        }
    }

    async fn serve(&mut self, calls: Vec<Call>) {
        let messages: Vec<_> =
            calls.iter().flat_map(|call| call.messages.iter().cloned()).collect();
        // The calls are in order, so the first one has waited longest.
        let deadline = calls[0].called + self.timeout;
        let results = self.publish(&messages, deadline).await;
        self.count(&results);
        let mut results = results.into_iter();
        for call in calls {
            let own = results.by_ref().take(call.messages.len()).collect();
            self.metrics.observe(Timing::Publish, call.called.elapsed());
            // Fails when the caller stopped waiting. Its messages are published nevertheless.
            drop(call.results.send(own));
        }
    }

    /// The calls of the next window: all that are queued, until the window is full.
    async fn next_calls(&mut self) -> Option<Vec<Call>> {
        let mut calls = vec![self.calls.recv().await?];
        let mut size = WindowSize::default();
        calls[0].messages.iter().for_each(|message| size.add(&message.publication));
        while !size.is_full() {
            let Ok(call) = self.calls.try_recv() else { break };
            call.messages.iter().for_each(|message| size.add(&message.publication));
            calls.push(call);
        }
        Some(calls)
    }

    async fn publish(
        &mut self,
        messages: &[Outgoing],
        deadline: Instant,
    ) -> Vec<Result<(), PublishError>> {
        let link = match self.take_link(deadline).await {
            Ok(link) => link,
            Err(error) => {
                let error = PublishError::Unreachable(with_causes(&error));
                return vec![Err(error); messages.len()];
            }
        };
        // A call that waited long for the connection still gets half of the timeout for the confirms.
        let remaining = deadline.saturating_duration_since(Instant::now());
        let limit = remaining.max(self.timeout / 2);
        let Settled { mut results, complete } =
            Window::new(messages).publish(&link.channel, limit).await;
        // A channel that published to a queue without a leader refuses publishes also after the queue has
        // a leader again (RabbitMQ 3.10). The next window gets a new channel.
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

    /// The link of the last window, or a new one. Retries until the deadline.
    async fn take_link(&mut self, deadline: Instant) -> Result<Link, Error> {
        if let Some(link) = self.link.take().filter(Link::is_usable) {
            return Ok(link);
        }
        let mut backoff = Backoff::new();
        loop {
            let endpoints = &self.endpoints;
            let opening = self.opening.get_or_insert_with(|| open(endpoints.clone()).boxed());
            let Ok(opened) = tokio::time::timeout_at(deadline.into(), opening).await else {
                return Err(Error::TimedOut {
                    what: "open a connection for publishing",
                    limit: self.timeout,
                });
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
            let blocked = results.iter().filter(|it| **it == Err(PublishError::Blocked)).count();
            tracing::warn!(
                blocked,
                "RabbitMQ blocks publishers (a memory or disk alarm); {blocked} messages not confirmed"
            );
        }
        for result in results {
            let outcome = match result {
                Ok(()) => PublishOutcome::Confirmed,
                Err(PublishError::Refused) => PublishOutcome::Refused,
                Err(PublishError::Unroutable { exchange, routing_key }) => {
                    tracing::warn!(
                        exchange,
                        routing_key,
                        "message returned as unroutable: no queue is bound for its routing key"
                    );
                    PublishOutcome::Unroutable
                }
                Err(PublishError::Blocked) => PublishOutcome::Blocked,
                Err(PublishError::Unknown(_)) => PublishOutcome::Unknown,
                Err(
                    PublishError::TooLong(_) | PublishError::TooLate | PublishError::Unreachable(_),
                ) => {
                    continue;
                }
            };
            self.metrics.add(Counter::Publishes { outcome }, 1);
        }
    }
}

/// Opens a channel in confirm mode.
async fn open(endpoints: Endpoints) -> Result<Link, Error> {
    let link = Link::on(endpoints.connect("publish").await?).await?;
    let confirm = link.channel.confirm_select(ConfirmSelectOptions::default());
    request("enable publisher confirms", confirm).await?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Publication;

    /// The latest instant. Adding a timeout to it overflows, so the driver panics.
    fn latest_instant() -> Instant {
        let mut end = Instant::now();
        for power in (0..63).rev() {
            end = end.checked_add(Duration::from_secs(1 << power)).unwrap_or(end);
        }
        end
    }

    #[tokio::test]
    async fn after_a_panic_the_next_call_is_served() {
        // Nothing listens on port 9 (discard).
        let endpoints = Endpoints::parse("amqp://127.0.0.1:9", "test").unwrap();
        let (calls, queued) = mpsc::channel(1);
        let driver = Driver::new(endpoints, Metrics::new(), Duration::from_secs(1), queued);
        let task = tokio::spawn(driver.run());
        let mut outcomes = Vec::new();
        for called in [latest_instant(), Instant::now()] {
            let publication = Arc::new(Publication::to_queue("queue", Vec::new()));
            let messages = vec![Outgoing { publication, not_after: None }];
            let (results, received) = oneshot::channel();
            calls.send(Call { messages, called, results }).await.unwrap();
            outcomes.push(received.await);
        }
        assert!(outcomes[0].is_err(), "{outcomes:?}");
        let second = outcomes[1].as_deref();
        assert!(matches!(second, Ok([Err(PublishError::Unreachable(_))])), "{outcomes:?}");
        drop(calls);
        task.await.unwrap();
    }
}
