//! Messages that are redelivered too often are handled apart from their queue, and dead-lettered only when
//! they are redelivered there, too.

use std::time::Duration;

use broker::fleet_headers::FleetHeaders;
use broker::topology::WorkQueue;
use broker::{Endpoints, Publication, Settings, Source};
use domain::failure::Dependency;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use metrics::{Counter, DeliveryOutcome, PublishOutcome};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Bench, LIMIT, Probe, Script};

const QUEUE: &str = WorkQueue::SaveMessage.name();
const SUSPECTS: &str = WorkQueue::SaveMessage.suspect();
const DLQ: &str = WorkQueue::SaveMessage.dlq();
const SOURCE: Source = Source::work(WorkQueue::SaveMessage);

fn settings() -> Settings {
    Settings { depth_interval: Duration::from_millis(100), ..Settings::default() }
}

/// Takes the one message of a queue and requeues it, this many times.
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
async fn a_message_redelivered_three_times_is_quarantined_and_handled_alone() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["ok"]).await;
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
async fn suspects_that_were_not_redelivered_are_handled_together() {
    let bench = Bench::new().await;
    bench.publish(SUSPECTS, (0..250).map(|n| format!("ok {n}"))).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, settings());
    script.has_handled(250).await;
    running.drain().await;
    assert_eq!(script.batches(), [100, 100, 50]);
    bench.eventually_ready(SUSPECTS, 0).await;
}

#[tokio::test]
async fn a_suspect_that_was_redelivered_is_handled_alone() {
    let bench = Bench::new().await;
    bench.publish(SUSPECTS, ["redelivered"]).await;
    requeue(&bench, SUSPECTS, 1).await;
    bench.publish(SUSPECTS, ["ok 1", "ok 2", "ok 3"]).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, settings());
    script.has_handled(4).await;
    running.drain().await;
    let (batches, handled) = (script.batches(), script.handled());
    let mut start = 0;
    for size in batches {
        let batch = &handled[start..start + size];
        assert!(size == 1 || batch.iter().all(|it| !it.redelivered), "{batch:?}");
        start += size;
    }
}

#[tokio::test]
async fn a_suspect_redelivered_five_times_is_dead_lettered() {
    let bench = Bench::new().await;
    bench.publish(SUSPECTS, ["ok"]).await;
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
async fn a_suspect_whose_connection_is_lost_without_a_crash_is_not_dead_lettered() {
    is_not_dead_lettered(FleetHeaders::default()).await;
}

#[tokio::test]
async fn nor_is_a_suspect_whose_sender_gave_it_no_message_id() {
    is_not_dead_lettered(FleetHeaders { anonymous: true, ..FleetHeaders::default() }).await;
}

async fn is_not_dead_lettered(fleet_headers: FleetHeaders) {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let suspect = Publication::to_queue(SUSPECTS, b"wait".to_vec());
    bench.publisher.publish(Publication { fleet_headers, ..suspect }).await.unwrap();
    let script = Script::default();
    let running = bench.run_at(endpoints, script.at(SOURCE), settings());
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
    assert!(bench.metrics.count(lost) >= 1, "no acknowledgement was lost");
}

#[tokio::test]
async fn suspects_handled_together_keep_count_0_when_their_connection_is_lost_without_a_crash() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    bench.publish(SUSPECTS, ["wait", "ok 1", "ok 2"]).await;
    let script = Script::default();
    let running = bench.run_at(endpoints, script.at(SOURCE), settings());
    script.was_called(1).await;
    proxy.reset().await.unwrap();
    script.open_gate();
    script.open_gate();
    script.was_called(2).await;
    running.drain().await;
    let handled = script.handled();
    assert!(handled.iter().all(|it| !it.redelivered), "{handled:?}");
    let requeued = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Requeued };
    assert_eq!(bench.metrics.count(requeued), 3);
    for queue in [SUSPECTS, DLQ] {
        bench.eventually_ready(queue, 0).await;
    }
}

