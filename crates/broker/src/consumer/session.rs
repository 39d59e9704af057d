//! One connection, one channel, one consumer, from registration to the end: the loop.
//!
//! A turn of the loop: take what is here, start what is due, then wait for whatever happens next.
//! The session alone acknowledges, and only from the [`Ledger`].
//!
//! Dropping a session drops its tasks and closes its socket: RabbitMQ delivers again what was not
//! acknowledged. That is also what a crash does, so it needs no care.

use std::sync::Arc;
use std::time::Duration;

use domain::failure::{Store, Unavailable};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Finished, Lane, Received};
use super::gathering::{Due, Gathering, Limits};
use super::ledger::Ledger;
use super::prefetch::Prefetch;
use super::{ConsumerState, Shared, suspects};
use crate::backoff::Backoff;
use crate::connection::{Connection, Error, request};
use crate::inspect;
use crate::{Delivery, Handler};

/// How often the session looks after itself: is the channel alive, does anything come.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A registered consumer and everything under way.
pub(super) struct Session<H: Handler> {
    shared: Arc<Shared<H>>,
    connection: Connection,
    channel: lapin::Channel,
    stream: lapin::Consumer,
    phase: Phase,
    prefetch: Prefetch,
    ledger: Ledger<lapin::Acker>,
    gathering: Gathering<Received>,
    /// Batches being handled, and the probe of a hold.
    tasks: JoinSet<Report<H::Item>>,
    in_flight: usize,
    hold: Option<Hold<H::Item>>,
    last_progress: Instant,
    last_look_at_suspects: Instant,
    checks: tokio::time::Interval,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to drain, and has.
    Drained,
    /// A store stayed away for the hold limit; the deliveries went back to the queue.
    HeldTooLong(Store),
    /// The broker cancelled the consumer: its queue was deleted or lost its leader.
    StreamEnded,
    /// Messages are ready, there is room for them, and none comes.
    NoProgress,
    /// An acknowledgement did not go out: the channel had died.
    AckLost,
    /// The channel or the connection failed.
    Failed(Error),
}

/// Whether deliveries come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// They do.
    Consuming,
    /// The consumer is cancelled; what the broker had sent before is still coming in.
    Cancelled(Next),
    /// Nothing comes any more; what came is being finished.
    Dry(Next),
}

/// What a consumer is cancelled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To consume with another prefetch.
    Consume,
    /// To take suspects, while nothing else is under way.
    Suspects,
    /// To leave.
    Leave,
}

/// A store is away, and these batches wait for it.
struct Hold<I> {
    store: Store,
    since: Instant,
    backoff: Backoff,
    batches: Vec<Batch<I>>,
    /// A probe is under way.
    probing: bool,
}

/// What a task of the session has to say.
enum Report<I> {
    Finished(Finished),
    Held(Batch<I>, Unavailable),
    Probed(Result<(), Unavailable>),
}

impl<H: Handler> Session<H> {
    /// Connects and registers with the queue.
    pub(super) async fn open(shared: Arc<Shared<H>>) -> Result<Self, Error> {
        let settings = &shared.settings;
        let in_use = settings.batches_in_flight + 1;
        let budget = settings.max_inflight_bytes;
        let ceiling = in_use * settings.batch_size;
        let prefetch = Prefetch::new(budget, settings.largest_body, ceiling);
        let limits = Limits {
            messages: settings.batch_size,
            bytes: budget / in_use,
            linger: settings.linger,
        };
        let queue = shared.source.queue;
        let connection = shared.endpoints.connect(queue).await?;
        let channel = connection.channel().await?;
        let stream = consume(&channel, queue, prefetch.current()).await?;
        shared.observer.consuming(prefetch.current());
        shared.state.send_replace(ConsumerState::Consuming);
        let now = Instant::now();
        Ok(Self {
            shared,
            connection,
            channel,
            stream,
            phase: Phase::Consuming,
            prefetch,
            ledger: Ledger::new(),
            gathering: Gathering::new(limits),
            tasks: JoinSet::new(),
            in_flight: 0,
            hold: None,
            last_progress: now,
            last_look_at_suspects: now,
            checks: tokio::time::interval(CHECK_INTERVAL),
        })
    }

