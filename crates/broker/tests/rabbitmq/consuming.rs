//! The ordinary way: batches, acknowledgements, drain, prefetch.

use broker::topology::WorkQueue;
use broker::{ConsumerState, Settings, Source};
use metrics::{Counter, DeliveryOutcome};
use testkit::wait::eventually;

use crate::support::{Bench, SOON, Script};

const QUEUE: &str = WorkQueue::SaveMessage.name();
const SOURCE: Source = Source::work(WorkQueue::SaveMessage);

#[tokio::test]
async fn everything_is_handled_once_in_batches_and_acknowledged() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, 0..2000).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, Settings::default());
    script.has_handled(2000).await;
    running.drain().await;
    assert_eq!(script.handled().len(), 2000);
    assert!(script.batches().len() < 1000, "{:?}", script.batches());
    bench.eventually_ready(QUEUE, 0).await;
    let applied = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Applied };
    assert_eq!(bench.metrics.count(applied), 2000);
}

#[tokio::test]
async fn a_slow_batch_holds_back_the_acknowledgements_of_later_ones() {
    let bench = Bench::new().await;
    let script = Script::default();
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    bench.publish(QUEUE, 0..50).await;
    script.has_handled(50).await;

    // A crash: what was handled behind the slow batch was not acknowledged, and comes again.
    drop(running);
    bench.eventually_ready(QUEUE, 51).await;
}

#[tokio::test]
async fn once_the_slow_batch_is_through_all_of_them_are_acknowledged() {
    let bench = Bench::new().await;
    let script = Script::default();
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    bench.publish(QUEUE, 0..50).await;
    script.has_handled(50).await;
    script.open_gate();
    script.has_handled(51).await;
    let applied = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Applied };
    eventually("the acknowledgement", SOON, async || match bench.metrics.count(applied) {
        51 => Ok(()),
        count => Err(format!("{count} settled")),
    })
    .await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_drain_finishes_what_was_delivered_and_takes_nothing_new() {
    let bench = Bench::new().await;
    let script = Script::default();
    // It takes 20: a batch, and the next one.
    let settings = Settings { batch_size: 10, batches_in_flight: 1, ..Settings::default() };
    let mut running = bench.run(SOURCE, &script, settings);
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    bench.publish(QUEUE, ["late"; 50]).await;
    bench.eventually_ready(QUEUE, 31).await;
    running.shutdown.cancel();
    running.reaches(ConsumerState::Draining).await;
    script.open_gate();
    running.drain().await;
    assert_eq!(script.bodies().len(), 20);
    bench.eventually_ready(QUEUE, 31).await;
    let redelivered = bench.take(QUEUE).await.redelivered;
    assert!(!redelivered, "it gave nothing back");
}

#[tokio::test]
async fn the_prefetch_starts_small_and_grows_with_what_bodies_measure() {
    let bench = Bench::new().await;
    let script = Script::default();
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    assert_eq!(prefetch(&bench), "64");
    bench.publish(QUEUE, 0..200).await;
    script.has_handled(200).await;
    prefetch_becomes(&bench, "2500").await;
    // The new consumer works.
    bench.publish(QUEUE, 200..300).await;
    script.has_handled(300).await;
    running.drain().await;
}

#[tokio::test]
async fn what_there_is_no_room_for_goes_back_and_is_handled_when_there_is() {
    let bench = Bench::new().await;
    let script = Script::default();
    let (max_inflight_bytes, largest_body) = (1 << 20, 64 << 10);
    let settings = Settings { max_inflight_bytes, largest_body, ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.publish(QUEUE, 0..200).await;
    script.has_handled(200).await;
    // What a small message takes is reckoned as a little more than 1 KiB.
    prefetch_becomes(&bench, "1022").await;

    // RabbitMQ may send all of it, and nothing is acknowledged before the first is through.
    let large = (0..100).map(|n| format!("ok {n} {}", "x".repeat(largest_body - 8)));
    bench.publish(QUEUE, ["wait".to_owned()].into_iter().chain(large)).await;
    bench.eventually_ready(QUEUE, 84).await;
    prefetch_becomes(&bench, "16").await;
    let returned = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Requeued };
    let went_back = bench.metrics.count(returned);
    assert!((1..=84).contains(&went_back), "{went_back}");

    script.open_gate();
    script.has_handled(301).await;
    running.drain().await;
    assert_eq!(script.handled().len(), 301);
    bench.eventually_ready(QUEUE, 0).await;
    assert_eq!(bench.metrics.count(returned), went_back, "there was room from then on");
}

#[tokio::test]
async fn a_body_without_room_does_not_keep_a_consumer_from_leaving() {
    let bench = Bench::new().await;
    let script = Script::default();
    let settings = Settings { max_inflight_bytes: 1_000, largest_body: 100, ..Settings::default() };
    let mut running = bench.run(SOURCE, &script, settings);
    running.reaches(ConsumerState::Consuming).await;
    running.shutdown.cancel();
    running.reaches(ConsumerState::Draining).await;
    // Finished while nothing is acknowledged; behind it there is no room for the next one.
    bench.publish(QUEUE, ["ok"]).await;
    script.has_handled(1).await;
    bench.publish(QUEUE, ["x".repeat(2_000)]).await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 1).await;
}

#[tokio::test]
async fn the_original_routing_key_comes_through() {
    let bench = Bench::new().await;
    let action = broker::Publication::action("conversation.save_message", b"ok".to_vec());
    bench.publisher.publish(action).await.unwrap();
    let script = Script::default();
    let running = bench.run(SOURCE, &script, Settings::default());
    script.has_handled(1).await;
    running.drain().await;
    assert_eq!(script.handled()[0].routing_key, "conversation.save_message");
}

fn prefetch(bench: &Bench) -> String {
    let rendered = bench.metrics.render();
    let line = format!("verbatim_prefetch{{queue=\"{QUEUE}\"}} ");
    let value = rendered.lines().find_map(|text| text.strip_prefix(&line));
    value.unwrap_or("absent").to_owned()
}

async fn prefetch_becomes(bench: &Bench, wanted: &str) {
    eventually(format!("a prefetch of {wanted}"), SOON, async || match prefetch(bench) {
        value if value == wanted => Ok(()),
        value => Err(value),
    })
    .await;
}
