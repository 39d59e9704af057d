//! Which bodies a connection receives.
//!
//! RabbitMQ sends as many messages as the prefetch allows, whatever their size, and the client library assembles a whole
//! body before the consumer sees it. So [`frames`](crate::frames) decides before that, at the content header: a body
//! that is not received is left out, and the consumer returns its message to RabbitMQ.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// The large bodies of the consumers of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LargeBodies(Arc<Mutex<InMemory>>);

#[derive(Debug, Default)]
struct InMemory {
    /// How many bytes of them the process has.
    bytes: u64,
    /// The connections that wait until there is room, in order: one with many large bodies must not keep others from
    /// their turn.
    waiting: VecDeque<u64>,
    /// How many connections there were: the number of the last one.
    connections: u64,
}

impl LargeBodies {
    fn lock(&self) -> MutexGuard<'_, InMemory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    /// Its number in the process.
    connection: u64,
    /// How many of the bytes are of bodies that the consumer does not have yet.
    arriving: AtomicU64,
}

/// A large body that the consumer has. Its bytes count until this is dropped.
#[derive(Debug)]
pub(crate) struct InMemoryBody {
    bytes: u64,
    of_process: LargeBodies,
}

/// A body whose bytes count as long as any part of it is in memory.
struct CountedBody {
    body: Bytes,
    _counted: InMemoryBody,
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
        let connection = {
            let mut all = of_process.lock();
            all.connections += 1;
            all.connections
        };
        let (of_process, arriving) = (of_process.clone(), AtomicU64::default());
        let large = Large { budget: budget as u64, of_process, connection, arriving };
        Self { small, large: Some(Arc::new(large)) }
    }

    /// Whether a body of this many bytes is large.
    pub(crate) fn is_large(&self, bytes: u64) -> bool {
        bytes > self.small
    }

    /// Decides whether a large body is received. Its bytes count until the consumer that [receives](Self::receive) it
    /// drops it, or until the connection is gone before that.
    pub(crate) fn admit(&self, bytes: u64) -> bool {
        let Some(large) = self.large.as_deref() else { return false };
        let mut all = large.of_process.lock();
        let is_turn = all.waiting.front().is_none_or(|first| *first == large.connection);
        let fits = all.bytes == 0 || all.bytes + bytes <= large.budget;
        if is_turn && fits {
            all.waiting.pop_front();
            all.bytes += bytes;
            large.arriving.fetch_add(bytes, Relaxed);
        }
        is_turn && fits
    }

    /// The consumer has an admitted body of this many bytes. `None` if it is not large.
    pub(crate) fn receive(&self, bytes: u64) -> Option<InMemoryBody> {
        let large = self.large.as_deref().filter(|_| self.is_large(bytes))?;
        large.arriving.fetch_sub(bytes, Relaxed);
        Some(InMemoryBody { bytes, of_process: large.of_process.clone() })
    }

    /// From now on this connection has its turn before those that begin to wait later.
    pub(crate) fn wait(&self) {
        if let Some(large) = &self.large {
            let mut all = large.of_process.lock();
            if !all.waiting.contains(&large.connection) {
                all.waiting.push_back(large.connection);
            }
        }
    }

    /// Whether the process has no large body, and it is the turn of this connection.
    pub(crate) fn has_turn(&self) -> bool {
        self.large.as_ref().is_none_or(|large| {
            let all = large.of_process.lock();
            all.bytes == 0 && all.waiting.front().is_none_or(|first| *first == large.connection)
        })
    }

    /// This connection no longer waits.
    pub(crate) fn give_up_turn(&self) {
        if let Some(large) = &self.large {
            large.of_process.lock().waiting.retain(|waiting| *waiting != large.connection);
        }
    }
}

impl InMemoryBody {
    /// The body, which counts until its last clone is dropped: a call of the handler, or a copy that is being published,
    /// may outlive the session.
    pub(crate) fn counting(self, body: Bytes) -> Bytes {
        Bytes::from_owner(CountedBody { body, _counted: self })
    }
}

impl AsRef<[u8]> for CountedBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for InMemoryBody {
    fn drop(&mut self) {
        self.of_process.lock().bytes -= self.bytes;
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let mut all = self.of_process.lock();
        all.bytes -= *self.arriving.get_mut();
        all.waiting.retain(|waiting| *waiting != self.connection);
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
        drop(limit.receive(500));
        assert!(limit.clone().admit(60) && limit.admit(40) && !limit.admit(11));
        drop(limit.receive(60));
        assert!(limit.admit(11) && limit.receive(10).is_none());
        assert!(!BodyLimit::up_to(10).admit(11) && !BodyLimit::NONE.is_large(u64::MAX));
    }

    #[test]
    fn the_large_bodies_of_a_process_are_limited_together_and_those_of_a_lost_connection_are_none()
    {
        let of_process = LargeBodies::default();
        let [one, other] = [0; 2].map(|_| BodyLimit::few_above(10, 100, &of_process));
        assert!(one.admit(500) && !other.admit(11) && !other.has_turn());
        let connection = one.clone();
        drop(one);
        assert!(!other.admit(11));
        drop(connection);
        assert!(other.has_turn() && other.admit(11));
    }

    #[test]
    fn a_body_counts_until_its_last_part_is_dropped_also_after_its_connection() {
        let of_process = LargeBodies::default();
        let [one, other] = [0; 2].map(|_| BodyLimit::few_above(10, 100, &of_process));
        assert!(one.admit(500));
        let body = one.receive(500).unwrap().counting(Bytes::from_static(b"large"));
        let in_a_call = body.slice(3..);
        drop((one, body));
        assert!(!other.admit(11) && !other.has_turn());
        assert_eq!(in_a_call, "ge");
        drop(in_a_call);
        assert!(other.has_turn() && other.admit(11));
    }

    #[test]
    fn a_connection_with_many_large_bodies_leaves_others_their_turn() {
        let of_process = LargeBodies::default();
        let [busy, other] = [0; 2].map(|_| BodyLimit::few_above(10, 100, &of_process));
        assert!(busy.admit(60));
        other.wait();
        assert!(!busy.admit(20), "it would fit, and another one waits");
        drop(busy.receive(60));
        assert!(!busy.admit(20) && !busy.has_turn() && other.has_turn() && other.admit(500));
        busy.wait();
        drop(other.receive(500));
        assert!(!other.admit(20) && busy.admit(20));
        other.wait();
        other.give_up_turn();
        assert!(busy.admit(20));
    }
}
