//! Work that nobody waits for: closing, session events, statistics.
//!
//! It shares its servers with the save path, which somebody does wait for. So a process does it in small
//! pieces, one at a time, and rests after each in proportion to what it took: on slow or busy servers the
//! pieces take longer, and so do the rests.

use std::sync::Arc;
use std::time::Duration;

use metrics::Metrics;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::transient::retried;

/// Below this a process rests for almost all of the time, and holds its claims meanwhile.
const LEAST_SHARE: f64 = 0.01;

/// The longest rest. A piece that took longer waited for a server that was away.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The part of a process's time in which it does background work. Clones take turns.
#[derive(Debug, Clone)]
pub struct Background {
    share: f64,
    turn: Arc<Mutex<()>>,
}

/// A number that is no part of the time.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the share of background work is 0.01 to 1; {0} is not")]
pub struct InvalidShare(f64);

impl Background {
    /// Background work in a share of the time; with 1 it never rests.
    ///
    /// # Errors
    /// The share is less than 0.01, or more than 1.
    pub fn new(share: f64) -> Result<Self, InvalidShare> {
        if (LEAST_SHARE..=1.0).contains(&share) {
            Ok(Self { share, turn: Arc::default() })
        } else {
            Err(InvalidShare(share))
        }
    }

    /// Background work that never rests.
    #[must_use]
    pub fn unthrottled() -> Self {
        Self { share: 1.0, turn: Arc::default() }
    }

    /// Does a piece of work when it is its turn, and rests.
    pub(crate) async fn throttled<T>(&self, work: impl Future<Output = T>) -> T {
        let _turn = self.turn.lock().await;
        self.throttled_without_turn(work).await
    }

    /// Does a piece of work for which another server is waited for, and rests. It takes no turn, so that
    /// others go on while that server is away.
    pub(crate) async fn throttled_without_turn<T>(&self, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        let rest = self.rest(began.elapsed());
        if !rest.is_zero() {
            sleep(rest).await;
        }
        done
    }

    /// [`Self::throttled`] in PostgreSQL, again where it failed in a transient way.
    pub(crate) async fn step<T, F>(
        &self,
        metrics: &Metrics,
        work: impl FnMut() -> F,
    ) -> Result<T, database::Error>
    where
        F: Future<Output = database::Result<T>>,
    {
        self.throttled(retried(metrics, work)).await
    }

    fn rest(&self, worked: Duration) -> Duration {
        worked.min(LONGEST_REST).mul_f64(1.0 / self.share - 1.0).min(LONGEST_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_part() {
        for share in [0.0, 0.009, -0.5, 1.1, f64::NAN, f64::INFINITY] {
            let refused = Background::new(share).unwrap_err();
            assert!(refused.to_string().contains(&share.to_string()), "{refused}");
        }
        Background::new(1.0).unwrap();
    }

    #[test]
    fn a_rest_leaves_the_others_their_share() {
        let worked = Duration::from_millis(10);
        assert_eq!(Background::unthrottled().rest(worked), Duration::ZERO);
        let quarter = Background::new(0.25).unwrap();
        assert_eq!(quarter.rest(worked), Duration::from_millis(30));
        assert_eq!(quarter.rest(Duration::from_secs(30)), LONGEST_REST);
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_take_turns_and_each_is_followed_by_its_rest() {
        let half = Background::new(0.5).unwrap();
        let began = Instant::now();
        let throttled = |background: Background| async move {
            let work = async {
                let from = began.elapsed();
                sleep(Duration::from_millis(10)).await;
                (from, began.elapsed())
            };
            background.throttled(work).await
        };
        let (first, second) = tokio::join!(throttled(half.clone()), throttled(half));
        let ms = Duration::from_millis;
        assert_eq!(first, (ms(0), ms(10)));
        assert_eq!(second, (ms(20), ms(30)));
    }
}
