//! Waiting with a limit. The error contains the last state that was seen.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// The limit was reached.
#[derive(Debug)]
pub struct TimedOut {
    what: String,
    limit: Duration,
    last: String,
}

impl Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, limit, last } = self;
        write!(f, "waited {limit:?} for {what}; last state: {last}")
    }
}

impl std::error::Error for TimedOut {}

/// Repeats `attempt` until it returns `Ok`. Its `Err` describes the state that it saw instead.
///
/// # Errors
/// [`TimedOut`] after `limit`, also if a single attempt takes longer.
pub async fn until<T>(
    what: impl Into<String>,
    limit: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, TimedOut> {
    let deadline = Instant::now() + limit;
    let mut last = "none".to_owned();
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(state)) => last = state,
            Err(_) => {
                return Err(TimedOut {
                    what: what.into(),
                    limit,
                    last: format!("{last}; then an attempt did not return"),
                });
            }
        }
        if Instant::now() + PAUSE > deadline {
            return Err(TimedOut { what: what.into(), limit, last });
        }
        sleep(PAUSE).await;
    }
}

/// [`until`] for tests: panics instead of returning an error.
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
    async fn a_timeout_names_the_last_state() {
        let failure =
            until::<()>("state b", Duration::from_millis(30), async || Err("state a".into()))
                .await
                .unwrap_err();
        assert_eq!(failure.to_string(), "waited 30ms for state b; last state: state a");
    }

    #[tokio::test]
    async fn an_attempt_that_does_not_return_is_aborted() {
        let failure = until::<()>("state b", Duration::from_millis(30), async || {
            std::future::pending().await
        })
        .await
        .unwrap_err();
        assert!(failure.to_string().ends_with("last state: none; then an attempt did not return"));
    }
}
