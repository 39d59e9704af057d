//! Retrying in place what two transactions did to each other.
//!
//! A deadlock or lock time-out is nobody's fault: the same statement succeeds a moment later. It
//! costs a message none of its attempts. Bounded: what stays locked for so long is an outage.

use std::future::Future;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use database::Error;
use domain::failure::FailureClass;
use metrics::{Counter, Metrics, TransactionRetry};
use tokio::time::Instant;

/// For how long a transient failure is retried: longer than any transaction of the fleet holds its
/// locks. No try begins later; one that waits for a lock may take `lock_timeout` more.
const OVERDUE_AFTER: Duration = Duration::from_secs(3);

/// Runs `work`, again and again while it fails in a transient way; for some seconds.
pub async fn retried<T, F>(metrics: &Metrics, work: impl FnMut() -> F) -> Result<T, Error>
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
            error.class() == FailureClass::Transient && began.elapsed() < OVERDUE_AFTER
        })
        .notify(|_, _| metrics.add(Counter::TransactionRetries { class }, 1))
        .await
}
