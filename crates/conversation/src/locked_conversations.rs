//! The conversations whose rows another transaction has held for long.
//!
//! A batch that needs such a row waits for it, fails, and is halved. Without this memory every batch with an item of that
//! conversation would do so, as long as the lock is held. Only an item from a slow queue that has waited for the lock
//! alone says so, or PostgreSQL: in a batch another batch of the fleet may have been in the way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::failure::{Cause, Failure};
use domain::failure_policy::{LOCKED_FOR, LOCKED_FOR_SLOW, SLOW_QUEUE_LOCK_LIMIT};
use domain::ids::ConversationKey;
use tokio::time::Instant;

/// The longest pause, however many conversations are locked.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The conversations that were locked a short time ago. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LockedConversations {
    found: Arc<Mutex<HashMap<ConversationKey, Locked>>>,
    of_slow_items: bool,
}

/// When a conversation was found to be locked, by which item, and PostgreSQL's error.
#[derive(Debug, Clone)]
struct Locked {
    at: Instant,
    item: String,
    cause: Cause,
}

impl Locked {
    fn now(item: String, cause: &Cause) -> Self {
        Self { at: Instant::now(), item, cause: cause.clone() }
    }
}

/// How long the others of a conversation are not tried in a slow queue, if so many conversations are locked. Waiting for
/// locks takes at most half of its time.
fn pause(conversations: usize) -> Duration {
    let waits = u32::try_from(conversations).unwrap_or(u32::MAX);
    LOCKED_FOR_SLOW
        .max(SLOW_QUEUE_LOCK_LIMIT.saturating_mul(waits).saturating_mul(2))
        .min(LONGEST_PAUSE)
}

/// How long batches do not try a conversation, if so many are locked.
fn pause_of_batches(conversations: usize) -> Duration {
    LOCKED_FOR + 2 * (pause(conversations) - LOCKED_FOR_SLOW)
}

impl LockedConversations {
    /// The same conversations, for items of a slow queue: they are tried again sooner, and tell which are locked.
    pub(crate) fn of_slow_items(&self) -> Self {
        Self { of_slow_items: true, ..self.clone() }
    }

    /// Records that a conversation is locked, if an item of a slow queue failed so. `item` is its id.
    pub(crate) fn record(&self, key: &ConversationKey, item: &str, failure: &Failure) {
        let Failure::Locked(cause) = failure else { return };
        if !self.of_slow_items {
            return;
        }
        self.current().insert(key.clone(), Locked::now(item.to_owned(), cause));
    }

