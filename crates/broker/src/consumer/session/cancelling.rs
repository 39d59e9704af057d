//! Cancelling the consumer, and what follows: another prefetch, suspects, shutdown.
//!
//! After a cancel RabbitMQ sends no new deliveries, and those already sent are received. Deliveries that
//! RabbitMQ has assigned to the consumer and not sent yet are requeued with one more redelivery. A few
//! rollouts would then make suspects of ordinary messages. So before a cancel nothing is acknowledged
//! until the prefetch is full or the queue is empty: then no such delivery exists.

use lapin::options::BasicCancelOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::phase::{AfterCancel, Phase, PrefetchFill};
use super::registration::consume;
use super::state::{Report, Session};
use crate::Handler;
use crate::connection::request;
use crate::consumer::end::End;
use crate::consumer::prefetch::Change;
use crate::consumer::settings::ConsumerState;
use crate::consumer::suspects;

impl<H: Handler> Session<H> {
    /// Cancels the consumer once no delivery would be requeued by it.
    pub(super) fn cancel_for(&mut self, next: AfterCancel) {
        self.phase = match self.phase {
            Phase::Consuming => Phase::FillingPrefetch(next, PrefetchFill::begin()),
            Phase::FillingPrefetch(_, fill) => Phase::FillingPrefetch(next, fill),
            Phase::Cancelled(_) => Phase::Cancelled(next),
            Phase::Stopped(_) => Phase::Stopped(next),
        };
        if next == AfterCancel::Shutdown && self.hold.is_none() {
            self.shared.state.send_replace(ConsumerState::Draining);
        }
    }

    /// Cancels the consumer at once. Deliveries that RabbitMQ sent before its reply are received while
    /// the reply is awaited.
    pub(super) fn cancel_now_for(&mut self, next: AfterCancel) {
        if matches!(self.phase, Phase::Consuming | Phase::FillingPrefetch(..)) {
            let (channel, consumer) = (self.channel.clone(), self.stream.tag());
            self.send_request(async move {
                let cancel = channel.basic_cancel(consumer, BasicCancelOptions::default());
                Report::RequestSent(
                    request("cancel the consumer", cancel).await.map_err(End::Failed),
                )
            });
            self.phase = Phase::Cancelled(next);
        }
        self.cancel_for(next);
    }

    /// Cancels the consumer if the prefetch is full or the queue is empty. Otherwise returns when it is
    /// cancelled at the latest.
    pub(super) async fn cancel_if_filled(&mut self) -> Result<Option<Instant>, End> {
        let Phase::FillingPrefetch(next, fill) = self.phase else { return Ok(None) };
        let has_room = self.unacked.len() < usize::from(self.registered);
        if has_room && Instant::now() < fill.ends() {
            return Ok(Some(fill.ends()));
        }
        self.cancel_now_for(next);
        self.send_acknowledgements().await?;
        Ok(None)
    }

    /// The stream has ended: after a cancel of this session, or because RabbitMQ cancelled the consumer.
    pub(super) async fn stream_ended(&mut self) -> Result<(), End> {
        self.log_requeued_over_byte_limit();
        match self.phase {
            // During a hold no new consumer is registered.
            Phase::Cancelled(AfterCancel::GrowPrefetch) if self.hold.is_none() => {
                self.consume_again().await
            }
            Phase::Cancelled(next) | Phase::FillingPrefetch(next, _) => {
                self.phase = Phase::Stopped(next);
                // The deliveries that were finished while the prefetch was being filled.
                self.send_acknowledgements().await
            }
            Phase::Consuming => {
                self.phase = Phase::Stopped(AfterCancel::Reconnect);
                if self.hold.is_none() {
                    self.shared.state.send_replace(ConsumerState::Connecting);
                }
                Ok(())
            }
            Phase::Stopped(_) => Err(End::StreamEnded),
        }
    }

    pub(super) fn change_prefetch_if_worthwhile(&mut self) {
        let may_change = self.phase == Phase::Consuming && self.hold.is_none();
        if let Some(change) = may_change.then(|| self.prefetch.change()).flatten() {
            let (from, to) = (self.registered, self.prefetch.current());
            self.shared.observer.prefetch_changed(from, to, &self.shared.settings);
            self.cancel_for(match change {
                Change::Grows => AfterCancel::GrowPrefetch,
                Change::Shrinks => AfterCancel::ShrinkPrefetch,
            });
        }
    }

    /// Once all received deliveries are acknowledged, does what the consumer was cancelled for.
    pub(super) async fn act_after_cancel(
        &mut self,
        shutdown: &CancellationToken,
    ) -> Result<(), End> {
        match self.phase {
            Phase::Stopped(_) if !self.unacked.is_empty() => Ok(()),
            Phase::Stopped(AfterCancel::Shutdown) => Err(End::Drained),
            Phase::Stopped(AfterCancel::Reconnect) => Err(End::StreamEnded),
            Phase::Stopped(AfterCancel::GrowPrefetch | AfterCancel::ShrinkPrefetch) => {
                self.consume_again().await
            }
            Phase::Stopped(AfterCancel::HandleSuspects) => {
                suspects::handle_suspects(&self.shared, &self.connection, shutdown).await?;
                if shutdown.is_cancelled() {
                    return Err(End::Drained);
                }
                self.last_suspect_check = Instant::now();
                self.consume_again().await
            }
            Phase::Consuming | Phase::FillingPrefetch(..) | Phase::Cancelled(_) => Ok(()),
        }
    }

    /// The state of the consumer outside a hold.
    pub(super) fn state(&self) -> ConsumerState {
        match self.phase {
            _ if self.is_shutting_down() => ConsumerState::Draining,
            Phase::Stopped(AfterCancel::Reconnect) => ConsumerState::Connecting,
            _ => ConsumerState::Consuming,
        }
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        matches!(
            self.phase,
            Phase::FillingPrefetch(AfterCancel::Shutdown, _)
                | Phase::Cancelled(AfterCancel::Shutdown)
                | Phase::Stopped(AfterCancel::Shutdown)
        )
    }

    async fn consume_again(&mut self) -> Result<(), End> {
        let prefetch = self.prefetch.current();
        self.stream = consume(&self.channel, self.shared.source.queue(), prefetch).await?;
        self.registered = prefetch;
        self.phase = Phase::Consuming;
        self.last_progress = Instant::now();
        Ok(())
    }
}
