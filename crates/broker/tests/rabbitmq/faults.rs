//! Broken connections, dead channels, vanished queues: the consumer is built anew and nothing is lost.

use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{ConsumerState, Endpoints, Publication, PublishError, Publisher, Settings, Source};
use metrics::{ConsumerRestart, Counter, Gauge, QueueState};
use testkit::proxy::Proxy;
use testkit::servers::{Kind, Servers};
use testkit::wait::eventually;

use crate::support::{Bench, SOON, Script};

const QUEUE: &str = WorkQueue::SaveMessage.name();
const SOURCE: Source = Source::work(WorkQueue::SaveMessage);

async fn behind_a_proxy(bench: &Bench) -> (Proxy, Endpoints) {
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    (proxy, endpoints)
}

/// Waits until the consumer, which holds one message, says again how many it holds.
async fn looks_at_itself(bench: &Bench) {
    let holds = Gauge::QueueMessages { queue: QUEUE, state: QueueState::Unacknowledged };
    bench.metrics.set(holds, 99.0);
    eventually("a look of the consumer at itself", SOON, async || {
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
async fn a_cut_connection_is_built_anew_and_unacknowledged_messages_come_again() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let mut running = bench.run_at(endpoints, SOURCE, script.clone(), Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;

    proxy.cut().await.unwrap();
    running.reaches(ConsumerState::Connecting).await;
    bench.eventually_ready(QUEUE, 1).await;
    bench.publish(QUEUE, 0..10).await;
    script.open_gate();
    proxy.restore().await.unwrap();
    script.has_handled(11).await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_connection_that_goes_silent_is_replaced_within_twenty_five_seconds() {
    let bench = Bench::new().await;
    let frozen = Proxy::before(&bench.url).await.unwrap();
    let urls = format!("{},{}", frozen.url(), bench.url);
    // The second address is the same broker past the proxy: a failover within a cluster.
    let endpoints = Endpoints::parse(&urls, "test").unwrap();
    let script = Script::default();
    let mut running = bench.run_at(endpoints, SOURCE, script.clone(), Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    frozen.freeze();
    bench.publish(QUEUE, ["into the silence"]).await;
    let failed = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Error };
    eventually("a new consumer", Duration::from_secs(25), async || {
        match (bench.metrics.count(failed), *running.state.borrow()) {
            (1.., ConsumerState::Consuming) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    // RabbitMQ gives back what it sent into the silence when two to three heartbeats are missing.
    eventually("the message to come again", Duration::from_secs(20), async || {
        if script.bodies().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
    running.drain().await;
}

#[tokio::test]
async fn a_consumer_that_its_queue_forgot_is_built_anew_and_gets_what_is_ready() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    let server = servers.get(Kind::RabbitMq);
    let bench = Bench::at(server.url()).await;
    let script = Script::default();
    let settings = Settings { stall_limit: Duration::from_secs(1), ..Settings::default() };
    let mut running = bench.run(SOURCE, &script, settings);
    running.reaches(ConsumerState::Consuming).await;
    // Within the queue alone: channel and connection live on, and the consumer is told nothing.
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
async fn an_acknowledgement_that_cannot_be_sent_is_counted_and_its_message_comes_again() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let running = bench.run_at(endpoints, SOURCE, script.clone(), Settings::default());
    bench.publish(QUEUE, ["wait"]).await;
    script.was_called(1).await;
    // Cancelled, which takes it less than a second, it reads its stream no more: it hears of the cut
    // by its acknowledgement, or by its own look, once a second, of which one has just been.
    running.shutdown.cancel();
    for _ in 0..2 {
        looks_at_itself(&bench).await;
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
async fn what_a_deleted_queue_had_delivered_is_handled_to_the_end() {
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
async fn a_reset_connection_costs_one_rebuild() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    let script = Script::default();
    let mut running = bench.run_at(endpoints, SOURCE, script.clone(), Settings::default());
    running.reaches(ConsumerState::Consuming).await;
    proxy.reset().await.unwrap();
    bench.publish(QUEUE, ["after"]).await;
    script.has_handled(1).await;
    running.drain().await;
    let failed = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Error };
    assert_eq!(bench.metrics.count(failed), 1);
}

#[tokio::test]
async fn a_consumer_waits_for_a_broker_that_is_not_there_yet() {
    let bench = Bench::new().await;
    let (proxy, endpoints) = behind_a_proxy(&bench).await;
    proxy.cut().await.unwrap();
    let script = Script::default();
    let mut running = bench.run_at(endpoints, SOURCE, script.clone(), Settings::default());
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
    let time_out = Duration::from_secs(2);
    bench.publisher =
        Publisher::with_timeout(bench.endpoints.clone(), bench.metrics.clone(), time_out);
    bench.publish(QUEUE, ["wait"]).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, Settings::default());
    script.was_called(1).await;

    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]).await.unwrap();
    eventually("the alarm to block publishers", SOON, async || {
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
async fn a_broker_killed_with_deliveries_under_way_loses_none_of_them() {
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
