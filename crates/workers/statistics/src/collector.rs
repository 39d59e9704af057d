//! The dead-letter collector: moves dead letters from the queues into the table `dead_letters`.
//!
//! Commit, then tell the world, then acknowledge. A dead letter that comes twice is stored once, under a
//! key that follows from what it is. An action that merely expired while it waited, by its sender's
//! own `expiration`, is no failure: it goes back to its queue without one.
//!
//! Invariant: what stands in the way of one step (a queue that is missing) keeps no dead letter from being
//! stored, and what was done is not done again when the batch is.

use std::sync::Arc;

use broker::topology::WorkQueue;
use broker::{Delivery, Handler, Publication, Publisher};
use conversation::retried;
use database::Database;
use domain::causes::with_causes;
use domain::envelope::Resolved;
use domain::event::{DeadLettered, Event};
use domain::failure::{
    DeadLetterReason, Dependency, Done, FailureClass, Outcome, Refusal, Unavailable,
};
use domain::ids::{ConversationId, TenantId};
use metrics::{Counter, Metrics, RerouteCause};
use worker::Decoder;

use crate::dead_letter::ReceivedDeadLetter;
use crate::reroute::{ReroutedCopy, Step, publish_once, reroute};

/// Keeps the dead letters of one work queue.
#[derive(Clone)]
pub(crate) struct DeadLetterCollector {
    pub(crate) queue: WorkQueue,
    pub(crate) database: Database,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
    pub(crate) decoder: Decoder,
}

/// A dead letter read.
pub(crate) enum Item {
    /// It only waited too long: home with it.
    Expired(ReroutedCopy),
    /// It is to be kept.
    Dead(Box<Dead>),
}

/// A dead letter that is to be kept, and how far that got.
pub(crate) struct Dead {
    dead_letter: ReceivedDeadLetter,
    stored: Step,
    announced: Step,
}

impl Handler for DeadLetterCollector {
    type Item = Item;

    fn decode(&self, delivery: &Delivery) -> Result<Item, Refusal> {
        let by_rabbitmq = delivery
            .dead_letter_info()
            .filter(|_| delivery.fleet_headers().dead_letter_info.is_none());
        if by_rabbitmq.is_some_and(|it| it.refusal.reason == DeadLetterReason::Expired) {
            // What cannot be decoded is refused where it goes, and comes back as a dead letter.
            let resolved = self.decoder.decode(delivery).ok().and_then(|it| it.resolved());
            return Ok(Item::Expired(ReroutedCopy::new(delivery, self.queue.name(), resolved)));
        }
        let dead_letter = ReceivedDeadLetter::read(self.queue, delivery);
        let (stored, announced) = (Step::default(), Step::default());
        Ok(Item::Dead(Box::new(Dead { dead_letter, stored, announced })))
    }

    fn resolved(&self, item: &Item) -> Option<Resolved> {
        match item {
            Item::Expired(reroute_copy) => reroute_copy.resolved(),
            // A dead letter carries what the worker that gave it up had found.
            Item::Dead(_) => None,
        }
    }

    async fn handle(&self, items: &[Item]) -> Result<Vec<Outcome>, Unavailable> {
        let dead: Vec<&Dead> = items.iter().filter_map(Item::dead).collect();
        let mut faults = self.store(&dead).await?.into_iter();
        failpoints::reached(failpoints::Step::DeadLetterStored);
        // Neither waits for what the other one lacks.
        let announced = self.announce(&dead).await;
        failpoints::reached(failpoints::Step::DeadLetterAnnounced);
        self.send_back(items).await.and(announced)?;
        let outcome = |item: &Item| match item.dead().filter(|dead| !dead.stored.is_done()) {
            Some(_) => Outcome::Retry(faults.next().unwrap_or_default()),
            None => Outcome::Done(Done::Applied),
        };
        Ok(items.iter().map(outcome).collect())
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        self.database.probe().await.map_err(Into::into)
    }
}

impl Item {
    fn dead(&self) -> Option<&Dead> {
        match self {
            Self::Dead(dead) => Some(dead),
            Self::Expired(_) => None,
        }
    }
}

