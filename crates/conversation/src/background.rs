//! Background work: closing, session events, statistics.
//!
//! It shares its servers with the save path, which has priority. So a process does background work in
//! small steps, one at a time, and pauses after each step in proportion to the time it took: on slow or
//! busy servers the steps take longer, and so do the pauses.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// With a smaller share a process pauses for almost all of the time, and holds its claims meanwhile.
const MIN_SHARE: f64 = 0.01;

/// The longest pause. A step that took longer waited for an unavailable server.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The share of a process's time that background work may use. Clones share one turn: at most one of
/// them works at a time.
#[derive(Debug, Clone)]
pub struct Background {
    share: f64,
    turn: Arc<Mutex<()>>,
    stopping: CancellationToken,
}

impl Background {
    /// Throttled background work: `share` of the time it works, the rest it pauses. 1 means no pauses. The
    /// setting accepts 0.01 to 1; another share counts as the nearest of these. Once the token is cancelled, nothing
    /// pauses: a process that stops has little time for what was delivered to it.
    #[must_use]
    pub fn new(share: f64, stopping: CancellationToken) -> Self {
        Self { share: share.clamp(MIN_SHARE, 1.0), turn: Arc::default(), stopping }
    }

    /// Without pauses.
    #[must_use]
    pub fn unthrottled() -> Self {
        Self::new(1.0, CancellationToken::new())
    }

    /// With the same share, and a turn that other background work does not wait for.
    pub(crate) fn with_a_turn_of_its_own(&self) -> Self {
        Self { turn: Arc::default(), ..self.clone() }
    }

    /// Waits for its turn, does one step of work, then pauses while it still has the turn.
    pub(crate) async fn throttled<T>(&self, work: impl Future<Output = T>) -> T {
        let _turn = self.turn.lock().await;
        self.throttled_without_turn(work).await
    }

    /// Does one step of work on a server other than PostgreSQL, or one that may last for minutes, then pauses. It
    /// takes no turn, so other background work continues meanwhile.
    pub(crate) async fn throttled_without_turn<T>(&self, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        let pause = self.pause(began.elapsed());
        if !pause.is_zero() {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stopping.cancelled() => {}
            }
        }
        done
    }

    /// How long to pause after a step that took this long.
    fn pause(&self, worked: Duration) -> Duration {
        worked.min(MAX_PAUSE).mul_f64(1.0 / self.share - 1.0).min(MAX_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn background(share: f64) -> Background {
        Background::new(share, CancellationToken::new())
    }

    #[test]
    fn a_share_outside_its_range_counts_as_the_nearest_one_within() {
        let share = |share| background(share).share;
        assert_eq!([-0.5, 0.0].map(share), [MIN_SHARE; 2]);
        assert_eq!([1.1, f64::INFINITY].map(share), [1.0; 2]);
    }

    #[test]
    fn a_pause_is_proportional_to_the_work_before_it() {
        let worked = Duration::from_millis(10);
        assert_eq!(background(1.0).pause(worked), Duration::ZERO);
        let quarter = background(0.25);
        assert_eq!(quarter.pause(worked), Duration::from_millis(30));
        assert_eq!(quarter.pause(Duration::from_secs(30)), MAX_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn steps_take_turns_and_each_is_followed_by_its_pause() {
        let half = background(0.5);
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

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stops_does_not_pause() {
        let stopping = CancellationToken::new();
        let hundredth = Background::new(0.01, stopping.clone());
        let step = || hundredth.throttled(sleep(Duration::from_millis(10)));
        let began = Instant::now();
        step().await;
        assert_eq!(began.elapsed(), Duration::from_millis(10) + Duration::from_millis(990));
        let began = Instant::now();
        tokio::join!(step(), async { stopping.cancel() });
        step().await;
        assert_eq!(began.elapsed(), Duration::from_millis(20));
    }
}
