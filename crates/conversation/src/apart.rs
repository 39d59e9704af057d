//! What is too slow to be handled with others, or is locked, is handled apart: one at a time, by a task of its own.
//!
//! The task has longer time limits. Others go on meanwhile, and nobody waits for a place: what finds none is tried
//! again later. What was found too slow is remembered for a while, so that it delays the others once and not each time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long it is remembered that something was too slow. The database may be faster by then.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// Work that is handled apart, by key. Clones share it.
pub(crate) struct Apart<K, T> {
    place: Arc<Semaphore>,
    taken: UnboundedSender<Taken<T>>,
    waiting: Arc<tokio::sync::Mutex<UnboundedReceiver<Taken<T>>>>,
    /// What was too slow, and when that was found or it was last handed over.
    slow: Arc<Mutex<HashMap<K, Instant>>>,
}

/// Work that is to be handled apart. While it exists, nothing else is taken.
#[derive(Debug)]
pub struct Taken<T> {
    pub(crate) item: T,
    _place: OwnedSemaphorePermit,
}

impl<K, T> Clone for Apart<K, T> {
    fn clone(&self) -> Self {
        Self {
            place: Arc::clone(&self.place),
            taken: self.taken.clone(),
            waiting: Arc::clone(&self.waiting),
            slow: Arc::clone(&self.slow),
        }
    }
}

impl<K: Eq + Hash + Clone, T> Apart<K, T> {
    pub(crate) fn new() -> Self {
        let (taken, waiting) = unbounded_channel();
        Self {
            place: Arc::new(Semaphore::new(1)),
            taken,
            waiting: Arc::new(tokio::sync::Mutex::new(waiting)),
            slow: Arc::default(),
        }
    }

    /// Hands the work over, unless something else is being handled apart.
    pub(crate) fn offer(&self, item: T) -> bool {
        let Ok(place) = Arc::clone(&self.place).try_acquire_owned() else { return false };
        self.taken.send(Taken { item, _place: place }).is_ok()
    }

    /// What was handed over, when there is something.
    pub(crate) async fn next(&self) -> Taken<T> {
        match self.waiting.lock().await.recv().await {
            Some(taken) => taken,
            // The sender is in `self`.
            None => std::future::pending().await,
        }
    }

    /// Remembers that this is too slow to be handled with others.
    pub(crate) fn remember(&self, key: K) {
        self.slow().insert(key, Instant::now());
    }

    /// It was handled, or need not be.
    pub(crate) fn forget(&self, key: &K) {
        self.slow().remove(key);
    }

    /// Everything that was too slow in the last 10 minutes.
    pub(crate) fn slow_ones(&self) -> Vec<K> {
        self.slow().keys().cloned().collect()
    }

    /// What was too slow and was tried longest ago, if that is at least this long ago. It counts as tried now.
    pub(crate) fn tried_before(&self, pause: Duration) -> Option<K> {
        if self.place.available_permits() == 0 {
            return None;
        }
        let mut slow = self.slow();
        let (key, tried) = slow.iter_mut().min_by_key(|(_, tried)| **tried)?;
        if tried.elapsed() < pause {
            return None;
        }
        *tried = Instant::now();
        Some(key.clone())
    }

    fn slow(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        slow.retain(|_, tried| tried.elapsed() < REMEMBERED);
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_is_taken_at_a_time_and_another_when_it_is_done() {
        let apart = Apart::<u8, &str>::new();
        assert!(apart.offer("first"));
        assert!(!apart.offer("second"), "the place is taken");
        let first = apart.next().await;
        assert_eq!(first.item, "first");
        assert!(!apart.offer("second"), "it is being handled");
        drop(first);
        assert!(apart.offer("second"));
        assert_eq!(apart.next().await.item, "second");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_too_slow_is_tried_in_turn_and_forgotten_after_10_minutes() {
        let apart = Apart::<u8, u8>::new();
        let (second, pause) = (Duration::from_secs(1), Duration::from_secs(30));
        for key in [1, 2] {
            apart.remember(key);
            tokio::time::advance(second).await;
        }
        assert_eq!(apart.tried_before(pause), None);
        tokio::time::advance(pause).await;
        let tried: Vec<_> = (0..3).map(|_| apart.tried_before(pause)).collect();
        assert_eq!(tried, [Some(1), Some(2), None]);
        apart.forget(&1);
        assert_eq!(apart.slow_ones(), [2]);
        tokio::time::advance(REMEMBERED).await;
        assert!(apart.slow_ones().is_empty());
    }
}
