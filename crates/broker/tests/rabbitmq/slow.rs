//! A message that alone is too slow, or locked, is handled again from the slow queue, and no other waits for it.

use std::time::Duration;

use broker::topology::{RetryQueue, WorkQueue};
use broker::{ConsumerState, Endpoints, Publisher, Settings, Source};
use domain::failure_policy::{SLOW_LIMITS, SLOW_MESSAGE_LIMIT, SUSPECT_LIMIT};
use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use metrics::{ConsumerRestart, Counter, DeliveryOutcome};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Bench, LIMIT, Probe, Script};

const QUEUE: &str = WorkQueue::SaveMessage.name();
const DLQ: &str = WorkQueue::SaveMessage.dlq();
const SLOW: &str = "conversation.save_message.slow";
const SOURCE: Source = Source::work(WorkQueue::SaveMessage);

/// Slow queues are looked at every 100 ms.
fn settings() -> Settings {
    Settings { depth_interval: Duration::from_millis(100), ..Settings::default() }
}

/// What was handled of a body: the time limits, in order, and the attempt each time.
fn handled(script: &Script, body: &str) -> Vec<(Option<Duration>, u32)> {
    let handled = script.handled().into_iter().filter(|it| it.body == body);
    handled.map(|it| (it.limit, it.attempt)).collect()
}

/// Waits until a body was handled this often. Which messages share a batch is up to the broker's timing.
async fn until_handled(script: &Script, body: &str, times: usize) {
    eventually(format!("{body} to be handled {times} times"), LIMIT, async || {
        let handled = handled(script, body).len();
        if handled >= times { Ok(()) } else { Err(format!("{handled} times so far")) }
    })
    .await;
}

fn text(headers: &FieldTable, name: &str) -> String {
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => format!("{other:?}"),
    }
}

async fn all_queues_are_empty(bench: &Bench) {
    for queue in [QUEUE, SLOW, DLQ, WorkQueue::SaveMessage.suspect()] {
        bench.eventually_ready(queue, 0).await;
    }
}

#[tokio::test]
async fn what_is_too_slow_gets_the_longer_limits_in_turn_without_a_counted_attempt() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["ok 1", "slow-at-first", "ok 2"]).await;
    let script = Script::default();
    let usual = bench.run(SOURCE, &script, settings());
    bench.eventually_ready(SLOW, 1).await;
    until_handled(&script, "ok 2", 1).await;
    let slow = bench.run_slow(SOURCE, &script, settings());
    until_handled(&script, "slow-at-first", 3).await;
    usual.drain().await;
    slow.drain().await;
    let [first, longest] = SLOW_LIMITS.map(Some);
    assert_eq!(handled(&script, "slow-at-first"), [(None, 1), (first, 1), (longest, 1)]);
    all_queues_are_empty(&bench).await;
}

#[tokio::test]
async fn what_is_too_slow_for_every_limit_is_retried_and_becomes_a_dead_letter() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["slow"]).await;
    let script = Script::default();
    let settings = Settings { retries: vec![RetryQueue::Second], ..settings() };
    let usual = bench.run(SOURCE, &script, settings.clone());
    let slow = bench.run_slow(SOURCE, &script, settings);
    bench.eventually_ready(DLQ, 1).await;
    usual.drain().await;
    slow.drain().await;
    let [first, longest] = SLOW_LIMITS.map(Some);
    let attempt = |n| [(None, n), (first, n), (longest, n)];
    assert_eq!(handled(&script, "slow"), [attempt(1), attempt(2)].concat());
    let dead_letter = bench.take(DLQ).await;
    let headers = dead_letter.properties.headers().clone().unwrap();
    assert_eq!(text(&headers, "x-verbatim-reason"), "attempts_exhausted");
    assert_eq!(text(&headers, "x-verbatim-queue"), QUEUE);
    assert!(headers.inner().get("x-verbatim-slow-level").is_none(), "{headers:?}");
}

#[tokio::test]
async fn what_is_locked_is_handled_again_until_it_succeeds_and_loses_no_attempt() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["locked", "ok"]).await;
    let script = Script::default();
    let (usual, slow) =
        (bench.run(SOURCE, &script, settings()), bench.run_slow(SOURCE, &script, settings()));
    // In its queue, in the slow queue, and again after a delay.
    until_handled(&script, "locked", 3).await;
    bench.publish(SLOW, ["ok behind it"]).await;
    script.open_gate();
    until_handled(&script, "ok behind it", 1).await;
    until_handled(&script, "locked", 4).await;
    usual.drain().await;
    slow.drain().await;
    let first = Some(SLOW_LIMITS[0]);
    let locked = handled(&script, "locked");
    assert_eq!(locked[0], (None, 1));
    assert!(locked.len() >= 3 && locked[1..].iter().all(|it| *it == (first, 1)), "{locked:?}");
    all_queues_are_empty(&bench).await;
    let outcome = DeliveryOutcome::Slow;
    assert_eq!(bench.metrics.count(Counter::Deliveries { queue: QUEUE, outcome }), 1);
}

