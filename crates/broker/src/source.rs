//! The queue that a handler consumes, and what happens to messages that it cannot handle.

use domain::fleet::WorkQueue;

use crate::topology::REQUESTS;

/// A queue to consume, and what happens to messages that cannot be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    queue: &'static str,
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
        Self { queue: queue.name(), failure_policy: FailurePolicy::DeadLetter(queue) }
    }

    /// The dead-letter queue of a work queue.
    #[must_use]
    pub const fn dead_letters(queue: WorkQueue) -> Self {
        Self { queue: queue.dlq(), failure_policy: FailurePolicy::RetryForever(queue) }
    }

    /// The queue of requests.
    #[must_use]
    pub const fn requests() -> Self {
        Self { queue: REQUESTS, failure_policy: FailurePolicy::Expire }
    }

    /// The name of the queue.
    #[must_use]
    pub const fn queue(&self) -> &'static str {
        self.queue
    }

    pub(crate) const fn suspect(&self) -> Option<&'static str> {
        match self.failure_policy {
            FailurePolicy::DeadLetter(queue) => Some(queue.suspect()),
            FailurePolicy::RetryForever(_) | FailurePolicy::Expire => None,
        }
    }
}
