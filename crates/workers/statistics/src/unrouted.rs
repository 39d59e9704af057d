//! The work of `domain.unrouted`: actions that no queue was bound for.
//!
//! A known action lost its way because a queue or binding was missing for a while: it goes to its
//! queue, past the exchange. An action that nobody knows becomes a dead letter, so that a mistyped
//! routing key is never confirmed and gone.

use broker::topology::{WorkQueue, queue_of};
use broker::{Delivery, Handler, Publisher};
use domain::action::ActionKind;
use domain::envelope::Resolved;
use domain::failure::{Done, Outcome, Refusal, Unavailable};
use metrics::{Counter, Metrics, SentBack};
use worker::Decoder;

use crate::home::{Homebound, send_home};

/// Sends known actions home.
#[derive(Clone)]
pub(crate) struct SendHome {
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
    pub(crate) decoder: Decoder,
}

impl Handler for SendHome {
    type Item = Homebound;

    fn decode(&self, delivery: &Delivery) -> Result<Homebound, Refusal> {
        // The body says what it is; the routing key is what went wrong.
        let (kind, resolved) = match self.decoder.decode(delivery) {
            Ok(action) => (action.kind(), action.resolved()),
            Err(refusal) => {
                (ActionKind::parse(&delivery.origin().routing_key).ok_or(refusal)?, None)
            }
        };
        Ok(Homebound::new(delivery, queue_of(kind), resolved))
    }

    fn resolved(&self, item: &Homebound) -> Option<Resolved> {
        item.resolved()
    }

    /// Publishes each to its queue, once: while a queue is missing the batch is held.
    async fn handle(&self, items: &[Homebound]) -> Result<Vec<Outcome>, Unavailable> {
        let (queue, cause) = (WorkQueue::Unrouted.name(), SentBack::Unrouted);
        let counter = Counter::DeadLettersSentBack { queue, cause };
        let copies: Vec<_> = items.iter().collect();
        send_home(&copies, &self.publisher, &self.metrics, counter).await?;
        Ok(vec![Outcome::Done(Done::Applied); items.len()])
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        // Only another attempt can tell whether the queue is there again.
        Ok(())
    }
}
