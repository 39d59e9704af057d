//! The outcomes of messages that are refused, that fail, and whose handler panics.

use std::sync::{Arc, Mutex};

use broker::fleet_headers::FleetHeaders;
use broker::topology::{RetryQueue, UNROUTED, WorkQueue};
use broker::{Death, Delivery, Handled, Handler, Publication, Settings, Source};
use domain::failure::{DeadLetterReason, Dependency, Done, Failure, Refusal, Unavailable};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue};
use metrics::{Counter, DeliveryOutcome};
use testkit::wait::eventually;

use crate::support::{Bench, LIMIT, Script};

const QUEUE: &str = WorkQueue::Session.name();
const DLQ: &str = WorkQueue::Session.dlq();
const SOURCE: Source = Source::work(WorkQueue::Session);

/// Three retries of a second each, the shortest delay that has a queue.
fn quick() -> Settings {
    Settings { retries: vec![RetryQueue::Second; 3], ..Settings::default() }
}

fn settled(bench: &Bench, outcome: DeliveryOutcome) -> u64 {
    bench.metrics.count(Counter::Deliveries { queue: QUEUE, outcome })
}

#[tokio::test]
async fn a_refused_message_becomes_a_dead_letter_and_the_others_are_handled() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["ok 1", "refuse", "ok 2"]).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, Settings::default());
    bench.eventually_ready(DLQ, 1).await;
    script.has_handled(2).await;
    running.drain().await;
    let dead_letter = bench.take(DLQ).await;
    assert_eq!(dead_letter.data, b"refuse");
    let headers = dead_letter.properties.headers().clone().unwrap();
    let text = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(text("x-verbatim-reason"), "schema");
    assert_eq!(text("x-verbatim-detail"), "refused by the test");
    assert_eq!(text("x-verbatim-queue"), QUEUE);
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn an_action_of_another_queue_is_sent_on_once_and_becomes_a_dead_letter_if_it_comes_back() {
    let bench = Bench::new().await;
    let stray = r#"{"action_type":"conversation.save_message","about":"another queue"}"#;
    let own = r#"{"action_type":"conversation.erase","about":"another queue"}"#;
    bench.publish(QUEUE, [stray, own, "another queue"]).await;
    let running = bench.run(SOURCE, &Script::default(), Settings::default());
    bench.eventually_ready(UNROUTED, 1).await;
    // Its own queue, but not handled; and what is no action.
    bench.eventually_ready(DLQ, 2).await;
    let sent_on = bench.take(UNROUTED).await;
    assert_eq!(sent_on.data, stray.as_bytes());
    let again = Publication {
        fleet_headers: FleetHeaders { rerouted: true, ..FleetHeaders::default() },
        ..Publication::to_queue(QUEUE, sent_on.data)
    };
    bench.publisher.publish(again).await.unwrap();
    bench.eventually_ready(DLQ, 3).await;
    running.drain().await;
    assert_eq!(settled(&bench, DeliveryOutcome::Rerouted), 1);
    assert_eq!(settled(&bench, DeliveryOutcome::DeadLettered), 3);
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_failing_message_has_four_attempts_and_becomes_a_dead_letter_with_its_history() {
    let bench = Bench::new().await;
    let mut action = Publication::action("conversation.session_closed", b"fail".to_vec());
    action.traceparent = Some("00-trace".to_owned());
    action.message_id = "its-id".to_owned();
    bench.publisher.publish(action).await.unwrap();
    let script = Script::default();
    let running = bench.run(SOURCE, &script, quick());
    bench.eventually_ready(DLQ, 1).await;
    running.drain().await;

    let attempts: Vec<_> = script.handled().iter().map(|handled| handled.attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
    let same = |handled: &crate::support::Message| {
        handled.routing_key == "conversation.session_closed"
            && handled.message_id.as_deref() == Some("its-id")
    };
    assert!(script.handled().iter().all(same), "{:?}", script.handled());
    assert_eq!(settled(&bench, DeliveryOutcome::Retried), 3);
    assert_eq!(settled(&bench, DeliveryOutcome::DeadLettered), 1);

    // As the dead-letter collector reads it.
    let collector = read_dead_letter(&bench, WorkQueue::Session).await;
    assert_eq!(
        collector.dead_letter_info().unwrap().refusal.reason,
        DeadLetterReason::AttemptsExhausted
    );
    assert_eq!(collector.fleet_headers().attempt, 4);
    assert_eq!(collector.fleet_headers().history.reasons, ["it failed"; 4]);
    let history = &collector.fleet_headers().history;
    assert!(history.first_failed_at.unwrap() < history.last_failed_at.unwrap());
    assert_eq!(collector.origin().routing_key, "conversation.session_closed");
    assert_eq!(collector.traceparent().as_deref(), Some("00-trace"));
    assert_eq!(collector.deaths(), []);
}

#[tokio::test]
async fn copies_carry_what_their_sender_set_in_one_header_and_apply_none_of_it() {
    let bench = Bench::new().await;
    // RabbitMQ accepts no other `user_id` than the publisher's own.
    let user = bench.url["amqp://".len()..].split(':').next().unwrap();
    let mut headers = lapin::types::FieldTable::default();
    let also = AMQPValue::LongString("conversation.session_closed".into());
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![also].into()));
    for name in ["traceparent", "tracestate", "x-custom", "x-verbatim-user"] {
        headers.insert(name.into(), AMQPValue::LongString(name.into()));
    }
    headers.insert("x-bytes".into(), AMQPValue::ByteArray(vec![0, 255].into()));
    headers.insert("x-large".into(), AMQPValue::LongString("x".repeat(60_000).into()));
    headers
        .insert("x-price".into(), AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 125 }));
    headers.insert("x-short".into(), AMQPValue::ShortInt(-7));
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_expiration("60000".into())
        .with_user_id(user.into())
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_priority(3)
        .with_type("chat".into())
        .with_app_id("booking".into())
        .with_cluster_id("eu".into())
        .with_message_id("m".into());
    let key = "conversation.session_opened";
    bench
        .raw
        .basic_publish("domain.actions".into(), key.into(), Default::default(), b"fail", properties)
        .await
        .unwrap();
    let script = Script::default();
    let running = bench.run(SOURCE, &script, quick());
    let dead_letter = bench.take(DLQ).await;
    running.drain().await;
    assert_eq!(*dead_letter.properties.expiration(), None);
    assert_eq!(*dead_letter.properties.user_id(), None);
    assert_eq!(
        dead_letter.properties.content_type().as_ref().unwrap().as_str(),
        "application/json"
    );
    let headers = dead_letter.properties.headers().clone().unwrap();
    let names: Vec<_> = headers.inner().keys().map(lapin::types::ShortString::as_str).collect();
    // RabbitMQ counts deliveries of the dead letter itself.
    let allowed = |name: &&str| {
        name.starts_with("x-verbatim-") || name.starts_with("trace") || *name == "x-delivery-count"
    };
    assert!(names.iter().all(allowed), "{names:?}");
    assert!(names.contains(&"traceparent") && names.contains(&"tracestate"), "{names:?}");
    // The user that RabbitMQ validated, not the one in the publisher's header.
    assert_eq!(headers.inner()["x-verbatim-user"], AMQPValue::LongString(user.into()));
    let set = [
        dead_letter.properties.app_id(),
        dead_letter.properties.cluster_id(),
        dead_letter.properties.content_encoding(),
        dead_letter.properties.kind(),
    ];
    assert!(set.iter().all(|property| property.is_none()), "{:?}", dead_letter.properties);

    // After three retries all of it is there, with its types, but for what is too large.
    let AMQPValue::FieldTable(sent) = &headers.inner()["x-verbatim-sent"] else {
        panic!("{headers:?}")
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    let table = |fields: &[(&str, AMQPValue)]| {
        let mut table = lapin::types::FieldTable::default();
        for (name, value) in fields {
            table.insert((*name).into(), value.clone());
        }
        AMQPValue::FieldTable(table)
    };
    let properties = table(&[
        ("app_id", text("booking")),
        ("cluster_id", text("eu")),
        ("content_encoding", text("identity")),
        ("content_type", text("application/json")),
        ("delivery_mode", AMQPValue::ShortShortUInt(2)),
        ("expiration", text("60000")),
        ("message_id", text("m")),
        ("priority", AMQPValue::ShortShortUInt(3)),
        ("type", text("chat")),
        ("user_id", text(user)),
    ]);
    assert_eq!(sent.inner()["properties"], properties);
    let also = AMQPValue::FieldArray(vec![text("conversation.session_closed")].into());
    let kept = table(&[
        ("CC", also),
        ("traceparent", text("traceparent")),
        ("tracestate", text("tracestate")),
        ("x-bytes", AMQPValue::ByteArray(vec![0, 255].into())),
        ("x-custom", text("x-custom")),
        ("x-price", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 125 })),
        ("x-short", AMQPValue::ShortInt(-7)),
    ]);
    assert_eq!(sent.inner()["headers"], kept);
    let left_out = vec![text("x-verbatim-user"), text("x-large")];
    assert_eq!(sent.inner()["left_out"], AMQPValue::FieldArray(left_out.into()));
    assert_eq!(sent.inner()["left_out_count"], AMQPValue::LongLongInt(2));
}

