//! The queue that a handler consumes, and what happens to messages that it cannot handle.

use domain::fleet::WorkQueue;

use crate::topology::REQUESTS;

/// A queue to consume, and what happens to messages that cannot be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    queue: &'static str,
    is_slow: bool,
    /// What happens to messages that its handler cannot handle.
    pub(crate) failure_policy: FailurePolicy,
}

/// What happens to messages that are refused or that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailurePolicy {
    /// They become dead letters of this queue, after retries where another attempt may succeed; suspects are
    /// quarantined. For work.
    DeadLetter(WorkQueue),
    /// They are retried for ever, at the longest delay. For the dead-letter queue of this queue: a dead letter has
    /// no further queue.
    RetryForever(WorkQueue),
    /// Nothing of them is kept, but their senders get the error. While a dependency is unavailable they are held
    /// for [`REQUEST_TTL`](domain::failure_policy::REQUEST_TTL) at most. For requests: after that time nobody waits for the reply.
    Expire,
}

impl Source {
    /// A work queue.
    #[must_use]
    pub const fn work(queue: WorkQueue) -> Self {
        Self::new(queue.name(), FailurePolicy::DeadLetter(queue))
    }

    /// The dead-letter queue of a work queue.
    #[must_use]
    pub const fn dead_letters(queue: WorkQueue) -> Self {
        Self::new(queue.dlq(), FailurePolicy::RetryForever(queue))
    }

    /// The queue of requests.
    #[must_use]
    pub const fn requests() -> Self {
        Self::new(REQUESTS, FailurePolicy::Expire)
    }

    const fn new(queue: &'static str, failure_policy: FailurePolicy) -> Self {
        Self { queue, is_slow: false, failure_policy }
    }

    /// The slow queue of this queue: messages that take longer than usual by themselves, or whose rows are locked. What
    /// happens to those that cannot be handled is the same. `None` if it has none.
    #[must_use]
    pub const fn slow(self) -> Option<Self> {
        match self.slow_queue() {
            Some(queue) => Some(Self { queue, is_slow: true, ..self }),
            None => None,
        }
    }

    /// The name of its slow queue; of a slow queue, its own name.
    pub(crate) const fn slow_queue(self) -> Option<&'static str> {
        match self.failure_policy {
            FailurePolicy::DeadLetter(queue) => queue.slow(),
            FailurePolicy::RetryForever(queue) => Some(queue.slow_dlq()),
            FailurePolicy::Expire => None,
        }
    }

    /// Whether it is a slow queue.
    pub(crate) const fn is_slow(self) -> bool {
        self.is_slow
    }

    /// The queue to which messages of it return for another attempt.
    pub(crate) const fn usual_queue(self) -> &'static str {
        match self.failure_policy {
            FailurePolicy::DeadLetter(queue) => queue.name(),
            FailurePolicy::RetryForever(queue) => queue.dlq(),
            FailurePolicy::Expire => self.queue,
        }
    }

    /// The name of the queue.
    #[must_use]
    pub const fn queue(&self) -> &'static str {
        self.queue
    }

    pub(crate) const fn suspect(&self) -> Option<&'static str> {
        match self.failure_policy {
            // The consumer of the work queue handles its suspects.
            FailurePolicy::DeadLetter(queue) if !self.is_slow => Some(queue.suspect()),
            FailurePolicy::DeadLetter(_)
            | FailurePolicy::RetryForever(_)
            | FailurePolicy::Expire => None,
        }
    }
}
