//! The work of `domain.unrouted`: actions that no queue was bound for.
//!
//! A known action lost its way because a queue or binding was missing for a while: it goes to its
//! queue, past the exchange. An action that nobody knows becomes a dead letter, so that a mistyped
//! routing key is never confirmed and gone.

use std::sync::Arc;

use broker::topology::{QUESTIONS, WorkQueue};
use broker::{Delivery, Handler, Publication, Publisher};
use domain::action::ActionKind;
use domain::failure::{Done, Outcome, Refusal, Unavailable};
use metrics::{Counter, Metrics, SentBack};
use worker::Decoder;

/// Sends known actions home.
#[derive(Clone)]
pub(crate) struct SendHome {
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
    pub(crate) decoder: Decoder,
}

impl Handler for SendHome {
    type Item = Arc<Publication>;

    fn decode(&self, delivery: &Delivery) -> Result<Arc<Publication>, Refusal> {
        // The body says what it is; the routing key is what went wrong.
        let kind = match self.decoder.decode(delivery) {
            Ok(action) => action.kind(),
            Err(refusal) => ActionKind::parse(&delivery.origin.routing_key).ok_or(refusal)?,
        };
        Ok(Arc::new(Publication::copy(delivery, home(kind))))
    }

    /// Publishes each to its queue, mandatory: while the queue is missing the batch is held.
    async fn handle(&self, items: &[Arc<Publication>]) -> Result<Vec<Outcome>, Unavailable> {
        for result in self.publisher.publish_all(items.iter().map(Arc::clone)).await {
            result?;
        }
        let (queue, cause) = (WorkQueue::Unrouted.name(), SentBack::Unrouted);
        self.metrics.add(Counter::DeadLettersSentBack { queue, cause }, items.len() as u64);
        Ok(vec![Outcome::Done(Done::Applied); items.len()])
    }

    async fn probe(&self) -> Result<(), Unavailable> {
        // Only another attempt can tell whether the queue is there again.
        Ok(())
    }
}

fn home(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::SaveMessage => WorkQueue::SaveMessage.name(),
        ActionKind::SessionOpened
        | ActionKind::SessionClosed
        | ActionKind::Feedback
        | ActionKind::Erase => WorkQueue::Session.name(),
        kind if kind.is_question() => QUESTIONS,
        _ => WorkQueue::BotState.name(),
    }
}
