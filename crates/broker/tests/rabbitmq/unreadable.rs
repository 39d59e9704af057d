//! RabbitMQ delivers properties that the client library cannot parse: it would close its connection, or overflow
//! its stack. Such a message becomes a dead letter with the bytes that were sent, and no other message is delayed.

use broker::topology::WorkQueue;
use broker::{Delivery, Settings, Source};
use domain::failure::DeadLetterReason;
use metrics::{ConsumerRestart, Counter, DeliveryOutcome};
use testkit::raw_amqp::{LONGEST_PROPERTIES, RawAmqp, nested_header, properties, text_header};

use crate::settling::{look_at_dead_letter, read_dead_letters};
use crate::support::{Bench, Script};

const QUEUE: &str = WorkQueue::Session.name();
const NOT_UTF8: &[u8] = b"\xff\xfe";

/// Properties that the client library cannot parse, and what is said about them.
fn unreadable() -> Vec<(Vec<u8>, &'static str)> {
    let a_name_inside = [&b"\x01nF\0\0\0\x04"[..], b"\x02\xff\xfeV"].concat();
    let deep = |depth| properties(Some(b"id"), &nested_header(b"n", depth));
    vec![
        (properties(Some(NOT_UTF8), b""), "the AMQP property message_id is not UTF-8"),
        (properties(Some(b"id"), &text_header(NOT_UTF8, b"")), "the name of an AMQP header"),
        (properties(None, &a_name_inside), "the name of an AMQP header"),
        (deep(33), "nested more than 32 levels deep"),
        (deep(900), "nested more than 32 levels deep"),
        // As deep as a frame has room.
        (deep(26_000), "nested more than 32 levels deep"),
    ]
}

fn counted(bench: &Bench, queue: &'static str) -> (u64, u64) {
    let outcome = DeliveryOutcome::Quarantined;
    let cause = ConsumerRestart::Error;
    (
        bench.metrics.count(Counter::Deliveries { queue, outcome }),
        bench.metrics.count(Counter::ConsumerRestarts { queue, cause }),
    )
}

fn assert_unreadable(dead_letter: &Delivery, properties: &[u8], expected: &str) {
    let info = dead_letter.dead_letter_info().unwrap();
    assert_eq!(info.refusal.reason, DeadLetterReason::Unreadable);
    assert!(info.refusal.detail.contains(expected), "{}", info.refusal.detail);
    let hex: String = properties.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(dead_letter.stored().delivery["raw"]["properties"]["hex"], hex);
}

#[tokio::test]
async fn messages_beside_unreadable_ones_are_handled_and_not_quarantined() {
    let bench = Bench::new().await;
    let mut raw = RawAmqp::connect(&bench.url).await;
    let unreadable = unreadable();
    bench.publish(QUEUE, 0..20).await;
    for (n, (properties, _)) in unreadable.iter().enumerate() {
        raw.publish("", QUEUE.as_bytes(), properties, format!("unreadable {n}").as_bytes()).await;
    }
    bench.publish(QUEUE, 20..40).await;
    let script = Script::default();
    let running = bench.run(Source::work(WorkQueue::Session), &script, Settings::default());
    script.has_handled(40).await;
    let found = read_dead_letters(&bench, WorkQueue::Session, unreadable.len()).await;
    for (n, (dead_letter, (properties, expected))) in found.iter().zip(unreadable).enumerate() {
        assert_eq!(dead_letter.body, format!("unreadable {n}").as_bytes());
        assert_unreadable(dead_letter, &properties, expected);
    }
    // What can be read is read.
    assert_eq!(found[1].envelope().message_id, Some("id"));
    assert_eq!(counted(&bench, QUEUE), (0, 0));
    running.drain().await;
}

