//! Holding: while a dependency is unavailable, batches are kept unacknowledged and no new batch starts.
//! Requests are an exception: their batches start and are held too, so that each request expires in time.
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
        hold.batches.push(batch);
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
            None => self.expire_requests(unavailable.dependency),
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

    /// Finishes the held batches in which a request has expired.
    fn expire_requests(&mut self, dependency: Dependency) {
        let Some(hold) = &mut self.hold else { return };
        let now = self.shared.clock.now();
        let expired = hold.batches.extract_if(.., |batch| batch.expire(now, dependency));
        for batch in expired.collect::<Vec<_>>() {
            self.start(batch);
        }
    }

    /// The probe succeeded: the held batches are handled again.
    pub(super) fn resume(&mut self) {
        let Some(hold) = &mut self.hold else { return };
        hold.probing = false;
        for batch in std::mem::take(&mut hold.batches) {
            self.start(batch);
        }
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
