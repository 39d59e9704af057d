//! Retrying transactions that collided with another one.
//!
//! After a deadlock the same statement usually succeeds a moment later. Such a retry does not count as an attempt of a
//! message. A statement that waited for a lock until `lock_timeout` is not repeated here: another wait would be as long.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use database::Error;
use domain::causes::with_causes;
use domain::failure::FailureClass;
use domain::failure_policy::IN_PLACE_LIMIT;
use metrics::{Counter, Metrics, TransactionRetry};
use tokio::time::Instant;

/// Runs `work` and repeats it, with pauses, while it fails with [`FailureClass::Transient`] and not by a lock timeout; for
/// at most [`IN_PLACE_LIMIT`]. No try begins later.
///
/// # Errors
/// `work` failed in another way, or still failed in a transient way at the limit.
pub async fn retry_transient<T, F>(metrics: &Metrics, work: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(Duration::from_millis(500))
        .without_max_times()
        .with_jitter();
    let class = TransactionRetry::Transient;
    let began = Instant::now();
    work.retry(pauses)
        .when(|error: &Error| {
            error.class() == FailureClass::Transient
                && !error.is_time_out()
                && began.elapsed() < IN_PLACE_LIMIT
        })
        .notify(|error, _| {
            metrics.add(Counter::TransactionRetries { class }, 1);
            if let Error::SequencesAdvanced(_) = error {
                tracing::warn!(
                    error = with_causes(error),
                    "a sequence of PostgreSQL lagged behind its table, as after a logical restore; it was \
                     advanced"
                );
            }
        })
        .await
}