    /// Works until the session ends, for whatever reason.
    pub(super) async fn run(mut self, shutdown: &CancellationToken) -> End {
        let end = loop {
            if let Err(end) = self.turn(shutdown).await {
                break end;
            }
        };
        self.shared.observer.given_back(self.ledger.len());
        if matches!(end, End::Drained | End::HeldTooLong(_)) {
            self.tasks.shutdown().await;
            self.connection.close().await;
        }
        end
    }

    async fn turn(&mut self, shutdown: &CancellationToken) -> Result<(), End> {
        self.take_what_is_here().await?;
        let linger_ends = self.start_what_is_due();
        self.change_prefetch_if_worthwhile().await?;
        if self.is_finished() {
            self.go_on_to_what_is_next().await?;
        }
        let (leaving, takes_more) = (self.is_leaving(), self.takes_more());
        tokio::select! {
            biased;
            () = shutdown.cancelled(), if !leaving => self.cancel_for(Next::Leave).await,
            Some(report) = self.tasks.join_next() => self.hear(report).await,
            delivery = self.stream.next(), if takes_more => self.receive(delivery).await,
            () = sleep_until(linger_ends) => Ok(()),
            _ = self.checks.tick() => self.check().await,
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

    fn takes_more(&self) -> bool {
        let comes = matches!(self.phase, Phase::Consuming | Phase::Cancelled(_));
        comes && self.hold.is_none() && !self.gathering.is_full()
    }

    async fn receive(
        &mut self,
        delivery: Option<lapin::Result<lapin::message::Delivery>>,
    ) -> Result<(), End> {
        match (delivery, self.phase) {
            (Some(Ok(delivery)), _) => self.admit(delivery),
            (Some(Err(source)), _) => {
                return Err(Error::Request { what: "keep delivering", source }.into());
            }
            (None, Phase::Cancelled(Next::Consume)) => self.consume_again().await?,
            (None, Phase::Cancelled(next)) => self.phase = Phase::Dry(next),
            (None, _) => return Err(End::StreamEnded),
        }
        Ok(())
    }

    fn admit(&mut self, delivery: lapin::message::Delivery) {
        let (tag, bytes) = (delivery.delivery_tag, delivery.data.len());
        if delivery.redelivered {
            self.shared.observer.redelivered();
        }
        self.last_progress = Instant::now();
        self.prefetch.observe(bytes);
        self.ledger.deliver(tag, bytes, delivery.acker.clone());
        let delivery = Delivery::from_amqp(delivery, self.shared.clock.now());
        self.gathering.push(Received { tag, delivery }, bytes, self.last_progress);
    }

    // Working.

    /// Starts batches while there are some and room for them. Says when the next one is due.
    fn start_what_is_due(&mut self) -> Option<Instant> {
        while self.hold.is_none() && self.in_flight < self.shared.settings.batches_in_flight {
            match self.gathering.due(Instant::now(), self.in_flight) {
                Due::Now => {
                    let received = self.gathering.take();
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
            Err(bug) => {
                // Handlers' panics are contained in the batch; this one is ours. What the task had
                // is not acknowledged and comes again.
                self.shared.observer.panicked(&bug.to_string());
                Err(End::AckLost)
            }
        }
    }

    async fn acknowledge(&mut self, finished: &Finished) -> Result<(), End> {
        self.shared.observer.settled(&finished.tally);
        self.last_progress = Instant::now();
        finished.tags.iter().for_each(|tag| self.ledger.finish(*tag));
        let Some(prefix) = self.ledger.take_prefix() else { return Ok(()) };
        // `Ok(false)` means that the channel had died and nothing was sent.
        match prefix.last.ack(BasicAckOptions { multiple: true }).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                self.shared.observer.acks_lost(prefix.count);
                Err(End::AckLost)
            }
        }
    }

    // Holding.

    fn hold(&mut self, batch: Batch<H::Item>, unavailable: &Unavailable) -> Result<(), End> {
        self.shared.observer.held(unavailable);
        let hold = self.hold.get_or_insert_with(|| Hold {
            store: unavailable.store,
            since: Instant::now(),
            backoff: Backoff::new(),
            batches: Vec::new(),
            probing: false,
        });
        hold.batches.push(batch);
        if hold.probing { Ok(()) } else { self.probe_again(unavailable) }
    }

    /// Probes after a pause; gives up when the hold has lasted too long.
    fn probe_again(&mut self, unavailable: &Unavailable) -> Result<(), End> {
        let Some(hold) = &mut self.hold else { return Ok(()) };
        hold.store = unavailable.store;
        if hold.since.elapsed() >= self.shared.settings.hold_limit {
            return Err(End::HeldTooLong(hold.store));
        }
        self.shared.state.send_replace(ConsumerState::Holding(hold.store));
        hold.probing = true;
        let (shared, pause) = (self.shared.clone(), hold.backoff.next_pause());
        self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            Report::Probed(shared.handler.probe().await)
        });
        Ok(())
    }

