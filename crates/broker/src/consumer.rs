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
//! | [`settlement`] | which copy must be confirmed before a message may be acknowledged |
//! | [`unacked`] | which acknowledgements may be sent |
//! | [`acknowledgement`] | whether an acknowledgement was sent |
//! | [`prefetch`] | how many deliveries may be unacknowledged |
//! | [`suspects`] | messages that were redelivered too often |
//! | [`observer`] | metrics and log lines |

mod acknowledgement;
mod batch;
mod batch_builder;
mod observer;
mod prefetch;
mod session;
mod settlement;
mod suspects;
mod unacked;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use domain::clock::Clock;
use domain::failure::{Dependency, Unavailable};
use domain::repeated::RepeatedFailure;
use futures_util::FutureExt;
use metrics::Metrics;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::connection::Endpoints;
use crate::topology::{RetryQueue, WorkQueue};
use crate::{Handler, Publisher};
use observer::Observer;
use session::hold::Outage;
use session::{ConsumeMode, End, Ended, Session};
use suspects::BrokerRequeues;

/// The bodies of all batches that are being handled may take 1/16 of `max_inflight_bytes`. While a batch
/// is handled, a body is in memory several times: as received, decoded, and encoded for each store.
const BATCH_BYTES_DIVISOR: usize = 16;

/// After a session that lasted this long, the pauses before reconnecting start again from the shortest.
const STABLE_SESSION: Duration = Duration::from_secs(10);

/// Consumes one queue for ever, in batches.
pub struct Consumer<H: Handler> {
    shared: Arc<Shared<H>>,
}

/// A queue to consume, and what happens to messages that cannot be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    queue: &'static str,
    failure_policy: FailurePolicy,
}

/// How a consumer paces itself.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The most messages in a batch.
    pub batch_size: usize,
    /// How long a batch waits for more messages while other batches are being handled. While none
    /// is being handled, it does not wait.
    pub linger: Duration,
    /// The most batches that are handled at the same time.
    pub batches_in_flight: usize,
    /// The most bytes of unacknowledged bodies in this process.
    pub max_inflight_bytes: usize,
    /// The largest expected body, in bytes. The first prefetch is `max_inflight_bytes` divided by it.
    pub largest_body: usize,
    /// How long a batch is held while a dependency is unavailable. After that its messages are
    /// requeued. Must be well below RabbitMQ's `consumer_timeout` of 30 min.
    pub hold_limit: Duration,
    /// How long there may be no delivery although messages are ready and the prefetch is not full.
    /// After that the consumer reconnects.
    pub stall_limit: Duration,
    /// The delays before the second and later attempts, in order. A message that fails after the last
    /// of them becomes a dead letter.
    pub retries: Vec<RetryQueue>,
    /// How often the suspect queue is checked.
    pub suspect_interval: Duration,
}

/// What a consumer is doing. The readiness probe of a worker reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerState {
    /// It connects and registers with the queue.
    Connecting,
    /// It is registered with the queue and handles deliveries.
    Consuming,
    /// This dependency is unavailable: no new batch is started until it is available again.
    Holding(Dependency),
    /// It is cancelled for a shutdown and finishes what was delivered.
    Draining,
    /// The shutdown is finished.
    Stopped,
}

/// What happens to messages that are refused or that fail their last attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailurePolicy {
    /// They become dead letters of this queue; suspects are quarantined.
    DeadLetter(WorkQueue),
    /// They are retried for ever, at the longest delay. This is the policy of dead-letter queues.
    RetryForever,
}

/// What all sessions of a consumer share.
struct Shared<H> {
    source: Source,
    handler: H,
    endpoints: Endpoints,
    publisher: Publisher,
    settings: Settings,
    clock: Clock,
    observer: Observer,
    state: watch::Sender<ConsumerState>,
    broker_requeues: BrokerRequeues,
}

impl Source {
    /// A work queue.
    #[must_use]
    pub const fn work(queue: WorkQueue) -> Self {
        Self { queue: queue.name(), failure_policy: FailurePolicy::DeadLetter(queue) }
    }

    /// The dead-letter queue of a work queue. Refused and failed messages are retried for ever,
    /// because a dead letter has no further queue.
    #[must_use]
    pub const fn dead_letters(queue: WorkQueue) -> Self {
        Self { queue: queue.dlq(), failure_policy: FailurePolicy::RetryForever }
    }