#[tokio::test]
async fn a_trace_too_long_for_a_copy_does_not_block_the_queue() {
    let bench = Bench::new().await;
    let mut headers = lapin::types::FieldTable::default();
    // Almost a whole frame: together with the fleet headers it would not fit.
    let tracestate = AMQPValue::LongString("x".repeat(130_850).into());
    headers.insert("tracestate".into(), tracestate);
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let (exchange, key) = ("domain.actions".into(), "conversation.session_opened".into());
    let publish = bench.raw.basic_publish(exchange, key, Default::default(), b"refuse", properties);
    publish.await.unwrap();
    bench.publish(QUEUE, ["ok"]).await;
    let script = Script::default();
    let running = bench.run(SOURCE, &script, Settings::default());
    let dead_letter = bench.take(DLQ).await;
    script.has_handled(1).await;
    running.drain().await;
    assert_eq!(dead_letter.data, b"refuse");
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_panic_costs_the_message_at_fault_an_attempt_and_other_messages_nothing() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["ok 1", "panic", "panic-decoding", "ok 2"]).await;
    let script = Script::default();
    let settings = Settings { retries: vec![RetryQueue::Second], ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.eventually_ready(DLQ, 2).await;
    running.drain().await;
    assert_eq!(settled(&bench, DeliveryOutcome::Applied), 2);
    assert_eq!(settled(&bench, DeliveryOutcome::Retried), 2);
    assert_eq!(settled(&bench, DeliveryOutcome::DeadLettered), 2);
    assert!(bench.metrics.count(Counter::HandlerPanics { queue: QUEUE }) >= 4);
    // This metric is counted by the panic hook, which the test does not install.
    assert_eq!(bench.metrics.count(Counter::Panics), 0);
    let bodies = script.handled();
    assert!(bodies.iter().all(|handled| handled.attempt == 1), "{bodies:?}");
}

