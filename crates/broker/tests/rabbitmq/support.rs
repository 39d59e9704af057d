//! What the tests share: a virtual host with the topology, a raw channel without code of this crate, and a
//! handler that message bodies control.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use broker::inspect::Inspector;
use broker::topology::WorkQueue;
use broker::{
    Consumer, ConsumerState, Delivery, Endpoints, Handled, Handler, Part, Processed, Publication,
    Publisher, Settings, Source,
};
use domain::clock::Clock;
use domain::decode::reply_address;
use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Dependency, Done, Failure, Refusal, Unavailable};
use domain::failure_policy::SLOW_LIMITS;
use domain::reply::ReplyAddress;
use domain::time::Timestamp;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use metrics::Metrics;
use testkit::TestEnv;
use testkit::wait::eventually;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The limit of every wait, on a machine that is busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The panic message of [`Script`]. Like the message of a failed string slice it quotes a body.
pub(crate) const SECRET: &str = "byte index 3 is not a char boundary of `my secret`";

/// A virtual host with the fleet's topology, a publisher and a raw channel.
pub(crate) struct Bench {
    pub(crate) url: String,
    pub(crate) endpoints: Endpoints,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
    pub(crate) raw: lapin::Channel,
    micros: Arc<AtomicI64>,
    clock_step: Arc<AtomicI64>,
    _raw: lapin::Connection,
    _env: Option<TestEnv>,
}

impl Bench {
    /// A virtual host of its own on the server that all tests share.
    pub(crate) async fn new() -> Self {
        let env = TestEnv::new().await;
        let bench = Self::at(env.amqp_url.clone()).await;
        Self { _env: Some(env), ..bench }
    }

    /// The virtual host at this address, for tests that need a server of their own.
    pub(crate) async fn at(url: String) -> Self {
        let endpoints = Endpoints::parse(&url, "test").unwrap();
        eventually("the topology", LIMIT, async || {
            broker::topology::declare(&endpoints).await.map_err(|error| error.to_string())
        })
        .await;
        let metrics = Metrics::new();
        let publisher = Publisher::new(endpoints.clone(), metrics.clone());
        let (connection, raw) = raw_channel(&url).await;
        let micros = Arc::new(AtomicI64::new(1_800_000_000_000_000));
        let clock_step = Arc::new(AtomicI64::new(1000));
        Self {
            url,
            endpoints,
            publisher,
            metrics,
            raw,
            micros,
            clock_step,
            _raw: connection,
            _env: None,
        }
    }

    /// A clock that advances by a millisecond each time it is read.
    fn clock(&self) -> Clock {
        let (micros, step) = (Arc::clone(&self.micros), Arc::clone(&self.clock_step));
        let read = move || micros.fetch_add(step.load(Ordering::SeqCst), Ordering::SeqCst);
        Clock::new(move || Timestamp::from_micros(read()).unwrap())
    }

    /// From now on the clock of its consumers goes back by a microsecond each time it is read.
    pub(crate) fn reverse_clock(&self) {
        self.clock_step.store(-1, Ordering::SeqCst);
    }

    /// Advances the clock of its consumers.
    pub(crate) fn advance(&self, by: Duration) {
        self.micros.fetch_add(by.as_micros().try_into().unwrap(), Ordering::SeqCst);
    }

    /// Sets the clock of its consumers back.
    pub(crate) fn set_clock_back(&self, by: Duration) {
        self.micros.fetch_sub(by.as_micros().try_into().unwrap(), Ordering::SeqCst);
    }

    /// Publishes to a queue and waits for the confirms.
    pub(crate) async fn publish(
        &self,
        queue: &str,
        bodies: impl IntoIterator<Item = impl ToString>,
    ) {
        let publications = bodies
            .into_iter()
            .map(|body| Arc::new(Publication::to_queue(queue, body.to_string().into_bytes())));
        for result in self.publisher.publish_all(publications).await {
            result.unwrap();
        }
    }

    /// How many messages of a queue are ready.
    pub(crate) async fn ready(&self, queue: &str) -> u32 {
        self.depth(queue).await.0
    }

    /// How many messages of a queue are ready, and how many consumers it has.
    pub(crate) async fn depth(&self, queue: &str) -> (u32, u32) {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = self.raw.queue_declare(queue.into(), options, FieldTable::default()).await;
        let declared = declared.unwrap();
        (declared.message_count(), declared.consumer_count())
    }

