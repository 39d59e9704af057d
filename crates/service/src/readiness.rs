//! Whether this process can do its work: named checks, each ready or not ready with a reason.
//!
//! Each run of a supervised task owns its [`Check`]. A dropped check becomes not ready, so the check of a
//! task that panicked cannot stay ready.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Gauge, Metrics};

/// The checks of a process. Clones share the same checks.
#[derive(Clone)]
pub(crate) struct Readiness(Arc<Inner>);

struct Inner {
    checks: Mutex<BTreeMap<&'static str, Slot>>,
    next: AtomicU64,
    metrics: Metrics,
}

struct Slot {
    /// The id of the only handle that may write: the latest registered under the name.
    owner: u64,
    state: State,
}

/// The state of one check.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct State {
    /// Whether the component can do its work.
    pub(crate) ready: bool,
    /// Why it is not ready; for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// The handle of one check. When it is dropped, the check becomes not ready.
#[must_use = "a dropped check becomes not ready: keep it while the component runs"]
pub struct Check {
    readiness: Readiness,
    name: &'static str,
    id: u64,
}

impl Readiness {
    /// No checks yet.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner { checks: Mutex::default(), next: AtomicU64::new(0), metrics }))
    }

    /// Registers a check, which is not ready at first. A second check with the same name replaces the
    /// first, as when a task restarts.
    pub(crate) fn check(&self, name: &'static str) -> Check {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let state = State { ready: false, reason: Some("starting".to_owned()) };
        self.lock().insert(name, Slot { owner: id, state });
        self.0.metrics.set(Gauge::Ready { check: name }, 0.0);
        Check { readiness: self.clone(), name, id }
    }

    /// The state of every check, by name.
    pub(crate) fn states(&self) -> BTreeMap<&'static str, State> {
        self.lock().iter().map(|(name, slot)| (*name, slot.state.clone())).collect()
    }

    /// Sets the state of a check; true if `ready` changed.
    fn set(&self, check: &Check, reason: Option<String>) -> bool {
        let state = State { ready: reason.is_none(), reason };
        let ready = f64::from(u8::from(state.ready));
        let changed = {
            let mut checks = self.lock();
            let slot = checks.get_mut(check.name).filter(|slot| slot.owner == check.id);
            let Some(slot) = slot else { return false };
            let changed = slot.state.ready != state.ready;
            slot.state = state;
            changed
        };
        if changed {
            self.0.metrics.set(Gauge::Ready { check: check.name }, ready);
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Slot>> {
        // Every change is a single assignment, so a poisoned lock protects consistent data.
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// Sets the check ready.
    pub fn ready(&self) {
        let Self { readiness, name, .. } = self;
        if readiness.set(self, None) {
            tracing::info!(check = name, "readiness check {name}: ready");
        }
    }

    /// Sets the check not ready, with a reason for operators. `/readyz` serves the reason: no secrets.
    pub fn not_ready(&self, reason: impl Into<String>) {
        let (Self { readiness, name, .. }, reason) = (self, reason.into());
        if readiness.set(self, Some(reason.clone())) {
            tracing::warn!(check = name, "readiness check {name}: not ready: {reason}");
        }
    }

    /// Sets the check not ready because its owner stops as intended, which is no fault: logs nothing.
    pub fn stopping(&self, reason: impl Into<String>) {
        self.readiness.set(self, Some(reason.into()));
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        // No log line: the supervisor of the failed task, or the drain, has logged the cause.
        self.readiness.set(self, Some("stopped".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(readiness: &Readiness, name: &str) -> Option<String> {
        readiness.states()[name].reason.clone()
    }

    #[test]
    fn a_check_is_not_ready_until_its_owner_sets_it_ready() {
        let readiness = Readiness::new(Metrics::new());
        let check = readiness.check("redis");
        assert_eq!(reason(&readiness, "redis").as_deref(), Some("starting"));
        check.ready();
        assert!(readiness.states()["redis"].ready);
        check.not_ready("connection refused");
        assert_eq!(reason(&readiness, "redis").as_deref(), Some("connection refused"));
    }

    #[test]
    fn a_check_without_an_owner_is_not_ready() {
        let readiness = Readiness::new(Metrics::new());
        let check = readiness.check("consumer");
        check.ready();
        drop(check);
        assert_eq!(reason(&readiness, "consumer").as_deref(), Some("stopped"));
    }

    #[test]
    fn a_former_owner_cannot_change_a_check() {
        let readiness = Readiness::new(Metrics::new());
        let former = readiness.check("consumer");
        let present = readiness.check("consumer");
        present.ready();
        former.not_ready("late");
        drop(former);
        assert!(readiness.states()["consumer"].ready);
    }

    #[test]
    fn the_gauge_follows_the_check() {
        let metrics = Metrics::new();
        let check = Readiness::new(metrics.clone()).check("broker");
        assert!(metrics.render().contains("verbatim_ready{check=\"broker\"} 0"));
        check.ready();
        assert!(metrics.render().contains("verbatim_ready{check=\"broker\"} 1"));
    }
}
