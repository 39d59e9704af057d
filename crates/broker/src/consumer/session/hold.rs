//! A hold: the unavailable dependency, and the batches that wait for it.

use std::collections::VecDeque;

use domain::failure::Dependency;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::consumer::batch::Batch;

pub(super) struct Hold<I> {
    pub(super) dependency: Dependency,
    pub(super) since: Instant,
    pub(super) backoff: Backoff,
    pub(super) batches: VecDeque<Batch<I>>,
    pub(super) probing: bool,
}

/// The unavailable dependency of a session that ended during a hold.
pub(in crate::consumer) struct Outage<I> {
    pub(in crate::consumer) dependency: Dependency,
    /// If RabbitMQ did not confirm its copies: one of the held batches, unless all of them were being handled again.
    /// Its messages were requeued. Publishing its copies again shows whether RabbitMQ is available.
    pub(in crate::consumer) batch: Option<Batch<I>>,
}

impl<I> Hold<I> {
    pub(super) fn new(dependency: Dependency) -> Self {
        let (since, backoff) = (Instant::now(), Backoff::new());
        Self { dependency, since, backoff, batches: VecDeque::new(), probing: false }
    }

    /// The next batch to be handled again, once the probe has succeeded.
    pub(super) fn next_to_resume(&mut self) -> Option<Batch<I>> {
        if self.probing { None } else { self.batches.pop_front() }
    }

    /// Whether no batch is held, probed for or being handled. A batch that is handled again after a
    /// probe may be held once more.
    pub(super) fn is_over(&self, in_flight: usize) -> bool {
        self.batches.is_empty() && !self.probing && in_flight == 0
    }

    /// The outage to wait for after the session.
    pub(super) fn into_outage(mut self) -> Outage<I> {
        let batch = self.batches.pop_front().filter(|_| self.dependency == Dependency::RabbitMq);
        Outage { dependency: self.dependency, batch }
    }
}
