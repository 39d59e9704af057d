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
//! | 1 or more | alone; beside it only suspects of count 0 may be unacknowledged. So only a message at fault gets more redeliveries |
//! | too many | not: it is dead-lettered |
//!
//! Only a crash of the process may add to a suspect's count:
//!
//! | what happens | what is done with the suspects |
//! |---|---|
//! | a dependency is unavailable | held like a batch |
//! | the hold reaches `hold_limit`, or a shutdown | requeued as new copies, whose counts start at 0 |
//! | RabbitMQ requeued them (a lost connection) while this process lived | each is requeued as a new copy at its next delivery |

use std::sync::Arc;
use std::time::Duration;

use domain::failure::{Dependency, Unavailable};
use domain::failure_policy::SUSPECTS_TOGETHER;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use metrics::DeliveryOutcome;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::acknowledgement::{acknowledge, reject};
use super::batch::{Batch, Lane, Received, id_of};
use super::end::End;
use super::outcome_counts::OutcomeCounts;
use super::settings::ConsumerState;
use super::settlement::{Copy, OwedReply, publish, reply};
use super::shared::Shared;
use crate::Handler;
use crate::backoff::{Backoff, pause};
use crate::connection::{Connection, request};
use crate::raw_message::Moved;

/// How long suspects may be handled at a time, while the dependencies are available. The work queue is not
/// consumed meanwhile.
const MAX_SUSPECT_DURATION: Duration = Duration::from_secs(2);

