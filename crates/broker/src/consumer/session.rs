//! One connection, one channel, one consumer, from registration to the end: the loop.
//!
//! A turn of the loop: take what is here, start what is due, then wait for whatever happens next.
//! The session alone acknowledges, and only from the [`Ledger`].
//!
//! Dropping a session drops its tasks and closes its socket: RabbitMQ delivers again what was not
//! acknowledged. That is also what a crash does, so it needs no care.

mod checks;
pub(super) mod hold;
mod phase;

use std::sync::Arc;

use crash_points::Step;
use domain::failure::{Store, Unavailable};
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicAckOptions;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::acknowledgement::{acknowledge, give_back};
use super::batch::{Batch, Finished, Lane, Received};
use super::gathering::{Due, Gathering, Limits};
use super::ledger::{Gap, Ledger, Tag};
use super::prefetch::Prefetch;
use super::{ConsumerState, Shared};
use crate::connection::{Connection, Error};
use crate::{Delivery, Handler};
use hold::{Hold, Waiting};
use phase::{Next, Phase, consume};

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
    ledger: Ledger,
    gathering: Gathering<Received>,
    /// Batches being handled, and the probe of a hold.
    tasks: JoinSet<Report<H::Item>>,
    in_flight: usize,
    hold: Option<Hold<H::Item>>,
    /// The last delivery or acknowledgement.
    last_progress: Instant,
    /// When the queue was last asked how full it is.
    last_question: Instant,
    last_look_at_suspects: Instant,
    checks: tokio::time::Interval,
    /// Acknowledgements after which a [careful](Care::OneByOne) session has done its part.
    careful_for: Option<usize>,
}

/// The bodies of all batches that are at work may take this part of the budget. There, a body is in
/// memory several times over: as it came, decoded, and encoded for each store on its way there.
const SHARE_AT_WORK: usize = 16;