#[tokio::test]
async fn a_panic_before_a_copy_is_published_does_not_block_the_queue() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["fail unresolvable", "ok"]).await;
    let script = Script::default();
    let settings = Settings { retries: vec![RetryQueue::Second], ..Settings::default() };
    let running = bench.run(SOURCE, &script, settings);
    bench.eventually_ready(DLQ, 1).await;
    running.drain().await;
    assert_eq!(settled(&bench, DeliveryOutcome::Applied), 1);
    assert!(script.handled().iter().all(|handled| !handled.redelivered));
}

#[tokio::test]
async fn a_panic_message_is_not_in_the_headers() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["panic", "panic-decoding"]).await;
    let settings = Settings { retries: vec![RetryQueue::Second], ..Settings::default() };
    let running = bench.run(SOURCE, &Script::default(), settings);
    let dead_letters = [bench.take(DLQ).await, bench.take(DLQ).await];
    running.drain().await;
    for dead_letter in dead_letters {
        let headers = dead_letter.properties.headers().clone().unwrap();
        let AMQPValue::FieldArray(reasons) = &headers.inner()["x-verbatim-reasons"] else {
            panic!("{headers:?}")
        };
        for text in reasons.as_slice().iter().chain([&headers.inner()["x-verbatim-detail"]]) {
            let AMQPValue::LongString(text) = text else { panic!("{text:?}") };
            let text = text.to_string();
            let is_ours = text.starts_with("the handler panicked while ")
                && text.ends_with("; the worker's log names the location");
            assert!(is_ours, "{text}");
        }
    }
}

