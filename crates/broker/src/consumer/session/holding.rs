//! Holding: while a dependency is unavailable, batches are kept unacknowledged and no new batch starts.
//! Batches of requests are decoded and held too, so that each request is refused or expires in time.
//!
//! The hold ends when all batches are finished, not when a probe succeeds: a dependency may answer probes
//! and still fail requests. It also ends after `hold_limit`. Then all messages are requeued together,
//! with one more redelivery each, before RabbitMQ's `consumer_timeout` closes the channel.

use domain::failure::{Dependency, Unavailable};

use super::hold::Hold;
use super::state::{Report, Session};
use crate::Handler;
use crate::consumer::batch::Batch;
use crate::consumer::end::End;
use crate::consumer::settings::ConsumerState;

impl<H: Handler> Session<H> {
    pub(super) fn hold(
        &mut self,
        batch: Batch<H::Item>,
        unavailable: &Unavailable,
    ) -> Result<(), End> {
        let limit = self.shared.hold_limit();
        self.shared.observer.held(unavailable, self.unacked.len(), limit);
        let hold = self.hold.get_or_insert_with(|| Hold::new(unavailable.dependency));
        hold.batches.push_back(batch);
        if hold.probing { Ok(()) } else { self.probe_again(unavailable) }
    }

    /// Probes after a pause; ends the session when the hold has lasted for its limit.
    pub(super) fn probe_again(&mut self, unavailable: &Unavailable) -> Result<(), End> {
        let Some(hold) = &mut self.hold else { return Ok(()) };
        hold.dependency = unavailable.dependency;
        match self.shared.hold_limit() {
            Some(limit) if hold.since.elapsed() >= limit => {
                return Err(End::HoldLimitReached(hold.dependency));
            }
            Some(_) => {}
            None => self.answer_held_requests(unavailable.dependency),
        }
        let Some(hold) = &mut self.hold else { return Ok(()) };
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

    /// Whether new batches are held instead of started.
    pub(super) fn holds_requests(&self) -> bool {
        self.hold.is_some() && self.shared.hold_limit().is_none()
    }

    /// Starts a batch; holds it if its requests must wait.
    pub(super) fn start_or_hold(&mut self, mut batch: Batch<H::Item>) {
        match &mut self.hold {
            Some(hold) => {
                batch.read(&self.shared);
                hold.batches.push_back(batch);
            }
            None => self.start(batch),
        }
    }

    /// Finishes the held requests that are refused or have expired.
    fn answer_held_requests(&mut self, dependency: Dependency) {
        let Some(hold) = &mut self.hold else { return };
        let now = self.shared.clock.now();
        let take = |batch: &mut Batch<H::Item>| batch.take_decided(now, dependency);
        let decided: Vec<_> = hold.batches.iter_mut().filter_map(take).collect();
        hold.batches.retain(|batch| batch.len() > 0);
        decided.into_iter().for_each(|batch| self.start(batch));
    }

    /// The probe succeeded: the held batches are handled again, as [`start_ready_batches`] gets to them.
    ///
    /// [`start_ready_batches`]: Session::start_ready_batches
    pub(super) fn resume(&mut self) {
        let Some(hold) = &mut self.hold else { return };
        hold.probing = false;
        self.end_hold();
    }

    /// A batch is finished. This ends the hold unless other batches are held or being handled: a batch
    /// that was started before may succeed during the outage, and a batch that is handled again may
    /// fail again.
    pub(super) fn end_hold(&mut self) {
        let Some(hold) = self.hold.take_if(|hold| hold.is_over(self.in_flight)) else { return };
        self.shared.observer.hold_ended(hold.dependency, hold.since.elapsed());
        self.shared.state.send_replace(self.state());
    }
}
