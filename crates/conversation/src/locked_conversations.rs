//! The conversations whose rows another transaction has held for long.
//!
//! A batch that needs such a row waits for it, fails, and is halved. Without this memory every batch with an item of that
//! conversation would do so, as long as the lock is held. Only an item from a slow queue that has waited for the lock
//! alone says so: in a batch another batch of the fleet may have been in the way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::failure::{Cause, Failure};
use domain::failure_policy::{LOCKED_FOR, LOCKED_FOR_SLOW};
use domain::ids::ConversationKey;
use tokio::time::Instant;

/// The conversations that were locked a short time ago. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LockedConversations {
    found: Arc<Mutex<HashMap<ConversationKey, Locked>>>,
    of_slow_items: bool,
}

/// When a conversation was found to be locked, and PostgreSQL's error.
#[derive(Debug, Clone)]
struct Locked {
    at: Instant,
    cause: Cause,
}

impl LockedConversations {
    /// The same conversations, for items of a slow queue: they are tried again sooner, and tell which are locked.
    pub(crate) fn of_slow_items(&self) -> Self {
        Self { of_slow_items: true, ..self.clone() }
    }

    /// Records that a conversation is locked, if an item of a slow queue failed so.
    pub(crate) fn record(&self, key: &ConversationKey, failure: &Failure) {
        let Failure::Locked(cause) = failure else { return };
        if !self.of_slow_items {
            return;
        }
        let mut found = self.found();
        found.retain(|_, it| it.at.elapsed() < LOCKED_FOR);
        found.insert(key.clone(), Locked { at: Instant::now(), cause: cause.clone() });
    }

    /// The failure of an item of a conversation that was locked a short time ago.
    pub(crate) fn failure(&self, key: &ConversationKey) -> Option<Failure> {
        let limit = if self.of_slow_items { LOCKED_FOR_SLOW } else { LOCKED_FOR };
        let found = self.found();
        let locked = found.get(key).filter(|it| it.at.elapsed() < limit)?;
        Some(Failure::Locked(locked.cause.clone()))
    }

    /// Whether none is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.found().is_empty()
    }

    fn found(&self) -> MutexGuard<'_, HashMap<ConversationKey, Locked>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_slow_queue_found_locked_counts_as_locked_for_15_s_and_is_tried_again_after_5() {
        let key = |id| ConversationKey::parse("acme", id).unwrap();
        let held = Failure::Locked("held".into());
        let batches = LockedConversations::default();
        let slow = batches.of_slow_items();
        batches.record(&key("one"), &held);
        slow.record(&key("one"), &Failure::TimedOut("slow".into()));
        assert!(batches.is_empty());
        slow.record(&key("one"), &held);
        assert_eq!(slow.failure(&key("one")), Some(held.clone()));
        assert_eq!(batches.failure(&key("another")), None);
        tokio::time::advance(LOCKED_FOR_SLOW).await;
        assert_eq!(
            (slow.failure(&key("one")), batches.failure(&key("one"))),
            (None, Some(held.clone()))
        );
        tokio::time::advance(LOCKED_FOR - LOCKED_FOR_SLOW - Duration::from_millis(1)).await;
        assert!(batches.failure(&key("one")).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(batches.failure(&key("one")), None);
        slow.record(&key("another"), &held);
        assert_eq!(slow.found().len(), 1, "the first is forgotten");
    }
}
