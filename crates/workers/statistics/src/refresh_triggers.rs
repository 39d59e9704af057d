//! The handler of `conversation.statistics`: events trigger a refresh of the statistics.
//!
//! Which statistics are stale is stored in PostgreSQL; an event only triggers the refresh earlier. So an event is
//! acknowledged at once, and losing one delays the statistics by one interval.

use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::topology::WorkQueue;
use broker::{Delivery, Handled, Handler, Source};
use conversation::Statistics;
use domain::causes::with_causes;
use domain::event::Event;
use domain::failure::{Dependency, Done, Refusal, Unavailable};
use domain::repeated::RepeatedFailure;
use metrics::Gauge;
use service::Service;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Default)]
pub(crate) struct RefreshTriggers {
    triggered: Arc<Notify>,
    words: Arc<Notify>,
}

/// The most transactions of one refresh, of each kind.
const TRANSACTIONS: usize = 100;

/// How long what is refreshed apart may continue while the process stops. Another process, or the next start, refreshes
/// it again.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after an event the refresh starts, so that a burst of closes causes one refresh.
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(50);

impl RefreshTriggers {
    /// What is notified when words may be due.
    pub(crate) fn words(&self) -> Arc<Notify> {
        Arc::clone(&self.words)
    }

    /// Refreshes statistics when an event triggers it, and every `interval`. Beside that, what is too slow for a
    /// refresh is refreshed apart.
    pub(crate) fn refresh_when_triggered(
        &self,
        service: &Service,
        statistics: Statistics,
        interval: Duration,
    ) {
        let triggered = Arc::clone(&self.triggered);
        let (metrics, clock) = (service.metrics().clone(), service.clock().clone());
        let apart = statistics.clone();
        service
            .supervise("slow-statistics", move |stopping| refresh_apart(apart.clone(), stopping));
        service.supervise("statistics", move |stopping| {
            let (statistics, triggered) = (statistics.clone(), Arc::clone(&triggered));
            let (metrics, clock) = (metrics.clone(), clock.clone());
            async move {
                let mut ticks = tokio::time::interval(interval);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut failure = RepeatedFailure::default();
                while !stopping.is_cancelled() {
                    let days = tokio::select! {
                        _ = ticks.tick() => true,
                        () = triggered.notified() => {
                            tokio::time::sleep(DEBOUNCE).await;
                            false
                        }
                        () = stopping.cancelled() => break,
                    };
                    let refreshed = refresh(&statistics, days, &stopping).await;
                    let now = Instant::now();
                    match refreshed {
                        Ok(remaining) => {
                            let at = Duration::from_micros(clock.now().micros().unsigned_abs());
                            metrics.set(Gauge::StatisticsRefreshedAt, at.as_secs_f64());
                            if let Some(failed_for) = failure.succeeded(now) {
                                let seconds = failed_for.as_secs_f32();
                                tracing::info!("statistics refreshed again after {seconds:.1} s");
                            }
                            if remaining {
                                triggered.notify_one();
                            }
                        }
                        Err(error) => {
                            let error = with_causes(&error);
                            if !failure.failed(now) {
                                tracing::debug!(error, "statistics not refreshed");
                                continue;
                            }
                            tracing::warn!(
                                error,
                                "statistics not refreshed; trying again within {interval:?} \
                                 (VERBATIM_STATISTICS_INTERVAL)"
                            );
                        }
                    }
                }
                Ok(())
            }
        });
    }
}

/// Refreshes conversations, then the days if `days` is set. Both are bounded, so that days are refreshed although
/// conversations close faster than they are computed. Returns whether stale conversations may remain.
async fn refresh(
    statistics: &Statistics,
    days: bool,
    stopping: &CancellationToken,
) -> Result<bool, Unavailable> {
    let mut remaining = true;
    for _ in 0..TRANSACTIONS {
        if stopping.is_cancelled() {
            return Ok(remaining);
        }
        if statistics.refresh_conversations().await? == 0 {
            remaining = false;
            break;
        }
    }
    for _ in 0..TRANSACTIONS {
        if !days || stopping.is_cancelled() || statistics.refresh_days().await? == 0 {
            break;
        }
    }
    Ok(remaining)
}

async fn refresh_apart(statistics: Statistics, stopping: CancellationToken) -> anyhow::Result<()> {
    while let Some(slow) = stopping.run_until_cancelled(statistics.next_apart()).await {
        let stopped = async {
            stopping.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        };
        tokio::select! {
            () = statistics.refresh_apart(slow) => {}
            () = stopped => break,
        }
    }
    Ok(())
}

impl Handler for RefreshTriggers {
    type Item = Event;
    /// What an event triggers needs PostgreSQL; acknowledging it does not.
    const NEEDS: &'static [Dependency] = &[];

    fn source(&self) -> Source {
        Source::work(WorkQueue::Statistics)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Event, Refusal> {
        Event::decode(&delivery.body)
    }

    async fn handle(&self, events: &[Event]) -> Result<Vec<Handled>, Unavailable> {
        self.triggered.notify_one();
        self.words.notify_one();
        Ok(events.iter().map(|_| Ok(Done::Applied.into())).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        Ok(())
    }
}
