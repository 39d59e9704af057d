//! The settings of a consumer, and its state.

use std::time::Duration;

use domain::failure::Dependency;
use domain::failure_policy::{HOLD_LIMIT, STALL_LIMIT};

use crate::topology::RetryQueue;

/// The bodies of all batches that are being handled may take 1/16 of `max_inflight_bytes`. While a batch
/// is handled, a body is in memory several times: as received, decoded, and encoded for each store.
const BATCH_BYTES_DIVISOR: usize = 16;

/// More than RabbitMQ delivers as properties and headers of a message, in bytes: a frame of 128 KiB, and its own
/// headers.
const LARGEST_PROPERTIES: u64 = 256 << 10;

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
    /// The largest body that a handler accepts, in bytes. The first prefetch is `max_inflight_bytes` divided by it.
    /// Bodies of a work queue that are larger by more than 256 KiB are not received: RabbitMQ dead-letters their
    /// messages.
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
    /// How often the depth of the suspect queue is read, and that of a slow queue that is not consumed.
    pub depth_interval: Duration,
}

/// What a consumer is doing. The readiness probe of a worker reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerState {
    /// It connects and registers with the queue.
    Connecting,
    /// It is registered with the queue and handles deliveries.
    Consuming,
    /// Its slow queue has no messages. It registers with the queue once there are some.
    QueueEmpty,
    /// This dependency is unavailable: no new batch is started until it is available again.
    Holding(Dependency),
    /// It is cancelled for a shutdown and finishes what was delivered.
    Draining,
    /// The shutdown is finished.
    Stopped,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_size: 500,
            linger: Duration::from_millis(5),
            batches_in_flight: 4,
            max_inflight_bytes: 64 << 20,
            largest_body: 1 << 20,
            hold_limit: HOLD_LIMIT,
            stall_limit: STALL_LIMIT,
            retries: RetryQueue::ALL.to_vec(),
            depth_interval: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// The largest body of a work queue that is received, in bytes. Bodies that are a little larger than accepted are
    /// received and refused, because what the client library could not read precedes the body of a copy.
    pub(super) fn max_received_body(&self) -> u64 {
        self.largest_body as u64 + LARGEST_PROPERTIES
    }

    /// The most bytes of bodies in a batch, unless one body alone is larger.
    pub(super) fn batch_bytes(&self) -> usize {
        self.bytes_in_calls() / self.batches_in_flight
    }

    /// The most bytes of bodies in all calls of the handler, unless one body alone is larger.
    pub(super) fn bytes_in_calls(&self) -> usize {
        self.max_inflight_bytes / BATCH_BYTES_DIVISOR
    }
}
