//! Suspects: messages that were redelivered to their queue too often, handled apart from it.
//!
//! A message that crashes the process adds one to the redelivery count of every unacknowledged message,
//! not only to its own. So most suspects are at no fault. In the suspect queue their counts start at 0,
//! and they are taken with `basic.get` while this consumer handles nothing else and its dependencies are
//! available:
//!
//! | redelivery count in the suspect queue | handled |
//! |---|---|
//! | 0 | together with others of count 0 |
//! | 1 or more | alone, so that only a message at fault gets more redeliveries |
//! | too many | not: it is dead-lettered |
//!
//! Only a crash of the process may add to a suspect's count:
//!
//! | what happens | what is done with the suspects |
//! |---|---|
//! | a dependency is unavailable | held like a batch |
//! | the hold reaches `hold_limit`, or a shutdown | requeued as new copies, whose counts start at 0 |
//! | RabbitMQ requeued them (a lost connection) while this process lived | at its next delivery each is requeued as a new copy |

use std::time::Duration;

use domain::failure::Dependency;
use domain::failure_policy::SUSPECTS_TOGETHER;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use metrics::DeliveryOutcome;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::acknowledgement::acknowledge;
use super::batch::{Batch, Lane, Received};
use super::end::End;
use super::outcome_counts::OutcomeCounts;
use super::settings::ConsumerState;
use super::settlement::publish;
use super::shared::Shared;
use crate::backoff::{Backoff, pause};
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
    let began = Instant::now();
    let mut suspects = Suspects { shared, queue, channel: &channel, shutdown, unacked: Vec::new() };
    let mut redelivered = None;
    let mut handled = 0;
    let result = async {
        while redelivered.is_some()
            || (began.elapsed() < MAX_SUSPECT_DURATION
                && suspects.is_available(Dependency::PostgreSql).await)
        {
            let group = suspects.take(&mut redelivered).await?;
            if group.is_empty() {
                break;
            }
            let messages = group.len();
            suspects.handle(group).await?;
            handled += messages;
        }
        Ok(())
    };
    let result = result.await;
    // RabbitMQ requeues them because this channel closes.
    suspects.unacked.iter().for_each(|id| shared.broker_requeues.record(id));
    if handled > 0 {
        shared.observer.suspects_handled(queue, handled, began.elapsed());
    }
    result
}

fn requeued(suspects: usize) -> OutcomeCounts {
    let mut counts = OutcomeCounts::default();
    (0..suspects).for_each(|_| counts.add(DeliveryOutcome::Requeued));
    counts
}

/// A suspect queue and the channel on which its messages are taken.
struct Suspects<'a, H> {
    shared: &'a Shared<H>,
    queue: &'static str,
    channel: &'a lapin::Channel,
    shutdown: &'a CancellationToken,
    /// The ids of those that were taken and are not acknowledged, where they have one.
    unacked: Vec<String>,
}

impl<H: Handler> Suspects<'_, H> {
    /// Takes the next suspects to handle: one that was redelivered, or several that were not. `redelivered`
    /// keeps one that was taken behind such a group; it is the next.
    async fn take(&mut self, redelivered: &mut Option<Received>) -> Result<Vec<Received>, End> {
        if let Some(alone) = redelivered.take() {
            return Ok(vec![alone]);
        }
        let settings = &self.shared.settings;
        let (most, most_bytes) =
            (settings.batch_size.min(SUSPECTS_TOGETHER), settings.batch_bytes());
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.is_empty() || (group.len() < most && bytes < most_bytes) {
            let get = self.channel.basic_get(self.queue.into(), BasicGetOptions::default());
            let Some(message) = request("get a suspect", get).await? else { break };
            let tag = message.delivery.delivery_tag;
            let delivery = Delivery::from_amqp(message.delivery, self.shared.clock.now());
            self.unacked.extend(id_of(&delivery));
            bytes += delivery.body.len();
            let was_redelivered = delivery.delivery_count() > 0;
            let received = Received { tag, delivery };
            if was_redelivered && !group.is_empty() {
                *redelivered = Some(received);
                break;
            }
            group.push(received);
            if was_redelivered {
                break;
            }
        }
        Ok(group)
    }

    /// Handles suspects that [`take`](Self::take) returned, and acknowledges them.
    async fn handle(&mut self, group: Vec<Received>) -> Result<(), End> {
        let Some(last) = group.last() else { return Ok(()) };
        let tag = last.tag;
        let count = group.len();
        let recorded = match group.as_slice() {
            [alone] => id_of(&alone.delivery).filter(|id| self.shared.broker_requeues.contains(id)),
            _ => None,
        };
        let ids: Vec<String> = group.iter().filter_map(|it| id_of(&it.delivery)).collect();
        let batch = Batch::new(group, Lane::Suspects);
        let counts = match recorded {
            Some(_) if self.requeue_as_new_copies(&batch).await => requeued(count),
            _ => self.settle(batch).await?,
        };
        self.shared.observer.settled(&counts);
        let options = BasicAckOptions { multiple: true };
        if !acknowledge(self.channel, tag, options).await {
            self.shared.observer.acks_lost(count);
            return Err(End::ChannelClosed);
        }
        self.unacked.retain(|id| !ids.contains(id));
        ids.iter().for_each(|id| self.shared.broker_requeues.remove(id));
        Ok(())
    }

    /// Handles a batch, and holds it while a dependency is unavailable.
    async fn settle(&self, mut batch: Batch<H::Item>) -> Result<OutcomeCounts, End> {
        let Self { shared, shutdown, .. } = self;
        let count = batch.len();
        let (since, mut backoff) = (Instant::now(), Backoff::new());
        let mut held_for = None;
        loop {
            let dependency = match batch.work(shared).await {
                Ok(finished) => {
                    if let Some(dependency) = held_for {
                        shared.observer.hold_ended(dependency, since.elapsed());
                        shared.state.send_replace(ConsumerState::Consuming);
                    }
                    return Ok(finished.counts);
                }
                Err((held, unavailable)) => {
                    batch = held;
                    shared.observer.held(&unavailable, count, &shared.settings);
                    unavailable.dependency
                }
            };
            held_for = Some(dependency);
            shared.state.send_replace(ConsumerState::Holding(dependency));
            self.wait_for(dependency, since, &mut backoff).await?;
            // When RabbitMQ does not confirm the copies either, the suspects are held further.
            if self.hold_must_end(since) && self.requeue_as_new_copies(&batch).await {
                let shutdown = shutdown.is_cancelled();
                shared.observer.suspects_requeued(count, dependency, since.elapsed(), shutdown);
                shared.state.send_replace(ConsumerState::Consuming);
                return Ok(requeued(count));
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

    async fn requeue_as_new_copies(&self, batch: &Batch<H::Item>) -> bool {
        let copies = batch.new_copies(self.queue, self.shared);
        publish(copies, &self.shared.publisher).await.is_ok()
    }
}

fn id_of(delivery: &Delivery) -> Option<String> {
    delivery.envelope().message_id.map(str::to_owned)
}
