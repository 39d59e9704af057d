//! The supervised batch consumer.
//!
//! [`Consumer::run`] is the supervisor: it keeps one [`session`] alive, builds a new one when
//! the old one ends, and leaves only when it is told to drain. A session owns one connection, one
//! channel and one consumer; when any of them fails, all of it is dropped and RabbitMQ delivers
//! again what was not acknowledged. That is the only recovery there is, and it is always safe,
//! because handlers are idempotent.
//!
//! | file | what it decides |
//! |---|---|
//! | [`session`] | the loop: receive, gather, work, acknowledge, hold, drain |
//! | [`batch_builder`] | when a batch is full or has waited long enough |
//! | [`batch`] | what becomes of each message of a batch |
//! | [`settlement`] | what must be in a queue before a message may be acknowledged |
//! | [`unacked`] | which acknowledgements may be sent |
//! | [`acknowledgement`] | whether one went out |
//! | [`prefetch`] | how many deliveries may be under way |
//! | [`suspects`] | messages that came back too often |
//! | [`observer`] | what is counted and logged |

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
use session::hold::Waiting;
use session::{ConsumeMode, End, Session};
use suspects::BrokerRequeues;

/// A session that lived this long was well; the next one need not wait.
const STABLE: Duration = Duration::from_secs(10);

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
    /// Messages in a batch at most.
    pub batch_size: usize,
    /// How long a batch waits for more messages while others are being handled. When none is, it
    /// does not wait.
    pub linger: Duration,
    /// Batches that are handled at the same time.
    pub batches_in_flight: usize,
    /// Bytes of bodies that may be under way in this process.
    pub max_inflight_bytes: usize,
    /// The largest body that is expected, in bytes; the prefetch starts from it.
    pub largest_body: usize,
    /// How long a batch is held for a store that is away, before its messages go back to the queue.
    /// Well below RabbitMQ's `consumer_timeout` of 30 min.
    pub hold_limit: Duration,
    /// How long nothing may come while messages are ready and there is room for them.
    pub stall_limit: Duration,
    /// The delays between attempts, the first one first. After the last one a message that fails
    /// again is a dead letter.
    pub retries: Vec<RetryQueue>,
    /// How often the suspects are looked at.
    pub suspect_interval: Duration,
}

/// What a consumer is doing; readiness follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerState {
    /// It has no consumer on the queue, and tries to get one.
    Connecting,
    /// It is registered with the queue and takes what comes.
    Consuming,
    /// It keeps what it has and waits for a store.
    Holding(Dependency),
    /// It takes nothing new and finishes what it has.
    Draining,
    /// It has drained.
    Stopped,
}

/// What happens to messages that no further attempt can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailurePolicy {
    /// They become dead letters of this queue; suspects are quarantined.
    DeadLetter(WorkQueue),
    /// They are tried again, for ever, at the longest delay: there is no place beyond.
    RetryForever,
}

/// What the sessions of a consumer have in common.
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

    /// The dead letters of a work queue. Refusals and failures are tried again for ever: nothing
    /// comes after the dead letters.
    #[must_use]
    pub const fn dead_letters(queue: WorkQueue) -> Self {
        Self { queue: queue.dlq(), failure_policy: FailurePolicy::RetryForever }
    }

    /// The name of the queue.
    #[must_use]
    pub const fn queue(&self) -> &'static str {
        self.queue
    }

    /// The queue of its suspects, if it has any.
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

impl<H: Handler> Consumer<H> {
    /// A consumer that has not started. Copies go out through `publisher`, so that a blocked
    /// publishing connection never delays an acknowledgement.
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
        // None at all would be a consumer that never does anything.
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

    /// What the consumer is doing, from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConsumerState> {
        self.shared.state.subscribe()
    }

    /// Consumes until `shutdown`, then takes nothing new, finishes and acknowledges what was
    /// delivered, and returns. A deadline for that is the caller's: dropping the future gives back
    /// to the queue whatever is not finished.
    pub async fn run(self, shutdown: CancellationToken) {
        let shared = &self.shared;
        let mut backoff = Backoff::new();
        let mut mode = ConsumeMode::Batches;
        while !shutdown.is_cancelled() {
            shared.state.send_replace(ConsumerState::Connecting);
            let began = Instant::now();
            let (end, waiting) = match Session::open(shared.clone(), mode).await {
                Ok(session) => session.run(&shutdown).await,
                Err(error) => (End::Failed(error), None),
            };
            shared.observer.session_ended(&end);
            if began.elapsed() > STABLE {
                backoff = Backoff::new();
            }
            match end {
                End::Drained => break,
                End::HeldTooLong(_) => {}
                End::IsolatedMessagePassed => mode = ConsumeMode::Batches,
                // Nothing is away: each try costs the unreadable message alone, until RabbitMQ
                // dead-letters it, and whatever is behind it waits.
                End::Failed(error) if error.is_unreadable() => {
                    mode = ConsumeMode::Isolating;
                    backoff = Backoff::new();
                    pause(backoff.next_pause(), &shutdown).await;
                }
                _ => pause(backoff.next_pause(), &shutdown).await,
            }
            if let Some(waiting) = waiting {
                shared.state.send_replace(ConsumerState::Holding(waiting.dependency));
                shutdown.run_until_cancelled(self.dependency_is_back(waiting)).await;
            }
        }
        shared.state.send_replace(ConsumerState::Stopped);
    }

    /// Waits until a store that stayed away is back.
    ///
    /// RabbitMQ is when it takes what it did not take: its messages are back in their queue and
    /// will be settled once more, as after a crash between a confirm and an acknowledgement.
    async fn dependency_is_back(&self, waiting: Waiting<H::Item>) {
        let Waiting { dependency, mut batch } = waiting;
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
    /// Whether a store that was away may be back. Of RabbitMQ only another attempt can tell: what it
    /// did not take is the best probe there is.
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
