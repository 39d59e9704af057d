//! What a consumer receives is limited by its size in memory, with properties and headers, in every queue.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{Settings, Source};
use metrics::{Counter, DeliveryOutcome};
use testkit::raw_amqp::{RawAmqp, properties, text_header};

use crate::support::{Bench, Script};

const QUEUE: WorkQueue = WorkQueue::SaveMessage;
const MESSAGES: u32 = 30;
/// How many of them fit into the limit.
const FIT: u32 = 10;
const HEADER_BYTES: usize = 100_000;
/// A header counts as sent, and 40 times once it is parsed. Ten such messages fit, and eleven do not.
const MAX_INFLIGHT_BYTES: usize = 42 * HEADER_BYTES * FIT as usize;

/// Publishes so many small bodies with large headers.
async fn flood(bench: &Bench, queue: &str, messages: u32) {
    let mut raw = RawAmqp::connect(&bench.url).await;
    let large = properties(None, &text_header(b"h", &vec![b'x'; HEADER_BYTES]));
    for n in 0..messages {
        raw.publish("", queue.as_bytes(), &large, format!("wait {n}").as_bytes()).await;
    }
    bench.eventually_ready(queue, messages).await;
}

#[tokio::test]
async fn what_is_returned_over_the_byte_limit_is_returned_once_and_is_no_suspect() {
    const MANY: u32 = 8 * FIT;
    let (bench, script) = (Bench::new().await, Script::default());
    flood(&bench, QUEUE.name(), MANY).await;
    (0..MANY).for_each(|_| script.open_gate());
    let settings = Settings { max_inflight_bytes: MAX_INFLIGHT_BYTES, ..Settings::default() };
    let running = bench.run(Source::work(QUEUE), &script, settings);
    script.has_handled(MANY as usize).await;
    running.drain().await;
    let count = |outcome| bench.metrics.count(Counter::Deliveries { queue: QUEUE.name(), outcome });
    assert_eq!(count(DeliveryOutcome::Quarantined), 0);
    let returned = count(DeliveryOutcome::Requeued);
    assert!(returned < u64::from(MANY), "{returned} returns of {MANY} messages");
}

#[tokio::test]
async fn headers_count_towards_the_byte_limit_in_work_queues_and_dead_letter_queues() {
    for source in [Source::work(QUEUE), Source::dead_letters(QUEUE)] {
        let (bench, script) = (Bench::new().await, Script::default());
        flood(&bench, source.queue(), MESSAGES).await;
        let settings = Settings { max_inflight_bytes: MAX_INFLIGHT_BYTES, ..Settings::default() };
        let running = bench.run(source, &script, settings);
        // The others were delivered, too: the first prefetch is 40. They were returned.
        bench.eventually_ready(source.queue(), MESSAGES - FIT).await;
        (0..MESSAGES).for_each(|_| script.open_gate());
        script.has_handled(MESSAGES as usize).await;
        running.drain().await;
        bench.eventually_ready(source.queue(), 0).await;
    }
}

#[tokio::test]
async fn headers_count_towards_the_byte_limit_among_suspects() {
    let (bench, script) = (Bench::new().await, Script::default());
    flood(&bench, QUEUE.suspect(), MESSAGES).await;
    (0..MESSAGES).for_each(|_| script.open_gate());
    // A batch has a sixteenth of the limit, divided by the number of batches in flight.
    let settings = Settings {
        max_inflight_bytes: 16 * MAX_INFLIGHT_BYTES,
        batches_in_flight: 1,
        depth_interval: Duration::from_millis(100),
        ..Settings::default()
    };
    let running = bench.run(Source::work(QUEUE), &script, settings);
    script.has_handled(MESSAGES as usize).await;
    running.drain().await;
    assert_eq!(script.batches(), [FIT as usize + 1, FIT as usize + 1, FIT as usize - 2]);
}

