//! Retrying in place what two transactions did to each other.
//!
//! A deadlock or lock time-out is nobody's fault: the same statement succeeds a moment later. It
//! costs a message none of its attempts. Bounded: what stays locked for so long is an outage.

use std::future::Future;
use std::time::Duration;

use archive::Error;
use backon::{ExponentialBuilder, Retryable};
use domain::failure::FailureClass;
use metrics::{Counter, Metrics, TransactionRetry};

/// How often a transient failure is retried: with the pauses below some 2 s in all, longer than any
/// transaction of the fleet holds its locks.
const TIMES: usize = 8;

/// Runs `work`, again and again while it fails in a transient way.
pub(crate) async fn retried<T, F>(metrics: &Metrics, work: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(Duration::from_millis(500))
        .with_max_times(TIMES)
        .with_jitter();
    let class = TransactionRetry::Transient;
    work.retry(pauses)
        .when(|error: &Error| error.class() == FailureClass::Transient)
        .notify(|_, _| metrics.add(Counter::TransactionRetries { class }, 1))
        .await
}
