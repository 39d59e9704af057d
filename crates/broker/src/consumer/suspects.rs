//! Suspects: messages that came back to their queue too often, tried one at a time.
//!
//! A message that crashes the process takes the count of everything under way up with its own. Alone
//! it can only incriminate itself: so suspects are taken one by one, with `basic.get`, while nothing
//! else of this consumer is under way and its stores are well. One that keeps coming back from here
//! is given up.
//!
//! So nothing but the death of the process may be held against a suspect. While a store is away it is
//! held like any batch, and when that lasts too long, or at the shutdown, it returns as a fresh copy,
//! whose count begins anew. And one that went back because RabbitMQ did, under a process that lives,
//! is excused: when it comes again, it is put back as a fresh copy, too.

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

/// How long suspects may keep the queue itself waiting at a time, while the stores are well.
const TURN: Duration = Duration::from_secs(2);

/// Takes suspects until there is none, the turn is over, a store is away, or for the shutdown.
pub(super) async fn take_turn<H: Handler>(
    shared: &Shared<H>,
    connection: &Connection,
    shutdown: &CancellationToken,
) -> Result<(), End> {
    let Some(queue) = shared.source.suspect() else { return Ok(()) };
    let channel = connection.channel().await?;
    let turn = Turn { shared, queue, channel: &channel, shutdown };
    let began = Instant::now();
    while began.elapsed() < TURN && turn.dependency_is_up(Dependency::PostgreSql).await {
        let get = channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(message) = request("give a suspect", get).await? else { break };
        let tag = message.delivery.delivery_tag;
        let delivery = Delivery::from_amqp(message.delivery, shared.clock.now());
        let id = delivery.envelope().message_id.map(str::to_owned);
        let suspect = Batch::new(vec![Received { tag, delivery }], Lane::Suspects);
        let excused = id.as_deref().filter(|id| shared.broker_requeues.holds(id));
        let settled = if excused.is_some() && turn.put_back(&suspect).await {
            shared.broker_requeues.used(excused);
            Ok(returned())
        } else {
            turn.settle(suspect).await
        };
        let counts = settled.inspect_err(|_| shared.broker_requeues.give(id.as_deref()))?;
        shared.observer.settled(&counts);
        if !acknowledge(&channel, tag, BasicAckOptions::default()).await {
            shared.broker_requeues.give(id.as_deref());
            shared.observer.acks_lost(1);
            return Err(End::ChannelDied);
        }
    }
    Ok(())
}

/// Suspects that went back while this process had them and lived, by their ids.
#[derive(Default)]
pub(super) struct BrokerRequeues(Mutex<VecDeque<String>>);

/// Excuses that are kept at most, the newest. One for each time that RabbitMQ went away: far fewer.
const MAX_BROKER_REQUEUES: usize = 1_000;

impl BrokerRequeues {
    fn give(&self, id: Option<&str>) {
        let mut ids = self.ids();
        if let Some(id) = id.filter(|id| !ids.iter().any(|it| it == id)) {
            ids.push_back(id.to_owned());
        }
        if ids.len() > MAX_BROKER_REQUEUES {
            ids.pop_front();
        }
    }

    fn holds(&self, id: &str) -> bool {
        self.ids().iter().any(|it| it == id)
    }

    /// It counts once.
    fn used(&self, id: Option<&str>) {
        self.ids().retain(|it| Some(it.as_str()) != id);
    }

    fn ids(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn returned() -> OutcomeCounts {
    let mut counts = OutcomeCounts::default();
    counts.add(DeliveryOutcome::Requeued);
    counts
}

struct Turn<'a, H> {
    shared: &'a Shared<H>,
    queue: &'static str,
    channel: &'a lapin::Channel,
    shutdown: &'a CancellationToken,
}

impl<H: Handler> Turn<'_, H> {
    /// Settles one suspect: works, and holds it while a store is away.
    async fn settle(&self, mut suspect: Batch<H::Item>) -> Result<OutcomeCounts, End> {
        let Self { shared, shutdown, .. } = self;
        let (since, mut backoff) = (Instant::now(), Backoff::new());
        let mut away = None;
        loop {
            match suspect.work(shared).await {
                Ok(finished) => {
                    self.end_hold(away, since);
                    return Ok(finished.counts);
                }
                Err((held, unavailable)) => {
                    suspect = held;
                    away = Some(unavailable.dependency);
                    shared.observer.held(&unavailable);
                    shared.state.send_replace(ConsumerState::Holding(unavailable.dependency));
                    self.wait_for(unavailable.dependency, since, &mut backoff).await?;
                }
            }
            // Where RabbitMQ does not take the copy either, nothing is better than to go on holding.
            if self.must_end(since) && self.put_back(&suspect).await {
                self.end_hold(away, since);
                return Ok(returned());
            }
            if shutdown.is_cancelled() {
                return Err(End::Drained);
            }
        }
    }

    /// Probes until the store answers, or the hold must end.
    async fn wait_for(
        &self,
        dependency: Dependency,
        since: Instant,
        backoff: &mut Backoff,
    ) -> Result<(), End> {
        loop {
            pause(backoff.next_pause(), self.shutdown).await;
            if !self.channel.status().connected() {
                return Err(End::ChannelDied);
            }
            if self.must_end(since) || self.dependency_is_up(dependency).await {
                return Ok(());
            }
        }
    }

    fn must_end(&self, since: Instant) -> bool {
        since.elapsed() >= self.shared.settings.hold_limit || self.shutdown.is_cancelled()
    }

    async fn dependency_is_up(&self, dependency: Dependency) -> bool {
        let probe = self.shared.probe(dependency);
        self.shutdown.run_until_cancelled(probe).await.is_some_and(|answer| answer.is_ok())
    }

    async fn put_back(&self, suspect: &Batch<H::Item>) -> bool {
        let copy = suspect.new_copy(self.queue, self.shared).map(Arc::new);
        publish(copy.into_iter().collect(), &self.shared.publisher).await.is_ok()
    }

    fn end_hold(&self, away: Option<Dependency>, since: Instant) {
        if let Some(dependency) = away {
            self.shared.observer.hold_ended(dependency, since.elapsed());
            self.shared.state.send_replace(ConsumerState::Consuming);
        }
    }
}
