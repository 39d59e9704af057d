//! Writes the words of archived conversations, beside the statistics: when an event triggers it, and every interval.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conversation::WordWriter;
use domain::causes::with_causes;
use domain::failure::Unavailable;
use domain::repeated::RepeatedFailure;
use service::Service;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::refresh_triggers::{DEBOUNCE, STOP_TIMEOUT};

pub(crate) fn write_when_triggered(
    service: &Service,
    words: WordWriter,
    triggered: Arc<Notify>,
    interval: Duration,
) {
    service.supervise("words", move |stopping| {
        run(words.clone(), Arc::clone(&triggered), interval, stopping)
    });
}

async fn run(
    words: WordWriter,
    triggered: Arc<Notify>,
    interval: Duration,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failure = RepeatedFailure::default();
    while !stopping.is_cancelled() {
        tokio::select! {
            _ = ticks.tick() => {}
            () = triggered.notified() => tokio::time::sleep(DEBOUNCE).await,
            () = stopping.cancelled() => break,
        }
        let stopped = async {
            stopping.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        };
        let written = tokio::select! {
            written = write(&words, &stopping) => written,
            // Another process, or the next start, writes them again.
            () = stopped => break,
        };
        let now = Instant::now();
        match written {
            Ok(()) => {
                if let Some(failed_for) = failure.succeeded(now) {
                    tracing::info!("words written again after {:.1} s", failed_for.as_secs_f32());
                }
            }
            Err(error) => {
                let error = with_causes(&error);
                if failure.failed(now) {
                    tracing::warn!(
                        error,
                        "words of archived conversations not written; trying again within {interval:?} \
                         (VERBATIM_STATISTICS_INTERVAL)"
                    );
                } else {
                    tracing::debug!(error, "words not written");
                }
            }
        }
    }
    Ok(())
}

/// Writes until none are due.
async fn write(words: &WordWriter, stopping: &CancellationToken) -> Result<(), Unavailable> {
    while !stopping.is_cancelled() && words.write().await? > 0 {}
    Ok(())
}
