//! Cancelling the consumer, and what follows: another prefetch, suspects, shutdown.
//!
//! After a cancel RabbitMQ sends no new deliveries, and those already sent are received. Deliveries that
//! RabbitMQ has assigned to the consumer and not sent yet are requeued with one more redelivery. A few
//! rollouts would then make suspects of ordinary messages. So before a cancel nothing is acknowledged
//! until the prefetch is full or the queue is empty: then no such delivery exists.

use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;

use super::phase::{Action, AfterCancel, Event, Phase};
use super::state::{Report, Session};
use crate::Handler;
use crate::connection::{Error, request};
use crate::consumer::end::End;
use crate::consumer::prefetch::Change;
use crate::consumer::settings::ConsumerState;
use crate::consumer::suspects;

impl<H: Handler> Session<H> {
    fn phase_on(&mut self, event: Event) -> Action {
        let (phase, action) = self.phase.on(event);
        self.phase = phase;
        action
    }

    /// Cancels the consumer once no delivery would be requeued by it.
    pub(super) fn cancel_for(&mut self, next: AfterCancel) {
        self.phase_on(Event::Cancel(next, Instant::now()));
        if next == AfterCancel::Shutdown && self.hold.is_none() {
            self.shared.state.send_replace(ConsumerState::Draining);
        }
    }

    /// Cancels the consumer at once. Deliveries that RabbitMQ sent before its reply are received while
    /// the reply is awaited.
    pub(super) fn cancel_now_for(&mut self, next: AfterCancel) {
        if self.phase_on(Event::CancelNow(next)) == Action::Cancel {
            self.send_cancel();
        }
    }

    fn send_cancel(&mut self) {
        let (channel, consumer) = (self.channel.clone(), self.stream.tag());
        self.send_request(async move {
            let cancel = channel.basic_cancel(consumer, BasicCancelOptions::default());
            Report::RequestSent(request("cancel the consumer", cancel).await.map_err(End::Failed))
        });
    }

    /// Cancels the consumer if the prefetch is full or the queue is empty. Otherwise returns when it is
    /// cancelled at the latest.
    pub(super) async fn cancel_if_filled(&mut self) -> Result<Option<Instant>, End> {
        let Phase::FillingPrefetch(_, fill) = self.phase else { return Ok(None) };
        let has_room = self.unacked.len() < usize::from(self.registered);
        if has_room && Instant::now() < fill.ends() {
            return Ok(Some(fill.ends()));
        }
        if self.phase_on(Event::Filled) == Action::Cancel {
            self.send_cancel();
        }
        self.send_acknowledgements().await?;
        Ok(None)
    }

    pub(super) async fn stream_ended(&mut self) -> Result<(), End> {
        self.log_requeued_over_byte_limit();
        let action = self.phase_on(Event::StreamEnded { holding: self.hold.is_some() });
        self.act(action).await
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
    pub(super) async fn act_after_cancel(&mut self) -> Result<(), End> {
        if !self.unacked.is_empty() {
            return Ok(());
        }
        let action = self.phase_on(Event::AllSettled);
        self.act(action).await
    }

    async fn act(&mut self, action: Action) -> Result<(), End> {
        match action {
            Action::Nothing => Ok(()),
            Action::Cancel => {
                self.send_cancel();
                Ok(())
            }
            Action::Acknowledge => self.send_acknowledgements().await,
            Action::ReportConnecting => {
                self.shared.state.send_replace(ConsumerState::Connecting);
                Ok(())
            }
            Action::Register => self.consume_again().await,
            Action::HandleSuspects => {
                suspects::handle_suspects(&self.shared, &self.connection, &self.shutdown).await?;
                if self.shutdown.is_cancelled() {
                    return Err(End::Drained);
                }
                self.last_suspect_check = Instant::now();
                self.consume_again().await
            }
            Action::EndDrained => Err(End::Drained),
            Action::EndQueueEmpty => Err(End::QueueEmpty),
            Action::EndForReconnect => Err(End::StreamEnded),
        }
    }

    /// The state of the consumer outside a hold.
    pub(super) fn state(&self) -> ConsumerState {
        match self.phase {
            phase if phase.is_shutting_down() => ConsumerState::Draining,
            Phase::Stopped(AfterCancel::Reconnect) => ConsumerState::Connecting,
            _ => ConsumerState::Consuming,
        }
    }

    async fn consume_again(&mut self) -> Result<(), End> {
        let prefetch = self.prefetch.current();
        self.stream = consume(&self.channel, self.shared.source.queue(), prefetch).await?;
        self.registered = prefetch;
        self.phase_on(Event::Registered);
        self.last_progress = Instant::now();
        Ok(())
    }
}

/// Registers a consumer. The prefetch applies to this consumer and cannot be changed later
/// (`basic.qos` with `global: false`).
pub(super) async fn consume(
    channel: &lapin::Channel,
    queue: &'static str,
    prefetch: u16,
) -> Result<lapin::Consumer, Error> {
    let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
    request("set the prefetch", qos).await?;
    let options = BasicConsumeOptions::default();
    let consume = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    request("start a consumer", consume).await
}
