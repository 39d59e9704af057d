//! Consuming without failures: batches, acknowledgements, drain, prefetch.

use broker::topology::WorkQueue;
use broker::{ConsumerState, Settings, Source};
use metrics::{Counter, DeliveryOutcome};
use testkit::wait::eventually;

use crate::settling::read_dead_letters;
use crate::support::{Bench, LIMIT, Script};

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
async fn a_slow_batch_delays_the_acknowledgements_of_later_ones() {
    let bench = Bench::new().await;
    let script = Script::default();
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    bench.publish(QUEUE, 0..50).await;
    script.has_handled(50).await;

    // A crash: the messages handled after the slow batch were not acknowledged and are redelivered.
    drop(running);
    bench.eventually_ready(QUEUE, 51).await;
}

#[tokio::test]
async fn once_the_slow_batch_is_finished_all_are_acknowledged() {
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
    eventually("the acknowledgement", LIMIT, async || match bench.metrics.count(applied) {
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
    // The prefetch is 20: the batch being handled and the next one.
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
    assert!(!redelivered, "the drain requeued nothing");
}

#[tokio::test]
async fn the_prefetch_starts_small_and_grows_when_bodies_are_small() {
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
async fn deliveries_over_the_byte_limit_are_requeued_and_handled_later() {
    let bench = Bench::new().await;
    let script = Script::default();
    let (max_inflight_bytes, largest_body) = (1 << 20, 64 << 10);
    let settings = Settings { max_inflight_bytes, largest_body, ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.publish(QUEUE, 0..200).await;
    script.has_handled(200).await;
    // A small message counts as a little more than 1 KiB.
    prefetch_becomes(&bench, "1022").await;

    // RabbitMQ may send all of them, and nothing is acknowledged before the first one is finished.
    let large = (0..100).map(|n| format!("ok {n} {}", "x".repeat(largest_body - 8)));
    bench.publish(QUEUE, ["wait".to_owned()].into_iter().chain(large)).await;
    bench.eventually_ready(QUEUE, 84).await;
    prefetch_becomes(&bench, "16").await;
    let requeued = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Requeued };
    let count = bench.metrics.count(requeued);
    assert!((1..=84).contains(&count), "{count}");

    script.open_gate();
    script.has_handled(301).await;
    running.drain().await;
    assert_eq!(script.handled().len(), 301);
    bench.eventually_ready(QUEUE, 0).await;
    assert_eq!(bench.metrics.count(requeued), count, "the byte limit was reached again");
}

#[tokio::test]
async fn a_body_over_the_byte_limit_does_not_delay_a_shutdown() {
    for _ in 0..10 {
        if body_over_the_byte_limit_arrives_during_a_shutdown().await {
            return;
        }
    }
    panic!("in 10 attempts no body arrived between the shutdown and the cancel of the consumer");
}

/// Checks a shutdown in which a body arrives for which the byte limit has no room. Returns false if it
/// came too late, after the cancel, as on a busy machine.
async fn body_over_the_byte_limit_arrives_during_a_shutdown() -> bool {
    let bench = Bench::new().await;
    let script = Script::default();
    let settings = Settings { max_inflight_bytes: 1_000, largest_body: 100, ..Settings::default() };
    let mut running = bench.run(SOURCE, &script, settings);
    running.reaches(ConsumerState::Consuming).await;
    running.shutdown.cancel();
    running.reaches(ConsumerState::Draining).await;
    // The first one is not acknowledged before the cancel. The second one exceeds the byte limit.
    bench.publish(QUEUE, ["ok".to_owned(), "x".repeat(2_000)]).await;
    running.drain().await;
    let requeued = format!("verbatim_deliveries_total{{outcome=\"requeued\",queue=\"{QUEUE}\"}} 1");
    if !bench.metrics.render().contains(&requeued) {
        return false;
    }
    bench.eventually_ready(QUEUE, 1).await;
    true
}

#[tokio::test]
async fn a_body_over_the_limit_is_dead_lettered_whole_and_the_worker_never_has_it() {
    let bench = Bench::new().await;
    let script = Script::default();
    let settings = Settings { largest_body: 100, ..Settings::default() };
    let large = format!("large {}", "x".repeat(1 << 20));
    let bodies = ["ok 1", &large, "ok 2", &large, &large, "ok 3"];
    bench.publish(QUEUE, bodies).await;
    let running = bench.run(SOURCE, &script, settings);
    script.has_handled(3).await;
    let dead_letters = read_dead_letters(&bench, WorkQueue::SaveMessage, 3).await;
    running.drain().await;
    assert_eq!(script.decoded(), 3);
    for dead_letter in dead_letters {
        assert_eq!(dead_letter.body, large.as_bytes());
        let death = &dead_letter.deaths()[0];
        assert_eq!((death.queue.as_str(), death.reason.as_str()), (QUEUE, "rejected"));
    }
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_handler_gets_the_original_routing_key() {
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
    eventually(format!("a prefetch of {wanted}"), LIMIT, async || match prefetch(bench) {
        value if value == wanted => Ok(()),
        value => Err(value),
    })
    .await;
}
