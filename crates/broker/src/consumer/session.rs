//! One connection, one channel, one consumer, from registration to the end: the loop.
//!
//! A turn of the loop: take what is here, start what is due, then wait for whatever happens next.
//! The session alone acknowledges, and only from the [`UnackedDeliveries`].
//!
//! Dropping a session drops its tasks and closes its socket: RabbitMQ delivers again what was not
//! acknowledged. That is also what a crash does, so it needs no care.

mod checks;
pub(super) mod hold;
mod phase;

use std::sync::Arc;

use domain::failure::{Dependency, Unavailable};
use failpoints::Step;
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicAckOptions;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::acknowledgement::{acknowledge, requeue};
use super::batch::{Batch, Finished, Lane, Received};
use super::batch_builder::{BatchBuilder, BatchReady, Limits};
use super::prefetch::Prefetch;
use super::unacked::{Gap, Tag, UnackedDeliveries};
use super::{ConsumerState, Shared};
use crate::connection::{Connection, Error};
use crate::{Delivery, Handler};
use hold::{Hold, Waiting};
use phase::{AfterCancel, Phase, consume};

/// A registered consumer and everything under way.
pub(super) struct Session<H: Handler> {
    shared: Arc<Shared<H>>,
    connection: Connection,
    channel: lapin::Channel,
    stream: lapin::Consumer,
    phase: Phase,
    prefetch: Prefetch,
    /// The prefetch with which the consumer was registered.
    registered: u16,
    unacked: UnackedDeliveries,
    batch_builder: BatchBuilder<Received>,
    /// Batches being handled, and the probe of a hold.
    tasks: JoinSet<Report<H::Item>>,
    in_flight: usize,
    hold: Option<Hold<H::Item>>,
    /// The last delivery or acknowledgement.
    last_progress: Instant,
    /// When the queue was last asked how full it is.
    last_depth_request: Instant,
    last_look_at_suspects: Instant,
    checks: tokio::time::Interval,
    /// Acknowledgements after which a [careful](Care::OneByOne) session has done its part.
    isolating_remaining: Option<usize>,
}

/// The bodies of all batches that are at work may take this part of the budget. There, a body is in
/// memory several times over: as it came, decoded, and encoded for each store on its way there.
const SHARE_AT_WORK: usize = 16;

/// How much a session takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConsumeMode {
    /// As much as the settings allow.
    Batches,
    /// One message, because one of those that come cannot be read and takes the connection with it:
    /// alone, it comes back alone.
    Isolating,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to drain, and has.
    Drained,
    /// A store stayed away for the hold limit; the deliveries went back to the queue.
    HeldTooLong(Dependency),
    /// The broker cancelled the consumer: its queue was deleted or lost its leader. What had come is
    /// finished.
    StreamEnded,
    /// Messages are ready, there is room for them, and none comes.
    NoProgress,
    /// A delivery was lost between the broker and here; it comes again.
    Gap(Gap),
    /// The channel died; an acknowledgement may have died with it.
    ChannelDied,
    /// A task of ours died: a bug. What it had is not acknowledged and comes again.
    TaskDied,
    /// One by one, as many messages were acknowledged as had been under way with the unreadable one.
    IsolatedMessagePassed,
    /// The channel or the connection failed.
    Failed(Error),
}

/// What a task of the session has to say.
enum Report<I> {
    Finished(Finished),
    Held(Batch<I>, Unavailable),
    Probed(Result<(), Unavailable>),
    Sent(Result<(), End>),
}