#[tokio::test]
async fn dead_letters_with_bodies_above_the_byte_limit_are_handled_one_after_the_other() {
    let (bench, script) = (Bench::new().await, Script::default());
    let source = Source::dead_letters(QUEUE);
    let large = |n: usize| format!("wait {n} {}", "x".repeat(1 << 20));
    bench.publish(source.queue(), (0..5).map(large)).await;
    let settings =
        Settings { max_inflight_bytes: 10_000, largest_body: 100, ..Settings::default() };
    let running = bench.run(source, &script, settings);
    for others in (0..5).rev() {
        bench.eventually_ready(source.queue(), others).await;
        script.open_gate();
    }
    script.has_handled(5).await;
    running.drain().await;
    bench.eventually_ready(source.queue(), 0).await;
    assert_eq!(script.batches(), [1; 5]);
}

#[tokio::test]
async fn consumers_of_a_process_have_one_large_body_and_neighbours_of_another_do_not_wait() {
    let bench = Bench::new().await;
    let [first, second] = [WorkQueue::SaveMessage, WorkQueue::Session].map(Source::dead_letters);
    let large = |name: &str| format!("wait {name} {}", "x".repeat(1 << 20));
    let settings =
        Settings { max_inflight_bytes: 10_000, largest_body: 100, ..Settings::default() };
    let (script, other) = (Script::default(), Script::default());
    bench.publish(first.queue(), [large("first")]).await;
    let has_it = bench.run(first, &script, settings.clone());
    script.was_called(1).await;
    bench.publish(second.queue(), [large("second"), "ok behind it".to_owned()]).await;
    let waits = bench.run(second, &other, settings);
    other.has_handled(1).await;
    assert_eq!(other.bodies(), ["ok behind it"]);
    script.open_gate();
    script.has_handled(1).await;
    other.open_gate();
    other.has_handled(2).await;
    has_it.drain().await;
    waits.drain().await;
    for queue in [first.queue(), second.queue()] {
        bench.eventually_ready(queue, 0).await;
    }
}

#[tokio::test]
async fn a_queue_with_many_large_bodies_leaves_another_queue_its_turn() {
    let bench = Bench::new().await;
    let [many, one] = [WorkQueue::SaveMessage, WorkQueue::Session].map(Source::dead_letters);
    let large = |n: usize| format!("wait {n} {}", "x".repeat(1 << 20));
    let settings =
        Settings { max_inflight_bytes: 10_000, largest_body: 100, ..Settings::default() };
    let (busy, other) = (Script::default(), Script::default());
    bench.publish(many.queue(), (0..4).map(large)).await;
    let has_many = bench.run(many, &busy, settings.clone());
    busy.was_called(1).await;
    bench.publish(one.queue(), [large(0), "ok behind it".to_owned()]).await;
    let has_one = bench.run(one, &other, settings);
    other.has_handled(1).await;
    busy.open_gate();
    other.was_called(2).await;
    assert_eq!(busy.calls(), 1, "the second of its bodies waits");
    other.open_gate();
    (0..3).for_each(|_| busy.open_gate());
    busy.has_handled(4).await;
    other.has_handled(2).await;
    has_many.drain().await;
    has_one.drain().await;
}

#[tokio::test]
async fn a_consumer_stops_while_a_body_waits_for_memory() {
    let bench = Bench::new().await;
    let [first, second] = [WorkQueue::SaveMessage, WorkQueue::Session].map(Source::dead_letters);
    let large = format!("wait {}", "x".repeat(1 << 20));
    let settings =
        Settings { max_inflight_bytes: 10_000, largest_body: 100, ..Settings::default() };
    let (script, other) = (Script::default(), Script::default());
    bench.publish(first.queue(), [large.clone()]).await;
    let has_it = bench.run(first, &script, settings.clone());
    script.was_called(1).await;
    bench.publish(second.queue(), [large, "ok".to_owned()]).await;
    let waits = bench.run(second, &other, settings);
    other.has_handled(1).await;
    waits.drain().await;
    bench.eventually_ready(second.queue(), 1).await;
    assert_eq!(other.bodies(), ["ok"]);
    script.open_gate();
    has_it.drain().await;
}