#[tokio::test]
async fn a_slow_dead_letter_keeps_its_id_and_delays_no_other() {
    const SLOW_DLQ: &str = WorkQueue::SaveMessage.slow_dlq();
    let bench = Bench::new().await;
    bench.publish(DLQ, ["slow-at-first", "ok"]).await;
    let script = Script::default();
    let source = Source::dead_letters(WorkQueue::SaveMessage);
    let usual = bench.run(source, &script, settings());
    bench.eventually_ready(SLOW_DLQ, 1).await;
    script.has_handled(2).await;
    let copy = bench.take(SLOW_DLQ).await;
    let headers = copy.properties.headers().clone().unwrap();
    assert!(headers.inner().get("x-verbatim-dead-letter").is_some(), "{headers:?}");
    bench.publish(DLQ, ["slow-at-first"]).await;
    let slow = bench.run_slow(source, &script, settings());
    // Twice in its queue, and with each limit in the slow queue.
    until_handled(&script, "slow-at-first", 2 + SLOW_LIMITS.len()).await;
    bench.eventually_ready(SLOW_DLQ, 0).await;
    usual.drain().await;
    slow.drain().await;
    assert_eq!(handled(&script, "slow-at-first").last(), Some(&(Some(SLOW_LIMITS[1]), 1)));
    bench.eventually_ready(DLQ, 0).await;
}

#[tokio::test]
async fn a_slow_queue_is_consumed_only_while_it_has_messages() {
    let bench = Bench::new().await;
    let script = Script::default();
    let mut slow = bench.run_slow(SOURCE, &script, settings());
    for handled in 1..=2 {
        slow.reaches(ConsumerState::QueueEmpty).await;
        assert_eq!(bench.depth(SLOW).await, (0, 0), "no message, no consumer");
        bench.publish(SLOW, ["wait"]).await;
        slow.reaches(ConsumerState::Consuming).await;
        script.was_called(handled).await;
        assert_eq!(bench.depth(SLOW).await, (0, 1));
        script.open_gate();
    }
    slow.reaches(ConsumerState::QueueEmpty).await;
    slow.drain().await;
    assert_eq!(script.bodies(), ["wait", "wait"]);
}

#[tokio::test]
async fn a_slow_queue_that_cannot_be_looked_at_is_looked_at_again_before_the_interval_ends() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let settings = Settings { depth_interval: Duration::from_hours(1), ..Settings::default() };
    proxy.cut().await.unwrap();
    let mut slow = bench.run_slow_at(endpoints, SOURCE, &Script::default(), settings);
    let failures = Counter::ConsumerRestarts { queue: SLOW, cause: ConsumerRestart::Error };
    eventually("a look that failed", LIMIT, async || match bench.metrics.count(failures) {
        0 => Err("none so far".to_owned()),
        _ => Ok(()),
    })
    .await;
    proxy.restore().await.unwrap();
    slow.reaches(ConsumerState::QueueEmpty).await;
    slow.drain().await;
}

#[tokio::test]
async fn the_consumer_of_a_slow_queue_survives_a_lost_connection_and_a_missing_queue() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let script = Script::default();
    let mut slow = bench.run_slow_at(endpoints, SOURCE, &script, settings());
    slow.reaches(ConsumerState::QueueEmpty).await;
    proxy.cut().await.unwrap();
    slow.reaches(ConsumerState::Connecting).await;
    bench.publish(SLOW, ["ok 1"]).await;
    proxy.restore().await.unwrap();
    script.has_handled(1).await;
    slow.reaches(ConsumerState::QueueEmpty).await;

    bench.raw.queue_delete(SLOW.into(), QueueDeleteOptions::default()).await.unwrap();
    slow.reaches(ConsumerState::Connecting).await;
    eventually("the topology", LIMIT, async || {
        broker::topology::declare(&bench.endpoints).await.map_err(|error| error.to_string())
    })
    .await;
    bench.publish(SLOW, ["ok 2"]).await;
    script.has_handled(2).await;
    slow.drain().await;
}

#[tokio::test]
async fn a_slow_message_that_kills_its_worker_again_and_again_is_a_dead_letter() {
    let bench = Bench::new().await;
    let script = Script::default();
    bench.publish(SLOW, ["wait"]).await;
    let limit = usize::try_from(SLOW_MESSAGE_LIMIT).unwrap();
    for crashes in 1..=limit {
        let slow = bench.run_slow(SOURCE, &script, settings());
        script.was_called(crashes).await;
        assert_eq!(bench.ready(DLQ).await, 0);
        drop(slow);
        bench.eventually_ready(SLOW, 1).await;
    }
    let slow = bench.run_slow(SOURCE, &script, settings());
    let dead_letter = bench.take(DLQ).await;
    let headers = dead_letter.properties.headers().clone().unwrap();
    assert_eq!(text(&headers, "x-verbatim-reason"), "delivery_limit");
    slow.drain().await;
    assert_eq!(script.calls(), limit);
}