#[tokio::test]
async fn without_its_dead_letter_queue_a_refused_message_is_held_and_never_acknowledged() {
    let bench = Bench::new().await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    bench.publish(QUEUE, ["refuse"]).await;
    let script = Script::default();
    let mut running = bench.run(SOURCE, &script, Settings::default());
    running.reaches(broker::ConsumerState::Holding(domain::failure::Dependency::RabbitMq)).await;
    broker::topology::declare(&bench.endpoints).await.unwrap();
    bench.eventually_ready(DLQ, 1).await;
    running.drain().await;
    bench.eventually_ready(QUEUE, 0).await;
}

#[tokio::test]
async fn a_failing_dead_letter_is_retried_for_ever() {
    let bench = Bench::new().await;
    bench.publish(DLQ, ["fail", "refuse"]).await;
    let script = Script::default();
    let settings = Settings { retries: vec![RetryQueue::Second], ..Settings::default() };
    let source = Source::dead_letters(WorkQueue::Session);
    let running = bench.run(source, &script, settings);
    testkit::wait::eventually("a third attempt", crate::support::LIMIT, async || {
        let attempts: Vec<_> = script.handled().iter().map(|h| h.attempt).collect();
        if attempts.contains(&3) { Ok(()) } else { Err(format!("{attempts:?}")) }
    })
    .await;
    running.drain().await;
}

#[tokio::test]
async fn a_message_that_expires_becomes_a_dead_letter_with_its_origin() {
    let bench = Bench::new().await;
    let key = "conversation.session_opened";
    expire(&bench, key, "ok").await;
    let dead_letter = read_dead_letter(&bench, WorkQueue::Session).await;
    assert_eq!(dead_letter.dead_letter_info().unwrap().refusal.reason, DeadLetterReason::Expired);
    assert_eq!(dead_letter.origin().routing_key, key);
    let Death { queue, exchange, .. } = dead_letter.deaths().remove(0);
    assert_eq!((queue.as_str(), exchange.as_str()), (QUEUE, "domain.actions"));
}

#[tokio::test]
async fn the_reason_by_rabbitmq_is_kept_when_the_collector_retries_a_dead_letter() {
    let bench = Bench::new().await;
    expire(&bench, "conversation.session_opened", "fail").await;
    let script = Script::default();
    let settings = Settings { retries: vec![RetryQueue::Second], ..Settings::default() };
    let collector = bench.run(Source::dead_letters(WorkQueue::Session), &script, settings);
    script.has_handled(1).await;
    collector.drain().await;
    let dead_letter = read_dead_letter(&bench, WorkQueue::Session).await;
    assert_eq!(dead_letter.fleet_headers().attempt, 2, "it is the copy");
    let dead_letter_info = dead_letter.fleet_headers().dead_letter_info.clone().unwrap();
    assert_eq!(dead_letter_info.refusal.reason, DeadLetterReason::Expired);
    assert_eq!(dead_letter_info.queue, QUEUE);
}

