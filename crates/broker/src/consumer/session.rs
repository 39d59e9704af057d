//! The loop of one session: one connection, one channel and one AMQP consumer.
//!
//! A step of the loop receives the deliveries that are there, starts the batches that are ready, and
//! then waits for the next event. Only the session acknowledges, and only the finished prefix of
//! [`UnackedDeliveries`].
//!
//! Dropping a session drops its tasks and closes its socket. RabbitMQ then redelivers what was not
//! acknowledged, as after a crash. Calls of the handler that have begun go on to their end.

mod cancelling;
mod checks;
mod hold;
mod holding;
mod phase;
mod slow;
mod state;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use domain::decode::Extent;
use domain::failure::Dependency;
use failpoints::{Guard, Step};
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicAckOptions;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::acknowledgement::{acknowledge, reject, requeue};
use super::batch::{Batch, Finished, Lane, Received};
use super::batch_builder::{BatchBuilder, BatchReady, Limits};
use super::end::End;
use super::prefetch::Prefetch;
use super::settings::ConsumerState;
use super::settlement::reply;
use super::shared::Shared;
use super::unacked::{Tag, UnackedDeliveries};
use crate::Handler;
use crate::body_limit::BodyLimit;
use crate::connection::Error;
use crate::raw_message::Moved;
use crate::source::FailurePolicy;
use cancelling::consume;
use hold::Hold;
use phase::{AfterCancel, Phase};
use state::{Report, SlowMessage};

pub(super) use hold::Outage;
pub(super) use state::Session;

pub(super) struct Ended<I> {
    pub(super) end: End,
    /// How many unacknowledged messages RabbitMQ requeues.
    pub(super) requeued: usize,
    /// What to wait for before the next session: while a dependency is unavailable, consuming would only
    /// add to the redelivery counts.
    pub(super) outage: Option<Outage<I>>,
}

