//! Which suspects RabbitMQ requeued while this process lived.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The ids of suspects that RabbitMQ requeues without a crash of this process: their channel closed before
/// they were acknowledged.
#[derive(Default)]
pub(super) struct BrokerRequeues(Mutex<VecDeque<String>>);

/// The most ids that are kept; the oldest are dropped. A lost connection adds those of one group, about a
/// hundred, and an id of a suspect that another process handled stays.
const MAX_BROKER_REQUEUES: usize = 10_000;

impl BrokerRequeues {
    /// Adds an id, once.
    pub(super) fn record(&self, id: &str) {
        let mut ids = self.ids();
        if !ids.iter().any(|it| it == id) {
            ids.push_back(id.to_owned());
        }
        if ids.len() > MAX_BROKER_REQUEUES {
            ids.pop_front();
        }
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.ids().iter().any(|it| it == id)
    }

    pub(super) fn remove(&self, id: &str) {
        self.ids().retain(|it| it != id);
    }

    fn ids(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