    pub(crate) async fn eventually_ready(&self, queue: &str, count: u32) {
        eventually(format!("{count} messages in {queue}"), LIMIT, async || {
            match self.ready(queue).await {
                ready if ready == count => Ok(()),
                ready => Err(format!("{ready} are ready")),
            }
        })
        .await;
    }

    /// Takes a message out of a queue with the raw channel.
    pub(crate) async fn take(&self, queue: &str) -> lapin::message::Delivery {
        eventually(format!("a message in {queue}"), LIMIT, async || {
            let options = BasicGetOptions { no_ack: true };
            let message = self.raw.basic_get(queue.into(), options).await.unwrap();
            message.map(|message| message.delivery).ok_or_else(|| "it is empty".to_owned())
        })
        .await
    }

    /// Runs a consumer of `source` with this handler.
    pub(crate) fn run(
        &self,
        source: Source,
        script: &Script,
        settings: Settings,
    ) -> RunningConsumer {
        self.run_at(self.endpoints.clone(), script.at(source), settings)
    }

    /// The same through other addresses, or with another handler.
    pub(crate) fn run_at(
        &self,
        endpoints: Endpoints,
        handler: impl Handler,
        settings: Settings,
    ) -> RunningConsumer {
        let consumer = Consumer::new(
            handler,
            endpoints,
            self.publisher.clone(),
            settings,
            self.clock(),
            self.metrics.clone(),
        );
        RunningConsumer::start(consumer)
    }

    /// Runs a consumer of the slow queue of `source` with this handler.
    pub(crate) fn run_slow(
        &self,
        source: Source,
        script: &Script,
        settings: Settings,
    ) -> RunningConsumer {
        self.run_slow_at(self.endpoints.clone(), source, script, settings)
    }

    /// The same through other addresses.
    pub(crate) fn run_slow_at(
        &self,
        endpoints: Endpoints,
        source: Source,
        script: &Script,
        settings: Settings,
    ) -> RunningConsumer {
        let consumer = Consumer::of_slow_queue(
            &script.at(source),
            Inspector::new(endpoints.clone()),
            endpoints,
            self.publisher.clone(),
            settings,
            self.clock(),
            self.metrics.clone(),
        );
        RunningConsumer::start(consumer.expect("a slow queue"))
    }
}

/// A connection and a channel without code of this crate.
pub(crate) async fn raw_channel(url: &str) -> (lapin::Connection, lapin::Channel) {
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(url, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A running consumer. Dropping it is like a crash of its process.
pub(crate) struct RunningConsumer {
    pub(crate) shutdown: CancellationToken,
    pub(crate) state: watch::Receiver<ConsumerState>,
    pub(crate) task: JoinHandle<()>,
}

impl RunningConsumer {
    fn start(consumer: Consumer<impl Handler>) -> Self {
        let state = consumer.state();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(consumer.run(shutdown.clone()));
        Self { shutdown, state, task }
    }

    pub(crate) async fn reaches(&mut self, state: ConsumerState) {
        let mut seen = self.state.clone();
        let reached = tokio::time::timeout(LIMIT, seen.wait_for(|now| *now == state)).await;
        assert!(
            reached.is_ok_and(|r| r.is_ok()),
            "waited for {state:?}, is {:?}",
            self.state.borrow()
        );
    }

    /// Starts the shutdown and waits until the consumer has drained.
    pub(crate) async fn drain(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, &mut self.task).await.expect("it did not drain").unwrap();
        assert_eq!(*self.state.borrow(), ConsumerState::Stopped);
    }
}

impl Drop for RunningConsumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A handler that the first word of a body controls. Every other body is `ok`.
///
/// | first word | what happens |
/// |---|---|
/// | `ok` | applied |
/// | `fail` | a failed attempt |
/// | `panic` | a panic while handling |
/// | `panic-decoding` | a panic while decoding |
/// | `refuse` | refused while decoding |
/// | `slow` | too slow for every time limit |
/// | `slow-at-first` | too slow, except for the longest time limit |
/// | `locked` | locked, until [`Script::open_gate`] |
/// | `wait` | applied after [`Script::open_gate`] |
/// | `reply` | applied, with the body in the reply |
/// | `elements` | the same, and two elements of it: a dead letter and a retry |
/// | `unavailable-then-hang` | the first call: dependency unavailable; later calls never return |
#[derive(Clone)]
pub(crate) struct Script {
    source: Source,
    limit: Option<Duration>,
    inner: Arc<Inner>,
}

impl Default for Script {
    fn default() -> Self {
        Self { source: Source::work(WorkQueue::Session), limit: None, inner: Arc::default() }
    }
}

struct Inner {
    handled: Mutex<Vec<Message>>,
    batches: Mutex<Vec<usize>>,
    unavailable: AtomicBool,
    probe: Mutex<Probe>,
    hanging: AtomicBool,
    calls: AtomicUsize,
    probes: AtomicUsize,
    decoded: AtomicUsize,
    gate: Semaphore,
}

/// The behaviour of the probe.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Probe {
    /// It fails while the dependency is unavailable.
    #[default]
    FollowsDependency,
    /// It succeeds also while the dependency is unavailable, as with a full disk.
    AlwaysSucceeds,
    /// It panics.
    Panics,
}

