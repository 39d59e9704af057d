//! The dead-letter keeper: moves letters from the queues into the table `dead_letters`.
//!
//! Commit, then tell the world, then acknowledge. A letter that comes twice is stored once, under a
//! key that follows from what it is. An action that merely expired while it waited, by its sender's
//! own `expiration`, is no failure: it goes back to its queue without one.

use std::sync::Arc;

use archive::Archive;
use broker::topology::WorkQueue;
use broker::{Delivery, Handler, Publication, Publisher};
use domain::event::{DeadLettered, Event};
use domain::failure::{DeadLetterReason, Done, FailureClass, Outcome, Refusal, Store, Unavailable};
use domain::ids::{ConversationId, TenantId};
use metrics::{Counter, Metrics, SentBack};

use crate::letter::Letter;

/// Keeps the dead letters of one work queue.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub(crate) queue: WorkQueue,
    pub(crate) archive: Archive,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
}

/// A letter read.
pub(crate) enum Item {
    /// It only waited too long: home with it.
    Expired(Arc<Publication>),
    /// It is to be kept.
    Dead(Box<Letter>),
}

impl Handler for Keeper {
    type Item = Item;

    fn decode(&self, delivery: &Delivery) -> Result<Item, Refusal> {
        if delivery.journey.verdict.is_none()
            && delivery.dead_letter_reason() == Some(DeadLetterReason::Expired)
        {
            let home = Publication::copy(delivery, self.queue.name());
            return Ok(Item::Expired(Arc::new(home)));
        }
        Ok(Item::Dead(Box::new(Letter::read(self.queue, delivery))))
    }

    async fn handle(&self, items: &[Item]) -> Result<Vec<Outcome>, Unavailable> {
        self.send_back(items).await?;
        let letters: Vec<&Letter> = items.iter().filter_map(Item::letter).collect();
        let faults = self.store(&letters).await?;
        let kept: Vec<&Letter> = letters
            .iter()
            .zip(&faults)
            .filter_map(|(letter, fault)| fault.is_none().then_some(*letter))
            .collect();
        self.announce(&kept).await?;
        for letter in kept {
            let (queue, reason) = (self.queue.name(), letter.row.reason);
            self.metrics.add(Counter::DeadLettersStored { queue, reason }, 1);
            tracing::warn!(
                queue,
                %reason,
                dead_letter = %letter.row.id,
                field = letter.row.field,
                attempts = letter.row.attempts,
                "dead letter stored"
            );
        }
        let mut faults = faults.into_iter();
        let outcome = |item: &Item| match item.letter().and_then(|_| faults.next().flatten()) {
            Some(fault) => Outcome::Retry(fault),
            None => Outcome::Done(Done::Applied),
        };
        Ok(items.iter().map(outcome).collect())
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        self.archive.probe().await.map_err(Into::into)
    }
}

impl Item {
    fn letter(&self) -> Option<&Letter> {
        match self {
            Self::Dead(letter) => Some(letter),
            Self::Expired(_) => None,
        }
    }
}

impl Keeper {
    /// Stores letters, all at once or, if PostgreSQL refuses one of them, each by itself. One fault
    /// for each that was refused.
    async fn store(&self, letters: &[&Letter]) -> Result<Vec<Option<String>>, Unavailable> {
        let rows: Vec<_> = letters.iter().map(|letter| letter.row.clone()).collect();
        match self.archive.store_dead_letters(&rows).await {
            Ok(()) => return Ok(vec![None; rows.len()]),
            Err(error) if error.class() == FailureClass::Unavailable => return Err(error.into()),
            Err(_) => {}
        }
        let mut faults = Vec::with_capacity(rows.len());
        for row in &rows {
            faults.push(match self.archive.store_dead_letters(std::slice::from_ref(row)).await {
                Ok(()) => None,
                Err(error) if error.class() == FailureClass::Unavailable => {
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::error!(dead_letter = %row.id, %error, "a dead letter stays queued");
                    Some(error.to_string())
                }
            });
        }
        Ok(faults)
    }

    async fn send_back(&self, items: &[Item]) -> Result<(), Unavailable> {
        let home: Vec<_> = items
            .iter()
            .filter_map(|item| match item {
                Item::Expired(publication) => Some(Arc::clone(publication)),
                Item::Dead(_) => None,
            })
            .collect();
        let sent = home.len() as u64;
        for result in self.publisher.publish_all(home).await {
            result?;
        }
        let (queue, cause) = (self.queue.name(), SentBack::Expired);
        self.metrics.add(Counter::DeadLettersSentBack { queue, cause }, sent);
        Ok(())
    }

    async fn announce(&self, letters: &[&Letter]) -> Result<(), Unavailable> {
        let mut events = Vec::with_capacity(letters.len());
        for letter in letters {
            let event = Event::DeadLettered(event(letter));
            let body = serde_json::to_vec(&event)
                .map_err(|error| Unavailable { store: Store::RabbitMq, source: Box::new(error) })?;
            events.push(Arc::new(Publication::event(event.routing_key(), body)));
        }
        for result in self.publisher.publish_all(events).await {
            result?;
        }
        Ok(())
    }
}

fn event(letter: &Letter) -> DeadLettered {
    let row = &letter.row;
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
