//! Suspects: messages that were redelivered to their queue too often, handled one at a time.
//!
//! A message that crashes the process adds one to the redelivery count of every unacknowledged message,
//! not only to its own. In the suspect queue only the message at fault gets redeliveries: suspects are
//! taken one at a time with `basic.get`, while this consumer handles nothing else and its dependencies
//! are available. A suspect that is redelivered too often is dead-lettered.
//!
//! So only a crash of the process may add to a suspect's count:
//!
//! | what happens | what is done with the suspect |
//! |---|---|
//! | a dependency is unavailable | held like a batch |
//! | the hold reaches `hold_limit`, or a shutdown | requeued as a new copy, whose count starts at 0 |
//! | RabbitMQ requeued it (a lost connection) while this process lived | at its next delivery requeued as a new copy |

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::failure::Dependency;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use metrics::DeliveryOutcome;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::acknowledgement::acknowledge;
use super::batch::{Batch, Lane, Received};
use super::observer::OutcomeCounts;
use super::session::End;
use super::settlement::publish;
use super::{ConsumerState, Shared, pause};
use crate::backoff::Backoff;
use crate::connection::{Connection, request};
use crate::{Delivery, Handler};

/// How long suspects may be handled at a time, while the dependencies are available. The work queue is not
/// consumed meanwhile.
const MAX_SUSPECT_DURATION: Duration = Duration::from_secs(2);

/// Handles suspects until there are none, [`MAX_SUSPECT_DURATION`] is over, a dependency is unavailable, or
/// the shutdown begins.
pub(super) async fn handle_suspects<H: Handler>(
    shared: &Shared<H>,
    connection: &Connection,
    shutdown: &CancellationToken,
) -> Result<(), End> {
    let Some(queue) = shared.source.suspect() else { return Ok(()) };
    let channel = connection.channel().await?;
    let suspects = Suspects { shared, queue, channel: &channel, shutdown };
    let began = Instant::now();
    while began.elapsed() < MAX_SUSPECT_DURATION
        && suspects.is_available(Dependency::PostgreSql).await
    {
        let get = channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(message) = request("get a suspect", get).await? else { break };
        let tag = message.delivery.delivery_tag;
        let delivery = Delivery::from_amqp(message.delivery, shared.clock.now());
        let id = delivery.envelope().message_id.map(str::to_owned);
        let suspect = Batch::new(vec![Received { tag, delivery }], Lane::Suspects);
        let recorded = id.as_deref().filter(|id| shared.broker_requeues.contains(id));
        let settled = if recorded.is_some() && suspects.requeue_as_new_copy(&suspect).await {
            shared.broker_requeues.remove(recorded);
            Ok(one_requeued())
        } else {
            suspects.settle(suspect).await
        };
        let counts = settled.inspect_err(|_| shared.broker_requeues.record(id.as_deref()))?;
        shared.observer.settled(&counts);
        if !acknowledge(&channel, tag, BasicAckOptions::default()).await {
            shared.broker_requeues.record(id.as_deref());
            shared.observer.acks_lost(1);
            return Err(End::ChannelClosed);
        }
    }
    Ok(())
}

/// The ids of suspects that RabbitMQ requeues without a crash of this process: their channel closed before
/// they were acknowledged.
#[derive(Default)]
pub(super) struct BrokerRequeues(Mutex<VecDeque<String>>);

/// The most ids that are kept; the oldest are dropped. There is one per lost connection, so far fewer are
/// expected.
const MAX_BROKER_REQUEUES: usize = 1_000;

impl BrokerRequeues {
    /// Adds an id, once.
    fn record(&self, id: Option<&str>) {
        let mut ids = self.ids();
        if let Some(id) = id.filter(|id| !ids.iter().any(|it| it == id)) {
            ids.push_back(id.to_owned());
        }
        if ids.len() > MAX_BROKER_REQUEUES {
            ids.pop_front();
        }
    }

    fn contains(&self, id: &str) -> bool {
        self.ids().iter().any(|it| it == id)
    }

    fn remove(&self, id: Option<&str>) {
        self.ids().retain(|it| Some(it.as_str()) != id);
    }

    fn ids(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn one_requeued() -> OutcomeCounts {
    let mut counts = OutcomeCounts::default();
    counts.add(DeliveryOutcome::Requeued);
    counts
}

/// A suspect queue and the channel on which its messages are taken.
struct Suspects<'a, H> {
    shared: &'a Shared<H>,
    queue: &'static str,
    channel: &'a lapin::Channel,
    shutdown: &'a CancellationToken,
}

impl<H: Handler> Suspects<'_, H> {
    /// Handles one suspect, and holds it while a dependency is unavailable.
    async fn settle(&self, mut suspect: Batch<H::Item>) -> Result<OutcomeCounts, End> {
        let Self { shared, shutdown, .. } = self;
        let (since, mut backoff) = (Instant::now(), Backoff::new());
        let mut held_for = None;
        loop {
            let dependency = match suspect.work(shared).await {
                Ok(finished) => {
                    if let Some(dependency) = held_for {
                        shared.observer.hold_ended(dependency, since.elapsed());
                        shared.state.send_replace(ConsumerState::Consuming);
                    }
                    return Ok(finished.counts);
                }
                Err((held, unavailable)) => {
                    suspect = held;
                    shared.observer.held(&unavailable, 1, &shared.settings);
                    unavailable.dependency
                }
            };
            held_for = Some(dependency);
            shared.state.send_replace(ConsumerState::Holding(dependency));
            self.wait_for(dependency, since, &mut backoff).await?;
            // When RabbitMQ does not confirm the copy either, the suspect is held further.
            if self.hold_must_end(since) && self.requeue_as_new_copy(&suspect).await {
                let shutdown = shutdown.is_cancelled();
                shared.observer.suspect_requeued(dependency, since.elapsed(), shutdown);
                shared.state.send_replace(ConsumerState::Consuming);
                return Ok(one_requeued());
            }
            if shutdown.is_cancelled() {
                return Err(End::Drained);
            }
        }
    }

    /// Probes until the dependency is available, or the hold must end.
    async fn wait_for(
        &self,
        dependency: Dependency,
        since: Instant,
        backoff: &mut Backoff,
    ) -> Result<(), End> {
        loop {
            pause(backoff.next_pause(), self.shutdown).await;
            if !self.channel.status().connected() {
                return Err(End::ChannelClosed);
            }
            if self.hold_must_end(since) || self.is_available(dependency).await {
                return Ok(());
            }
        }
    }

    fn hold_must_end(&self, since: Instant) -> bool {
        since.elapsed() >= self.shared.settings.hold_limit || self.shutdown.is_cancelled()
    }

    async fn is_available(&self, dependency: Dependency) -> bool {
        let probe = self.shared.probe(dependency);
        self.shutdown.run_until_cancelled(probe).await.is_some_and(|result| result.is_ok())
    }

    async fn requeue_as_new_copy(&self, suspect: &Batch<H::Item>) -> bool {
        let copy = suspect.new_copy(self.queue, self.shared).map(Arc::new);
        publish(copy.into_iter().collect(), &self.shared.publisher).await.is_ok()
    }
}
