//! Lost connections, closed channels, deleted queues: the consumer restarts and no message is lost.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{ConsumerState, Endpoints, Publication, PublishError, Publisher, Settings, Source};
use metrics::{ConsumerRestart, Counter, Gauge, QueueState};
use testkit::proxy::Proxy;
use testkit::servers::{Kind, Servers};
use testkit::wait::eventually;

use crate::support::{Bench, LIMIT, Script};

const QUEUE: &str = WorkQueue::SaveMessage.name();
const SOURCE: Source = Source::work(WorkQueue::SaveMessage);

async fn behind_a_proxy(bench: &Bench) -> (Proxy, Endpoints) {
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    (proxy, endpoints)
}

/// Waits for the next check of a consumer with one unacknowledged message: it sets the gauge again.
async fn next_check(bench: &Bench) {
    let unacked = Gauge::QueueMessages { queue: QUEUE, state: QueueState::Unacknowledged };
    bench.metrics.set(unacked, 99.0);
    eventually("the next check of the consumer", LIMIT, async || {
        let text = bench.metrics.render();
        let sample = text.lines().find(|line| line.contains("state=\"unacknowledged\""));
        match sample.unwrap_or_default() {
            line if line.ends_with(" 1") => Ok(()),
            line => Err(line.to_owned()),
        }
    })
    .await;
}

#[tokio::test]
async fn after_a_cut_connection_unacknowledged_messages_are_redelivered() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let mut running = bench.run_at(endpoints, script.at(SOURCE), Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;

    proxy.cut().await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    bench.eventually_ready(QUEUE, 1).await;
    bench.publish(QUEUE, 0..10).await;
    // Both calls with it end: the one that has begun, and the one for its redelivery.
    (0..2).for_each(|_| script.open_gate());
    proxy.restore().await.unwrap();
    script.has_handled(11).await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_handler_that_has_begun_finishes_although_the_connection_is_lost() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let mut running = bench.run_at(endpoints, script.at(SOURCE), Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;

    proxy.cut().await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    bench.eventually_ready(QUEUE, 1).await;
    assert_eq!(script.calls(), 1, "the message was not delivered again");
    // The drain has nothing else to wait for.
    let mut states = running.state.clone();
    let drains = async {
        running.drain().await;
        assert_eq!(script.bodies(), ["wait"]);
    };
    let opens_gate = async {
        states.wait_for(|now| *now == ConsumerState::Draining).await.unwrap();
        script.open_gate();
    };
    tokio::join!(drains, opens_gate);
}

#[tokio::test]
async fn a_large_body_of_a_lost_connection_counts_until_its_call_ends_and_neighbours_do_not_wait() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let source = Source::dead_letters(WorkQueue::SaveMessage);
    let settings =
        Settings { max_inflight_bytes: 10_000, largest_body: 100, ..Settings::default() };
    let mut running = bench.run_at(endpoints, script.at(source), settings);
    running.reaches(ConsumerState::Consuming).await;
    let large = format!("wait {}", "x".repeat(1 << 20));
    bench.publish(source.queue(), [&large]).await;
    script.was_called(1).await;

    proxy.cut().await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    bench.eventually_ready(source.queue(), 1).await;
    bench.publish(source.queue(), ["ok"]).await;
    proxy.restore().await.unwrap();
    script.has_handled(1).await;
    // Its redelivery precedes the other one.
    assert_eq!((script.decoded(), script.bodies()), (2, vec!["ok".to_owned()]));

    // Both calls with it end: the one that has begun, and the one for its redelivery.
    script.open_gate();
    script.was_called(3).await;
    script.open_gate();
    running.drain().await;
    assert_eq!(script.bodies(), ["ok", &large, &large]);
    bench.eventually_ready(source.queue(), 0).await;
}