impl<H: Handler> Session<H> {
    /// Connects and registers with the queue. `down_since` is when the previous session ended. At `shutdown` it
    /// drains.
    pub(super) async fn open(
        shared: Arc<Shared<H>>,
        down_since: Option<Instant>,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let settings = &shared.settings;
        let budget = settings.max_inflight_bytes;
        // A second slow message would wait for the first one, although another process may be free.
        let ahead = if shared.source.is_slow() { 0 } else { 1 };
        let most = (settings.batches_in_flight + ahead) * settings.batch_size;
        let prefetch = Prefetch::new(budget, settings.largest_body, most);
        let bytes = settings.batch_bytes();
        let limits = Limits { messages: settings.batch_size, bytes, linger: settings.linger };
        let queue = shared.source.queue();
        let small = settings.max_received_body();
        let limit = match shared.source.failure_policy {
            FailurePolicy::DeadLetter(_) => BodyLimit::up_to(small),
            FailurePolicy::RetryForever(_) => {
                BodyLimit::few_above(small, budget, &shared.endpoints.large_bodies)
            }
            FailurePolicy::Expire => BodyLimit::NONE,
        };
        let connection = shared.endpoints.connect_for_bodies(&limit, queue).await?;
        let channel = connection.channel().await?;
        let stream = consume(&channel, queue, prefetch.current()).await?;
        let down = down_since.map(|since| since.elapsed());
        shared.observer.consuming(prefetch.current(), down);
        shared.state.send_replace(ConsumerState::Consuming);
        let now = Instant::now();
        let mut checks = tokio::time::interval(checks::INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            shared,
            shutdown,
            connection,
            channel,
            stream,
            phase: Phase::Consuming,
            registered: prefetch.current(),
            prefetch,
            unacked: UnackedDeliveries::default(),
            limit,
            large: HashSet::new(),
            waiting_for_memory: VecDeque::new(),
            over_byte_limit: 0,
            batch_builder: BatchBuilder::new(limits),
            tasks: JoinSet::new(),
            in_flight: 0,
            hold: None,
            slow: SlowMessage::default(),
            last_progress: now,
            last_depth_request: now,
            last_suspect_check: now,
            checks,
        })
    }

    pub(super) async fn run(mut self) -> Ended<H::Item> {
        let mut end = loop {
            if let Err(end) = self.step().await {
                break end;
            }
        };
        if matches!(end, End::ChannelClosed) {
            end = self.channel_error().map_or(end, End::Failed);
        }
        self.log_requeued_over_byte_limit();
        if matches!(end, End::HoldLimitReached(_)) {
            self.requeue_slow_message().await;
        }
        self.note_requeued_by_rabbitmq(&end);
        let requeued = self.unacked.len();
        self.shared.observer.unacknowledged(0);
        self.shared.observer.requeued(requeued);
        if matches!(end, End::Drained | End::QueueEmpty | End::HoldLimitReached(_)) {
            self.tasks.shutdown().await;
            self.connection.close().await;
        }
        let outage = self.hold.map(Hold::into_outage);
        // When RabbitMQ is unavailable, opening the next session is the probe. But after the hold limit
        // RabbitMQ accepts sessions and does not confirm copies.
        let limit_reached = matches!(end, End::HoldLimitReached(_));
        let outage = outage.filter(|it| limit_reached || it.dependency != Dependency::RabbitMq);
        // Requests are consumed during an outage, too: each expires in time.
        let outage = outage.filter(|_| self.shared.hold_limit().is_some());
        Ended { end, requeued, outage }
    }

    async fn step(&mut self) -> Result<(), End> {
        self.receive_ready().await?;
        let linger_ends = self.start_ready_batches();
        self.change_prefetch_if_worthwhile();
        let fill_ends = self.cancel_if_filled().await?;
        self.act_after_cancel().await?;
        let (leaving, accepting) = (self.phase.is_shutting_down(), self.accepts_deliveries());
        tokio::select! {
            biased;
            () = self.shutdown.cancelled(), if !leaving => {
                if self.shared.source.is_slow() {
                    self.requeue_slow_message().await;
                    return Err(End::Drained);
                }
                if !failpoints::holds(Guard::DrainFinishes) {
                    return Err(End::Drained);
                }
                self.cancel_for(AfterCancel::Shutdown);
                Ok(())
            }
            Some(report) = self.tasks.join_next() => self.on_report(report).await,
            // Before the stream: under load it always has a delivery.
            _ = self.checks.tick() => self.check().await,
            delivery = self.stream.next(), if accepting => self.receive(delivery).await,
            () = sleep_until(linger_ends.into_iter().chain(fill_ends).min()) => Ok(()),
        }
    }

    // Receiving.

    async fn receive_ready(&mut self) -> Result<(), End> {
        while self.accepts_deliveries() {
            let Some(delivery) = self.stream.next().now_or_never() else { break };
            self.receive(delivery).await?;
        }
        Ok(())
    }

    /// Every delivery is received at once, because the byte limit needs its size. Only a stopped
    /// consumer has no stream to read.
    fn accepts_deliveries(&self) -> bool {
        !matches!(self.phase, Phase::Stopped(_))
    }

    async fn receive(
        &mut self,
        delivery: Option<lapin::Result<lapin::message::Delivery>>,
    ) -> Result<(), End> {
        match delivery {
            Some(Ok(delivery)) => self.accept(delivery),
            Some(Err(source)) => Err(Error::Request { what: "receive deliveries", source }.into()),
            None => self.stream_ended().await,
        }
    }

    fn accept(&mut self, delivery: lapin::message::Delivery) -> Result<(), End> {
        let (tag, bytes) = (delivery.delivery_tag, Moved::memory(&delivery));
        self.last_progress = Instant::now();
        if let Phase::FillingPrefetch(_, fill) = &mut self.phase {
            fill.on_delivery(self.last_progress);
        }
        let body_bytes = Moved::body_bytes(&delivery);
        if Moved::is_left_out(&delivery) {
            if matches!(self.shared.source.failure_policy, FailurePolicy::DeadLetter(_)) {
                self.shared.observer.body_too_large(body_bytes);
                return self.reject(tag);
            }
            if self.large.is_empty() {
                // Another consumer of this process has a large body. It is received once that is finished.
                self.unacked.deliver(tag, 0).map_err(End::Gap)?;
                self.waiting_for_memory.push_back(tag);
                self.limit.wait();
                return Ok(());
            }
            // It is received once those before it are finished.
            self.prefetch.expect_bodies_of(body_bytes);
            return self.requeue(tag);
        }
        let extent = self.shared.extent(&delivery.data);
        self.prefetch.observe(bytes, extent.messages);
        let large = self.limit.receive(body_bytes);
        let unacked_bytes = self.unacked.bytes();
        if unacked_bytes > 0 && unacked_bytes + bytes > self.shared.settings.max_inflight_bytes {
            // A message with large headers may need more memory than the largest body. Returned three times, it would be
            // a suspect.
            self.prefetch.expect_bodies_of(bytes as u64);
            return self.requeue(tag);
        }
        self.unacked.deliver(tag, bytes).map_err(End::Gap)?;
        if large.is_some() {
            self.large.insert(tag);
        }
        if !failpoints::holds(Guard::AcknowledgementAfterEffect) {
            let channel = self.channel.clone();
            self.send_request(async move {
                acknowledge(&channel, tag, BasicAckOptions::default()).await;
                Report::RequestSent(Ok(()))
            });
        }
        let received = Received::new(tag, delivery, large, extent, &self.shared);
        let extent = Extent { bytes: bytes.max(extent.bytes), ..extent };
        self.batch_builder.push(received, extent, self.last_progress);
        Ok(())
    }

    /// Requeues a delivery over the byte limit, and cancels the consumer until what was delivered is
    /// finished.
    fn requeue(&mut self, tag: Tag) -> Result<(), End> {
        self.unacked.requeue_or_reject(tag).map_err(End::Gap)?;
        self.shared.observer.requeued(1);
        // The cancel is sent before the requeue. Otherwise RabbitMQ would deliver the message again.
        if self.phase.is_shutting_down() {
            self.cancel_now_for(AfterCancel::Shutdown);
        } else {
            self.over_byte_limit += 1;
            if self.phase != Phase::Cancelled(AfterCancel::ShrinkPrefetch) {
                self.prefetch.overrun();
                self.shared.observer.count_prefetch_change(self.prefetch.current());
                self.cancel_now_for(AfterCancel::ShrinkPrefetch);
            }
        }
        self.send_requeue(tag);
        Ok(())
    }

    /// Requeues deliveries without a body, so that RabbitMQ sends them again: one when it is the turn of this consumer
    /// to have a large body, and all once it is cancelled. Until then they are unacknowledged, and others are handled.
    pub(super) async fn requeue_what_waits_for_memory(&mut self) -> Result<(), End> {
        let is_cancelled = matches!(self.phase, Phase::Cancelled(_) | Phase::Stopped(_));
        let requeued = match self.waiting_for_memory.len() {
            0 => {
                // What it requeued in its turn has arrived by now, or another process got it.
                self.limit.give_up_turn();
                return Ok(());
            }
            all if is_cancelled => all,
            _ => {
                self.limit.wait();
                usize::from(self.limit.has_turn())
            }
        };
        if requeued == 0 {
            return Ok(());
        }
        let tags: Vec<Tag> = self.waiting_for_memory.drain(..requeued).collect();
        for tag in tags {
            self.unacked.requeue_delivered(tag);
            self.shared.observer.requeued(1);
            self.send_requeue(tag);
        }
        // What was finished behind them.
        match self.phase {
            Phase::FillingPrefetch(..) => Ok(()),
            _ => self.send_acknowledgements().await,
        }
    }

    fn send_requeue(&mut self, tag: Tag) {
        let channel = self.channel.clone();
        self.send_request(async move {
            let sent = requeue(&channel, tag).await;
            Report::RequestSent(if sent { Ok(()) } else { Err(End::ChannelClosed) })
        });
    }

    /// Has RabbitMQ dead-letter a message whose body is over the limit. The worker never holds such a body.
    fn reject(&mut self, tag: Tag) -> Result<(), End> {
        self.unacked.requeue_or_reject(tag).map_err(End::Gap)?;
        let channel = self.channel.clone();
        self.send_request(async move {
            let sent = reject(&channel, tag).await;
            Report::RequestSent(if sent { Ok(()) } else { Err(End::ChannelClosed) })
        });
        Ok(())
    }

    /// Logs the deliveries that were requeued over the byte limit, once all of them are known.
    fn log_requeued_over_byte_limit(&mut self) {
        let requeued = std::mem::take(&mut self.over_byte_limit);
        if requeued > 0 {
            let (prefetch, settings) = (self.prefetch.current(), &self.shared.settings);
            self.shared.observer.requeued_over_byte_limit(requeued, prefetch, settings);
        }
    }

    /// Sends a request over the channel, after everything sent before, and waits for the reply in a
    /// task: RabbitMQ may send many deliveries before its reply, and they are received meanwhile.
    fn send_request(&mut self, request: impl Future<Output = Report<H::Item>> + Send + 'static) {
        let mut request = Box::pin(request);
        // lapin queues the frames at the first poll.
        match (&mut request).now_or_never() {
            Some(report) => self.tasks.spawn(std::future::ready(report)),
            None => self.tasks.spawn(request),
        };
    }

    /// Why the channel closed: the stream reports it after its remaining deliveries.
    fn channel_error(&mut self) -> Option<Error> {
        loop {
            if let Err(source) = self.stream.next().now_or_never()?? {
                return Some(Error::Request { what: "receive deliveries", source });
            }
        }
    }

    // Handling.

    /// Starts the batches that are ready, up to `batches_in_flight`. Returns when the next one is ready.
    fn start_ready_batches(&mut self) -> Option<Instant> {
        while self.may_start() {
            let Some(batch) = self.hold.as_mut().and_then(Hold::next_to_resume) else { break };
            self.start(batch);
        }
        while self.hold.is_none() && self.may_start() || self.holds_requests() {
            match self.batch_builder.ready(Instant::now(), self.in_flight) {
                BatchReady::Now => {
                    let received = self.batch_builder.take();
                    let redelivered = received.iter().filter(|it| it.delivery.redelivered).count();
                    self.shared.observer.redelivered(redelivered);
                    self.start_or_hold(Batch::new(received, Lane::Main));
                }
                BatchReady::At(moment) => return Some(moment),
                BatchReady::Never => break,
            }
        }
        None
    }

    fn may_start(&self) -> bool {
        self.in_flight < self.shared.settings.batches_in_flight
    }

    fn start(&mut self, mut batch: Batch<H::Item>) {
        self.in_flight += 1;
        self.keep_slow_message(&mut batch);
        let shared = self.shared.clone();
        let (queue, messages) = (shared.source.queue(), batch.len());
        let work = async move {
            match batch.work(&shared).await {
                Ok(finished) => Report::Finished(finished),
                Err((batch, unavailable)) => Report::Held(batch, unavailable),
            }
        };
        self.tasks.spawn(work.instrument(tracing::info_span!("batch", queue, messages)));
    }

    async fn on_report(&mut self, report: Result<Report<H::Item>, JoinError>) -> Result<(), End> {
        match report {
            Ok(Report::Finished(finished)) => {
                self.in_flight -= 1;
                self.end_hold();
                self.acknowledge(finished).await
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
            Ok(Report::RequestSent(outcome)) => outcome,
            // A bug of this crate: panics of the handler are caught. The panic message may quote a
            // body, so it is dropped.
            Err(_) => Err(End::TaskPanicked),
        }
    }

    async fn acknowledge(&mut self, finished: Finished) -> Result<(), End> {
        let Finished { tags, counts, replies } = finished;
        self.shared.observer.settled(&counts);
        reply(replies, &self.shared);
        self.last_progress = Instant::now();
        self.slow = SlowMessage::default();
        for tag in tags {
            self.unacked.finish(tag);
            self.large.remove(&tag);
        }
        match self.phase {
            Phase::FillingPrefetch(..) => Ok(()),
            _ => self.send_acknowledgements().await,
        }
    }

    async fn send_acknowledgements(&mut self) -> Result<(), End> {
        let Some(prefix) = self.unacked.take_prefix() else { return Ok(()) };
        if !failpoints::holds(Guard::AcknowledgementAfterEffect) {
            return Ok(());
        }
        let options = BasicAckOptions { multiple: true };
        failpoints::reached(Step::Settled);
        if !acknowledge(&self.channel, prefix.last, options).await {
            self.shared.observer.acks_lost(prefix.count);
            return Err(End::ChannelClosed);
        }
        failpoints::reached(Step::Acknowledged);
        Ok(())
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
