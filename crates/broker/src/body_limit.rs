//! Which bodies a connection receives.
//!
//! RabbitMQ sends as many messages as the prefetch allows, whatever their size, and the client library assembles a whole
//! body before the consumer sees it. So [`frames`](crate::frames) decides before that, at the content header: a body
//! that is not received is left out, and the consumer returns its message to RabbitMQ.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// How many bytes of large bodies the consumers of a process have together. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LargeBodies(Arc<AtomicU64>);

/// Which bodies a connection receives. Clones share the large ones.
#[derive(Debug, Clone)]
pub(crate) struct BodyLimit {
    /// Bodies of at most this many bytes are received.
    small: u64,
    /// Which larger ones are.
    large: Option<Arc<Large>>,
}

/// The large bodies of one connection.
#[derive(Debug)]
struct Large {
    /// The most bytes that a process has of them, unless one alone is larger.
    budget: u64,
    of_process: LargeBodies,
    held: AtomicU64,
}

impl BodyLimit {
    /// Every body.
    pub(crate) const NONE: Self = Self { small: u64::MAX, large: None };

    /// Bodies of at most this many bytes.
    pub(crate) fn up_to(small: u64) -> Self {
        Self { small, large: None }
    }

    /// Bodies of at most this many bytes; of larger ones the process has one, and more while they fit into `budget`
    /// bytes together.
    pub(crate) fn few_above(small: u64, budget: usize, of_process: &LargeBodies) -> Self {
        let of_process = of_process.clone();
        let large = Large { budget: budget as u64, of_process, held: AtomicU64::default() };
        Self { small, large: Some(Arc::new(large)) }
    }

    /// Whether a body of this many bytes is large.
    pub(crate) fn is_large(&self, bytes: u64) -> bool {
        bytes > self.small
    }

    /// Decides whether a large body is received. Its bytes count until [`Self::release`], or until the connection and
    /// the session are gone.
    pub(crate) fn admit(&self, bytes: u64) -> bool {
        let Some(Large { budget, of_process, held }) = self.large.as_deref() else { return false };
        let with = |held: u64| (held == 0 || held + bytes <= *budget).then_some(held + bytes);
        let is_admitted = of_process.0.fetch_update(Relaxed, Relaxed, with).is_ok();
        held.fetch_add(if is_admitted { bytes } else { 0 }, Relaxed);
        is_admitted
    }

    /// A large body that was received is no longer in memory.
    pub(crate) fn release(&self, bytes: u64) {
        if let Some(large) = &self.large {
            large.held.fetch_sub(bytes, Relaxed);
            large.of_process.0.fetch_sub(bytes, Relaxed);
        }
    }

    /// Whether the process has no large body.
    pub(crate) fn is_free(&self) -> bool {
        self.large.as_ref().is_none_or(|large| large.of_process.0.load(Relaxed) == 0)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.of_process.0.fetch_sub(*self.held.get_mut(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_large_body_is_always_received_and_more_within_the_budget() {
        let limit = BodyLimit::few_above(10, 100, &LargeBodies::default());
        assert!(limit.is_large(11) && !limit.is_large(10));
        assert!(limit.admit(500) && !limit.admit(11));
        limit.release(500);
        assert!(limit.clone().admit(60) && limit.admit(40) && !limit.admit(11));
        limit.release(60);
        assert!(limit.admit(11));
        assert!(!BodyLimit::up_to(10).admit(11) && !BodyLimit::NONE.is_large(u64::MAX));
    }

    #[test]
    fn the_large_bodies_of_a_process_are_limited_together_and_those_of_a_lost_connection_are_none()
    {
        let of_process = LargeBodies::default();
        let [one, other] = [0; 2].map(|_| BodyLimit::few_above(10, 100, &of_process));
        assert!(one.admit(500) && !other.admit(11) && !other.is_free());
        let connection = one.clone();
        drop(one);
        assert!(!other.admit(11));
        drop(connection);
        assert!(other.is_free() && other.admit(11));
    }
}
