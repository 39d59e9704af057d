//! How many bytes of bodies the calls of the handler have, also those that began in earlier sessions.
//!
//! A call goes on when its session ends, and RabbitMQ redelivers its messages at once. Without this limit, connections
//! that are lost again and again would multiply the memory that calls need while PostgreSQL is slow.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The room for the bodies of all calls.
pub(super) struct BytesInCalls {
    /// Of so many bytes.
    limit: u32,
    free: Arc<Semaphore>,
}

impl BytesInCalls {
    pub(super) fn up_to(bytes: usize) -> Self {
        let limit = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { limit, free: Arc::new(Semaphore::new(limit as usize)) }
    }

    /// Waits until there is room for so many bytes, which are in use until the permit is dropped; for more than the
    /// limit, until no other call has any. First come, first served.
    pub(super) async fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.limit);
        // The semaphore is never closed.
        Arc::clone(&self.free).acquire_many_owned(bytes).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_call_waits_for_room_and_a_large_one_until_it_is_alone() {
        let bytes = BytesInCalls::up_to(100);
        let permit = |bytes_of: usize| bytes.room_for(bytes_of).now_or_never().map(Option::unwrap);
        let (first, second) = (permit(60).unwrap(), permit(40).unwrap());
        assert!(permit(1).is_none() && permit(0).is_some());
        drop(first);
        assert!(permit(500).is_none() && permit(60).is_some());
        drop(second);
        let alone = permit(500).unwrap();
        assert!(permit(1).is_none());
        drop(alone);
        assert!(permit(100).is_some());
    }
}
