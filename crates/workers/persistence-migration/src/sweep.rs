//! The closing sweep: every second, until nothing is due. Beside it, what is too slow for a sweep is closed apart.
//!
//! A sweep fails if a server does. It is followed by one of a single conversation, and then by larger ones again, so
//! that few claims wait for their lease to end in an outage.

use std::time::Duration;

use conversation::Closer;
use domain::causes::with_causes;
use service::Service;
use tokio_util::sync::CancellationToken;

/// How long a running sweep, or a close apart, may continue while the process stops: enough for all but the longest
/// conversations. Another closer takes over its claims when their lease expires.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(service: &Service, closer: Closer, interval: Duration, batch: u32) {
    let apart = closer.clone();
    service.supervise("closing-sweep", move |stopping| {
        sweep(closer.clone(), interval, batch, stopping)
    });
    service.supervise("slow-closes", move |stopping| close_apart(apart.clone(), stopping));
}

async fn sweep(
    closer: Closer,
    interval: Duration,
    batch: u32,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let mut limit = batch;
    while !stopping.is_cancelled() {
        let sweep = tokio::select! {
            swept = closer.sweep(limit) => swept,
            () = stop_timeout(&stopping) => break,
        };
        match sweep {
            Ok(swept) => {
                limit = limit.saturating_mul(2).min(batch);
                // More may be due: a sweep is bounded.
                if swept.archived + swept.archived_empty + swept.reopened > 0 {
                    continue;
                }
            }
            Err(error) => {
                limit = 1;
                let error = with_causes(&error);
                tracing::warn!(
                    error,
                    "closing sweep failed; the next one, in {interval:?} (VERBATIM_CLOSE_INTERVAL), takes 1 \
                     conversation of each kind"
                );
            }
        }
        stopping.run_until_cancelled(tokio::time::sleep(interval)).await;
    }
    Ok(())
}

async fn close_apart(closer: Closer, stopping: CancellationToken) -> anyhow::Result<()> {
    while let Some(slow) = stopping.run_until_cancelled(closer.next_apart()).await {
        tokio::select! {
            () = closer.close_apart(slow) => {}
            () = stop_timeout(&stopping) => break,
        }
    }
    Ok(())
}

async fn stop_timeout(stopping: &CancellationToken) {
    stopping.cancelled().await;
    tokio::time::sleep(STOP_TIMEOUT).await;
}
