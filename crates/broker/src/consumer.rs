//! The supervised batch consumer.
//!
//! [`Consumer::run`] is the supervisor: it runs one [`session`] at a time, opens a new one when the
//! old one ends, and returns after a shutdown. A session owns one connection, one channel and one
//! AMQP consumer. When one of them fails, all of them are dropped, and RabbitMQ redelivers what was
//! not acknowledged. This is the only recovery. It is always safe, because handlers are idempotent.
//!
//! | file | what it decides |
//! |---|---|
//! | [`session`] | the loop: receive, build batches, handle, acknowledge, hold, drain |
//! | [`batch_builder`] | when a batch is ready: full, or the oldest message has lingered |
//! | [`batch`] | the outcome of each message of a batch |
//! | [`settlement`] | which copies must be confirmed before a message may be acknowledged, and its reply |
//! | [`unacked`] | which acknowledgements may be sent |
//! | [`receipt_times`] | when a delivery was received |
//! | [`bytes_in_calls`] | when a batch may be handled, although calls of earlier sessions go on |
//! | [`acknowledgement`] | whether an acknowledgement was sent |
//! | [`prefetch`] | how many deliveries may be unacknowledged |
//! | [`suspects`] | messages that were redelivered too often; [`broker_requeues`] those that RabbitMQ requeued |
//! | [`end`] | why a session ended |
//! | [`settings`], [`shared`] | what all sessions of a consumer have |
//! | [`observer`] | metrics and log lines |

mod acknowledgement;
mod batch;
mod batch_builder;
mod broker_requeues;
mod bytes_in_calls;
mod end;
mod observer;
mod outcome_counts;
mod prefetch;
mod receipt_times;
mod session;
mod settings;
mod settlement;
mod shared;
mod suspects;
mod unacked;

use std::sync::Arc;
use std::time::Duration;

use domain::clock::Clock;
use domain::failure_policy::SLOW_LIMITS;
use domain::repeated::RepeatedFailure;
use metrics::Metrics;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::{Backoff, pause};
use crate::connection::Endpoints;
use crate::inspect::Inspector;
use crate::reply::Replier;
use crate::source::Source;
use crate::{Handler, Publisher};
use broker_requeues::BrokerRequeues;
use bytes_in_calls::BytesInCalls;
use end::End;
use observer::Observer;
use receipt_times::ReceiptTimes;
use session::{Ended, Outage, Session};
use shared::Shared;

pub use settings::{ConsumerState, Settings};

/// After a session that lasted this long, the pauses before reconnecting start again from the shortest.
const STABLE_SESSION: Duration = Duration::from_secs(10);

/// Consumes one queue for ever, in batches.
pub struct Consumer<H: Handler> {
    shared: Arc<Shared<H>>,
    /// Of a slow queue: what tells whether it has messages. Its consumer is connected only then, because a connection
    /// takes 8 MiB of memory.
    inspector: Option<Inspector>,
}

impl<H: Handler> Consumer<H> {
    /// A consumer that has not started, of the queue that the handler names. Call it within a tokio runtime. Copies are
    /// published through `publisher`, which has its own connection: when RabbitMQ blocks publishers, acknowledgements
    /// are still sent.
    #[must_use]
    pub fn new(
        handler: H,
        endpoints: Endpoints,
        publisher: Publisher,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let source = handler.source();
        Self::of(source, handler, Vec::new(), endpoints, publisher, settings, clock, metrics)
    }

    /// A consumer of the slow queue of that queue, which handles one message at a time. It connects when `inspector` sees
    /// a message there, and disconnects when the queue has been empty for some time. `None` if the queue has no slow
    /// queue, or the handler needs none.
    #[must_use]
    pub fn of_slow_queue(
        handler: &H,
        inspector: Inspector,
        endpoints: Endpoints,
        publisher: Publisher,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> Option<Self> {
        let source = handler.source().slow()?;
        let mut handlers =
            SLOW_LIMITS.into_iter().map_while(|limit| handler.with_time_limit(limit));
        let (first, longer) = (handlers.next()?, handlers.collect());
        let settings = Settings { batch_size: 1, batches_in_flight: 1, ..settings };
        let consumer =
            Self::of(source, first, longer, endpoints, publisher, settings, clock, metrics);
        Some(Self { inspector: Some(inspector), ..consumer })
    }

    #[expect(clippy::too_many_arguments, reason = "what the two constructors above pass on")]
    fn of(
        source: Source,
        handler: H,
        longer: Vec<H>,
        endpoints: Endpoints,
        publisher: Publisher,
        mut settings: Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        // With 0 the consumer would never handle a message.
        settings.batch_size = settings.batch_size.max(1);
        settings.batches_in_flight = settings.batches_in_flight.max(1);
        metrics.start_queue(source.queue());
        let replier = Replier::new(endpoints.clone(), metrics.clone());
        let observer = Observer::new(source.queue(), metrics);
        let (state, _) = watch::channel(ConsumerState::Connecting);
        let broker_requeues = BrokerRequeues::default();
        let bytes_in_calls = BytesInCalls::up_to(settings.bytes_in_calls());
        let shared = Shared {
            source,
            handler,
            longer,
            endpoints,
            publisher,
            replier,
            settings,
            clock,
            observer,
            state,
            broker_requeues,
            receipt_times: ReceiptTimes::default(),
            calls: TaskTracker::new(),
            bytes_in_calls,
        };
        Self { shared: Arc::new(shared), inspector: None }
    }

    /// A receiver of the current state and of every later one.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConsumerState> {
        self.shared.state.subscribe()
    }