    /// The probe succeeded: the held batches try again. The hold itself ends when one of them is
    /// through, so that a store that answers probes and nothing else is not taken for well.
    fn resume(&mut self) {
        let Some(hold) = &mut self.hold else { return };
        hold.probing = false;
        for batch in std::mem::take(&mut hold.batches) {
            self.start(batch);
        }
    }

    fn end_hold(&mut self) {
        // Batches that were started before the hold may succeed while others still wait.
        if let Some(hold) = self.hold.take_if(|hold| hold.batches.is_empty() && !hold.probing) {
            self.shared.observer.hold_ended(hold.store, hold.since.elapsed());
            let state =
                if self.is_leaving() { ConsumerState::Draining } else { ConsumerState::Consuming };
            self.shared.state.send_replace(state);
        }
    }

    // Pausing, changing and leaving.

    async fn cancel_for(&mut self, next: Next) -> Result<(), End> {
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

    async fn change_prefetch_if_worthwhile(&mut self) -> Result<(), End> {
        if self.phase == Phase::Consuming && self.prefetch.changes(self.ledger.bytes()) {
            self.cancel_for(Next::Consume).await?;
        }
        Ok(())
    }

    async fn consume_again(&mut self) -> Result<(), End> {
        let prefetch = self.prefetch.current();
        self.stream = consume(&self.channel, self.shared.source.queue, prefetch).await?;
        self.phase = Phase::Consuming;
        self.last_progress = Instant::now();
        self.shared.observer.prefetch_changed(prefetch);
        Ok(())
    }

    fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Cancelled(Next::Leave) | Phase::Dry(Next::Leave))
    }

    /// Whether nothing comes any more and all that came is acknowledged.
    fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Dry(_)) && self.ledger.is_empty()
    }

    async fn go_on_to_what_is_next(&mut self) -> Result<(), End> {
        match self.phase {
            Phase::Dry(Next::Leave) => Err(End::Drained),
            Phase::Dry(Next::Suspects) => {
                suspects::take_turn(&self.shared, &self.connection).await?;
                self.last_look_at_suspects = Instant::now();
                self.consume_again().await
            }
            _ => Ok(()),
        }
    }

    // Looking after itself.

    async fn check(&mut self) -> Result<(), End> {
        if !self.channel.status().connected() || !self.connection.is_open() {
            return Err(End::AckLost);
        }
        if self.phase != Phase::Consuming || self.hold.is_some() {
            self.last_progress = Instant::now();
            return Ok(());
        }
        self.check_progress().await?;
        self.look_at_suspects().await
    }

    /// A consumer can be dead while everything looks alive; so ask the queue.
    async fn check_progress(&mut self) -> Result<(), End> {
        let has_room = self.ledger.len() < usize::from(self.prefetch.current());
        if !has_room || self.last_progress.elapsed() < self.shared.settings.stall_limit {
            return Ok(());
        }
        let depth = inspect::depth(&self.connection, self.shared.source.queue).await?;
        // What came while we asked proves that it is alive.
        self.take_what_is_here().await?;
        if depth.ready > 0 && self.last_progress.elapsed() >= self.shared.settings.stall_limit {
            return Err(End::NoProgress);
        }
        self.last_progress = Instant::now();
        Ok(())
    }

    async fn look_at_suspects(&mut self) -> Result<(), End> {
        let Some(queue) = self.shared.source.suspect() else { return Ok(()) };
        if self.last_look_at_suspects.elapsed() < self.shared.settings.suspect_interval {
            return Ok(());
        }
        self.last_look_at_suspects = Instant::now();
        if inspect::depth(&self.connection, queue).await?.ready > 0 {
            self.cancel_for(Next::Suspects).await?;
        }
        Ok(())
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Registers a consumer. The prefetch counts for it alone, and cannot be changed while it lives.
async fn consume(
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

/// Sleeps until the moment, or for ever if there is none.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
