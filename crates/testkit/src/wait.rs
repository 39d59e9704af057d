//! Bounded waiting that tells the last state it saw, so that a failure explains itself.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Between two attempts: short against what is waited for, long against a busy core.
const PAUSE: Duration = Duration::from_millis(20);

/// What was waited for did not come.
#[derive(Debug)]
pub struct TimedOut {
    what: String,
    limit: Duration,
    last: String,
}

impl Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, limit, last } = self;
        write!(f, "waited {limit:?} for {what}; last seen: {last}")
    }
}

impl std::error::Error for TimedOut {}

/// Tries again and again until `attempt` is `Ok`; its `Err` is the state it saw instead.
///
/// # Errors
/// [`TimedOut`] after `limit`, also when one attempt hangs.
pub async fn until<T>(
    what: impl Into<String>,
    limit: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, TimedOut> {
    let deadline = Instant::now() + limit;
    let mut last = "nothing".to_owned();
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(state)) => last = state,
            Err(_) => {
                return Err(TimedOut {
                    what: what.into(),
                    limit,
                    last: format!("{last}; then an attempt hung"),
                });
            }
        }
        if Instant::now() + PAUSE > deadline {
            return Err(TimedOut { what: what.into(), limit, last });
        }
        sleep(PAUSE).await;
    }
}

/// [`until`] for tests: the failure is the test's.
///
/// # Panics
/// When the limit is reached.
pub async fn eventually<T>(
    what: impl Into<String>,
    limit: Duration,
    attempt: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    match until(what, limit, attempt).await {
        Ok(value) => value,
        Err(timed_out) => panic!("{timed_out}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_with_the_first_success() {
        let mut left = 3;
        let value = eventually("zero", Duration::from_secs(5), async || {
            left -= 1;
            if left == 0 { Ok("done") } else { Err(format!("{left} left")) }
        })
        .await;
        assert_eq!(value, "done");
    }

    #[tokio::test]
    async fn a_time_out_names_the_last_state() {
        let failure = until::<()>("rain", Duration::from_millis(30), async || Err("sun".into()))
            .await
            .unwrap_err();
        assert_eq!(failure.to_string(), "waited 30ms for rain; last seen: sun");
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_is_cut_off() {
        let failure =
            until::<()>("rain", Duration::from_millis(30), async || std::future::pending().await)
                .await
                .unwrap_err();
        assert!(failure.to_string().ends_with("last seen: nothing; then an attempt hung"));
    }
}