/// Handles suspects until there are none, [`MAX_SUSPECT_DURATION`] is over, a dependency is unavailable, or
/// the shutdown begins.
pub(super) async fn handle_suspects<H: Handler>(
    shared: &Arc<Shared<H>>,
    connection: &Connection,
    shutdown: &CancellationToken,
) -> Result<(), End> {
    let Some(queue) = shared.source.suspect() else { return Ok(()) };
    let channel = connection.channel().await?;
    let began = Instant::now();
    let mut suspects = Suspects {
        shared,
        queue,
        channel: &channel,
        shutdown,
        unacked: Vec::new(),
        held_since: None,
    };
    let mut handled = 0;
    let result = async {
        while began.elapsed() < MAX_SUSPECT_DURATION
            && suspects.is_available(shared.probe_all()).await
        {
            let batches = suspects.take().await?;
            if batches.is_empty() {
                break;
            }
            for batch in batches {
                handled += suspects.handle(batch).await?;
            }
            suspects.held_since = None;
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

/// The outcomes of a batch, and the replies to send.
type Settled = (OutcomeCounts, Vec<OwedReply>);

struct Suspects<'a, H> {
    shared: &'a Arc<Shared<H>>,
    queue: &'static str,
    channel: &'a lapin::Channel,
    shutdown: &'a CancellationToken,
    /// The ids of those that were taken and are not acknowledged, where they have one.
    unacked: Vec<String>,
    /// Since when those that were taken are held. Together they are held for one hold limit.
    held_since: Option<Instant>,
}

impl<H: Handler> Suspects<'_, H> {
    /// Takes suspects, in the batches in which they are to be handled: first one that was redelivered, alone,
    /// then those that were not, together. A redelivered one may be taken behind the others; when it is
    /// handled, only they are unacknowledged beside it, and a crash is their first redelivery.
    async fn take(&mut self) -> Result<Vec<Vec<Received>>, End> {
        let settings = &self.shared.settings;
        let (most, most_bytes) =
            (settings.batch_size.min(SUSPECTS_TOGETHER), settings.batch_bytes());
        let (mut alone, mut group) = (None, Vec::new());
        let (mut messages, mut bytes) = (0, 0);
        while alone.is_none() && (group.is_empty() || (messages < most && bytes < most_bytes)) {
            let get = self.channel.basic_get(self.queue.into(), BasicGetOptions::default());
            let Some(message) = request("get a suspect", get).await? else { break };
            let tag = message.delivery.delivery_tag;
            if Moved::is_left_out(&message.delivery) {
                self.shared.observer.body_too_large(Moved::body_bytes(&message.delivery));
                if !reject(self.channel, tag).await {
                    return Err(End::ChannelClosed);
                }
                continue;
            }
            let memory = Moved::memory(&message.delivery);
            let extent = self.shared.extent(&message.delivery.data);
            let received = Received::new(tag, message.delivery, None, extent, self.shared);
            messages += extent.messages;
            bytes += memory.max(extent.bytes);
            self.unacked.extend(id_of(&received.delivery));
            if received.delivery.delivery_count() > 0 {
                alone = Some(received);
            } else {
                group.push(received);
            }
        }
        let batches = [alone.into_iter().collect(), group];
        Ok(batches.into_iter().filter(|batch: &Vec<_>| !batch.is_empty()).collect())
    }

    /// Handles a batch that [`take`](Self::take) returned, and acknowledges it. Returns how many of its
    /// messages were handled; the others were requeued.
    async fn handle(&mut self, received: Vec<Received>) -> Result<u64, End> {
        let count = received.len();
        let tags: Vec<_> = received.iter().map(|it| it.tag).collect();
        let ids: Vec<String> = received.iter().filter_map(|it| id_of(&it.delivery)).collect();
        let is_recorded = match (received.as_slice(), ids.as_slice()) {
            ([alone], [id]) if alone.delivery.delivery_count() > 0 => {
                self.shared.broker_requeues.contains(id)
            }
            _ => false,
        };
        let mut batch = Batch::new(received, Lane::Suspects);
        let requeued = match is_recorded {
            true => self.requeue(&mut batch, &mut None).await,
            false => None,
        };
        let (counts, replies) = match requeued {
            Some(settled) => settled,
            None => self.settle(batch).await?,
        };
        self.shared.observer.settled(&counts);
        reply(replies, self.shared);
        // Each by itself: one that was taken later may be acknowledged before.
        for tag in tags {
            if !acknowledge(self.channel, tag, BasicAckOptions::default()).await {
                self.shared.observer.acks_lost(count);
                return Err(End::ChannelClosed);
            }
        }
        self.unacked.retain(|id| !ids.contains(id));
        ids.iter().for_each(|id| self.shared.broker_requeues.remove(id));
        Ok((count as u64).saturating_sub(counts.of(DeliveryOutcome::Requeued)))
    }

    /// Handles a batch, and holds it while a dependency is unavailable.
    async fn settle(&mut self, mut batch: Batch<H::Item>) -> Result<Settled, End> {
        let (shared, shutdown) = (self.shared, self.shutdown);
        let (began, mut backoff) = (Instant::now(), Backoff::new());
        let mut held_for = None;
        // The new copies that are not confirmed yet, once the hold must end.
        let mut new_copies = None;
        loop {
            let dependency = match batch.work(shared).await {
                Ok(finished) => {
                    if let Some(dependency) = held_for {
                        shared.observer.hold_ended(dependency, began.elapsed());
                        shared.state.send_replace(ConsumerState::Consuming);
                    }
                    return Ok((finished.counts, finished.replies));
                }
                Err((held, unavailable)) => {
                    batch = held;
                    shared.observer.held(
                        &unavailable,
                        batch.len(),
                        Some(shared.settings.hold_limit),
                    );
                    unavailable.dependency
                }
            };
            held_for = Some(dependency);
            let since = *self.held_since.get_or_insert(began);
            shared.state.send_replace(ConsumerState::Holding(dependency));
            self.wait_for(dependency, since, &mut backoff).await?;
            if self.hold_must_end(since) {
                if let Some(settled) = self.requeue(&mut batch, &mut new_copies).await {
                    let (shutdown, held) = (shutdown.is_cancelled(), began.elapsed());
                    let requeued = settled.0.of(DeliveryOutcome::Requeued);
                    shared.observer.suspects_requeued(requeued, dependency, held, shutdown);
                    shared.state.send_replace(ConsumerState::Consuming);
                    return Ok(settled);
                }
                // RabbitMQ does not confirm the copies either: the suspects are held further, and handled if
                // their dependency is available again.
                if shutdown.is_cancelled() {
                    return Err(End::Drained);
                }
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
            if self.hold_must_end(since) || self.is_available(self.shared.probe(dependency)).await {
                return Ok(());
            }
        }
    }

    fn hold_must_end(&self, since: Instant) -> bool {
        since.elapsed() >= self.shared.settings.hold_limit || self.shutdown.is_cancelled()
    }

    async fn is_available(&self, probe: impl Future<Output = Result<(), Unavailable>>) -> bool {
        self.shutdown.run_until_cancelled(probe).await.is_some_and(|result| result.is_ok())
    }

    /// Requeues, as new copies, the messages of a batch that have no outcome yet. Returns what became of the
    /// batch; `None`: RabbitMQ has not confirmed all copies. `unconfirmed` has the rest and the counts so far.
    async fn requeue(
        &self,
        batch: &mut Batch<H::Item>,
        unconfirmed: &mut Option<(Vec<Copy>, OutcomeCounts)>,
    ) -> Option<Settled> {
        let all = || batch.new_copies(self.queue, self.shared);
        let (copies, mut requeued) =
            unconfirmed.take().unwrap_or_else(|| (all(), OutcomeCounts::default()));
        if let Err((rest, _)) = publish(copies, &self.shared.publisher, &mut requeued).await {
            *unconfirmed = Some((rest, requeued));
            return None;
        }
        let (mut counts, replies) = batch.take_outcomes();
        requeued.iter().for_each(|(outcome, many)| counts.add_many(outcome, many));
        Some((counts, replies))
    }
}
