//! Gauges of what the whole fleet shares. Every replica exports the same numbers, so that none of
//! them must be alive: rules use `max by`.

use std::time::Duration;

use archive::Archive;
use broker::inspect::Inspector;
use broker::topology::WorkQueue;
use domain::causes::with_causes;
use domain::failure::DeadLetterReason;
use metrics::{Gauge, Letter, Metrics, QueueState};
use service::Service;
use worker::Stores;

/// Counts every `interval` until the process stops.
pub(crate) fn run(service: &Service, stores: &Stores, grace: Duration, interval: Duration) {
    let (stores, metrics) = (stores.clone(), service.metrics().clone());
    service.supervise("gauges", move |stopping| {
        let (archive, metrics) = (stores.archive.clone(), metrics.clone());
        let mut inspector = Inspector::new(stores.endpoints.clone());
        async move {
            while !stopping.is_cancelled() {
                if let Err(error) = count_queues(&mut inspector, &metrics).await {
                    tracing::warn!(error = with_causes(&error), "queues were not counted");
                }
                if let Err(error) = count_rows(&archive, &metrics, grace).await {
                    tracing::warn!(
                        error = with_causes(&error),
                        "dead letters and conversations were not counted"
                    );
                }
                stopping.run_until_cancelled(tokio::time::sleep(interval)).await;
            }
            Ok(())
        }
    });
}

async fn count_queues(inspector: &mut Inspector, metrics: &Metrics) -> Result<(), broker::Error> {
    for (queue, depth) in inspector.depths().await? {
        let (ready, consumers) = depth.map_or((0, 0), |depth| (depth.ready, depth.consumers));
        let state = QueueState::Ready;
        metrics.set(Gauge::QueueMessages { queue, state }, f64::from(ready));
        metrics.set(Gauge::QueueConsumers { queue }, f64::from(consumers));
        if let Some(home) = WorkQueue::ALL.into_iter().find(|home| home.dlq() == queue) {
            let (queue, reason) = (home.name(), Letter::InQueue);
            metrics.set(Gauge::DeadLetters { queue, reason }, f64::from(ready));
        }
    }
    Ok(())
}

async fn count_rows(
    archive: &Archive,
    metrics: &Metrics,
    grace: Duration,
) -> Result<(), archive::Error> {
    let open = archive.open_dead_letters().await?;
    for queue in WorkQueue::ALL {
        for reason in DeadLetterReason::ALL {
            let letters = open
                .iter()
                .find(|row| row.queue == queue.name() && row.reason == reason.as_str())
                .map_or(0, |row| row.letters);
            let gauge = Gauge::DeadLetters { queue: queue.name(), reason: Letter::Stored(reason) };
            metrics.set(gauge, as_value(letters));
        }
    }
    let (active, lag) = archive.close_backlog(grace).await?;
    metrics.set(Gauge::ConversationsActive, as_value(active));
    metrics.set(Gauge::CloseLag, lag.as_secs_f64());
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows lie far below 2^52")]
fn as_value(count: i64) -> f64 {
    count as f64
}
