//! Which bodies a connection receives.
//!
//! RabbitMQ sends as many messages as the prefetch allows, whatever their size, and the client library assembles a whole
//! body before the consumer sees it. So [`frames`](crate::frames) decides before that, at the content header: a body
//! that is not received is left out, and the consumer returns its message to RabbitMQ.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Which bodies a connection receives.
#[derive(Debug, Clone)]
pub(crate) struct BodyLimit {
    /// Bodies of at most this many bytes are received.
    small: u64,
    /// Which larger ones are.
    large: Option<Arc<LargeBodies>>,
}

/// How many bytes of large bodies a consumer has.
#[derive(Debug)]
struct LargeBodies {
    /// The most of them, unless one alone is larger.
    budget: u64,
    held: AtomicU64,
}

impl BodyLimit {
    /// Every body.
    pub(crate) const NONE: Self = Self { small: u64::MAX, large: None };

    /// Bodies of at most this many bytes.
    pub(crate) fn up_to(small: u64) -> Self {
        Self { small, large: None }
    }

    /// Bodies of at most this many bytes; of larger ones one, and more while they fit into `budget` bytes together.
    pub(crate) fn few_above(small: u64, budget: usize) -> Self {
        let large = LargeBodies { budget: budget as u64, held: AtomicU64::default() };
        Self { small, large: Some(Arc::new(large)) }
    }

    /// Whether a body of this many bytes is large.
    pub(crate) fn is_large(&self, bytes: u64) -> bool {
        bytes > self.small
    }

    /// Decides whether a large body is received. Its bytes count until [`Self::release`].
    pub(crate) fn admit(&self, bytes: u64) -> bool {
        let Some(LargeBodies { budget, held }) = self.large.as_deref() else { return false };
        let with = |held: u64| (held == 0 || held + bytes <= *budget).then_some(held + bytes);
        held.fetch_update(Relaxed, Relaxed, with).is_ok()
    }

    /// A large body that was received is no longer in memory.
    pub(crate) fn release(&self, bytes: u64) {
        if let Some(large) = &self.large {
            large.held.fetch_sub(bytes, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_large_body_is_always_received_and_more_within_the_budget() {
        let limit = BodyLimit::few_above(10, 100);
        assert!(limit.is_large(11) && !limit.is_large(10));
        assert!(limit.admit(500) && !limit.admit(11));
        limit.release(500);
        assert!(limit.clone().admit(60) && limit.admit(40) && !limit.admit(11));
        limit.release(60);
        assert!(limit.admit(11));
        assert!(!BodyLimit::up_to(10).admit(11) && !BodyLimit::NONE.is_large(u64::MAX));
    }
}
