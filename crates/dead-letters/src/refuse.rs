//! Refusing the actions of a work queue that no worker of this version carries out, so that none waits unseen.

use broker::topology::WorkQueue;
use broker::{Decoder, Delivery, Handled, Handler, Source};
use domain::action::Action;
use domain::envelope::Resolved;
use domain::failure::{Dependency, Failure, Refusal, Unavailable};
use domain::fleet::refusal_of;
use domain::reply::ReplyAddress;

/// The handler of such a queue. Every message becomes a dead letter, with its resolved identity; a replay with a
/// version that has a worker for it carries it out.
#[derive(Clone)]
pub struct RefuseActions {
    queue: WorkQueue,
    decoder: Decoder,
}

impl RefuseActions {
    /// The handler of this queue.
    #[must_use]
    pub fn new(queue: WorkQueue, decoder: Decoder) -> Self {
        Self { queue, decoder }
    }
}

impl Handler for RefuseActions {
    type Item = Action;
    /// It needs RabbitMQ alone.
    const NEEDS: &'static [Dependency] = &[];

    fn source(&self) -> Source {
        Source::work(self.queue)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Action, Refusal> {
        self.decoder.decode(delivery)
    }

    fn resolved(&self, action: &Action) -> Option<Resolved> {
        action.resolved()
    }

    fn reply_address(&self, action: &Action) -> Option<ReplyAddress> {
        action.common().reply_address()
    }

    async fn handle(&self, actions: &[Action]) -> Result<Vec<Handled>, Unavailable> {
        let refused = |action: &Action| Err(Failure::DeadLetter(refusal_of(action.kind())));
        Ok(actions.iter().map(refused).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        Ok(())
    }
}
