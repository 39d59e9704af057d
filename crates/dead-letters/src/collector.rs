//! The dead-letter collector: moves dead letters from the queues into the table `dead_letters`.
//!
//! Commit, then publish the event, then acknowledge. A dead letter that is delivered twice is stored once, under
//! a key derived from its content. A message that an earlier delivery may have stored before it became a dead letter
//! may be missing in the hot copy of its conversation, which the same transaction invalidates. An action that
//! RabbitMQ dead-lettered only because of its sender's own `expiration` is no failure: it is sent to its own queue
//! again, without an `expiration`.
//!
//! Invariant: a missing queue prevents no dead letter from being stored, and when a batch is handled again, the
//! steps that succeeded are not repeated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use broker::topology::WorkQueue;
use broker::{Decoder, Delivery, Handled, Handler, Processed, Publication, Publisher, Source};
use conversation::{RandomSource, retry_transient};
use database::{CollectedDeadLetter, Database};
use domain::causes::with_causes;
use domain::decode::reply_address;
use domain::envelope::Resolved;
use domain::event::{DeadLettered, Event};
use domain::failure::{
    Cause, DeadLetterReason, Dependency, Done, Failure, FailureClass, Refusal, Unavailable,
};
use domain::ids::ConversationKey;
use domain::reply::{ReplyAddress, ReplyError};
use failpoints::Guard;
use metrics::{Counter, GenerationChange, Metrics, RerouteCause};

use crate::record::{may_be_stored_in, read_dead_letter, refusal};
use crate::reroute::{Rerouted, publish_once, reroute};

/// Stores the dead letters of one work queue, and publishes an event for each.
#[derive(Clone)]
pub struct DeadLetterCollector {
    queue: WorkQueue,
    database: Database,
    publisher: Publisher,
    metrics: Metrics,
    decoder: Decoder,
    random: RandomSource,
}

/// A delivery from a dead-letter queue.
pub enum Item {
    /// An expired action, to be sent to its own queue.
    Expired(Rerouted),
    /// A dead letter to store.
    DeadLetter(Box<Collected>),
}

/// A dead letter, and which steps have succeeded and are not repeated.
pub struct Collected {
    record: CollectedDeadLetter,
    event: DeadLettered,
    /// The conversation whose hot copy may lack its message.
    may_be_stored_in: Option<ConversationKey>,
    /// The reply that no worker sent to its sender, who wants one.
    unanswered: Option<(ReplyAddress, ReplyError)>,
    trace_id: Option<String>,
    stored: AtomicBool,
    announced: AtomicBool,
}

impl Handler for DeadLetterCollector {
    type Item = Item;
    const NEEDS: &'static [Dependency] = &[Dependency::PostgreSql];

