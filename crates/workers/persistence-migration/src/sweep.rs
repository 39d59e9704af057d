//! The closing sweep: every second, until nothing is due.
//!
//! A sweep that fails is followed by one of a single conversation, and then by larger ones again. So one
//! conversation that cannot be closed does not delay the others.

use std::time::Duration;

use conversation::Closer;
use domain::causes::with_causes;
use service::Service;
use tokio_util::sync::CancellationToken;

/// How long a running sweep may continue while the process stops: enough for all but the longest conversations.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(service: &Service, closer: Closer, interval: Duration, batch: u32) {
    service.supervise("closing-sweep", move |stopping| {
        let closer = closer.clone();
        async move {
            let mut limit = batch;
            while !stopping.is_cancelled() {
                let sweep = tokio::select! {
                    swept = closer.sweep(limit) => swept,
                    // Another closer takes over its claims when their lease expires.
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
                            "closing sweep failed; the next one, in {interval:?} \
                             (VERBATIM_CLOSE_INTERVAL), takes 1 conversation of each kind"
                        );
                    }
                }
                stopping.run_until_cancelled(tokio::time::sleep(interval)).await;
            }
            Ok(())
        }
    });
}

async fn stop_timeout(stopping: &CancellationToken) {
    stopping.cancelled().await;
    tokio::time::sleep(STOP_TIMEOUT).await;
}
