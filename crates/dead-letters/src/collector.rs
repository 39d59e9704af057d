//! The dead-letter collector: moves dead letters from the queues into the table `dead_letters`.
//!
//! Commit, then publish the event, then acknowledge. A dead letter that is delivered twice is stored once, under
//! a key derived from its content. A message that an earlier delivery may have stored before it became a dead letter
//! may be missing in the hot copy of its conversation, which the same transaction invalidates. An action that
//! RabbitMQ dead-lettered only because of its sender's own `expiration` is no failure: it is sent to its own queue
//! again, without an `expiration`, unless its body is too large.
//!
//! A dead letter that PostgreSQL refuses is isolated from its batch by halving, and is stored with fewer columns; the
//! row says which are missing.
//!
//! Invariant: a missing queue or a refused dead letter prevents no other dead letter from being stored, and when a batch
//! is handled again, the steps that succeeded are not repeated.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{Decoder, Delivery, Handled, Handler, Processed, Publication, Publisher, Source};
use conversation::{LimitedDatabase, RandomSource};
use domain::decode::reply_address;
use domain::envelope::Resolved;
use domain::event::Event;
use domain::failure::{DeadLetterReason, Dependency, Done, Failure, Refusal, Unavailable};
use domain::reply::ReplyAddress;
use metrics::{Counter, Metrics, RerouteCause};

use crate::record::{may_be_stored_in, read_dead_letter, refusal};
use crate::reroute::{Rerouted, publish_once, reroute};
use crate::storage::{Collected, Storage};

/// Stores the dead letters of one work queue, and publishes an event for each.
#[derive(Clone)]
pub struct DeadLetterCollector {
    queue: WorkQueue,
    storage: Storage,
    publisher: Publisher,
    metrics: Metrics,
    decoder: Decoder,
}

/// A delivery from a dead-letter queue.
pub enum Item {
    /// An expired action, to be sent to its own queue.
    Expired(Rerouted),
    /// A dead letter to store.
    DeadLetter(Box<Collected>),
}

impl Handler for DeadLetterCollector {
    type Item = Item;
    const NEEDS: &'static [Dependency] = &[Dependency::PostgreSql];

    fn source(&self) -> Source {
        Source::dead_letters(self.queue)
    }

    fn with_time_limit(&self, limit: Duration) -> Option<Self> {
        let database = LimitedDatabase::of_slow_items(self.storage.database.batches(), limit);
        Some(Self { storage: Storage { database, ..self.storage.clone() }, ..self.clone() })
    }

    fn decode(&self, delivery: &Delivery) -> Result<Item, Refusal> {
        let by_rabbitmq = delivery.dead_letter_info().filter(|it| it.by_rabbitmq);
        let expired =
            by_rabbitmq.as_ref().is_some_and(|it| it.refusal.reason == DeadLetterReason::Expired);
        // One with a body over the limit would only come back.
        if expired && delivery.body.len() <= self.decoder.max_body_bytes {
            // One that cannot be decoded is refused by the worker of its queue, and is a dead letter then.
            let resolved = self.decoder.decode(delivery).ok().and_then(|it| it.resolved());
            return Ok(Item::Expired(Rerouted::new(delivery, self.queue.name(), resolved)));
        }
        let limit = self.decoder.max_body_bytes;
        let (record, event) = read_dead_letter(self.queue, delivery, limit);
        let envelope = delivery.envelope();
        Ok(Item::DeadLetter(Box::new(Collected {
            // The worker that dead-lettered a message replied to its sender; RabbitMQ replies to nobody.
            unanswered: by_rabbitmq.and_then(|_| {
                let refusal = refusal(self.queue, delivery, limit);
                Some((reply_address(&delivery.body, &envelope)?, (&refusal).into()))
            }),
            trace_id: delivery.trace_id(),
            attempt: delivery.fleet_headers().attempt,
            may_be_stored_in: may_be_stored_in(self.queue, &event),
            record,
            event,
            stored: AtomicBool::default(),
            announced: AtomicBool::default(),
        })))
    }