    fn source(&self) -> Source {
        Source::dead_letters(self.queue)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Item, Refusal> {
        let by_rabbitmq = delivery.dead_letter_info().filter(|it| it.by_rabbitmq);
        if by_rabbitmq.as_ref().is_some_and(|it| it.refusal.reason == DeadLetterReason::Expired) {
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
        let mut faults = self.store(&dead_letters).await?.into_iter();
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
                Some(_) => {
                    let missing = || "the dead letter was not stored".into();
                    Err(Failure::Retry(faults.next().unwrap_or_else(missing)))
                }
            }
        };
        Ok(items.iter().map(handled).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        self.database.probe().await.map_err(Into::into)
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
        database: Database,
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
        Self { queue, database, publisher, metrics, decoder, random }
    }

    /// Stores the dead letters that are not stored yet: all at once or, if PostgreSQL refuses that, one at a time.
    /// Returns the error of each that was refused, in their order.
    async fn store(&self, dead_letters: &[&Collected]) -> Result<Vec<Cause>, Unavailable> {
        let new: Vec<&Collected> =
            dead_letters.iter().copied().filter(|it| !it.stored.load(Relaxed)).collect();
        match self.store_together(&new).await {
            Ok(()) => return Ok(Vec::new()),
            Err(error) if error.class() == FailureClass::Unavailable => return Err(error.into()),
            // One of them is at fault, or all are too many for one transaction.
            Err(_) => {}
        }
        let mut faults = Vec::new();
        for dead_letter in new {
            let Err(error) = self.store_together(&[dead_letter]).await else { continue };
            // A lock that lasts is an outage, not a fault of this dead letter.
            if let FailureClass::Unavailable | FailureClass::Transient = error.class() {
                return Err(error.into());
            }
            tracing::error!(
                queue = self.queue.dlq(),
                dead_letter = %dead_letter.event.dead_letter_id,
                trace_id = dead_letter.trace_id,
                error = with_causes(&error),
                "PostgreSQL refused a dead letter; it is retried"
            );
            faults.push(error.into());
        }
        Ok(faults)
    }

    /// Stores dead letters in one transaction, which also invalidates the hot copies that may lack their messages.
    async fn store_together(&self, dead_letters: &[&Collected]) -> Result<(), database::Error> {
        let records: Vec<_> = dead_letters.iter().map(|it| &it.record).collect();
        if !failpoints::holds(Guard::DeadLetterStored) {
            dead_letters.iter().for_each(|it| self.mark_stored(it));
            return Ok(());
        }
        let conversations: BTreeSet<_> =
            dead_letters.iter().filter_map(|it| it.may_be_stored_in.as_ref()).collect();
        let mut generations: Vec<(ConversationKey, i64)> =
            conversations.into_iter().map(|key| (key.clone(), self.random.next())).collect();
        if !failpoints::holds(Guard::DeadLetterInvalidates) {
            generations.clear();
        }
        let store = || self.database.store_dead_letters(&records, &generations);
        let invalidated = retry_transient(&self.metrics, store).await?;
        let cause = GenerationChange::DeadLettered;
        self.metrics.add(Counter::HotGenerationChanges { cause }, invalidated);
        dead_letters.iter().for_each(|it| self.mark_stored(it));
        Ok(())
    }

    fn mark_stored(&self, dead_letter: &Collected) {
        dead_letter.stored.store(true, Relaxed);
        let DeadLettered { reason, dead_letter_id, field, attempts, .. } = &dead_letter.event;
        let (queue, reason) = (self.queue.name(), *reason);
        self.metrics.add(Counter::DeadLettersStored { queue, reason }, 1);
        tracing::warn!(
            queue,
            %reason,
            dead_letter = %dead_letter_id,
            trace_id = dead_letter.trace_id,
            field,
            attempts,
            "dead letter stored"
        );
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

#[cfg(test)]
mod tests {
    use broker::{StoredDelivery, topology};
    use domain::decode::DEFAULT_MAX_BODY_BYTES;
    use fixtures::{endpoints, received_at, stores};
    use sqlx::{Connection as _, PgConnection, raw_sql};

    use super::*;

    #[tokio::test]
    async fn a_lock_that_lasts_holds_dead_letters_and_is_no_attempt_of_any() {
        let (env, replica) = stores().await;
        let endpoints = endpoints(&env.amqp_url);
        topology::declare(&endpoints).await.unwrap();
        let collector = DeadLetterCollector::new(
            WorkQueue::SaveMessage,
            replica.database.clone(),
            Publisher::new(endpoints, replica.metrics.clone()),
            replica.metrics.clone(),
            Decoder { max_body_bytes: DEFAULT_MAX_BODY_BYTES },
            RandomSource::random(),
        );
        let delivery = |body: &str| {
            Delivery::from_stored(body.into(), &StoredDelivery::default(), received_at())
        };
        let items = ["one", "two"].map(|body| collector.decode(&delivery(body)).unwrap());

        let mut other = PgConnection::connect(&env.database_url).await.unwrap();
        raw_sql("BEGIN; LOCK TABLE dead_letters").execute(&mut other).await.unwrap();
        let held = collector.handle(&items).await;
        assert_eq!(held.unwrap_err().dependency, Dependency::PostgreSql);

        raw_sql("COMMIT").execute(&mut other).await.unwrap();
        let stored = collector.handle(&items).await.unwrap();
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
        let copies = "SELECT string_agg(copies::text, ',') FROM dead_letters";
        assert_eq!(fixtures::sql(&env, copies).await, "1,1");
    }
}
