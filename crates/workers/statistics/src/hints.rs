//! The work of `conversation.statistics`: events say that statistics may be stale.
//!
//! What is stale is stored in the archive; an event only makes the next look come sooner. So it is
//! acknowledged at once, and losing one delays the numbers by one interval.

use std::sync::Arc;
use std::time::Duration;

use archive::Archive;
use broker::{Delivery, Handler};
use conversation::Statistics;
use domain::causes::with_causes;
use domain::event::Event;
use domain::failure::{DeadLetterReason, Done, Outcome, Refusal, Unavailable};
use service::Service;
use tokio::sync::Notify;

/// Takes events as hints.
#[derive(Clone)]
pub(crate) struct Hints {
    archive: Archive,
    asked: Arc<Notify>,
}

/// After a hint, how long others may join it: a burst of closes is one refresh.
const GATHER: Duration = Duration::from_millis(50);

impl Hints {
    pub(crate) fn new(archive: Archive) -> Self {
        Self { archive, asked: Arc::new(Notify::new()) }
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
                while !stopping.is_cancelled() {
                    let refreshed = tokio::select! {
                        _ = ticks.tick() => statistics.refresh().await.map(drop),
                        () = asked.notified() => {
                            tokio::time::sleep(GATHER).await;
                            statistics.refresh_conversations().await.map(drop)
                        }
                        () = stopping.cancelled() => break,
                    };
                    if let Err(error) = refreshed {
                        let error = with_causes(&error);
                        tracing::warn!(error, "statistics were not refreshed; the next look will");
                    }
                }
                Ok(())
            }
        });
    }
}

impl Handler for Hints {
    type Item = Event;

    fn decode(&self, delivery: &Delivery) -> Result<Event, Refusal> {
        serde_json::from_slice(&delivery.body).map_err(|error| Refusal {
            reason: DeadLetterReason::Schema,
            field: None,
            detail: format!("the body is no event of the fleet: {error}"),
        })
    }

    async fn handle(&self, events: &[Event]) -> Result<Vec<Outcome>, Unavailable> {
        self.asked.notify_one();
        Ok(vec![Outcome::Done(Done::Applied); events.len()])
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        self.archive.probe().await.map_err(Into::into)
    }
}
