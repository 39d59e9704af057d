//! The clock as an argument: code that needs the time gets a [`Clock`]; nothing reads the system
//! clock directly.
//!
//! The `service` crate makes the system clock; tests make one that stands still or is set by hand.

use std::sync::Arc;

use crate::time::Timestamp;

/// A clock. Clones share it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that returns what `now` returns.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The current time of this clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn clones_of_a_clock_have_the_same_time() {
        let micros = Arc::new(AtomicI64::new(1_000_000));
        let hand = Arc::clone(&micros);
        let clock = Clock::new(move || {
            Timestamp::from_micros(hand.load(Ordering::Relaxed)).expect("after 1970")
        });
        let clone = clock.clone();
        micros.store(2_000_000, Ordering::Relaxed);
        assert_eq!(clone.now(), clock.now());
        assert_eq!(clock.now().micros(), 2_000_000);
    }
}
