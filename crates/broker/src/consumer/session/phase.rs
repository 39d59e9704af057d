//! Whether deliveries come, and the ways out of that: another prefetch, suspects, leaving.
//!
//! All begin with a cancel, after which the broker sends nothing new; what it had sent is received to
//! the end. What it was *about* to send goes back to the queue, counted as returned, so that a few
//! rollouts would make suspects of innocents. So nothing is acknowledged before a cancel, until the
//! broker has sent all that the prefetch allows, or all that there is.

use std::time::Duration;

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
    /// They do until the prefetch is full, since nothing is acknowledged.
    FillingPrefetch(AfterCancel, PrefetchFill),
    /// The consumer is cancelled; what the broker had sent before is still coming in.
    Cancelled(AfterCancel),
    /// Nothing comes any more; what came is being finished.
    Stopped(AfterCancel),
}

/// Since when a consumer fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PrefetchFill {
    began: Instant,
    last_came: Instant,
}

/// What a consumer is cancelled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterCancel {
    /// To consume with a larger prefetch.
    GrowPrefetch,
    /// To consume with a smaller one, when what came is finished: there may be no room for more.
    ShrinkPrefetch,
    /// To take suspects, while nothing else is under way.
    TakeSuspects,
    /// To leave.
    Shutdown,
    /// To be built anew: the broker itself cancelled it. What came may be nowhere else any more.
    Reconnect,
}

/// A consumer to which nothing came for so long, though it has room, has all that there is: much
/// longer than a delivery takes from queue to consumer, on a busy machine too.
const QUIET: Duration = Duration::from_millis(200);
/// Where messages only trickle in, so much is enough: of what comes then, at most one is on its way.
const FILL_LIMIT: Duration = Duration::from_secs(1);

impl PrefetchFill {
    fn begin() -> Self {
        let began = Instant::now();
        Self { began, last_came: began }
    }

    pub(super) fn came(&mut self, at: Instant) {
        self.last_came = at;
    }

    fn ends(&self) -> Instant {
        (self.last_came + QUIET).min(self.began + FILL_LIMIT)
    }
}

impl<H: Handler> Session<H> {
    /// Cancels the consumer as soon as that gives nothing back.
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

    /// Cancels the consumer. Deliveries that were under way arrive before RabbitMQ's answer, so they
    /// are taken while it is waited for.
    pub(super) fn cancel_now_for(&mut self, next: AfterCancel) {
        if matches!(self.phase, Phase::Consuming | Phase::FillingPrefetch(..)) {
            let (channel, consumer) = (self.channel.clone(), self.stream.tag());
            self.send(async move {
                let cancel = channel.basic_cancel(consumer, BasicCancelOptions::default());
                Report::Sent(request("cancel the consumer", cancel).await.map_err(End::Failed))
            });
            self.phase = Phase::Cancelled(next);
        }
        self.cancel_for(next);
    }

    /// Cancels a consumer that is full or has all that there is. Says until when it waits for more.
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

    /// The stream has ended: as it should after a cancel, or because the broker ended it.
    pub(super) async fn stream_ended(&mut self) -> Result<(), End> {
        match self.phase {
            // During a hold it takes no more than it has.
            Phase::Cancelled(AfterCancel::GrowPrefetch) if self.hold.is_none() => {
                self.consume_again().await
            }
            Phase::Cancelled(next) | Phase::FillingPrefetch(next, _) => {
                self.phase = Phase::Stopped(next);
                // What was finished while it filled: nothing else would send it now.
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
        let steady = self.phase == Phase::Consuming && self.hold.is_none();
        if let Some(change) = steady.then(|| self.prefetch.changes()).flatten() {
            self.shared.observer.prefetch_changes(self.prefetch.current());
            self.cancel_for(match change {
                Change::Grows => AfterCancel::GrowPrefetch,
                Change::Shrinks => AfterCancel::ShrinkPrefetch,
            });
        }
    }

    /// Once everything that came is acknowledged, does what the consumer was cancelled for.
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
            Phase::Stopped(AfterCancel::TakeSuspects) => {
                suspects::take_turn(&self.shared, &self.connection, shutdown).await?;
                if shutdown.is_cancelled() {
                    return Err(End::Drained);
                }
                self.last_look_at_suspects = Instant::now();
                self.consume_again().await
            }
            Phase::Consuming | Phase::FillingPrefetch(..) | Phase::Cancelled(_) => Ok(()),
        }
    }

    /// What the consumer is doing when it holds nothing for a store.
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
        self.stream = consume(&self.channel, self.shared.source.queue, prefetch).await?;
        self.registered = prefetch;
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
