//! Runs a consumer under the supervision of its process.

use std::time::Duration;

use broker::inspect::Inspector;
use broker::{Consumer, ConsumerState, Endpoints, Handler, Settings, Source};
use domain::causes::with_causes;
use domain::failure::Dependency;
use service::{Check, Service};

use crate::Stores;
use crate::stores::{pause, set_state};

/// How often RabbitMQ is probed.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Consumes a queue until the process stops. The check in `/readyz` has the queue's name; it is ready while the
/// consumer is registered with the queue.
pub fn consume<H>(
    service: &Service,
    stores: &Stores,
    source: Source,
    settings: Settings,
    handler: H,
) where
    H: Handler + Clone,
{
    let check = service.check(source.queue());
    let (stores, clock) = (stores.clone(), service.clock().clone());
    let metrics = service.metrics().clone();
    service.supervise(source.queue(), move |stopping| {
        let consumer = Consumer::new(
            source,
            handler.clone(),
            stores.endpoints.clone(),
            stores.publisher.clone(),
            settings.clone(),
            clock.clone(),
            metrics.clone(),
        );
        let check = check.clone();
        async move {
            let mut state = consumer.state();
            let report = async {
                loop {
                    report_state(&check, *state.borrow_and_update());
                    if state.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = consumer.run(stopping) => {}
                () = report => {}
            }
            Ok(())
        }
    });
}

fn report_state(check: &Check, state: ConsumerState) {
    match state {
        ConsumerState::Consuming => check.ready(),
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

/// Maintains the check `rabbitmq`: probes RabbitMQ on a connection of its own.
pub(crate) fn watch_broker(service: &Service, endpoints: &Endpoints, check: Check) {
    let (endpoints, metrics) = (endpoints.clone(), service.metrics().clone());
    service.support("rabbitmq-check", move |stopping| {
        let (check, metrics) = (check.clone(), metrics.clone());
        let mut inspector = Inspector::new(endpoints.clone());
        async move {
            while !stopping.is_cancelled() {
                let fault = inspector.probe().await.err().map(|error| with_causes(&error));
                set_state(&check, &metrics, Dependency::RabbitMq, fault);
                pause(PROBE_EVERY, &stopping).await;
            }
            Ok(())
        }
    });
}
