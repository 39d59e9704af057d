//! The pauses between tries while something is unavailable: growing, with jitter, at most
//! [`LONGEST_PAUSE`], without an end.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use domain::failure_policy::LONGEST_PAUSE;
use tokio_util::sync::CancellationToken;

/// The first pause: shorter than the restart of a server, long enough to cause little load.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause without jitter, which adds up to the same amount.
const LONGEST: Duration = Duration::from_millis(LONGEST_PAUSE.as_secs() * 1000 / 2);

#[derive(Debug)]
pub(crate) struct Backoff {
    pauses: backon::ExponentialBackoff,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        let pauses = ExponentialBuilder::new()
            .with_min_delay(FIRST)
            .with_max_delay(LONGEST)
            .without_max_times()
            .with_jitter()
            .build();
        Self { pauses }
    }

    pub(crate) fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(LONGEST)
    }
}

/// Waits, or returns at once when the shutdown begins.
pub(crate) async fn pause(duration: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        () = shutdown.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_at_most_one_second_and_never_end() {
        let mut backoff = Backoff::new();
        assert!(backoff.next_pause() <= 2 * FIRST);
        let late: Vec<_> = (0..1000).map(|_| backoff.next_pause()).skip(10).collect();
        assert!(late.iter().all(|pause| (LONGEST..=2 * LONGEST).contains(pause)));
    }
}
