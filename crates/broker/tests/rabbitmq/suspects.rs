//! Messages that come back too often are tried alone, and given up only if they come back from there.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{Endpoints, Settings, Source};
use lapin::options::{BasicGetOptions, BasicNackOptions};
use metrics::{Counter, DeliveryOutcome};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Bench, Probe, SOON, Script};

const QUEUE: &str = WorkQueue::SaveMessage.name();
const SUSPECTS: &str = WorkQueue::SaveMessage.suspect();
const DLQ: &str = WorkQueue::SaveMessage.dlq();
const SOURCE: Source = Source::work(WorkQueue::SaveMessage);

fn settings() -> Settings {
    Settings { suspect_interval: Duration::from_millis(100), ..Settings::default() }
}

/// Takes the one message of a queue and gives it back, so often.
async fn requeue(bench: &Bench, queue: &str, times: usize) {
    for _ in 0..times {
        bench.eventually_ready(queue, 1).await;
        let got = bench.raw.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        let nack = BasicNackOptions { requeue: true, multiple: false };
        assert!(got.unwrap().delivery.nack(nack).await.unwrap());
    }
    bench.eventually_ready(queue, 1).await;
}

#[tokio::test]
async fn a_message_that_came_back_three_times_is_set_apart_and_handled_alone() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["innocent"]).await;
    requeue(&bench, QUEUE, 3).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, settings());
    script.has_handled(1).await;
    running.drain().await;
    let count = |outcome| bench.metrics.count(Counter::Deliveries { queue: QUEUE, outcome });
    assert_eq!(count(DeliveryOutcome::Quarantined), 1);
    assert_eq!(count(DeliveryOutcome::Applied), 1);
    for queue in [QUEUE, SUSPECTS, DLQ] {
        bench.eventually_ready(queue, 0).await;
    }
}

#[tokio::test]
async fn a_suspect_that_comes_back_five_times_is_given_up() {
    let bench = Bench::new().await;
    bench.publish(SUSPECTS, ["guilty"]).await;
    requeue(&bench, SUSPECTS, 5).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, settings());
    let dead_letter = bench.take(DLQ).await;
    running.drain().await;
    let headers = dead_letter.properties.headers().clone().unwrap();
    let reason = headers.inner().get("x-verbatim-reason").unwrap();
    assert_eq!(*reason, lapin::types::AMQPValue::LongString("delivery_limit".into()));
    assert!(script.handled().is_empty());
}

#[tokio::test]
async fn a_suspect_whose_connection_breaks_under_a_living_worker_is_not_given_up() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    bench.publish(SUSPECTS, ["wait"]).await;
    let script = Script::default();
    let running = bench.run_at(endpoints, SOURCE, script.clone(), settings());
    for round in 1..=7 {
        script.was_called(round).await;
        proxy.reset().await.unwrap();
        script.open_gate();
    }
    script.was_called(8).await;
    script.open_gate();
    running.drain().await;
    assert!(script.handled().len() >= 8);
    for queue in [SUSPECTS, DLQ] {
        bench.eventually_ready(queue, 0).await;
    }
    let lost = Counter::AcksLost { queue: QUEUE };
    assert!(bench.metrics.count(lost) >= 1, "what was handled was not acknowledged");
}

#[tokio::test]
async fn while_suspects_are_tried_the_queue_goes_on_being_consumed() {
    let bench = Bench::new().await;
    bench.publish(SUSPECTS, (0..5).map(|n| format!("suspect {n}"))).await;
    bench.publish(QUEUE, 0..500).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, settings());
    script.has_handled(505).await;
    bench.publish(QUEUE, 500..600).await;
    script.has_handled(605).await;
    running.drain().await;
    assert_eq!(script.handled().len(), 605);
}

#[tokio::test]
async fn suspects_wait_while_the_store_is_away() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(SUSPECTS, ["patient"]).await;
    let running = bench.run(SOURCE, &script, settings());
    script.is_probed_again(3).await;
    assert_eq!(script.calls(), 0);
    script.dependency_unavailable(false);
    script.has_handled(1).await;
    running.drain().await;
    assert!(!script.handled()[0].redelivered);
}

/// A store that fails while its probe succeeds.
fn blindly_away() -> Script {
    let script = Script::default();
    script.dependency_unavailable(true);
    script.probes(Probe::Blind);
    script
}

#[tokio::test]
async fn an_outage_that_no_probe_sees_is_not_held_against_a_suspect() {
    let bench = Bench::new().await;
    let script = blindly_away();
    bench.publish(SUSPECTS, ["innocent"]).await;
    let running = bench.run(SOURCE, &script, settings());
    script.was_called(8).await;
    script.dependency_unavailable(false);
    script.has_handled(1).await;
    running.drain().await;
    assert!(!script.handled()[0].redelivered, "it went back to the queue");
    assert_eq!(script.decoded(), 1);
    bench.eventually_ready(DLQ, 0).await;
}

#[tokio::test]
async fn a_suspect_that_is_held_too_long_returns_without_a_count() {
    let bench = Bench::new().await;
    let script = blindly_away();
    bench.publish(SUSPECTS, ["innocent"]).await;
    let settings = Settings { hold_limit: Duration::from_millis(200), ..settings() };
    let running = bench.run(SOURCE, &script, settings);
    let returned = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Requeued };
    eventually("seven returns", SOON, async || match bench.metrics.count(returned) {
        7.. => Ok(()),
        count => Err(format!("{count} returns")),
    })
    .await;
    script.dependency_unavailable(false);
    script.has_handled(1).await;
    running.drain().await;
    assert!(!script.handled()[0].redelivered, "it went back to the queue");
    bench.eventually_ready(DLQ, 0).await;
}

#[tokio::test]
async fn a_drain_puts_a_held_suspect_back_without_a_count() {
    let bench = Bench::new().await;
    let script = blindly_away();
    bench.publish(SUSPECTS, ["innocent"]).await;
    let running = bench.run(SOURCE, &script, settings());
    script.was_called(1).await;
    running.drain().await;
    let suspect = bench.take(SUSPECTS).await;
    assert!(!suspect.redelivered);
    bench.eventually_ready(SUSPECTS, 0).await;
}