#[tokio::test]
async fn unreadable_messages_in_a_dead_letter_queue_are_read_with_their_bytes() {
    let bench = Bench::new().await;
    let mut raw = RawAmqp::connect(&bench.url).await;
    let dlq = WorkQueue::Session.dlq();
    let unreadable = unreadable();
    for (properties, _) in &unreadable {
        raw.publish("", dlq.as_bytes(), properties, b"body").await;
    }
    let found = read_dead_letters(&bench, WorkQueue::Session, unreadable.len()).await;
    for (dead_letter, (properties, expected)) in found.iter().zip(unreadable) {
        assert_eq!(dead_letter.body, b"body"[..]);
        let refusal = dead_letter.unreadable().unwrap();
        assert!(refusal.detail.contains(expected), "{refusal:?}");
        let hex: String = properties.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(dead_letter.stored().delivery["raw"]["properties"]["hex"], hex);
    }
    assert_eq!(counted(&bench, dlq), (0, 0));
}

#[tokio::test]
async fn an_unreadable_dead_letter_keeps_its_id_when_it_is_delivered_again() {
    let bench = Bench::new().await;
    let mut raw = RawAmqp::connect(&bench.url).await;
    let headers = [nested_header(b"n", 40), text_header(b"a", b"b")].concat();
    let dlq = WorkQueue::Session.dlq();
    raw.publish("", dlq.as_bytes(), &properties(None, &headers), b"body").await;
    let id = |delivery: &Delivery| delivery.dead_letter_id(WorkQueue::Session);
    let mut ids = Vec::new();
    for _ in 0..3 {
        // RabbitMQ counts the redeliveries in a header of its own.
        ids.push(id(&look_at_dead_letter(&bench, WorkQueue::Session).await));
    }
    assert_eq!(ids, [ids[0]; 3]);
}

#[tokio::test]
async fn a_message_whose_headers_fill_a_frame_is_handled_also_when_rabbitmq_adds_its_own() {
    let bench = Bench::new().await;
    let mut raw = RawAmqp::connect(&bench.url).await;
    let empty = properties(Some(b"its-id"), &text_header(b"h", b"")).len();
    let value = vec![b'x'; LONGEST_PROPERTIES - empty];
    let full = properties(Some(b"its-id"), &text_header(b"h", &value));
    raw.publish("", QUEUE.as_bytes(), &full, b"ok full").await;
    let script = Script::default();
    script.dependency_unavailable(true);
    let running = bench.run(Source::work(WorkQueue::Session), &script, Settings::default());
    script.was_called(1).await;
    // A crash: RabbitMQ counts the redelivery in a header.
    drop(running);
    script.dependency_unavailable(false);
    bench.publish(QUEUE, ["ok behind"]).await;
    let running = bench.run(Source::work(WorkQueue::Session), &script, Settings::default());
    script.has_handled(2).await;
    running.drain().await;
    let handled = script.handled().into_iter().find(|it| it.body == "ok full").unwrap();
    assert_eq!((handled.message_id.as_deref(), handled.redelivered), (Some("its-id"), true));
    assert_eq!(counted(&bench, QUEUE), (0, 0));
}

#[tokio::test]
async fn a_routing_key_that_is_not_utf8_makes_a_dead_letter_with_its_bytes() {
    let bench = Bench::new().await;
    let mut raw = RawAmqp::connect(&bench.url).await;
    // No binding matches it, so it goes to `domain.unrouted`.
    raw.publish("domain.actions", b"conversation.\xff", &properties(None, b""), b"body").await;
    let source = Source::work(WorkQueue::Unrouted);
    let running = bench.run(source, &Script::default(), Settings::default());
    let found = read_dead_letters(&bench, WorkQueue::Unrouted, 1).await;
    let refusal = &found[0].dead_letter_info().unwrap().refusal;
    assert_eq!(refusal.detail, "the routing key is not UTF-8");
    let stored = found[0].stored().delivery;
    let hex: String = b"conversation.\xff".iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(stored["raw"]["routing_key"]["hex"], hex);
    assert_eq!(found[0].origin().routing_key, "conversation.\u{fffd}");
    running.drain().await;
}