#[tokio::test]
async fn calls_of_earlier_sessions_take_the_memory_of_later_ones() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    // The bodies of all calls have a sixteenth of it: one such message fits, and two do not.
    let settings = Settings {
        max_inflight_bytes: 16 * 10_000,
        largest_body: 10_000,
        linger: Duration::ZERO,
        ..Settings::default()
    };
    let mut running = bench.run_at(endpoints, script.at(SOURCE), settings);
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, [format!("wait {}", "x".repeat(6_000))]).await;
    script.was_called(1).await;

    proxy.cut().await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    bench.eventually_ready(QUEUE, 1).await;
    proxy.restore().await.unwrap();
    script.has_decoded(2).await;
    bench.publish(QUEUE, ["ok"]).await;
    script.has_decoded(3).await;
    assert_eq!(script.calls(), 1, "the redelivery waits until the call that has begun ends");
    (0..2).for_each(|_| script.open_gate());
    script.has_handled(2).await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn receipt_times_increase_across_connections_although_the_clock_goes_back() {
    let bench = Bench::new().await;
    bench.reverse_clock();
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let settings = Settings { batches_in_flight: 1, ..Settings::default() };
    let mut running = bench.run_at(endpoints, script.at(SOURCE), settings);
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, 0..500).await;
    script.has_handled(500).await;
    proxy.cut().await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    proxy.restore().await.unwrap();
    bench.publish(QUEUE, 500..1_000).await;
    script.has_handled(1_000).await;
    running.drain().await;
    let received: Vec<_> = script.handled().into_iter().map(|it| it.received_at).collect();
    let not_later = received.windows(2).filter(|pair| pair[0] >= pair[1]).count();
    assert_eq!(not_later, 0, "of {} neighbours", received.len() - 1);
}

#[tokio::test]
async fn a_connection_without_traffic_is_replaced_within_25_s() {
    let bench = Bench::new().await;
    let frozen = Proxy::before(&bench.url).await.unwrap();
    let urls = format!("{},{}", frozen.url(), bench.url);
    // The second address is the same broker past the proxy: a failover within a cluster.
    let endpoints = Endpoints::parse(&urls, "test").unwrap();
    let script = Script::default();
    let mut running = bench.run_at(endpoints, script.at(SOURCE), Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    frozen.freeze();
    bench.publish(QUEUE, ["while frozen"]).await;
    let failed = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Error };
    eventually("a new consumer", Duration::from_secs(25), async || {
        match (bench.metrics.count(failed), *running.state.borrow()) {
            (1.., ConsumerState::Consuming) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    // RabbitMQ requeues what it sent meanwhile when two to three heartbeats are missing.
    eventually("the redelivery", Duration::from_secs(20), async || {
        if script.bodies().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
    running.drain().await;
}

#[tokio::test]
async fn a_consumer_that_its_queue_lost_restarts_and_gets_the_ready_messages() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    let server = servers.get(Kind::RabbitMq);
    let bench = Bench::at(server.url()).await;
    let script = Script::default();
    let settings = Settings { stall_limit: Duration::from_secs(1), ..Settings::default() };
    let mut running = bench.run(SOURCE, &script, settings);
    running.reaches(ConsumerState::Consuming).await;
    // Only in the queue: channel and connection stay open, and the consumer is not notified.
    let forget = format!(
        r#"{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{QUEUE}">>)),
        [Consumer] = rabbit_amqqueue:consumers(Queue),
        Name = {{element(2, Consumer), element(1, Consumer)}},
        Cancel = rabbit_fifo:make_checkout(Name, cancel, #{{}}),
        {{ok, _, _}} = ra:process_command(amqqueue:get_pid(Queue), Cancel)."#
    );
    server.rabbitmqctl(&["eval", &forget]).await.unwrap();
    bench.publish(QUEUE, ["ready"]).await;
    script.has_handled(1).await;
    running.drain().await;
    let stalled = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::NoProgress };
    assert_eq!(bench.metrics.count(stalled), 1);
    let handled = script.handled();
    assert!(handled.len() == 1 && !handled[0].redelivered, "{handled:?}");
}

#[tokio::test]
async fn a_lost_acknowledgement_is_counted_and_its_message_is_redelivered() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let running = bench.run_at(endpoints, script.at(SOURCE), Settings::default());
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    // After its cancel, which takes less than a second, the consumer does not read its stream. It notices
    // the reset by its acknowledgement or by its check once a second. Resetting right after a check leaves
    // time for the acknowledgement.
    running.shutdown.cancel();
    for _ in 0..2 {
        next_check(&bench).await;
    }
    proxy.reset().await.unwrap();
    script.open_gate();
    running.drain().await;
    assert_eq!(bench.metrics.count(Counter::AcksLost { queue: QUEUE }), 1);

    script.open_gate();
    let again = bench.run(SOURCE, &script, Settings::default());
    script.was_called(2).await;
    again.drain().await;
    let redelivered: Vec<_> = script.handled().iter().map(|it| it.redelivered).collect();
    assert_eq!(redelivered, [false, true]);
}

#[tokio::test]
async fn a_queue_deleted_under_its_consumer_is_consumed_again_once_it_is_back() {
    let bench = Bench::new().await;
    let script = Script::default();
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    bench.raw.queue_delete(QUEUE.into(), Default::default()).await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    let ended = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::StreamEnded };
    assert_eq!(bench.metrics.count(ended), 1);
    broker::topology::declare(&bench.endpoints).await.unwrap();
    bench.publish(QUEUE, ["after"]).await;
    script.has_handled(1).await;
    running.drain().await;
}

#[tokio::test]
async fn messages_of_a_deleted_queue_that_were_delivered_are_handled() {
    let bench = Bench::new().await;
    let script = Script::default();
    let mut running = bench.run(SOURCE, &script, Settings::default());
    bench.publish(QUEUE, ["wait", "behind it"]).await;
    script.was_called(1).await;
    bench.eventually_ready(QUEUE, 0).await;
    bench.raw.queue_delete(QUEUE.into(), Default::default()).await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    script.open_gate();
    script.has_handled(2).await;
    broker::topology::declare(&bench.endpoints).await.unwrap();
    running.reaches(ConsumerState::Consuming).await;
    running.drain().await;
    let lost = Counter::AcksLost { queue: QUEUE };
    assert_eq!(bench.metrics.count(lost), 0);
}

#[tokio::test]
async fn a_reset_connection_costs_one_restart() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let mut running = bench.run_at(endpoints, script.at(SOURCE), Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    proxy.reset().await.unwrap();
    bench.publish(QUEUE, ["after"]).await;
    script.has_handled(1).await;
    running.drain().await;
    let failed = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Error };
    assert_eq!(bench.metrics.count(failed), 1);
}

#[tokio::test]
async fn a_consumer_waits_for_a_broker_that_is_not_started_yet() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    proxy.cut().await.unwrap();
    let script = Script::default();
    let mut running = bench.run_at(endpoints, script.at(SOURCE), Settings::default());
    bench.publish(QUEUE, ["early"]).await;
    proxy.restore().await.unwrap();
    running.reaches(ConsumerState::Consuming).await;
    script.has_handled(1).await;
    running.drain().await;
}

