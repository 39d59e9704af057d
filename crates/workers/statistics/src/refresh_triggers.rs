//! The work of `conversation.statistics`: events say that statistics may be stale.
//!
//! What is stale is stored in the archive; an event only makes the next look come sooner. So it is
//! acknowledged at once, and losing one delays the numbers by one interval.

use std::sync::Arc;
use std::time::Duration;

use broker::{Delivery, Handler};
use conversation::Statistics;
use database::Database;
use domain::causes::with_causes;
use domain::event::Event;
use domain::failure::{DeadLetterReason, Done, Outcome, Refusal, Unavailable};
use service::Service;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Takes events as hints.
#[derive(Clone)]
pub(crate) struct RefreshTriggers {
    database: Database,
    asked: Arc<Notify>,
}

/// Transactions of one refresh at most, of each kind.
const PIECES: usize = 100;

/// After a hint, how long others may join it: a burst of closes is one refresh.
const GATHER: Duration = Duration::from_millis(50);

impl RefreshTriggers {
    pub(crate) fn new(database: Database) -> Self {
        Self { database, asked: Arc::new(Notify::new()) }
    }

    /// Brings statistics up to date when an event asks for it, and every `interval` anyway.
    pub(crate) fn refresh_when_asked(
        &self,
        service: &Service,
        statistics: Statistics,
        interval: Duration,
    ) {
        let asked = Arc::clone(&self.asked);
        service.supervise("statistics", move |stopping| {
            let (statistics, asked) = (statistics.clone(), Arc::clone(&asked));
            async move {
                let mut ticks = tokio::time::interval(interval);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stopping.is_cancelled() {
                    let days = tokio::select! {
                        _ = ticks.tick() => true,
                        () = asked.notified() => {
                            tokio::time::sleep(GATHER).await;
                            false
                        }
                        () = stopping.cancelled() => break,
                    };
                    match refresh(&statistics, days, &stopping).await {
                        Ok(Left::Nothing) => {}
                        Ok(Left::Some) => asked.notify_one(),
                        Err(error) => {
                            let error = with_causes(&error);
                            tracing::warn!(
                                error,
                                "statistics were not refreshed; the next look will"
                            );
                        }
                    }
                }
                Ok(())
            }
        });
    }
}

/// What one refresh leaves to the next.
enum Left {
    Nothing,
    Some,
}

/// Brings conversations up to date, then the days if asked to. Both in bounded number: while conversations
/// close faster than they are computed, days have their turn all the same.
async fn refresh(
    statistics: &Statistics,
    days: bool,
    stopping: &CancellationToken,
) -> Result<Left, Unavailable> {
    let mut left = Left::Some;
    for _ in 0..PIECES {
        if stopping.is_cancelled() {
            return Ok(left);
        }
        if statistics.refresh_conversations().await? == 0 {
            left = Left::Nothing;
            break;
        }
    }
    for _ in 0..PIECES {
        if !days || stopping.is_cancelled() || statistics.refresh_days().await? == 0 {
            break;
        }
    }
    Ok(left)
}

impl Handler for RefreshTriggers {
    type Item = Event;

    fn decode(&self, delivery: &Delivery) -> Result<Event, Refusal> {
        serde_json::from_slice(&delivery.body).map_err(|error| Refusal {
            reason: DeadLetterReason::Schema,
            hint: None,
            field: None,
            detail: format!("the body is no event of the fleet: {error}"),
        })
    }

    async fn handle(&self, events: &[Event]) -> Result<Vec<Outcome>, Unavailable> {
        self.asked.notify_one();
        Ok(vec![Outcome::Done(Done::Applied); events.len()])
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        self.database.probe().await.map_err(Into::into)
    }
}