    fn resolved(&self, item: &Item) -> Option<Resolved> {
        match item {
            Item::Expired(rerouted) => rerouted.resolved(),
            // A dead letter has the resolution by the worker that dead-lettered it in its headers.
            Item::DeadLetter(_) => None,
        }
    }

    fn reply_address(&self, item: &Item) -> Option<ReplyAddress> {
        item.dead_letter()?.unanswered.as_ref().map(|(address, _)| address.clone())
    }

    async fn handle(&self, items: &[Item]) -> Result<Vec<Handled>, Unavailable> {
        let dead_letters: Vec<&Collected> = items.iter().filter_map(Item::dead_letter).collect();
        let faults: HashMap<_, _> = self.storage.store(&dead_letters).await?.into_iter().collect();
        failpoints::reached(failpoints::Step::DeadLetterStored);
        // Both are tried: a missing queue for one does not delay the other.
        let announced = self.announce(&dead_letters).await;
        failpoints::reached(failpoints::Step::DeadLetterAnnounced);
        self.reroute_expired(items).await.and(announced)?;
        let handled = |item: &Item| {
            let processed = Processed::from(Done::Applied);
            match item.dead_letter() {
                None => Ok(processed),
                Some(dead_letter) if dead_letter.stored.load(Relaxed) => {
                    let unanswered = dead_letter.unanswered.as_ref();
                    let reply = unanswered.map(|(_, error)| Err(error.clone()));
                    Ok(Processed { reply, ..processed })
                }
                Some(dead_letter) => {
                    let missing = || Failure::Retry("the dead letter was not stored".into());
                    let fault = faults.get(&dead_letter.event.dead_letter_id);
                    Err(fault.cloned().unwrap_or_else(missing))
                }
            }
        };
        Ok(items.iter().map(handled).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        Ok(self.storage.database.batches().check_dead_letters().await?)
    }
}

impl Item {
    fn dead_letter(&self) -> Option<&Collected> {
        match self {
            Self::DeadLetter(dead_letter) => Some(dead_letter),
            Self::Expired(_) => None,
        }
    }
}

impl DeadLetterCollector {
    /// The collector of one work queue's dead letters. Events are published through `publisher`; generations are
    /// from `random`.
    #[must_use]
    pub fn new(
        queue: WorkQueue,
        database: LimitedDatabase,
        publisher: Publisher,
        metrics: Metrics,
        decoder: Decoder,
        random: RandomSource,
    ) -> Self {
        // Counters begin at 0, under the name of the work queue: one that first appeared with its first dead
        // letter would show no increase to Prometheus.
        for reason in DeadLetterReason::ALL {
            metrics.add(Counter::DeadLettersStored { queue: queue.name(), reason }, 0);
        }
        let cause = RerouteCause::Expired;
        metrics.add(Counter::MessagesRerouted { queue: queue.name(), cause }, 0);
        let storage = Storage { queue, database, metrics: metrics.clone(), random };
        Self { queue, storage, publisher, metrics, decoder }
    }

    async fn reroute_expired(&self, items: &[Item]) -> Result<(), Unavailable> {
        let expired = items.iter().filter_map(|item| match item {
            Item::Expired(rerouted) => Some(rerouted),
            Item::DeadLetter(_) => None,
        });
        let expired: Vec<_> = expired.collect();
        let (queue, cause) = (self.queue.name(), RerouteCause::Expired);
        let counter = Counter::MessagesRerouted { queue, cause };
        reroute(&expired, &self.publisher, &self.metrics, counter).await
    }

    async fn announce(&self, dead_letters: &[&Collected]) -> Result<(), Unavailable> {
        let mut events = Vec::with_capacity(dead_letters.len());
        let new = |it: &&&Collected| it.stored.load(Relaxed) && !it.announced.load(Relaxed);
        for dead_letter in dead_letters.iter().filter(new) {
            let event = Event::DeadLettered(dead_letter.event.clone());
            let body = serde_json::to_vec(&event).map_err(|error| Unavailable {
                dependency: Dependency::RabbitMq,
                source: Box::new(error),
            })?;
            let event = Publication::event(event.routing_key(), body);
            events.push((&dead_letter.announced, Arc::new(event)));
        }
        publish_once(events, &self.publisher).await.1
    }
}