/// A message that the handler handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) body: String,
    pub(crate) attempt: u32,
    /// The time limit of the handler in a slow queue.
    pub(crate) limit: Option<Duration>,
    pub(crate) routing_key: String,
    pub(crate) message_id: Option<String>,
    pub(crate) redelivered: bool,
    pub(crate) received_at: Timestamp,
    pub(crate) reply_address: Option<ReplyAddress>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            handled: Mutex::default(),
            batches: Mutex::default(),
            unavailable: AtomicBool::new(false),
            probe: Mutex::default(),
            hanging: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            decoded: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        }
    }
}

impl Script {
    /// The same script for this queue.
    pub(crate) fn at(&self, source: Source) -> Self {
        Self { source, ..self.clone() }
    }

    /// The handled messages, in order.
    pub(crate) fn handled(&self) -> Vec<Message> {
        self.inner.handled.lock().unwrap().clone()
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.handled().into_iter().map(|handled| handled.body).collect()
    }

    /// The sizes of the batches.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.inner.batches.lock().unwrap().clone()
    }

    /// How often `handle` was called.
    pub(crate) fn calls(&self) -> usize {
        self.inner.calls.load(Ordering::SeqCst)
    }

    /// How often it decoded a delivery.
    pub(crate) fn decoded(&self) -> usize {
        self.inner.decoded.load(Ordering::SeqCst)
    }

    /// Makes its dependency unavailable or available.
    pub(crate) fn dependency_unavailable(&self, unavailable: bool) {
        self.inner.unavailable.store(unavailable, Ordering::SeqCst);
    }

    /// Sets the behaviour of the probe.
    pub(crate) fn set_probe(&self, probe: Probe) {
        *self.inner.probe.lock().unwrap() = probe;
    }

    /// Ends one `wait`.
    pub(crate) fn open_gate(&self) {
        self.inner.gate.add_permits(1);
    }

    pub(crate) async fn has_handled(&self, distinct: usize) {
        eventually(format!("{distinct} messages to be handled"), LIMIT, async || {
            let bodies: HashSet<_> = self.bodies().into_iter().collect();
            if bodies.len() >= distinct { Ok(()) } else { Err(format!("{} are", bodies.len())) }
        })
        .await;
    }

    pub(crate) async fn was_called(&self, times: usize) {
        eventually(format!("{times} calls"), LIMIT, async || {
            if self.calls() >= times { Ok(()) } else { Err(format!("{} so far", self.calls())) }
        })
        .await;
    }

    /// Waits until it has decoded this many deliveries.
    pub(crate) async fn has_decoded(&self, deliveries: usize) {
        eventually(format!("{deliveries} decoded deliveries"), LIMIT, async || {
            let decoded = self.decoded();
            if decoded >= deliveries { Ok(()) } else { Err(format!("{decoded} so far")) }
        })
        .await;
    }

    /// Waits for this many further probes.
    pub(crate) async fn is_probed_again(&self, times: usize) {
        let probes = || self.inner.probes.load(Ordering::SeqCst);
        let wanted = probes() + times;
        eventually(format!("{wanted} probes"), LIMIT, async || {
            if probes() >= wanted { Ok(()) } else { Err(format!("{} so far", probes())) }
        })
        .await;
    }

    async fn act(&self, item: &Message) -> Handled {
        let done = Processed::from(Done::Applied);
        match item.body.split_whitespace().next() {
            Some("slow") => return Err(Failure::TimedOut("it is slow".into())),
            Some("slow-at-first") if self.limit != SLOW_LIMITS.last().copied() => {
                return Err(Failure::TimedOut("it is slow".into()));
            }
            Some("locked") => match self.inner.gate.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(Failure::Locked("it is locked".into())),
            },
            Some("fail") => return Err(Failure::Retry("it failed".into())),
            Some("panic") => panic!("{SECRET}"),
            Some("wait") => self.inner.gate.acquire().await.unwrap().forget(),
            Some("reply") => return Ok(done.replying(&item.body)),
            Some("elements") => {
                let refusal = Refusal::new(DeadLetterReason::Schema, "an element".to_owned());
                let failures = [Failure::DeadLetter(refusal), Failure::Retry("it failed".into())];
                let part = |(n, failure)| Part {
                    body: format!("element {n}").into_bytes(),
                    resolved: None,
                    failure,
                };
                let parts = failures.into_iter().enumerate().map(part).collect();
                return Ok(Processed { parts, ..done.replying(&item.body) });
            }
            _ => {}
        }
        Ok(done)
    }

    fn check(&self) -> Result<(), Unavailable> {
        if self.inner.unavailable.load(Ordering::SeqCst) {
            return Err(unavailable());
        }
        Ok(())
    }
}

