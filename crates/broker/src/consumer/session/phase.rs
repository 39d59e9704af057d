//! Whether deliveries come, and the ways out of that: another prefetch, suspects, leaving.
//!
//! All three begin with a cancel, after which the broker sends nothing new; what it had sent is
//! received to the end. (What it was about to send goes back to the queue and counts as returned
//! once more.)

use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{End, Report, Session};
use crate::Handler;
use crate::connection::{Error, request};
use crate::consumer::prefetch::Change;
use crate::consumer::{ConsumerState, suspects};

/// Whether deliveries come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// They do.
    Consuming,
    /// The consumer is cancelled; what the broker had sent before is still coming in.
    Cancelled(Next),
    /// Nothing comes any more; what came is being finished.
    Dry(Next),
}

/// What a consumer is cancelled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// To consume with a larger prefetch.
    Grow,
    /// To consume with a smaller one, when what came is finished: there may be no room for more.
    Shrink,
    /// To take suspects, while nothing else is under way.
    Suspects,
    /// To leave.
    Leave,
}

impl<H: Handler> Session<H> {
    /// Cancels the consumer. Deliveries that were under way arrive before RabbitMQ's answer, so they
    /// are taken while it is waited for.
    pub(super) fn cancel_for(&mut self, next: Next) {
        match self.phase {
            Phase::Consuming => {
                let (channel, consumer) = (self.channel.clone(), self.stream.tag());
                self.send(async move {
                    let cancel = channel.basic_cancel(consumer, BasicCancelOptions::default());
                    Report::Sent(request("cancel the consumer", cancel).await.map_err(End::Failed))
                });
                self.phase = Phase::Cancelled(next);
            }
            Phase::Cancelled(_) => self.phase = Phase::Cancelled(next),
            Phase::Dry(_) => self.phase = Phase::Dry(next),
        }
        if next == Next::Leave && self.hold.is_none() {
            self.shared.state.send_replace(ConsumerState::Draining);
        }
    }

    /// The stream has ended: as it should after a cancel, or because the broker ended it.
    pub(super) async fn stream_ended(&mut self) -> Result<(), End> {
        match self.phase {
            Phase::Cancelled(Next::Grow) => self.consume_again().await,
            Phase::Cancelled(next) => {
                self.phase = Phase::Dry(next);
                Ok(())
            }
            Phase::Consuming | Phase::Dry(_) => Err(End::StreamEnded),
        }
    }

    pub(super) fn change_prefetch_if_worthwhile(&mut self) {
        let steady = self.phase == Phase::Consuming && self.hold.is_none();
        if let Some(change) = steady.then(|| self.prefetch.changes()).flatten() {
            self.shared.observer.prefetch_changes(self.prefetch.current());
            self.cancel_for(match change {
                Change::Grows => Next::Grow,
                Change::Shrinks => Next::Shrink,
            });
        }
    }

    /// Once everything that came is acknowledged, does what the consumer was cancelled for.
    pub(super) async fn go_on_if_dry(&mut self, shutdown: &CancellationToken) -> Result<(), End> {
        match self.phase {
            Phase::Dry(_) if !self.ledger.is_empty() => Ok(()),
            Phase::Dry(Next::Leave) => Err(End::Drained),
            Phase::Dry(Next::Grow | Next::Shrink) => self.consume_again().await,
            Phase::Dry(Next::Suspects) => {
                suspects::take_turn(&self.shared, &self.connection, shutdown).await?;
                if shutdown.is_cancelled() {
                    return Err(End::Drained);
                }
                self.last_look_at_suspects = Instant::now();
                self.consume_again().await
            }
            Phase::Consuming | Phase::Cancelled(_) => Ok(()),
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Cancelled(Next::Leave) | Phase::Dry(Next::Leave))
    }

    async fn consume_again(&mut self) -> Result<(), End> {
        let prefetch = self.prefetch.current();
        self.stream = consume(&self.channel, self.shared.source.queue, prefetch).await?;
        self.phase = Phase::Consuming;
        self.last_progress = Instant::now();
        Ok(())
    }
}

/// Registers a consumer. The prefetch counts for it alone, and cannot be changed while it lives.
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
