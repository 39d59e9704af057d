//! What the tests share: a virtual host with the topology, a raw channel to look behind the scenes, and
//! a handler that does what message bodies tell it.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use broker::{
    Consumer, ConsumerState, Delivery, Endpoints, Handler, Publication, Publisher, Settings, Source,
};
use domain::clock::Clock;
use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Dependency, Done, Outcome, Refusal, Unavailable};
use domain::time::Timestamp;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use metrics::Metrics;
use testkit::TestEnv;
use testkit::wait::eventually;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Anything on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What the script's panics say, as slicing a text says it: somebody's words.
pub(crate) const SECRET: &str = "byte index 3 is not a char boundary of `my secret`";

/// A virtual host with the fleet's topology.
pub(crate) struct Bench {
    pub(crate) url: String,
    pub(crate) endpoints: Endpoints,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
    pub(crate) raw: lapin::Channel,
    _raw: lapin::Connection,
    _env: Option<TestEnv>,
}

impl Bench {
    /// One of its own on the server of all tests.
    pub(crate) async fn new() -> Self {
        let env = TestEnv::new().await;
        let bench = Self::at(env.amqp_url.clone()).await;
        Self { _env: Some(env), ..bench }
    }

    /// The one behind this address: for tests that do to a server what others would feel.
    pub(crate) async fn at(url: String) -> Self {
        let endpoints = Endpoints::parse(&url, "test").unwrap();
        broker::topology::declare(&endpoints).await.unwrap();
        let metrics = Metrics::new();
        let publisher = Publisher::new(endpoints.clone(), metrics.clone());
        let (connection, raw) = raw_channel(&url).await;
        Self { url, endpoints, publisher, metrics, raw, _raw: connection, _env: None }
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
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let answer = self.raw.queue_declare(queue.into(), options, FieldTable::default()).await;
        answer.unwrap().message_count()
    }

    pub(crate) async fn eventually_ready(&self, queue: &str, count: u32) {
        eventually(format!("{count} messages in {queue}"), SOON, async || {
            match self.ready(queue).await {
                ready if ready == count => Ok(()),
                ready => Err(format!("{ready} are ready")),
            }
        })
        .await;
    }

    /// Takes a message out of a queue, as a raw client sees it.
    pub(crate) async fn take(&self, queue: &str) -> lapin::message::Delivery {
        eventually(format!("a message in {queue}"), SOON, async || {
            let options = BasicGetOptions { no_ack: true };
            let message = self.raw.basic_get(queue.into(), options).await.unwrap();
            message.map(|message| message.delivery).ok_or_else(|| "it is empty".to_owned())
        })
        .await
    }

    /// Runs a consumer of `source` with this handler.
    pub(crate) fn run(&self, source: Source, script: &Script, settings: Settings) -> Running {
        self.run_at(self.endpoints.clone(), source, script.clone(), settings)
    }

    /// The same by way of other addresses, or with another handler.
    pub(crate) fn run_at(
        &self,
        endpoints: Endpoints,
        source: Source,
        handler: impl Handler,
        settings: Settings,
    ) -> Running {
        let consumer = Consumer::new(
            source,
            handler,
            endpoints,
            self.publisher.clone(),
            settings,
            clock(),
            self.metrics.clone(),
        );
        let state = consumer.state();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(consumer.run(shutdown.clone()));
        Running { shutdown, state, task }
    }
}

/// A clock that goes on by a millisecond whenever it is looked at.
pub(crate) fn clock() -> Clock {
    let micros = AtomicI64::new(1_800_000_000_000_000);
    Clock::new(move || Timestamp::from_micros(micros.fetch_add(1000, Ordering::SeqCst)).unwrap())
}

/// A connection and a channel without any of our code.
pub(crate) async fn raw_channel(url: &str) -> (lapin::Connection, lapin::Channel) {
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(url, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A consumer that runs. Dropping it is a crash.
pub(crate) struct Running {
    pub(crate) shutdown: CancellationToken,
    pub(crate) state: watch::Receiver<ConsumerState>,
    pub(crate) task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn reaches(&mut self, state: ConsumerState) {
        let mut seen = self.state.clone();
        let reached = tokio::time::timeout(SOON, seen.wait_for(|now| *now == state)).await;
        assert!(
            reached.is_ok_and(|r| r.is_ok()),
            "waited for {state:?}, is {:?}",
            self.state.borrow()
        );
    }

    /// Asks it to drain and waits until it has.
    pub(crate) async fn drain(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(SOON, &mut self.task).await.expect("it did not drain").unwrap();
        assert_eq!(*self.state.borrow(), ConsumerState::Stopped);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A handler that does what the first word of a body says: `ok`, `fail`, `panic`, `panic-decoding`,
/// `refuse`, `wait` (until the test lets it go on), `stubborn` (its store is away at
/// first, and later gives no answer). Everything else is `ok`.
#[derive(Clone, Default)]
pub(crate) struct Script {
    inner: Arc<Inner>,
}

struct Inner {
    handled: Mutex<Vec<Handled>>,
    batches: Mutex<Vec<usize>>,
    away: AtomicBool,
    probe: Mutex<Probe>,
    refused_stubborn: AtomicBool,
    calls: AtomicUsize,
    probes: AtomicUsize,
    decoded: AtomicUsize,
    gate: Semaphore,
}

/// What a probe does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Probe {
    /// It fails while the store is away.
    #[default]
    Honest,
    /// It succeeds whatever the store does, as it does while a disk is full.
    Blind,
    /// It panics.
    Panics,
}

/// A message that a handler was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handled {
    pub(crate) body: String,
    pub(crate) attempt: u32,
    pub(crate) routing_key: String,
    pub(crate) message_id: Option<String>,
    pub(crate) redelivered: bool,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            handled: Mutex::default(),
            batches: Mutex::default(),
            away: AtomicBool::new(false),
            probe: Mutex::default(),
            refused_stubborn: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
            decoded: AtomicUsize::new(0),
            gate: Semaphore::new(0),
        }
    }
}

