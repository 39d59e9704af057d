//! Runs a consumer under the supervision of its process.

use broker::{Consumer, ConsumerState, Decoder, Handler};
use domain::clock::Clock;
use metrics::Metrics;
use service::settings::ConsumerSettings;
use service::{Check, Service};

use crate::Stores;

/// Consumes the queue that the handler names, and its slow queue if the handler needs that, until the process stops. The
/// check of each in `/readyz` has the queue's name; it is ready while the consumer is registered with the queue, or
/// the slow queue is empty.
pub fn consume<H>(service: &Service, stores: &Stores, settings: &ConsumerSettings, handler: H)
where
    H: Handler + Clone,
{
    let source = handler.source();
    let usual = Parts {
        handler,
        stores: stores.clone(),
        settings: of_broker(settings),
        clock: service.clock().clone(),
        metrics: service.metrics().clone(),
    };
    let slow = usual.clone();
    supervise(service, source.queue(), move || Some(usual.consumer()));
    if let Some(source) = source.slow()
        && slow.slow_consumer().is_some()
    {
        supervise(service, source.queue(), move || slow.slow_consumer());
    }
}

/// The most messages in a batch of background work. Its steps have at most half as many.
const BATCH_IN_BACKGROUND: usize = 100;

/// The settings of a consumer whose batches are background work. Such batches take turns: several at once, and larger ones,
/// would only be settled later, the first one after an outage in particular.
#[must_use]
pub fn in_background(settings: &ConsumerSettings) -> ConsumerSettings {
    let batch_size = settings.batch_size.min(BATCH_IN_BACKGROUND);
    ConsumerSettings { batch_size, batches_in_flight: 1, ..settings.clone() }
}

/// What a consumer is made of.
#[derive(Clone)]
struct Parts<H> {
    handler: H,
    stores: Stores,
    settings: broker::Settings,
    clock: Clock,
    metrics: Metrics,
}

impl<H: Handler + Clone> Parts<H> {
    fn consumer(&self) -> Consumer<H> {
        let Self { handler, stores, settings, clock, metrics } = self.clone();
        Consumer::new(handler, stores.endpoints, stores.publisher, settings, clock, metrics)
    }

    fn slow_consumer(&self) -> Option<Consumer<H>> {
        let Self { handler, stores, settings, clock, metrics } = self.clone();
        let Stores { endpoints, publisher, inspector, .. } = stores;
        Consumer::of_slow_queue(&handler, inspector, endpoints, publisher, settings, clock, metrics)
    }
}

/// Runs the consumers that `open` makes, one after the other if one ends in a panic.
fn supervise<H: Handler>(
    service: &Service,
    queue: &'static str,
    open: impl Fn() -> Option<Consumer<H>> + Send + Sync + 'static,
) {
    let run = service.checked(queue, move |stopping, check| {
        let consumer = open();
        async move {
            let Some(consumer) = consumer else { return Ok(()) };
            let mut state = consumer.state();
            let report = async {
                loop {
                    report_state(&check, *state.borrow_and_update());
                    if state.changed().await.is_err() {
                        return;
                    }
                }
            };
            // Boxed, because the compiler limits how deeply futures are nested in each other.
            let run = Box::pin(consumer.run(stopping));
            tokio::select! {
                () = run => {}
                () = report => {}
            }
            Ok(())
        }
    });
    service.supervise(queue, run);
}

/// The decoder of a handler of actions with these settings.
#[must_use]
pub fn decoder(settings: &ConsumerSettings) -> Decoder {
    let users = settings.users.amqp_users.clone().unwrap_or_default();
    Decoder { max_body_bytes: settings.max_body_bytes, users }
}

/// The settings as the crate `broker` takes them.
fn of_broker(settings: &ConsumerSettings) -> broker::Settings {
    broker::Settings {
        batch_size: settings.batch_size,
        linger: settings.linger,
        batches_in_flight: settings.batches_in_flight,
        max_inflight_bytes: settings.max_inflight_bytes,
        largest_body: settings.max_body_bytes,
        hold_limit: settings.hold_limit,
        stall_limit: settings.stall_limit,
        ..broker::Settings::default()
    }
}

fn report_state(check: &Check, state: ConsumerState) {
    match state {
        ConsumerState::Consuming | ConsumerState::QueueEmpty => check.ready(),
        ConsumerState::Connecting => check.not_ready("not registered with the queue"),
        ConsumerState::Holding(dependency) => check.not_ready(format!(
            "holding: {dependency} unavailable; deliveries stay unacknowledged"
        )),
        ConsumerState::Draining => {
            check.stopping("draining: finishing deliveries before the stop");
        }
        ConsumerState::Stopped => check.stopping("stopped consuming"),
    }
}
