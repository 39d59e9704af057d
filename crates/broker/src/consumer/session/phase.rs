//! The phases of a session: consuming, filling the prefetch, cancelled, stopped; and what follows a cancel.

use std::time::Duration;

use tokio::time::Instant;

/// Whether the consumer gets deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is registered; finished deliveries are acknowledged.
    Consuming,
    /// It is registered; nothing is acknowledged, until the prefetch is full or the queue is empty.
    FillingPrefetch(AfterCancel, PrefetchFill),
    /// It is cancelled; deliveries that RabbitMQ sent before are still received.
    Cancelled(AfterCancel),
    /// Its stream has ended; received deliveries are being finished.
    Stopped(AfterCancel),
}

/// Since when the prefetch is being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PrefetchFill {
    began: Instant,
    last_delivery: Instant,
}

/// What a consumer is cancelled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterCancel {
    /// To register with a larger prefetch.
    GrowPrefetch,
    /// To register with a smaller prefetch, once all received deliveries are finished: with them the
    /// byte limit may be reached.
    ShrinkPrefetch,
    /// To handle suspects, while nothing else is being handled.
    HandleSuspects,
    /// To drain for a shutdown.
    Shutdown,
    /// To reconnect: RabbitMQ cancelled the consumer. Received deliveries are finished first, because
    /// with a deleted queue RabbitMQ has no other copy of them.
    Reconnect,
}

/// After this time without a delivery, while the prefetch is not full, the queue is taken as empty. A
/// delivery takes much less from queue to consumer, also on a busy machine.
const IDLE_LIMIT: Duration = Duration::from_millis(200);
/// The most time for filling the prefetch. It applies when single messages arrive more often than
/// [`IDLE_LIMIT`]; then at most one of them is being sent at the cancel.
const FILL_LIMIT: Duration = Duration::from_secs(1);

impl PrefetchFill {
    pub(super) fn begin() -> Self {
        let began = Instant::now();
        Self { began, last_delivery: began }
    }

    pub(super) fn on_delivery(&mut self, at: Instant) {
        self.last_delivery = at;
    }

    pub(super) fn ends(&self) -> Instant {
        (self.last_delivery + IDLE_LIMIT).min(self.began + FILL_LIMIT)
    }
}
