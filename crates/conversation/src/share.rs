//! The part of its time that background work takes.
//!
//! Closing and statistics share two servers with the save path, and nobody waits for them. So they work
//! in small pieces and rest after each, in proportion to what it took. On slow or busy servers the pieces
//! take longer, and so do the rests.

use std::time::Duration;

use metrics::Metrics;
use tokio::time::{Instant, sleep};

use crate::transient::retried;

/// The longest rest. A piece that took longer waited for a server that was away.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A part of the time: more than 0, and at most 1 for all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(f64);

/// A number that is no part of anything.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a share is more than 0 and at most 1, and {0} is not")]
pub struct InvalidShare(f64);

impl Share {
    /// All of the time: no rests.
    pub const ALL: Self = Self(1.0);

    /// A part of the time.
    ///
    /// # Errors
    /// It is not more than 0, or more than 1.
    pub fn new(part: f64) -> Result<Self, InvalidShare> {
        if part > 0.0 && part <= 1.0 { Ok(Self(part)) } else { Err(InvalidShare(part)) }
    }

    /// Does a piece of work, and rests.
    pub(crate) async fn of<T>(self, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        let rest = self.rest(began.elapsed());
        if !rest.is_zero() {
            sleep(rest).await;
        }
        done
    }

    /// Does a step in PostgreSQL, again where it failed in a transient way, and rests.
    pub(crate) async fn step<T, F>(
        self,
        metrics: &Metrics,
        work: impl FnMut() -> F,
    ) -> Result<T, archive::Error>
    where
        F: Future<Output = archive::Result<T>>,
    {
        self.of(retried(metrics, work)).await
    }

    fn rest(self, worked: Duration) -> Duration {
        let seconds = worked.as_secs_f64() * (1.0 / self.0 - 1.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_REST).min(LONGEST_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_part() {
        for part in [0.0, -0.5, 1.1, f64::NAN, f64::INFINITY] {
            assert!(Share::new(part).is_err(), "{part}");
        }
        assert_eq!(Share::new(1.0), Ok(Share::ALL));
    }

    #[test]
    fn a_rest_leaves_the_others_their_share() {
        let worked = Duration::from_millis(10);
        assert_eq!(Share::ALL.rest(worked), Duration::ZERO);
        let quarter = Share::new(0.25).unwrap();
        assert_eq!(quarter.rest(worked), Duration::from_millis(30));
        assert_eq!(quarter.rest(Duration::from_secs(30)), LONGEST_REST);
        assert_eq!(Share::new(f64::MIN_POSITIVE).unwrap().rest(worked), LONGEST_REST);
    }
}
