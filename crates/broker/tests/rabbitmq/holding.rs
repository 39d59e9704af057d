//! Stores that are away: outages cost time, not messages and not attempts.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{ConsumerState, Endpoints, Settings, Source};
use domain::failure::Dependency;
use metrics::{ConsumerRestart, Counter, DeliveryOutcome, PublishOutcome};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Bench, Probe, SOON, Script};

const QUEUE: &str = WorkQueue::BotState.name();
const DLQ: &str = WorkQueue::BotState.dlq();
const SOURCE: Source = Source::work(WorkQueue::BotState);
const HOLDING: ConsumerState = ConsumerState::Holding(Dependency::PostgreSql);

#[tokio::test]
async fn a_batch_is_held_while_its_store_is_away_and_no_attempt_is_counted() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, 0..100).await;
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(HOLDING).await;
    assert_eq!(bench.ready(WorkQueue::BotState.dlq()).await, 0);
    script.dependency_unavailable(false);
    script.has_handled(100).await;
    running.reaches(ConsumerState::Consuming).await;
    running.drain().await;
    assert!(script.handled().iter().all(|handled| handled.attempt == 1));
    assert_eq!(script.handled().len(), 100);
    // Decoding may draw a random id, and the store may have taken the message under it.
    assert_eq!(script.decoded(), 100);
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn no_new_batch_is_taken_while_one_is_held() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, ["first"]).await;
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(HOLDING).await;
    let calls = script.calls();
    bench.publish(QUEUE, 0..10).await;
    // The probe fails again and again, and the handler is not called for it.
    let holds = Counter::Holds { queue: QUEUE, dependency: Dependency::PostgreSql };
    let held = bench.metrics.count(holds);
    script.is_probed_again(3).await;
    assert_eq!(script.calls(), calls);
    assert_eq!(bench.metrics.count(holds), held);
    script.dependency_unavailable(false);
    script.has_handled(11).await;
    running.drain().await;
}

#[tokio::test]
async fn a_hold_that_lasts_too_long_gives_the_messages_back_until_the_store_returns() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, 0..20).await;
    let settings = Settings { hold_limit: Duration::from_millis(300), ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.eventually_ready(QUEUE, 20).await;
    let restarts = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Hold };
    eventually("the end of the hold", SOON, async || match bench.metrics.count(restarts) {
        1 => Ok(()),
        count => Err(format!("{count} restarts")),
    })
    .await;
    bench.eventually_ready(QUEUE, 20).await;
    script.dependency_unavailable(false);
    script.has_handled(20).await;
    running.drain().await;
    assert_eq!(bench.metrics.count(restarts), 1, "it consumed again before the store was back");
    assert!(script.handled().iter().all(|handled| handled.attempt == 1 && handled.redelivered));
}

#[tokio::test]
async fn a_connection_that_breaks_in_a_hold_is_built_anew_when_the_store_is_back() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, 0..5).await;
    let mut running = bench.run_at(endpoints, SOURCE, script.clone(), Settings::default());
    running.reaches(HOLDING).await;
    proxy.reset().await.unwrap();
    bench.eventually_ready(QUEUE, 5).await;
    // Each time that it consumed now would count as one more return of all five.
    script.is_probed_again(3).await;
    assert_eq!(bench.ready(QUEUE).await, 5);
    running.reaches(HOLDING).await;
    script.dependency_unavailable(false);
    script.has_handled(5).await;
    running.drain().await;
    let failed = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Error };
    assert_eq!(bench.metrics.count(failed), 1);
}

#[tokio::test]
async fn a_probe_that_panics_is_a_store_that_is_away() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    script.probes(Probe::Panics);
    bench.publish(QUEUE, ["patient"]).await;
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(HOLDING).await;
    let panics = Counter::HandlerPanics { queue: QUEUE };
    eventually("a panic", SOON, async || match bench.metrics.count(panics) {
        2.. => Ok(()),
        count => Err(format!("{count} panics")),
    })
    .await;
    script.dependency_unavailable(false);
    script.probes(Probe::Honest);
    script.has_handled(1).await;
    running.drain().await;
    assert!(!script.handled()[0].redelivered);
}

#[tokio::test]
async fn a_drain_during_a_hold_waits_for_the_store() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, ["only"]).await;
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(HOLDING).await;
    running.shutdown.cancel();
    script.dependency_unavailable(false);
    running.drain().await;
    assert_eq!(script.bodies(), ["only"]);
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn what_rabbitmq_does_not_take_costs_one_return_however_long_that_lasts() {
    let bench = Bench::new().await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    bench.publish(QUEUE, ["refuse"]).await;
    bench.publish(QUEUE, (0..20).map(|n| format!("innocent {n}"))).await;
    let script = Script::default();
    let settings = Settings {
        batch_size: 1,
        batches_in_flight: 1,
        hold_limit: Duration::from_millis(300),
        ..Settings::default()
    };
    let mut running = bench.run(SOURCE, &script, settings);
    let restarts = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Hold };
    eventually("the end of the hold", SOON, async || match bench.metrics.count(restarts) {
        1.. => Ok(()),
        count => Err(format!("{count} restarts")),
    })
    .await;
    // Many hold limits later it still waits for what it could not publish.
    let returned = Counter::Publishes { outcome: PublishOutcome::Unroutable };
    let wanted = bench.metrics.count(returned) + 4;
    eventually("more attempts to publish", SOON, async || match bench.metrics.count(returned) {
        count if count >= wanted => Ok(()),
        count => Err(format!("{count} of {wanted}")),
    })
    .await;
    running.reaches(ConsumerState::Holding(Dependency::RabbitMq)).await;
    bench.eventually_ready(QUEUE, 21).await;
    broker::topology::declare(&bench.endpoints).await.unwrap();
    script.has_handled(20).await;
    running.drain().await;
    assert_eq!(bench.metrics.count(restarts), 1);
    assert!(bench.ready(DLQ).await >= 1);
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_what_rabbitmq_does_not_take() {
    let bench = Bench::new().await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    bench.publish(QUEUE, ["refuse"]).await;
    let script = Script::default();
    let settings = Settings { hold_limit: Duration::from_millis(300), ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    let restarts = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Hold };
    eventually("the end of the hold", SOON, async || match bench.metrics.count(restarts) {
        1.. => Ok(()),
        count => Err(format!("{count} restarts")),
    })
    .await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 1).await;
}

#[tokio::test]
async fn a_hold_lasts_until_everything_that_was_held_is_through() {
    let bench = Bench::new().await;
    let script = Script::default();
    let settings = Settings { batch_size: 1, batches_in_flight: 2, ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    bench.publish(QUEUE, ["stubborn"]).await;
    script.was_called(3).await;
    script.open_gate();
    // One of the two is through; the one that was held has resumed and still tries.
    let applied = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Applied };
    eventually("one to be through", SOON, async || match bench.metrics.count(applied) {
        1 => Ok(()),
        count => Err(format!("{count} are")),
    })
    .await;
    assert_eq!(*running.state.borrow(), HOLDING);
}