#[tokio::test]
async fn a_slow_message_survives_two_messages_that_kill_its_worker() {
    let bench = Bench::new().await;
    let (script, killing) = (Script::default(), Script::default());
    bench.publish(SLOW, ["wait"]).await;
    for dead_letters in 1..=2 {
        bench.publish(QUEUE, [format!("wait {dead_letters}")]).await;
        // In its queue, as a suspect beside others, and alone.
        while bench.ready(DLQ).await < dead_letters {
            let (slow_calls, calls) = (script.calls(), killing.calls());
            let worker = bench.run(SOURCE, &killing, settings());
            let slow = bench.run_slow(SOURCE, &script, settings());
            script.was_called(slow_calls + 1).await;
            eventually("the killing message", LIMIT, async || {
                let is_dead_letter = bench.ready(DLQ).await == dead_letters;
                let is_handled = killing.calls() > calls;
                if is_handled || is_dead_letter { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            drop((worker, slow));
            bench.eventually_ready(SLOW, 1).await;
        }
    }
    assert!(script.calls() > 2 * usize::try_from(SUSPECT_LIMIT).unwrap(), "{}", script.calls());
    script.open_gate();
    let slow = bench.run_slow(SOURCE, &script, settings());
    script.has_handled(1).await;
    slow.drain().await;
    assert_eq!(bench.ready(DLQ).await, 2);
}

#[tokio::test]
async fn holds_whose_copies_are_not_confirmed_cost_a_slow_message_nothing_either() {
    let mut bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    script.set_probe(Probe::AlwaysSucceeds);
    bench.publish(SLOW, ["ok"]).await;
    for _ in 1..SLOW_MESSAGE_LIMIT {
        let options = BasicGetOptions { no_ack: false };
        let message = bench.raw.basic_get(SLOW.into(), options).await.unwrap().unwrap();
        let again = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        message.delivery.acker.nack(again).await.unwrap();
        bench.eventually_ready(SLOW, 1).await;
    }
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    bench.publisher = Publisher::new(endpoints, bench.metrics.clone());
    proxy.freeze();
    let settings = Settings { hold_limit: Duration::from_millis(200), ..settings() };
    let slow = bench.run_slow(SOURCE, &script, settings);
    // The first delivery has one redelivery less than the limit.
    script.was_called(4).await;
    script.dependency_unavailable(false);
    script.has_handled(1).await;
    proxy.restore().await.unwrap();
    slow.drain().await;
    all_queues_are_empty(&bench).await;
}

#[tokio::test]
async fn holds_until_the_hold_limit_cost_a_slow_message_nothing() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(SLOW, ["ok"]).await;
    let settings = Settings { hold_limit: Duration::from_millis(200), ..settings() };
    let held = Counter::ConsumerRestarts { queue: SLOW, cause: ConsumerRestart::Hold };
    // One replica after the other gets the message.
    for replicas in 1..=4 {
        let slow = bench.run_slow(SOURCE, &script, settings.clone());
        eventually("the hold limit", LIMIT, async || match bench.metrics.count(held) {
            holds if holds >= replicas => Ok(()),
            holds => Err(format!("it was reached {holds} times")),
        })
        .await;
        drop(slow);
        bench.eventually_ready(SLOW, 1).await;
    }
    let headers = bench.take(SLOW).await.properties.headers().clone().unwrap_or_default();
    // The copy may reach the consumer that published it, before that closes its connection.
    let requeues = match headers.inner().get("x-delivery-count") {
        Some(AMQPValue::LongLongInt(requeues)) => *requeues,
        _ => 0,
    };
    assert!(requeues <= 1, "{headers:?}");
}

#[tokio::test]
async fn stops_and_lost_connections_cost_a_slow_message_nothing() {
    let bench = Bench::new().await;
    let script = Script::default();
    bench.publish(SLOW, ["wait"]).await;
    for stops in 1..=8 {
        let slow = bench.run_slow(SOURCE, &script, settings());
        script.was_called(stops).await;
        slow.drain().await;
        bench.eventually_ready(SLOW, 1).await;
    }
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let mut slow = bench.run_slow_at(endpoints, SOURCE, &script, settings());
    for lost in 1..=8 {
        script.was_called(8 + lost).await;
        proxy.cut().await.unwrap();
        slow.reaches(ConsumerState::Connecting).await;
        bench.eventually_ready(SLOW, 1).await;
        proxy.restore().await.unwrap();
    }
    script.was_called(17).await;
    (0..17).for_each(|_| script.open_gate());
    bench.eventually_ready(SLOW, 0).await;
    slow.reaches(ConsumerState::QueueEmpty).await;
    slow.drain().await;
    assert_eq!(bench.ready(DLQ).await, 0);
}
