//! When a failure that repeats is worth a log line: when it begins, once a minute while it lasts, and when
//! it ends. Without this, an outage fills the log with one line for each attempt.

use std::time::{Duration, Instant};

/// How often a failure that lasts is logged again.
const INTERVAL: Duration = Duration::from_mins(1);

/// The failures of one repeated action since its last success.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepeatedFailure {
    /// When the first failure was, and when the last one that was to be logged.
    current: Option<(Instant, Instant)>,
}

impl RepeatedFailure {
    /// The action failed. True if that should be logged: for the first failure, and then once a minute.
    #[must_use]
    pub fn failed(&mut self, now: Instant) -> bool {
        let (since, logged) = self.current.unwrap_or((now, now));
        let log = self.current.is_none() || now.saturating_duration_since(logged) >= INTERVAL;
        if log {
            self.current = Some((since, now));
        }
        log
    }

    /// The action succeeded. Returns how long it had failed, if it had.
    #[must_use]
    pub fn succeeded(&mut self, now: Instant) -> Option<Duration> {
        self.current.take().map(|(since, _)| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_repeats_is_logged_first_and_then_once_a_minute() {
        let (mut failure, start) = (RepeatedFailure::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let logged: Vec<u64> = (0..150).filter(|second| failure.failed(after(*second))).collect();
        assert_eq!(logged, [0, 60, 120]);
    }

    #[test]
    fn a_success_ends_the_failure_and_the_next_one_is_logged_at_once() {
        let (mut failure, start) = (RepeatedFailure::default(), Instant::now());
        assert_eq!(failure.succeeded(start), None);
        assert!(failure.failed(start));
        let later = start + Duration::from_secs(7);
        assert_eq!(failure.succeeded(later), Some(Duration::from_secs(7)));
        assert_eq!(failure.succeeded(later), None);
        assert!(failure.failed(later));
    }
}