fn unavailable() -> Unavailable {
    Unavailable { dependency: Dependency::PostgreSql, source: "set by the test".into() }
}

impl Handler for Script {
    type Item = Message;
    const NEEDS: &'static [Dependency] = &[Dependency::PostgreSql];

    fn source(&self) -> Source {
        self.source
    }

    fn with_time_limit(&self, limit: Duration) -> Option<Self> {
        Some(Self { limit: Some(limit), ..self.clone() })
    }

    fn decode(&self, delivery: &Delivery) -> Result<Message, Refusal> {
        self.inner.decoded.fetch_add(1, Ordering::SeqCst);
        let body = String::from_utf8(delivery.body.to_vec()).unwrap();
        assert!(!body.starts_with("panic-decoding"), "{SECRET}");
        if body.starts_with("refuse") {
            let detail = "refused by the test".to_owned();
            return Err(Refusal::new(DeadLetterReason::Schema, detail));
        }
        if body.contains("another queue") {
            let detail = "no action of this queue".to_owned();
            return Err(Refusal::new(DeadLetterReason::UnknownAction, detail));
        }
        Ok(Message {
            body,
            attempt: delivery.fleet_headers().attempt,
            limit: None,
            routing_key: delivery.origin().routing_key,
            message_id: delivery.envelope().message_id.map(str::to_owned),
            redelivered: delivery.redelivered,
            received_at: delivery.received_at,
            reply_address: reply_address(&delivery.body, &delivery.envelope()),
        })
    }

    fn resolved(&self, item: &Message) -> Option<Resolved> {
        assert!(!item.body.ends_with("unresolvable"), "{SECRET}");
        None
    }

    fn reply_address(&self, item: &Message) -> Option<ReplyAddress> {
        item.reply_address.clone()
    }

    async fn handle(&self, items: &[Message]) -> Result<Vec<Handled>, Unavailable> {
        self.inner.calls.fetch_add(1, Ordering::SeqCst);
        self.check()?;
        self.inner.batches.lock().unwrap().push(items.len());
        if items.iter().any(|item| item.body == "unavailable-then-hang") {
            if self.inner.hanging.swap(true, Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            return Err(unavailable());
        }
        let mut outcomes = Vec::new();
        for item in items {
            outcomes.push(self.act(item).await);
        }
        let handled = items.iter().cloned().map(|item| Message { limit: self.limit, ..item });
        self.inner.handled.lock().unwrap().extend(handled);
        Ok(outcomes)
    }

    fn probe(&self, _: Dependency) -> impl Future<Output = Result<(), Unavailable>> + Send {
        self.inner.probes.fetch_add(1, Ordering::SeqCst);
        let probe = *self.inner.probe.lock().unwrap();
        std::future::ready(match probe {
            Probe::FollowsDependency => self.check(),
            Probe::AlwaysSucceeds => Ok(()),
            Probe::Panics => panic!("{SECRET}"),
        })
    }
}
