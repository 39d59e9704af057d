//! Waiting for a store that is away: batches are kept, unacknowledged, until it answers again.
//!
//! Nothing new is begun meanwhile. The hold ends when everything under way is through, not when a
//! probe succeeds: a store that answers probes and nothing else is not well. It also ends when it has
//! lasted too long: then the messages go back to the queue, all at once and counted once, before
//! RabbitMQ loses patience with the channel.

use domain::failure::{Dependency, Unavailable};
use tokio::time::Instant;

use super::{End, Report, Session};
use crate::Handler;
use crate::backoff::Backoff;
use crate::consumer::ConsumerState;
use crate::consumer::batch::Batch;

/// The store that is away, and what waits for it.
pub(super) struct Hold<I> {
    dependency: Dependency,
    since: Instant,
    backoff: Backoff,
    batches: Vec<Batch<I>>,
    /// A probe is under way.
    probing: bool,
}

/// What a session that ended during a hold was waiting for.
pub(in crate::consumer) struct Waiting<I> {
    pub(in crate::consumer) dependency: Dependency,
    /// One of the batches that were held, if none was being tried again. Its messages are back in
    /// their queue, and it can still tell when its store is back.
    pub(in crate::consumer) batch: Option<Batch<I>>,
}

impl<I> Hold<I> {
    fn new(dependency: Dependency) -> Self {
        let (since, backoff) = (Instant::now(), Backoff::new());
        Self { dependency, since, backoff, batches: Vec::new(), probing: false }
    }

    /// Whether nothing waits any more, while this many batches are being handled. Those that
    /// resumed are among them, and may come back.
    fn is_over(&self, in_flight: usize) -> bool {
        self.batches.is_empty() && !self.probing && in_flight == 0
    }

    /// What a session that ends during a hold leaves behind.
    pub(super) fn into_waiting(mut self) -> Waiting<I> {
        Waiting { dependency: self.dependency, batch: self.batches.pop() }
    }
}

impl<H: Handler> Session<H> {
    pub(super) fn hold(
        &mut self,
        batch: Batch<H::Item>,
        unavailable: &Unavailable,
    ) -> Result<(), End> {
        self.shared.observer.held(unavailable);
        let hold = self.hold.get_or_insert_with(|| Hold::new(unavailable.dependency));
        hold.batches.push(batch);
        if hold.probing { Ok(()) } else { self.probe_again(unavailable) }
    }

    /// Probes after a pause; gives up when the hold has lasted too long.
    pub(super) fn probe_again(&mut self, unavailable: &Unavailable) -> Result<(), End> {
        let Some(hold) = &mut self.hold else { return Ok(()) };
        hold.dependency = unavailable.dependency;
        if hold.since.elapsed() >= self.shared.settings.hold_limit {
            return Err(End::HeldTooLong(hold.dependency));
        }
        self.shared.state.send_replace(ConsumerState::Holding(hold.dependency));
        hold.probing = true;
        let (shared, pause) = (self.shared.clone(), hold.backoff.next_pause());
        let dependency = hold.dependency;
        self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            Report::Probed(shared.probe(dependency).await)
        });
        Ok(())
    }

    /// The probe succeeded: what was held tries again.
    pub(super) fn resume(&mut self) {
        let Some(hold) = &mut self.hold else { return };
        hold.probing = false;
        for batch in std::mem::take(&mut hold.batches) {
            self.start(batch);
        }
    }

    /// A batch is through. That ends the hold, unless others still wait or try again: batches that
    /// had been started before may succeed while the store is away, and of those that resumed some
    /// may not.
    pub(super) fn end_hold(&mut self) {
        let Some(hold) = self.hold.take_if(|hold| hold.is_over(self.in_flight)) else { return };
        self.shared.observer.hold_ended(hold.dependency, hold.since.elapsed());
        self.shared.state.send_replace(self.state());
    }
}