/// How much a session takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// As much as the settings allow.
    Usual,
    /// One message, because one of those that come cannot be read and takes the connection with it:
    /// alone, it comes back alone.
    OneByOne,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to drain, and has.
    Drained,
    /// A store stayed away for the hold limit; the deliveries went back to the queue.
    HeldTooLong(Store),
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
    Relaxed,
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
    pub(super) async fn open(shared: Arc<Shared<H>>, care: Care) -> Result<Self, Error> {
        let settings = &shared.settings;
        let budget = settings.max_inflight_bytes;
        let most = (settings.batches_in_flight + 1) * settings.batch_size;
        let (ceiling, messages, careful_for) = match care {
            Care::Usual => (most, settings.batch_size, None),
            Care::OneByOne => (1, 1, Some(most)),
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
            ledger: Ledger::default(),
            gathering: Gathering::new(limits),
            tasks: JoinSet::new(),
            in_flight: 0,
            hold: None,
            last_progress: now,
            last_question: now,
            last_look_at_suspects: now,
            checks,
            careful_for,
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
            end = self.last_words().map_or(end, End::Failed);
        }
        self.shared.observer.holds(0);
        self.shared.observer.given_back(self.ledger.len());
        if matches!(end, End::Drained | End::HeldTooLong(_)) {
            self.tasks.shutdown().await;
            self.connection.close().await;
        }
        let waiting = self.hold.map(Hold::into_waiting);
        // Where RabbitMQ is away, a new session finds out when it is back.
        let held_too_long = matches!(end, End::HeldTooLong(_));
        let waiting = waiting.filter(|it| held_too_long || it.store != Store::RabbitMq);
        (end, waiting)
    }

    async fn turn(&mut self, shutdown: &CancellationToken) -> Result<(), End> {
        self.take_what_is_here().await?;
        let linger_ends = self.start_what_is_due();
        self.change_prefetch_if_worthwhile();
        let filling_ends = self.cancel_if_filled().await?;
        self.go_on_if_dry(shutdown).await?;
        let (leaving, takes_more) = (self.is_leaving(), self.takes_more());
        tokio::select! {
            biased;
            () = shutdown.cancelled(), if !leaving => {
                self.cancel_for(Next::Leave);
                Ok(())
            }
            Some(report) = self.tasks.join_next() => self.hear(report).await,
            // Before the stream, which may always have something under load.
            _ = self.checks.tick() => self.check().await,
            delivery = self.stream.next(), if takes_more => self.receive(delivery).await,
            () = sleep_until(linger_ends.into_iter().chain(filling_ends).min()) => Ok(()),
        }
    }

    // Receiving.

    async fn take_what_is_here(&mut self) -> Result<(), End> {
        while self.takes_more() {
            let Some(delivery) = self.stream.next().now_or_never() else { break };
            self.receive(delivery).await?;
        }
        Ok(())
    }

    /// Whatever comes is taken at once: only what is known of can be limited.
    fn takes_more(&self) -> bool {
        !matches!(self.phase, Phase::Dry(_))
    }

    async fn receive(
        &mut self,
        delivery: Option<lapin::Result<lapin::message::Delivery>>,
    ) -> Result<(), End> {
        match delivery {
            Some(Ok(delivery)) => self.admit(delivery),
            Some(Err(source)) => Err(Error::Request { what: "keep delivering", source }.into()),
            None => self.stream_ended().await,
        }
    }

    fn admit(&mut self, delivery: lapin::message::Delivery) -> Result<(), End> {
        let (tag, bytes) = (delivery.delivery_tag, delivery.data.len());
        self.last_progress = Instant::now();
        if let Phase::Filling(_, filling) = &mut self.phase {
            filling.came(self.last_progress);
        }
        self.prefetch.observe(bytes);
        let under_way = self.ledger.bytes();
        if under_way > 0 && under_way + bytes > self.shared.settings.max_inflight_bytes {
            return self.give_back(tag);
        }
        self.ledger.deliver(tag, bytes).map_err(End::Gap)?;
        let delivery = Delivery::from_amqp(delivery, self.shared.clock.now());
        self.gathering.push(Received { tag, delivery }, bytes, self.last_progress);
        Ok(())
    }

    /// Sends a delivery back to its queue because there is no room for it, and takes no more until what
    /// came is finished.
    fn give_back(&mut self, tag: Tag) -> Result<(), End> {
        self.ledger.give_back(tag).map_err(End::Gap)?;
        self.shared.observer.given_back(1);
        // Before it goes back: it would only come again.
        if self.is_leaving() {
            self.cancel_now_for(Next::Leave);
        } else if self.phase != Phase::Cancelled(Next::Shrink) {
            self.prefetch.overrun();
            self.shared.observer.overrun(self.prefetch.current());
            self.cancel_now_for(Next::Shrink);
        }
        let channel = self.channel.clone();
        self.send(async move {
            let went = give_back(&channel, tag).await;
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
    fn last_words(&mut self) -> Option<Error> {
        loop {
            if let Err(source) = self.stream.next().now_or_never()?? {
                return Some(Error::Request { what: "keep delivering", source });
            }
        }
    }

    // Working.

    /// Starts batches while there are some and room for them. Says when the next one is due.
    fn start_what_is_due(&mut self) -> Option<Instant> {
        while self.hold.is_none() && self.in_flight < self.shared.settings.batches_in_flight {
            match self.gathering.due(Instant::now(), self.in_flight) {
                Due::Now => {
                    let received = self.gathering.take();
                    self.shared.observer.received(&received);
                    self.start(Batch::new(received, Lane::Main));
                }
                Due::At(moment) => return Some(moment),
                Due::Never => break,
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

    async fn hear(&mut self, report: Result<Report<H::Item>, JoinError>) -> Result<(), End> {
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
        self.shared.observer.settled(&finished.tally);
        self.last_progress = Instant::now();
        finished.tags.iter().for_each(|tag| self.ledger.finish(*tag));
        match self.phase {
            Phase::Filling(..) => Ok(()),
            _ => self.send_acknowledgements().await,
        }
    }

    /// Acknowledges what is finished.
    async fn send_acknowledgements(&mut self) -> Result<(), End> {
        let Some(prefix) = self.ledger.take_prefix() else { return Ok(()) };
        let options = BasicAckOptions { multiple: true };
        crash_points::reached(Step::Settled);
        if !acknowledge(&self.channel, prefix.last, options).await {
            self.shared.observer.acks_lost(prefix.count);
            return Err(End::ChannelDied);
        }
        crash_points::reached(Step::Acknowledged);
        self.careful_for = self.careful_for.map(|left| left.saturating_sub(prefix.count));
        if self.careful_for == Some(0) { Err(End::Relaxed) } else { Ok(()) }
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