#[tokio::test]
async fn a_dead_letter_by_rabbitmq_keeps_its_id_when_the_collector_retries_it() {
    let bench = Bench::new().await;
    expire(&bench, "conversation.session_opened", "without an identity").await;
    let queue = WorkQueue::Session;
    let handler = DeadLetters { queue, collected: Arc::default(), fails_until: 3, hangs: false };
    let running = bench.run_at(bench.endpoints.clone(), handler.clone(), quick());
    let attempts = eventually("three attempts", LIMIT, async || {
        let collected = handler.collected.lock().unwrap();
        if collected.len() >= 3 { Ok(collected.clone()) } else { Err(format!("{collected:?}")) }
    })
    .await;
    running.drain().await;
    let id = attempts[0].dead_letter_id(queue);
    let carried: Vec<_> = attempts.iter().map(|it| it.fleet_headers().dead_letter).collect();
    assert_eq!(carried, [None, Some(id), Some(id)]);
    assert!(attempts.iter().all(|it| it.dead_letter_id(queue) == id));
    // What its sender set stays the sender's, also the expiration that RabbitMQ removed.
    let sent = attempts[0].stored();
    assert_eq!(sent.properties["expiration"], "1");
    assert!(attempts.iter().all(|it| it.stored().properties == sent.properties));
}

/// Publishes an action that expires after 1 ms.
async fn expire(bench: &Bench, key: &str, body: &str) {
    let properties = BasicProperties::default().with_delivery_mode(2).with_expiration("1".into());
    let (exchange, body) = ("domain.actions".into(), body.as_bytes());
    bench
        .raw
        .basic_publish(exchange, key.into(), Default::default(), body, properties)
        .await
        .unwrap();
}

/// A handler that collects the deliveries of a dead-letter queue.
#[derive(Clone)]
struct DeadLetters {
    queue: WorkQueue,
    collected: Arc<Mutex<Vec<Delivery>>>,
    /// The first attempt that does not fail.
    fails_until: u32,
    /// It never returns.
    hangs: bool,
}

impl Handler for DeadLetters {
    type Item = Delivery;
    const NEEDS: &'static [Dependency] = &[];

    fn source(&self) -> Source {
        Source::dead_letters(self.queue)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Delivery, Refusal> {
        Ok(delivery.clone())
    }

    async fn handle(&self, items: &[Delivery]) -> Result<Vec<Handled>, Unavailable> {
        self.collected.lock().unwrap().extend(items.iter().cloned());
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let outcome = |item: &Delivery| {
            if item.fleet_headers().attempt < self.fails_until {
                return Err(Failure::Retry("refused by the test".into()));
            }
            Ok(Done::Applied.into())
        };
        Ok(items.iter().map(outcome).collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        std::future::ready(Ok(())).await
    }
}

/// The first dead letter of a queue.
async fn read_dead_letter(bench: &Bench, queue: WorkQueue) -> Delivery {
    read_dead_letters(bench, queue, 1).await.remove(0)
}

/// The first dead letter of a queue, read by a collector that crashes.
pub(crate) async fn look_at_dead_letter(bench: &Bench, queue: WorkQueue) -> Delivery {
    let handler = DeadLetters { queue, collected: Arc::default(), fails_until: 1, hangs: true };
    let running = bench.run_at(bench.endpoints.clone(), handler.clone(), Settings::default());
    let dead_letter = eventually("a dead letter", LIMIT, async || {
        handler.collected.lock().unwrap().first().cloned().ok_or_else(|| "none".to_owned())
    })
    .await;
    drop(running);
    dead_letter
}

/// The first dead letters of a queue.
pub(crate) async fn read_dead_letters(
    bench: &Bench,
    queue: WorkQueue,
    count: usize,
) -> Vec<Delivery> {
    let handler = DeadLetters { queue, collected: Arc::default(), fails_until: 1, hangs: false };
    let running = bench.run_at(bench.endpoints.clone(), handler.clone(), Settings::default());
    let dead_letters = eventually(format!("{count} dead letters"), LIMIT, async || {
        let collected = handler.collected.lock().unwrap().clone();
        if collected.len() >= count { Ok(collected) } else { Err(format!("{}", collected.len())) }
    })
    .await;
    running.drain().await;
    dead_letters
}
