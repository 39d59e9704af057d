//! Runs a consumer under the supervision of its process.

use broker::{Consumer, ConsumerState, Handler};
use service::settings::ConsumerSettings;
use service::{Check, Service};

use crate::Stores;

/// Consumes the queue that the handler names, until the process stops. The check in `/readyz` has the queue's name; it is ready while the
/// consumer is registered with the queue.
pub fn consume<H>(service: &Service, stores: &Stores, settings: &ConsumerSettings, handler: H)
where
    H: Handler + Clone,
{
    let queue = handler.source().queue();
    let settings = of_broker(settings);
    let (stores, clock) = (stores.clone(), service.clock().clone());
    let metrics = service.metrics().clone();
    let run = service.checked(queue, move |stopping, check| {
        let consumer = Consumer::new(
            handler.clone(),
            stores.endpoints.clone(),
            stores.publisher.clone(),
            settings.clone(),
            clock.clone(),
            metrics.clone(),
        );
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