    /// The name of the queue.
    #[must_use]
    pub const fn queue(&self) -> &'static str {
        self.queue
    }

    /// The queue of its suspects; `None` for a dead-letter queue.
    const fn suspect(&self) -> Option<&'static str> {
        match self.failure_policy {
            FailurePolicy::DeadLetter(queue) => Some(queue.suspect()),
            FailurePolicy::RetryForever => None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_size: 500,
            linger: Duration::from_millis(5),
            batches_in_flight: 4,
            max_inflight_bytes: 64 << 20,
            largest_body: 1 << 20,
            hold_limit: Duration::from_mins(5),
            stall_limit: Duration::from_secs(20),
            retries: RetryQueue::ALL.to_vec(),
            suspect_interval: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// The most bytes of bodies in a batch, unless one body alone is larger.
    fn batch_bytes(&self) -> usize {
        self.max_inflight_bytes / BATCH_BYTES_DIVISOR / self.batches_in_flight
    }
}

impl<H: Handler> Consumer<H> {
    /// A consumer that has not started. Copies are published through `publisher`, which has its own
    /// connection: when RabbitMQ blocks publishers, acknowledgements are still sent.
    #[must_use]
    pub fn new(
        source: Source,
        handler: H,
        endpoints: Endpoints,
        publisher: Publisher,
        mut settings: Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        // With 0 the consumer would never handle a message.
        settings.batch_size = settings.batch_size.max(1);
        settings.batches_in_flight = settings.batches_in_flight.max(1);
        metrics.start_queue(source.queue);
        let observer = Observer::new(source.queue, metrics);
        let (state, _) = watch::channel(ConsumerState::Connecting);
        let broker_requeues = BrokerRequeues::default();
        let shared = Shared {
            source,
            handler,
            endpoints,
            publisher,
            settings,
            clock,
            observer,
            state,
            broker_requeues,
        };
        Self { shared: Arc::new(shared) }
    }

    /// A receiver of the current state and of every later one.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConsumerState> {
        self.shared.state.subscribe()
    }

    /// Consumes until `shutdown`. Then it cancels the AMQP consumer, finishes and acknowledges what was
    /// delivered, and returns. The caller sets a deadline: when the future is dropped, RabbitMQ
    /// requeues what is not acknowledged.
    pub async fn run(self, shutdown: CancellationToken) {
        let shared = &self.shared;
        let mut backoff = Backoff::new();
        let mut mode = ConsumeMode::Batches;
        let mut down_since = None;
        let mut connecting = RepeatedFailure::default();
        while !shutdown.is_cancelled() {
            shared.state.send_replace(ConsumerState::Connecting);
            let began = Instant::now();
            let (end, outage) = match Session::open(shared.clone(), mode, down_since).await {
                Ok(session) => {
                    down_since = None;
                    connecting = RepeatedFailure::default();
                    let Ended { end, requeued, outage } = session.run(&shutdown).await;
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
                End::HoldLimitReached(_) => {}
                End::IsolatedMessagePassed => mode = ConsumeMode::Batches,
                // In isolating mode each failed session adds one redelivery to the unreadable message
                // alone. RabbitMQ dead-letters it at its delivery limit.
                End::Failed(error) if error.is_unreadable() => {
                    mode = ConsumeMode::Isolating;
                    backoff = Backoff::new();
                    pause(backoff.next_pause(), &shutdown).await;
                }
                _ => pause(backoff.next_pause(), &shutdown).await,
            }
            if let Some(outage) = outage {
                shared.state.send_replace(ConsumerState::Holding(outage.dependency));
                shutdown.run_until_cancelled(self.wait_until_available(outage)).await;
            }
        }
        shared.state.send_replace(ConsumerState::Stopped);
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
            batch = match batch.filter(|_| dependency == Dependency::RabbitMq) {
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

impl<H: Handler> Shared<H> {
    /// Checks whether a dependency is available again. For RabbitMQ this always succeeds: the next
    /// attempt to publish the unconfirmed copies is the check.
    async fn probe(&self, dependency: Dependency) -> Result<(), Unavailable> {
        match dependency {
            Dependency::RabbitMq => Ok(()),
            Dependency::PostgreSql | Dependency::Redis => {
                let probe = AssertUnwindSafe(async { self.handler.probe().await });
                probe.catch_unwind().await.unwrap_or_else(|_| {
                    Err(Unavailable {
                        dependency,
                        source: self.observer.panicked("probing").into(),
                    })
                })
            }
        }
    }
}

async fn pause(duration: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        () = shutdown.cancelled() => {}
    }
}
