//! Holding while a dependency is unavailable: an outage costs time, no message and no attempt.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{ConsumerState, Endpoints, Settings, Source};
use domain::failure::Dependency;
use metrics::{ConsumerRestart, Counter, DeliveryOutcome, PublishOutcome};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Bench, LIMIT, Probe, Script};

const QUEUE: &str = WorkQueue::BotState.name();
const DLQ: &str = WorkQueue::BotState.dlq();
const SOURCE: Source = Source::work(WorkQueue::BotState);
const HOLDING: ConsumerState = ConsumerState::Holding(Dependency::PostgreSql);

#[tokio::test]
async fn a_batch_is_held_during_an_outage_and_no_attempt_is_counted() {
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
    // Decoding may generate a random id, under which the message may be stored already.
    assert_eq!(script.decoded(), 100);
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn no_new_batch_starts_while_one_is_held() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, ["first"]).await;
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(HOLDING).await;
    let calls = script.calls();
    bench.publish(QUEUE, 0..10).await;
    // The probe fails repeatedly, and the handler is not called meanwhile.
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
async fn at_the_hold_limit_messages_are_requeued_until_the_dependency_is_available() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, 0..20).await;
    let settings = Settings { hold_limit: Duration::from_millis(300), ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.eventually_ready(QUEUE, 20).await;
    let restarts = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Hold };
    eventually("the end of the hold", LIMIT, async || match bench.metrics.count(restarts) {
        1 => Ok(()),
        count => Err(format!("{count} restarts")),
    })
    .await;
    bench.eventually_ready(QUEUE, 20).await;
    script.dependency_unavailable(false);
    script.has_handled(20).await;
    running.drain().await;
    assert_eq!(bench.metrics.count(restarts), 1, "it consumed before the dependency was available");
    assert!(script.handled().iter().all(|handled| handled.attempt == 1 && handled.redelivered));
}

#[tokio::test]
async fn a_connection_lost_in_a_hold_is_replaced_when_the_dependency_is_available() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(QUEUE, 0..5).await;
    let mut running = bench.run_at(endpoints, script.at(SOURCE), Settings::default());
    running.reaches(HOLDING).await;
    proxy.reset().await.unwrap();
    bench.eventually_ready(QUEUE, 5).await;
    // Consuming now would add one redelivery to all five.
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
async fn a_probe_that_panics_counts_as_unavailable() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    script.set_probe(Probe::Panics);
    bench.publish(QUEUE, ["ok"]).await;
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(HOLDING).await;
    let panics = Counter::HandlerPanics { queue: QUEUE };
    eventually("a panic", LIMIT, async || match bench.metrics.count(panics) {
        2.. => Ok(()),
        count => Err(format!("{count} panics")),
    })
    .await;
    script.dependency_unavailable(false);
    script.set_probe(Probe::FollowsDependency);
    script.has_handled(1).await;
    running.drain().await;
    assert!(!script.handled()[0].redelivered);
}

#[tokio::test]
async fn a_drain_during_a_hold_waits_for_the_dependency() {
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
async fn a_copy_that_rabbitmq_does_not_confirm_costs_one_redelivery_however_long_that_lasts() {
    let bench = Bench::new().await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    bench.publish(QUEUE, ["refuse"]).await;
    bench.publish(QUEUE, (0..20).map(|n| format!("ok {n}"))).await;
    let script = Script::default();
    let settings = Settings {
        batch_size: 1,
        batches_in_flight: 1,
        hold_limit: Duration::from_millis(300),
        ..Settings::default()
    };
    let mut running = bench.run(SOURCE, &script, settings);
    let restarts = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Hold };
    eventually("the end of the hold", LIMIT, async || match bench.metrics.count(restarts) {
        1.. => Ok(()),
        count => Err(format!("{count} restarts")),
    })
    .await;
    // After many times the hold limit it still waits for the unconfirmed copy.
    let unroutable = Counter::Publishes { outcome: PublishOutcome::Unroutable };
    let wanted = bench.metrics.count(unroutable) + 4;
    eventually("more attempts to publish", LIMIT, async || match bench.metrics.count(unroutable) {
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
async fn a_drain_does_not_wait_for_a_copy_that_rabbitmq_does_not_confirm() {
    let bench = Bench::new().await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    bench.publish(QUEUE, ["refuse"]).await;
    let script = Script::default();
    let settings = Settings { hold_limit: Duration::from_millis(300), ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    let restarts = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Hold };
    eventually("the end of the hold", LIMIT, async || match bench.metrics.count(restarts) {
        1.. => Ok(()),
        count => Err(format!("{count} restarts")),
    })
    .await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 1).await;
}

#[tokio::test]
async fn a_hold_lasts_until_every_held_batch_is_finished() {
    let bench = Bench::new().await;
    let script = Script::default();
    let settings = Settings { batch_size: 1, batches_in_flight: 2, ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    bench.publish(QUEUE, ["unavailable-then-hang"]).await;
    script.was_called(3).await;
    script.open_gate();
    // One of the two is finished; the one that was held is being handled again.
    let applied = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Applied };
    eventually("one to be finished", LIMIT, async || match bench.metrics.count(applied) {
        1 => Ok(()),
        count => Err(format!("{count} are")),
    })
    .await;
    assert_eq!(*running.state.borrow(), HOLDING);
}