impl Script {
    /// What was handled to the end, in that order.
    pub(crate) fn handled(&self) -> Vec<Handled> {
        self.inner.handled.lock().unwrap().clone()
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.handled().into_iter().map(|handled| handled.body).collect()
    }

    /// How large the batches were.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.inner.batches.lock().unwrap().clone()
    }

    /// How often it was called.
    pub(crate) fn calls(&self) -> usize {
        self.inner.calls.load(Ordering::SeqCst)
    }

    /// How often it decoded a delivery.
    pub(crate) fn decoded(&self) -> usize {
        self.inner.decoded.load(Ordering::SeqCst)
    }

    /// Makes its store go away or come back.
    pub(crate) fn dependency_unavailable(&self, away: bool) {
        self.inner.away.store(away, Ordering::SeqCst);
    }

    /// Makes its probe behave like this from now on.
    pub(crate) fn probes(&self, probe: Probe) {
        *self.inner.probe.lock().unwrap() = probe;
    }

    /// Lets one `wait` go on.
    pub(crate) fn open_gate(&self) {
        self.inner.gate.add_permits(1);
    }

    pub(crate) async fn has_handled(&self, distinct: usize) {
        eventually(format!("{distinct} messages to be handled"), SOON, async || {
            let bodies: HashSet<_> = self.bodies().into_iter().collect();
            if bodies.len() >= distinct { Ok(()) } else { Err(format!("{} are", bodies.len())) }
        })
        .await;
    }

    pub(crate) async fn was_called(&self, times: usize) {
        eventually(format!("{times} calls"), SOON, async || {
            if self.calls() >= times { Ok(()) } else { Err(format!("{} so far", self.calls())) }
        })
        .await;
    }

    /// Waits until it was probed so many times more.
    pub(crate) async fn is_probed_again(&self, times: usize) {
        let probes = || self.inner.probes.load(Ordering::SeqCst);
        let wanted = probes() + times;
        eventually(format!("{wanted} probes"), SOON, async || {
            if probes() >= wanted { Ok(()) } else { Err(format!("{} so far", probes())) }
        })
        .await;
    }

    async fn act(&self, item: &Handled) -> Outcome {
        match item.body.split_whitespace().next() {
            Some("fail") => Outcome::Retry("it failed".to_owned()),
            Some("panic") => panic!("{SECRET}"),
            Some("wait") => {
                self.inner.gate.acquire().await.unwrap().forget();
                Outcome::Done(Done::Applied)
            }
            _ => Outcome::Done(Done::Applied),
        }
    }

    fn check(&self) -> Result<(), Unavailable> {
        if self.inner.away.load(Ordering::SeqCst) {
            return Err(away());
        }
        Ok(())
    }
}

fn away() -> Unavailable {
    Unavailable { dependency: Dependency::PostgreSql, source: "away".into() }
}

impl Handler for Script {
    type Item = Handled;

    fn decode(&self, delivery: &Delivery) -> Result<Handled, Refusal> {
        self.inner.decoded.fetch_add(1, Ordering::SeqCst);
        let body = String::from_utf8(delivery.body.clone()).unwrap();
        assert!(!body.starts_with("panic-decoding"), "{SECRET}");
        if body.starts_with("refuse") {
            let detail = "the script says so".to_owned();
            return Err(Refusal::new(DeadLetterReason::Schema, detail));
        }
        Ok(Handled {
            body,
            attempt: delivery.fleet_headers().attempt,
            routing_key: delivery.origin().routing_key,
            message_id: delivery.envelope().message_id.map(str::to_owned),
            redelivered: delivery.redelivered,
        })
    }

    fn resolved(&self, item: &Handled) -> Option<Resolved> {
        assert!(!item.body.ends_with("unresolvable"), "{SECRET}");
        None
    }

    async fn handle(&self, items: &[Handled]) -> Result<Vec<Outcome>, Unavailable> {
        self.inner.calls.fetch_add(1, Ordering::SeqCst);
        self.check()?;
        self.inner.batches.lock().unwrap().push(items.len());
        if items.iter().any(|item| item.body == "stubborn") {
            if self.inner.refused_stubborn.swap(true, Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            return Err(away());
        }
        let mut outcomes = Vec::new();
        for item in items {
            outcomes.push(self.act(item).await);
        }
        self.inner.handled.lock().unwrap().extend(items.iter().cloned());
        Ok(outcomes)
    }

    fn probe(&self) -> impl Future<Output = Result<(), Unavailable>> + Send {
        self.inner.probes.fetch_add(1, Ordering::SeqCst);
        let probe = *self.inner.probe.lock().unwrap();
        std::future::ready(match probe {
            Probe::Honest => self.check(),
            Probe::Blind => Ok(()),
            Probe::Panics => panic!("{SECRET}"),
        })
    }
}