#[tokio::test]
async fn a_blocked_publisher_does_not_stop_acknowledgements() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    let server = servers.get(Kind::RabbitMq);
    let mut bench = Bench::at(server.url()).await;
    let timeout = Duration::from_secs(2);
    bench.publisher =
        Publisher::with_timeout(bench.endpoints.clone(), bench.metrics.clone(), timeout);
    bench.publish(QUEUE, ["wait"]).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, Settings::default());
    script.was_called(1).await;

    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]).await.unwrap();
    eventually("the alarm to block publishers", LIMIT, async || {
        let blocked = Publication::to_queue(QUEUE, b"blocked".to_vec());
        match bench.publisher.publish(blocked).await {
            Err(PublishError::Blocked) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    script.open_gate();
    script.has_handled(1).await;
    running.drain().await;
    let get = bench.raw.basic_get(QUEUE.into(), Default::default()).await.unwrap();
    let redelivered = get.as_ref().map(|message| message.delivery.redelivered);
    assert_ne!(redelivered, Some(true), "the acknowledgement did not arrive");

    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0.6"]).await.unwrap();
    bench.publish(QUEUE, ["after"]).await;
}

#[tokio::test]
async fn a_broker_killed_with_unacknowledged_deliveries_loses_none() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    let server = servers.get(Kind::RabbitMq);
    let bench = Bench::at(server.url()).await;
    bench.publish(QUEUE, ["wait"]).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, Settings::default());
    script.was_called(1).await;
    bench.publish(QUEUE, ["behind"]).await;

    server.kill().await.unwrap();
    script.open_gate();
    script.open_gate();
    server.start().await.unwrap();
    bench.publish(QUEUE, ["after"]).await;
    script.has_handled(3).await;
    running.drain().await;
    let handled = script.handled();
    assert!(handled.iter().all(|handled| handled.attempt == 1), "{handled:?}");
}
