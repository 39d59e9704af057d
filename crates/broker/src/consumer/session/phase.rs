//! Whether deliveries come, and the ways out of that: another prefetch, suspects, leaving.
//!
//! All three begin with a cancel, after which the broker sends nothing new; what it had sent is
//! received to the end. (What it was about to send goes back to the queue and counts as returned
//! once more.)

use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{End, Session};
use crate::Handler;
use crate::connection::{Error, request};
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
    /// To consume with another prefetch.
    Consume,
    /// To take suspects, while nothing else is under way.
    Suspects,
    /// To leave.
    Leave,
}

impl<H: Handler> Session<H> {
    pub(super) async fn cancel_for(&mut self, next: Next) -> Result<(), End> {
        match self.phase {
            Phase::Consuming => {
                let options = BasicCancelOptions::default();
                let cancel = self.channel.basic_cancel(self.stream.tag(), options);
                request("cancel the consumer", cancel).await?;
                self.phase = Phase::Cancelled(next);
            }
            Phase::Cancelled(_) => self.phase = Phase::Cancelled(next),
            Phase::Dry(_) => self.phase = Phase::Dry(next),
        }
        if next == Next::Leave && self.hold.is_none() {
            self.shared.state.send_replace(ConsumerState::Draining);
        }
        Ok(())
    }

    /// The stream has ended: as it should after a cancel, or because the broker ended it.
    pub(super) async fn stream_ended(&mut self) -> Result<(), End> {
        match self.phase {
            Phase::Cancelled(Next::Consume) => self.consume_again().await,
            Phase::Cancelled(next) => {
                self.phase = Phase::Dry(next);
                Ok(())
            }
            Phase::Consuming | Phase::Dry(_) => Err(End::StreamEnded),
        }
    }

    pub(super) async fn change_prefetch_if_worthwhile(&mut self) -> Result<(), End> {
        let steady = self.phase == Phase::Consuming && self.hold.is_none();
        if steady && self.prefetch.changes(self.ledger.bytes()) {
            self.shared.observer.prefetch_changes(self.prefetch.current());
            self.cancel_for(Next::Consume).await?;
        }
        Ok(())
    }

    /// Once everything that came is acknowledged, does what the consumer was cancelled for.
    pub(super) async fn go_on_if_dry(&mut self, shutdown: &CancellationToken) -> Result<(), End> {
        match self.phase {
            Phase::Dry(Next::Leave) if self.ledger.is_empty() => Err(End::Drained),
            Phase::Dry(_) if self.ledger.is_empty() => {
                suspects::take_turn(&self.shared, &self.connection, shutdown).await?;
                if shutdown.is_cancelled() {
                    return Err(End::Drained);
                }
                self.last_look_at_suspects = Instant::now();
                self.consume_again().await
            }
            _ => Ok(()),
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