#[tokio::test]
async fn while_suspects_are_handled_the_queue_is_still_consumed() {
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
async fn suspects_wait_while_the_dependency_is_unavailable() {
    let bench = Bench::new().await;
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(SUSPECTS, ["ok"]).await;
    let running = bench.run(SOURCE, &script, settings());
    script.is_probed_again(3).await;
    assert_eq!(script.calls(), 0);
    script.dependency_unavailable(false);
    script.has_handled(1).await;
    running.drain().await;
    assert!(!script.handled()[0].redelivered);
}

/// A handler whose dependency is unavailable while its probe succeeds.
fn unavailable_with_successful_probe() -> Script {
    let script = Script::default();
    script.dependency_unavailable(true);
    script.set_probe(Probe::AlwaysSucceeds);
    script
}

#[tokio::test]
async fn an_outage_that_the_probe_does_not_see_adds_no_redelivery_to_a_suspect() {
    let bench = Bench::new().await;
    let script = unavailable_with_successful_probe();
    bench.publish(SUSPECTS, ["ok"]).await;
    let running = bench.run(SOURCE, &script, settings());
    script.was_called(8).await;
    script.dependency_unavailable(false);
    script.has_handled(1).await;
    running.drain().await;
    assert!(!script.handled()[0].redelivered, "it was redelivered");
    assert_eq!(script.decoded(), 1);
    bench.eventually_ready(DLQ, 0).await;
}

#[tokio::test]
async fn suspects_held_for_the_hold_limit_are_requeued_with_count_0() {
    let bench = Bench::new().await;
    let script = unavailable_with_successful_probe();
    bench.publish(SUSPECTS, ["ok 1", "ok 2", "ok 3"]).await;
    let settings = Settings { hold_limit: Duration::from_millis(200), ..settings() };
    let running = bench.run(SOURCE, &script, settings);
    let requeued = Counter::Deliveries { queue: QUEUE, outcome: DeliveryOutcome::Requeued };
    eventually("seven requeues", LIMIT, async || match bench.metrics.count(requeued) {
        7.. => Ok(()),
        count => Err(format!("{count} requeues")),
    })
    .await;
    script.dependency_unavailable(false);
    script.has_handled(3).await;
    running.drain().await;
    assert!(script.handled().iter().all(|it| !it.redelivered), "{:?}", script.handled());
    bench.eventually_ready(DLQ, 0).await;
}

#[tokio::test]
async fn a_suspect_that_cannot_be_requeued_after_the_hold_limit_is_handled_once_its_dependency_is_back()
 {
    let bench = Bench::new().await;
    let script = unavailable_with_successful_probe();
    bench.publish(SUSPECTS, ["ok"]).await;
    let settings = Settings { hold_limit: Duration::from_millis(200), ..settings() };
    let running = bench.run(SOURCE, &script, settings);
    script.was_called(1).await;
    // New copies are unroutable from here on.
    bench.raw.queue_delete(SUSPECTS.into(), Default::default()).await.unwrap();
    let unroutable = Counter::Publishes { outcome: PublishOutcome::Unroutable };
    eventually("a copy that is not accepted", LIMIT, async || {
        if bench.metrics.count(unroutable) > 0 { Ok(()) } else { Err("none yet".to_owned()) }
    })
    .await;
    script.dependency_unavailable(false);
    script.has_handled(1).await;
    running.drain().await;
}

#[tokio::test]
async fn a_drain_requeues_held_suspects_with_count_0() {
    let bench = Bench::new().await;
    let script = unavailable_with_successful_probe();
    bench.publish(SUSPECTS, ["ok 1", "ok 2"]).await;
    let running = bench.run(SOURCE, &script, settings());
    script.was_called(1).await;
    running.drain().await;
    for _ in 0..2 {
        assert!(!bench.take(SUSPECTS).await.redelivered);
    }
    bench.eventually_ready(SUSPECTS, 0).await;
}

#[tokio::test]
async fn a_drain_requeues_of_held_suspects_only_those_without_an_outcome() {
    let bench = Bench::new().await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    bench.publish(SUSPECTS, ["ok 1", "refuse", "ok 2"]).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, settings());
    let holds = Counter::Holds { queue: QUEUE, dependency: Dependency::RabbitMq };
    eventually("a hold", LIMIT, async || match bench.metrics.count(holds) {
        1.. => Ok(()),
        count => Err(format!("{count} holds")),
    })
    .await;
    running.drain().await;
    let suspect = bench.take(SUSPECTS).await;
    assert_eq!((suspect.data.as_slice(), suspect.redelivered), (b"refuse".as_slice(), false));
    bench.eventually_ready(SUSPECTS, 0).await;
    let count = |outcome| bench.metrics.count(Counter::Deliveries { queue: QUEUE, outcome });
    assert_eq!((count(DeliveryOutcome::Applied), count(DeliveryOutcome::Requeued)), (2, 1));
}
