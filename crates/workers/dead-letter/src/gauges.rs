//! Gauges of queues, dead letters and conversations of the whole fleet. Every replica exports the same values, so
//! that no single replica is needed: alert rules use `max by`.
//!
//! A gauge keeps its last value. So the time of the last count is exported too: it distinguishes a value that
//! could not be counted from one that did not change.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use broker::inspect::Inspector;
use broker::topology::WorkQueue;
use database::Database;
use domain::causes::with_causes;
use domain::clock::Clock;
use domain::failure::DeadLetterReason;
use domain::repeated::RepeatedFailure;
use metrics::{Counted, DeadLetterState, Gauge, Metrics, QueueState};
use service::Service;
use worker::Stores;

pub(crate) fn run(service: &Service, stores: &Stores, grace: Duration, interval: Duration) {
    let stores = stores.clone();
    let (metrics, clock) = (service.metrics().clone(), service.clock().clone());
    service.supervise("gauges", move |stopping| {
        let (database, metrics, clock) = (stores.database.clone(), metrics.clone(), clock.clone());
        let inspector = Inspector::new(stores.endpoints.clone());
        let mut queues = Queues { inspector, missing: BTreeSet::new() };
        async move {
            let (mut queues_failing, mut rows_failing) =
                <(RepeatedFailure, RepeatedFailure)>::default();
            while !stopping.is_cancelled() {
                let result = queues.count(&metrics).await.map_err(|error| with_causes(&error));
                if report("queues", result, &mut queues_failing, interval) {
                    counted(Counted::Queues, &metrics, &clock);
                }
                let result = count_rows(&database, &metrics, grace).await;
                let result = result.map_err(|error| with_causes(&error));
                if report("dead letters and conversations", result, &mut rows_failing, interval) {
                    counted(Counted::Rows, &metrics, &clock);
                }
                stopping.run_until_cancelled(tokio::time::sleep(interval)).await;
            }
            Ok(())
        }
    });
}

/// Logs how a count ended, as far as that is news. True if it succeeded.
fn report(
    what: &'static str,
    result: Result<(), String>,
    failing: &mut RepeatedFailure,
    interval: Duration,
) -> bool {
    let now = Instant::now();
    match result {
        Ok(()) => {
            if let Some(failed_for) = failing.succeeded(now) {
                tracing::info!("{what} counted again after {:.1} s", failed_for.as_secs_f32());
            }
            true
        }
        Err(error) => {
            if failing.failed(now) {
                tracing::warn!(
                    error,
                    "{what} not counted, their gauges keep the last values; next count in \
                     {interval:?} (VERBATIM_GAUGE_INTERVAL)"
                );
            } else {
                tracing::debug!(error, "{what} not counted");
            }
            false
        }
    }
}

/// RabbitMQ's queues, and which of them were missing at the last count.
struct Queues {
    inspector: Inspector,
    missing: BTreeSet<&'static str>,
}

impl Queues {
    async fn count(&mut self, metrics: &Metrics) -> Result<(), broker::Error> {
        for (queue, depth) in self.inspector.depths().await? {
            match depth {
                Some(_) if self.missing.remove(queue) => {
                    tracing::info!(queue, "queue exists again");
                }
                None if self.missing.insert(queue) => {
                    tracing::error!(queue, "the queue is missing: run `verbatim setup`");
                }
                Some(_) | None => {}
            }
            metrics.set(Gauge::QueueExists { queue }, f64::from(u8::from(depth.is_some())));
            let (ready, consumers) = depth.map_or((0, 0), |depth| (depth.ready, depth.consumers));
            let state = QueueState::Ready;
            metrics.set(Gauge::QueueMessages { queue, state }, f64::from(ready));
            metrics.set(Gauge::QueueConsumers { queue }, f64::from(consumers));
            if let Some(work_queue) = WorkQueue::ALL.into_iter().find(|it| it.dlq() == queue) {
                let (queue, reason) = (work_queue.name(), DeadLetterState::InQueue);
                metrics.set(Gauge::DeadLetters { queue, reason }, f64::from(ready));
            }
        }
        Ok(())
    }
}

fn counted(what: Counted, metrics: &Metrics, clock: &Clock) {
    let now = Duration::from_micros(clock.now().micros().unsigned_abs());
    metrics.set(Gauge::CountedAt { what }, now.as_secs_f64());
}

async fn count_rows(
    database: &Database,
    metrics: &Metrics,
    grace: Duration,
) -> Result<(), database::Error> {
    let open = database.open_dead_letters().await?;
    for queue in WorkQueue::ALL {
        for reason in DeadLetterReason::ALL {
            let dead_letters = open
                .iter()
                .find(|row| row.queue == queue.name() && row.reason == reason.as_str())
                .map_or(0, |row| row.dead_letters);
            let gauge =
                Gauge::DeadLetters { queue: queue.name(), reason: DeadLetterState::Stored(reason) };
            metrics.set(gauge, as_value(dead_letters));
        }
    }
    let (active, lag) = database.close_backlog(grace).await?;
    metrics.set(Gauge::ConversationsActive, as_value(active));
    metrics.set(Gauge::CloseLag, lag.as_secs_f64());
    metrics.set(Gauge::WordsLag, database.words_lag().await?.as_secs_f64());
    let checkpoint_lag = database.audit_checkpoint_lag().await?;
    metrics.set(Gauge::AuditCheckpointLag, checkpoint_lag.as_secs_f64());
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows lie far below 2^52")]
fn as_value(count: i64) -> f64 {
    count as f64
}