impl<H: Handler> Session<H> {
    /// Connects and registers with the queue.
    pub(super) async fn open(shared: Arc<Shared<H>>, mode: ConsumeMode) -> Result<Self, Error> {
        let settings = &shared.settings;
        let budget = settings.max_inflight_bytes;
        let most = (settings.batches_in_flight + 1) * settings.batch_size;
        let (ceiling, messages, isolating_remaining) = match mode {
            ConsumeMode::Batches => (most, settings.batch_size, None),
            ConsumeMode::Isolating => (1, 1, Some(most)),
        };
        let prefetch = Prefetch::new(budget, settings.largest_body, ceiling);
        let bytes = budget / SHARE_AT_WORK / settings.batches_in_flight;
        let limits = Limits { messages, bytes, linger: settings.linger };
        let queue = shared.source.queue;
        let connection = shared.endpoints.connect(queue).await?;
        let channel = connection.channel().await?;
        let stream = consume(&channel, queue, prefetch.current()).await?;
        shared.observer.consuming(prefetch.current());
        shared.state.send_replace(ConsumerState::Consuming);
        let now = Instant::now();
        let mut checks = tokio::time::interval(checks::INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            shared,
            connection,
            channel,
            stream,
            phase: Phase::Consuming,
            registered: prefetch.current(),
            prefetch,
            unacked: UnackedDeliveries::default(),
            batch_builder: BatchBuilder::new(limits),
            tasks: JoinSet::new(),
            in_flight: 0,
            hold: None,
            last_progress: now,
            last_depth_request: now,
            last_look_at_suspects: now,
            checks,
            isolating_remaining,
        })
    }

    /// Works until the session ends, for whatever reason, and says what to wait for before the next
    /// one: a store that is away. Consuming meanwhile would count returns and nothing else.
    pub(super) async fn run(
        mut self,
        shutdown: &CancellationToken,
    ) -> (End, Option<Waiting<H::Item>>) {
        let mut end = loop {
            if let Err(end) = self.turn(shutdown).await {
                break end;
            }
        };
        if matches!(end, End::ChannelDied) {
            end = self.channel_error().map_or(end, End::Failed);
        }
        self.shared.observer.holds(0);
        self.shared.observer.requeued(self.unacked.len());
        if matches!(end, End::Drained | End::HeldTooLong(_)) {
            self.tasks.shutdown().await;
            self.connection.close().await;
        }
        let waiting = self.hold.map(Hold::into_waiting);
        // Where RabbitMQ is away, a new session finds out when it is back.
        let held_too_long = matches!(end, End::HeldTooLong(_));
        let waiting = waiting.filter(|it| held_too_long || it.dependency != Dependency::RabbitMq);
        (end, waiting)
    }

    async fn turn(&mut self, shutdown: &CancellationToken) -> Result<(), End> {
        self.drain_ready().await?;
        let linger_ends = self.start_ready_batches();
        self.change_prefetch_if_worthwhile();
        let fill_ends = self.cancel_if_filled().await?;
        self.act_after_cancel(shutdown).await?;
        let (leaving, takes_more) = (self.is_shutting_down(), self.takes_more());
        tokio::select! {
            biased;
            () = shutdown.cancelled(), if !leaving => {
                self.cancel_for(AfterCancel::Shutdown);
                Ok(())
            }
            Some(report) = self.tasks.join_next() => self.on_report(report).await,
            // Before the stream, which may always have something under load.
            _ = self.checks.tick() => self.check().await,
            delivery = self.stream.next(), if takes_more => self.receive(delivery).await,
            () = sleep_until(linger_ends.into_iter().chain(fill_ends).min()) => Ok(()),
        }
    }

    // Receiving.

    async fn drain_ready(&mut self) -> Result<(), End> {
        while self.takes_more() {
            let Some(delivery) = self.stream.next().now_or_never() else { break };
            self.receive(delivery).await?;
        }
        Ok(())
    }

    /// Whatever comes is taken at once: only what is known of can be limited.
    fn takes_more(&self) -> bool {
        !matches!(self.phase, Phase::Stopped(_))
    }

    async fn receive(
        &mut self,
        delivery: Option<lapin::Result<lapin::message::Delivery>>,
    ) -> Result<(), End> {
        match delivery {
            Some(Ok(delivery)) => self.accept(delivery),
            Some(Err(source)) => Err(Error::Request { what: "keep delivering", source }.into()),
            None => self.stream_ended().await,
        }
    }

    fn accept(&mut self, delivery: lapin::message::Delivery) -> Result<(), End> {
        let (tag, bytes) = (delivery.delivery_tag, delivery.data.len());
        self.last_progress = Instant::now();
        if let Phase::FillingPrefetch(_, fill) = &mut self.phase {
            fill.came(self.last_progress);
        }
        self.prefetch.observe(bytes);
        let under_way = self.unacked.bytes();
        if under_way > 0 && under_way + bytes > self.shared.settings.max_inflight_bytes {
            return self.requeue(tag);
        }
        self.unacked.deliver(tag, bytes).map_err(End::Gap)?;
        let delivery = Delivery::from_amqp(delivery, self.shared.clock.now());
        self.batch_builder.push(Received { tag, delivery }, bytes, self.last_progress);
        Ok(())
    }

    /// Sends a delivery back to its queue because there is no room for it, and takes no more until what
    /// came is finished.
    fn requeue(&mut self, tag: Tag) -> Result<(), End> {
        self.unacked.requeue(tag).map_err(End::Gap)?;
        self.shared.observer.requeued(1);
        // Before it goes back: it would only come again.
        if self.is_shutting_down() {
            self.cancel_now_for(AfterCancel::Shutdown);
        } else if self.phase != Phase::Cancelled(AfterCancel::ShrinkPrefetch) {
            self.prefetch.overrun();
            self.shared.observer.overrun(self.prefetch.current());
            self.cancel_now_for(AfterCancel::ShrinkPrefetch);
        }
        let channel = self.channel.clone();
        self.send(async move {
            let went = requeue(&channel, tag).await;
            Report::Sent(if went { Ok(()) } else { Err(End::ChannelDied) })
        });
        Ok(())
    }

    /// Sends something over the channel, after all that was sent before, and hears of it later:
    /// RabbitMQ may send a great deal before it answers, which is to be taken meanwhile.
    fn send(&mut self, request: impl Future<Output = Report<H::Item>> + Send + 'static) {
        let mut request = Box::pin(request);
        // lapin has it from the first poll on.
        match (&mut request).now_or_never() {
            Some(report) => self.tasks.spawn(std::future::ready(report)),
            None => self.tasks.spawn(request),
        };
    }

    /// What the channel died of, as its stream tells after the deliveries that it still has.
    fn channel_error(&mut self) -> Option<Error> {
        loop {
            if let Err(source) = self.stream.next().now_or_never()?? {
                return Some(Error::Request { what: "keep delivering", source });
            }
        }
    }

    // Working.

    /// Starts batches while there are some and room for them. Says when the next one is due.
    fn start_ready_batches(&mut self) -> Option<Instant> {
        while self.hold.is_none() && self.in_flight < self.shared.settings.batches_in_flight {
            match self.batch_builder.ready(Instant::now(), self.in_flight) {
                BatchReady::Now => {
                    let received = self.batch_builder.take();
                    self.shared.observer.received(&received);
                    self.start(Batch::new(received, Lane::Main));
                }
                BatchReady::At(moment) => return Some(moment),
                BatchReady::Never => break,
            }
        }
        None
    }

    fn start(&mut self, batch: Batch<H::Item>) {
        self.in_flight += 1;
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            match batch.work(&shared).await {
                Ok(finished) => Report::Finished(finished),
                Err((batch, unavailable)) => Report::Held(batch, unavailable),
            }
        });
    }

    async fn on_report(&mut self, report: Result<Report<H::Item>, JoinError>) -> Result<(), End> {
        match report {
            Ok(Report::Finished(finished)) => {
                self.in_flight -= 1;
                self.end_hold();
                self.acknowledge(&finished).await
            }
            Ok(Report::Held(batch, unavailable)) => {
                self.in_flight -= 1;
                self.hold(batch, &unavailable)
            }
            Ok(Report::Probed(Ok(()))) => {
                self.resume();
                Ok(())
            }
            Ok(Report::Probed(Err(unavailable))) => self.probe_again(&unavailable),
            Ok(Report::Sent(outcome)) => outcome,
            // A bug of ours: a handler's panics are contained. What it says may quote a message.
            Err(_) => Err(End::TaskDied),
        }
    }

    async fn acknowledge(&mut self, finished: &Finished) -> Result<(), End> {
        self.shared.observer.settled(&finished.counts);
        self.last_progress = Instant::now();
        finished.tags.iter().for_each(|tag| self.unacked.finish(*tag));
        match self.phase {
            Phase::FillingPrefetch(..) => Ok(()),
            _ => self.send_acknowledgements().await,
        }
    }

    /// Acknowledges what is finished.
    async fn send_acknowledgements(&mut self) -> Result<(), End> {
        let Some(prefix) = self.unacked.take_prefix() else { return Ok(()) };
        let options = BasicAckOptions { multiple: true };
        failpoints::reached(Step::Settled);
        if !acknowledge(&self.channel, prefix.last, options).await {
            self.shared.observer.acks_lost(prefix.count);
            return Err(End::ChannelDied);
        }
        failpoints::reached(Step::Acknowledged);
        self.isolating_remaining =
            self.isolating_remaining.map(|left| left.saturating_sub(prefix.count));
        if self.isolating_remaining == Some(0) { Err(End::IsolatedMessagePassed) } else { Ok(()) }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Sleeps until the moment, or for ever if there is none.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