impl DeadLetterCollector {
    /// Makes its counters exist before there is anything to count. They bear the name of the work queue,
    /// not of the one that is consumed; and a first dead letter that made its counter would be no increase.
    pub(crate) fn count_from_zero(&self) {
        let queue = self.queue.name();
        for reason in DeadLetterReason::ALL {
            self.metrics.add(Counter::DeadLettersStored { queue, reason }, 0);
        }
        let cause = RerouteCause::Expired;
        self.metrics.add(Counter::MessagesRerouted { queue, cause }, 0);
    }

    /// Stores the dead letters that are not stored yet, all at once or, if PostgreSQL refuses one of them,
    /// each by itself. One fault for each that was refused, in their order.
    async fn store(&self, dead_letters: &[&Dead]) -> Result<Vec<String>, Unavailable> {
        let new: Vec<&Dead> =
            dead_letters.iter().copied().filter(|dead| !dead.stored.is_done()).collect();
        let rows: Vec<_> = new.iter().map(|dead| &dead.dead_letter.row).collect();
        match retried(&self.metrics, || self.database.store_dead_letters(&rows)).await {
            Ok(()) => {
                new.iter().for_each(|dead| self.stored(dead));
                return Ok(Vec::new());
            }
            Err(error) if error.class() == FailureClass::Unavailable => return Err(error.into()),
            Err(_) => {}
        }
        let mut faults = Vec::new();
        for (dead, row) in new.iter().zip(rows) {
            let alone = [row];
            match retried(&self.metrics, || self.database.store_dead_letters(&alone)).await {
                Ok(()) => self.stored(dead),
                Err(error) if error.class() == FailureClass::Unavailable => {
                    return Err(error.into());
                }
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::error!(dead_letter = %row.id, error, "a dead letter stays queued");
                    faults.push(error);
                }
            }
        }
        Ok(faults)
    }

    fn stored(&self, dead: &Dead) {
        dead.stored.mark_done();
        let row = &dead.dead_letter.row;
        let (queue, reason) = (self.queue.name(), row.reason);
        self.metrics.add(Counter::DeadLettersStored { queue, reason }, 1);
        tracing::warn!(
            queue,
            %reason,
            dead_letter = %row.id,
            field = row.field,
            attempts = row.attempts,
            "dead letter stored"
        );
    }

    async fn send_back(&self, items: &[Item]) -> Result<(), Unavailable> {
        let expired = items.iter().filter_map(|item| match item {
            Item::Expired(reroute_copy) => Some(reroute_copy),
            Item::Dead(_) => None,
        });
        let expired: Vec<_> = expired.collect();
        let (queue, cause) = (self.queue.name(), RerouteCause::Expired);
        let counter = Counter::MessagesRerouted { queue, cause };
        reroute(&expired, &self.publisher, &self.metrics, counter).await
    }

    async fn announce(&self, dead_letters: &[&Dead]) -> Result<(), Unavailable> {
        let mut events = Vec::with_capacity(dead_letters.len());
        let new = |dead: &&&Dead| dead.stored.is_done() && !dead.announced.is_done();
        for dead in dead_letters.iter().filter(new) {
            let event = Event::DeadLettered(event(&dead.dead_letter));
            let body = serde_json::to_vec(&event).map_err(|error| Unavailable {
                dependency: Dependency::RabbitMq,
                source: Box::new(error),
            })?;
            let event = Publication::event(event.routing_key(), body);
            events.push((&dead.announced, Arc::new(event)));
        }
        publish_once(events, &self.publisher).await.1
    }
}

fn event(dead_letter: &ReceivedDeadLetter) -> DeadLettered {
    let row = &dead_letter.row;
    DeadLettered {
        dead_letter_id: row.id,
        reason: row.reason,
        detail: row.error.clone(),
        field: row.field.clone(),
        queue: row.queue.clone(),
        routing_key: row.routing_key.clone(),
        tenant_id: row.tenant_id.as_deref().and_then(|id| TenantId::new(id).ok()),
        conversation_id: row.conversation_id.as_deref().and_then(|id| ConversationId::new(id).ok()),
        attempts: u32::try_from(row.attempts).unwrap_or_default(),
        first_failed_at: row.first_failed_at,
        last_failed_at: row.last_failed_at,
    }
}
