//! The conversations whose rows another transaction held a short time ago.
//!
//! A batch that needs such a row waits for it, fails, and is halved. Without this memory every batch with a message of
//! that conversation would do so, as long as the lock is held.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use domain::failure::Cause;
use domain::failure_policy::LOCKED_FOR;
use domain::ids::ConversationKey;
use tokio::time::Instant;

/// The conversations that were locked within the last [`LOCKED_FOR`]. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LockedConversations(Arc<Mutex<HashMap<ConversationKey, Locked>>>);

/// When a conversation was found to be locked, and PostgreSQL's error.
#[derive(Debug, Clone)]
struct Locked {
    at: Instant,
    cause: Cause,
}

impl LockedConversations {
    /// Records that a conversation is locked now.
    pub(crate) fn record(&self, key: &ConversationKey, cause: &Cause) {
        let mut locked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locked.retain(|_, it| it.at.elapsed() < LOCKED_FOR);
        locked.insert(key.clone(), Locked { at: Instant::now(), cause: cause.clone() });
    }

    /// PostgreSQL's error for a conversation that was locked a short time ago.
    pub(crate) fn cause(&self, key: &ConversationKey) -> Option<Cause> {
        let locked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = locked.get(key).filter(|it| it.at.elapsed() < LOCKED_FOR)?;
        Some(locked.cause.clone())
    }

    /// Whether none is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_conversation_counts_as_locked_for_ten_seconds() {
        let key = |id| ConversationKey::parse("acme", id).unwrap();
        let locked = LockedConversations::default();
        assert!(locked.is_empty());
        locked.clone().record(&key("one"), &"held".into());
        tokio::time::advance(LOCKED_FOR - Duration::from_millis(1)).await;
        assert_eq!(locked.cause(&key("one")).unwrap().to_string(), "held");
        assert!(locked.cause(&key("another")).is_none());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(locked.cause(&key("one")).is_none());
        locked.record(&key("another"), &"held".into());
        assert_eq!(locked.0.lock().unwrap().len(), 1, "the first is forgotten");
    }
}