    /// Consumes until `shutdown`. Then it cancels the AMQP consumer, finishes and acknowledges what was
    /// delivered, waits until no call of the handler is under way, and returns. The caller sets a deadline: when the
    /// future is dropped, RabbitMQ requeues what is not acknowledged. Of a slow queue it returns at once: it publishes
    /// the message that is being handled again; a dead letter is requeued by RabbitMQ.
    pub async fn run(self, shutdown: CancellationToken) {
        let shared = &self.shared;
        let mut backoff = Backoff::new();
        let mut down_since = None;
        let mut connecting = RepeatedFailure::default();
        loop {
            self.wait_for_messages(&shutdown).await;
            if shutdown.is_cancelled() {
                break;
            }
            shared.state.send_replace(ConsumerState::Connecting);
            let began = Instant::now();
            let (end, outage) =
                match Session::open(shared.clone(), down_since, shutdown.clone()).await {
                    Ok(session) => {
                        down_since = None;
                        connecting = RepeatedFailure::default();
                        let Ended { end, requeued, outage } = session.run().await;
                        shared.observer.session_ended(&end, requeued, &shared.settings);
                        (end, outage)
                    }
                    Err(error) => {
                        let log = connecting.failed(Instant::now().into_std());
                        shared.observer.not_registered(&error, log);
                        (End::Failed(error), None)
                    }
                };
            down_since.get_or_insert_with(Instant::now);
            if began.elapsed() > STABLE_SESSION {
                backoff = Backoff::new();
            }
            match end {
                End::Drained => break,
                End::QueueEmpty => down_since = None,
                End::HoldLimitReached(_) => {}
                _ => pause(backoff.next_pause(), &shutdown).await,
            }
            if let Some(outage) = outage {
                shared.state.send_replace(ConsumerState::Holding(outage.dependency));
                shutdown.run_until_cancelled(self.wait_until_available(outage)).await;
            }
        }
        shared.state.send_replace(ConsumerState::Draining);
        if !shared.source.is_slow() {
            // Calls of a session that ended before may still be under way.
            shared.calls.close();
            shared.calls.wait().await;
        }
        shared.replier.flush().await;
        shared.state.send_replace(ConsumerState::Stopped);
    }

    /// Waits until a slow queue has messages, or until the shutdown.
    async fn wait_for_messages(&self, shutdown: &CancellationToken) {
        let (Some(inspector), shared) = (&self.inspector, &self.shared) else { return };
        let mut failing = RepeatedFailure::default();
        let mut backoff = Backoff::new();
        loop {
            let depth = inspector.depth(shared.source.queue());
            let Some(depth) = shutdown.run_until_cancelled(depth).await else { return };
            let until_next = match depth {
                Ok(depth) if depth.ready > 0 => return,
                Ok(_) => {
                    (failing, backoff) = (RepeatedFailure::default(), Backoff::new());
                    shared.state.send_replace(ConsumerState::QueueEmpty);
                    shared.settings.depth_interval
                }
                Err(error) => {
                    let log = failing.failed(Instant::now().into_std());
                    shared.observer.not_registered(&error, log);
                    shared.state.send_replace(ConsumerState::Connecting);
                    // Until it is read again, the process is not ready.
                    backoff.next_pause()
                }
            };
            pause(until_next, shutdown).await;
        }
    }

    /// Waits until an unavailable dependency is available again.
    ///
    /// RabbitMQ is available when it confirms the copies that it did not confirm before. The originals
    /// were requeued and will be handled again, as after a crash between a confirm and an
    /// acknowledgement.
    async fn wait_until_available(&self, outage: Outage<H::Item>) {
        let Outage { dependency, mut batch } = outage;
        let mut backoff = Backoff::new();
        loop {
            tokio::time::sleep(backoff.next_pause()).await;
            batch = match batch {
                Some(batch) => match batch.work(&self.shared).await {
                    Ok(_) => return,
                    Err((batch, _)) => Some(batch),
                },
                None if self.shared.probe(dependency).await.is_ok() => return,
                None => None,
            };
        }
    }
}