    /// Records conversations that PostgreSQL says are locked, after a batch has waited for one of them in vain.
    pub(crate) fn found<'a>(
        &self,
        keys: impl Iterator<Item = &'a ConversationKey>,
        failure: &Failure,
    ) {
        if let Failure::Locked(cause) = failure {
            let mut found = self.current();
            for key in keys {
                found.insert(key.clone(), Locked::now(String::new(), cause));
            }
        }
    }

    /// Forgets conversations of which an item of a slow queue succeeded.
    pub(crate) fn forget<'a>(&self, keys: impl Iterator<Item = &'a ConversationKey>) {
        if self.of_slow_items {
            let mut found = self.locked();
            keys.for_each(|key| drop(found.remove(key)));
        }
    }

    /// The failure of an item of a conversation that was locked a short time ago. In a slow queue the item that waited
    /// in vain is tried later than others of its conversation: the lock may concern that item alone.
    pub(crate) fn failure(&self, key: &ConversationKey, item: &str) -> Option<Failure> {
        let found = self.locked();
        let locked = found.get(key)?;
        let limit = match (self.of_slow_items, locked.item == item) {
            // No item has waited for it yet.
            (true, _) if locked.item.is_empty() => LOCKED_FOR_SLOW,
            (true, false) => pause(found.len()),
            (true, true) => 2 * pause(found.len()),
            (false, _) => pause_of_batches(found.len()),
        };
        (locked.at.elapsed() < limit).then(|| Failure::Locked(locked.cause.clone()))
    }

    /// Whether none is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.current().is_empty()
    }

    /// Those that still count. Another process may have handled the last item of the others.
    fn current(&self) -> MutexGuard<'_, HashMap<ConversationKey, Locked>> {
        let mut found = self.locked();
        let pause = pause_of_batches(found.len());
        found.retain(|_, it| it.at.elapsed() < pause);
        found
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<ConversationKey, Locked>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn key(id: &str) -> ConversationKey {
        ConversationKey::parse("acme", id).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_slow_queue_found_locked_is_not_tried_by_batches_until_it_has_tried_again() {
        let held = Failure::Locked("held".into());
        let batches = LockedConversations::default();
        let slow = batches.of_slow_items();
        batches.record(&key("one"), "m", &held);
        slow.record(&key("one"), "m", &Failure::TimedOut("slow".into()));
        assert!(batches.is_empty());
        slow.record(&key("one"), "m", &held);
        let locked = |of: &LockedConversations, item| of.failure(&key("one"), item).is_some();
        assert_eq!(slow.failure(&key("one"), "m"), Some(held.clone()));
        assert_eq!(batches.failure(&key("another"), "m"), None);
        let step = LOCKED_FOR_SLOW - Duration::from_millis(1);
        tokio::time::advance(step).await;
        assert!(locked(&slow, "another"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!locked(&slow, "another"), "an item that was not tried has its turn first");
        assert!(locked(&slow, "m") && locked(&batches, "another"));
        tokio::time::advance(LOCKED_FOR_SLOW).await;
        assert!(!locked(&slow, "m") && locked(&batches, "m"));
        tokio::time::advance(LOCKED_FOR - 2 * LOCKED_FOR_SLOW).await;
        assert!(!locked(&batches, "m"));
        assert!(batches.is_empty(), "it is forgotten");
        slow.record(&key("another"), "m", &held);
        slow.forget([&key("another")].into_iter());
        assert!(batches.is_empty(), "an item succeeded");
    }

    #[tokio::test(start_paused = true)]
    async fn of_conversations_that_postgresql_found_locked_each_is_soon_tried_in_the_slow_queue() {
        let slow = LockedConversations::default().of_slow_items();
        let keys: Vec<_> = (0..300).map(|n| key(&format!("c{n}"))).collect();
        let held = Failure::Locked("held".into());
        slow.found(keys.iter(), &held);
        tokio::time::advance(LOCKED_FOR_SLOW).await;
        assert_eq!(slow.failure(&keys[7], "m"), None, "no item has waited for it yet");
        slow.record(&keys[7], "m", &held);
        tokio::time::advance(LOCKED_FOR_SLOW).await;
        assert_eq!(slow.failure(&keys[7], "another"), Some(held));
    }

    /// A slow queue in which each item is handled in turn, and returns after 5 s if it is locked.
    #[tokio::test(start_paused = true)]
    async fn of_many_locked_conversations_in_a_slow_queue_half_of_the_time_remains_for_others() {
        let slow = LockedConversations::default().of_slow_items();
        let (began, minutes) = (Instant::now(), Duration::from_secs(10 * 60));
        let items: Vec<_> =
            (0..20).map(|n| (key(&format!("c{}", n % 10)), n.to_string())).collect();
        let mut due: VecDeque<_> = (0..items.len()).map(|index| (began, index)).collect();
        let mut waited = Duration::ZERO;
        while began.elapsed() < minutes {
            let (at, index) = due.pop_front().unwrap();
            let (key, item) = &items[index];
            tokio::time::sleep_until(at).await;
            if slow.failure(key, item).is_none() {
                tokio::time::sleep(SLOW_QUEUE_LOCK_LIMIT).await;
                waited += SLOW_QUEUE_LOCK_LIMIT;
                slow.record(key, item, &Failure::Locked("held".into()));
            }
            due.push_back((Instant::now() + LOCKED_FOR_SLOW, index));
        }
        assert!(waited * 2 <= minutes, "waited {waited:?} of {minutes:?}");
    }
}
