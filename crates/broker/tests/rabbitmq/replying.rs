//! Replies, elements of deliveries, and requests.

use std::collections::BTreeMap;
use std::time::Duration;

use broker::topology::{REQUESTS, RetryQueue, WorkQueue};
use broker::{ConsumerState, Endpoints, Settings, Source};
use domain::failure::Dependency;
use domain::failure_policy::REQUEST_TTL;
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use metrics::{ConsumerRestart, Counter, DeliveryOutcome, ReplyOutcome};
use serde_json::Value;
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Bench, LIMIT, Script};

const QUEUE: &str = WorkQueue::Session.name();
const DLQ: &str = WorkQueue::Session.dlq();

/// A requester with direct reply-to: the replies by their correlation ids.
struct Requester<'a> {
    bench: &'a Bench,
    replies: lapin::Consumer,
}

impl<'a> Requester<'a> {
    async fn new(bench: &'a Bench) -> Self {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let queue = "amq.rabbitmq.reply-to".into();
        let replies = bench.raw.basic_consume(queue, "".into(), options, FieldTable::default());
        Self { bench, replies: replies.await.unwrap() }
    }

    /// Publishes a body, whose reply goes to `reply_to` under the body as correlation id.
    async fn ask(&self, queue: &str, body: &str, reply_to: &str) {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_reply_to(reply_to.into())
            .with_correlation_id(body.into())
            .with_message_id(format!("id of {body}").into());
        let publish = self.bench.raw.basic_publish(
            "".into(),
            queue.into(),
            Default::default(),
            body.as_bytes(),
            properties,
        );
        publish.await.unwrap();
    }

    async fn asks(&self, queue: &str, bodies: &[&str]) {
        for body in bodies {
            self.ask(queue, body, "amq.rabbitmq.reply-to").await;
        }
    }

    /// The next replies: `data`, or the error type.
    async fn replies(&mut self, count: usize) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for _ in 0..count {
            let reply = tokio::time::timeout(LIMIT, self.replies.next()).await;
            let reply = reply.unwrap_or_else(|_| panic!("only {found:?}")).unwrap().unwrap();
            let correlation_id = reply.properties.correlation_id().as_ref().unwrap().to_string();
            let body: Value = serde_json::from_slice(&reply.data).unwrap();
            assert_eq!(body["correlation_id"], *correlation_id);
            assert_eq!(body["action_id"], format!("id of {correlation_id}"));
            let result = match body["success"] == true {
                true => body["data"].to_string(),
                false => body["error"]["error_type"].as_str().unwrap().to_owned(),
            };
            let earlier = found.insert(correlation_id, result);
            assert_eq!(earlier, None, "replied twice");
        }
        found
    }
}

fn expected(replies: &[(&str, &str)]) -> BTreeMap<String, String> {
    replies.iter().map(|(body, reply)| ((*body).to_owned(), (*reply).to_owned())).collect()
}

fn deliveries(bench: &Bench, queue: &'static str, outcome: DeliveryOutcome) -> u64 {
    bench.metrics.count(Counter::Deliveries { queue, outcome })
}

#[tokio::test]
async fn each_sender_gets_one_reply_when_its_message_needs_no_further_attempt() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    let bodies = ["reply 1", "refuse", "fail", "panic", "panic-decoding", "reply 2"];
    requester.asks(QUEUE, &bodies).await;
    let settings = Settings { retries: vec![RetryQueue::Second; 2], ..Settings::default() };
    let running = bench.run(Source::work(WorkQueue::Session), &Script::default(), settings);
    let replies = requester.replies(bodies.len()).await;
    let all = expected(&[
        ("reply 1", "\"reply 1\""),
        ("reply 2", "\"reply 2\""),
        ("refuse", "schema"),
        ("fail", "internal"),
        ("panic", "internal"),
        ("panic-decoding", "internal"),
    ]);
    assert_eq!(replies, all);
    assert_eq!(deliveries(&bench, QUEUE, DeliveryOutcome::Retried), 6, "no retry was answered");
    running.drain().await;
    let sent = Counter::Replies { outcome: ReplyOutcome::Sent };
    assert_eq!(bench.metrics.count(sent), bodies.len() as u64);
}

#[tokio::test]
async fn a_reply_to_a_queue_of_the_fleet_is_not_sent_and_one_to_nobody_delays_none() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    requester.ask(QUEUE, "reply 1", WorkQueue::BotState.name()).await;
    requester.ask(QUEUE, "reply 2", "nobody.listens.here").await;
    requester.asks(QUEUE, &["reply 3"]).await;
    let source = Source::work(WorkQueue::Session);
    let running = bench.run(source, &Script::default(), Settings::default());
    assert_eq!(requester.replies(1).await, expected(&[("reply 3", "\"reply 3\"")]));
    assert_eq!(bench.metrics.count(Counter::Replies { outcome: ReplyOutcome::Ignored }), 1);
    assert_eq!(bench.ready(WorkQueue::BotState.name()).await, 0);
    running.drain().await;
}

#[tokio::test]
async fn replies_to_invalid_addresses_lose_no_other_reply() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    let mut all = Vec::new();
    let garbage = [
        "amq.rabbitmq.reply-to.garbage",
        "amq.rabbitmq.reply-to",
        "",
        "amq.gen-gone",
        "amq.rabbitmq.reply-to.no base64!.key",
        "amq.rabbitmq.reply-to.g1h3AA5yZXBseUA=.key",
        "amq.rabbitmq.reply-to.x.y.z",
    ];
    for n in 0..70 {
        requester.ask(QUEUE, &format!("reply garbage {n}"), garbage[n % garbage.len()]).await;
        let body = format!("reply {n}");
        requester.asks(QUEUE, &[&body]).await;
        all.push((body.clone(), format!("\"{body}\"")));
    }
    let source = Source::work(WorkQueue::Session);
    let running = bench.run(source, &Script::default(), Settings::default());
    // RabbitMQ replaces the bare pseudo-queue: those are valid too.
    let valid = (0..70).filter(|n| n % garbage.len() == 1).map(|n| format!("reply garbage {n}"));
    all.extend(valid.map(|body| (body.clone(), format!("\"{body}\""))));
    assert_eq!(requester.replies(all.len()).await, all.into_iter().collect());
    running.drain().await;
}

#[tokio::test]
async fn elements_are_dead_lettered_and_retried_before_their_delivery_is_acknowledged() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    requester.asks(QUEUE, &["elements"]).await;
    let script = Script::default();
    let settings = Settings { retries: vec![RetryQueue::Second], ..Settings::default() };
    let running = bench.run(Source::work(WorkQueue::Session), &script, settings);
    assert_eq!(requester.replies(1).await, expected(&[("elements", "\"elements\"")]));
    let dead_letter = bench.take(DLQ).await;
    assert_eq!(dead_letter.data, b"element 0");
    assert_eq!(dead_letter.properties.reply_to(), &None);
    assert_ne!(dead_letter.properties.message_id().as_ref().unwrap().as_str(), "id of elements");
    script.has_handled(2).await;
    let retried = script.handled().pop().unwrap();
    assert_eq!((retried.body.as_str(), retried.attempt), ("element 1", 2));
    assert_eq!((retried.message_id, retried.reply_address), (None, None));
    running.drain().await;
    for queue in [QUEUE, DLQ] {
        assert_eq!(bench.ready(queue).await, 0, "{queue}");
    }
    let counts =
        [DeliveryOutcome::Applied, DeliveryOutcome::DeadLettered, DeliveryOutcome::Retried]
            .map(|outcome| deliveries(&bench, QUEUE, outcome));
    assert_eq!(counts, [2, 1, 1]);
}

#[tokio::test]
async fn a_delivery_whose_elements_are_not_confirmed_is_not_acknowledged() {
    let bench = Bench::new().await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    bench.publish(QUEUE, ["elements"]).await;
    let mut running =
        bench.run(Source::work(WorkQueue::Session), &Script::default(), Settings::default());
    running.reaches(ConsumerState::Holding(Dependency::RabbitMq)).await;
    assert_eq!(deliveries(&bench, QUEUE, DeliveryOutcome::Applied), 0);
    drop(running);
    bench.eventually_ready(QUEUE, 1).await;
}

#[tokio::test]
async fn a_request_that_fails_leaves_nothing_but_its_reply() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    let bodies = ["reply 1", "refuse", "fail", "panic"];
    requester.asks(REQUESTS, &bodies).await;
    let running = bench.run(Source::requests(), &Script::default(), Settings::default());
    let all = expected(&[
        ("reply 1", "\"reply 1\""),
        ("refuse", "schema"),
        ("fail", "internal"),
        ("panic", "internal"),
    ]);
    assert_eq!(requester.replies(bodies.len()).await, all);
    running.drain().await;
    assert_eq!(deliveries(&bench, REQUESTS, DeliveryOutcome::Refused), 3);
    assert_eq!(deliveries(&bench, REQUESTS, DeliveryOutcome::Applied), 1);
    for queue in broker::topology::queues() {
        assert_eq!(bench.ready(queue.name).await, 0, "{}", queue.name);
    }
}

#[tokio::test]
async fn while_a_dependency_is_unavailable_each_request_expires_at_its_own_time() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    let script = Script::default();
    script.dependency_unavailable(true);
    requester.asks(REQUESTS, &["reply early"]).await;
    let settings = Settings { batch_size: 1, batches_in_flight: 2, ..Settings::default() };
    let mut running = bench.run(Source::requests(), &script, settings);
    running.reaches(ConsumerState::Holding(Dependency::PostgreSql)).await;
    bench.advance(REQUEST_TTL / 2);
    requester.asks(REQUESTS, &["reply late 1", "reply late 2"]).await;
    eventually("three requests to be held", LIMIT, async || match script.decoded() {
        3 => Ok(()),
        decoded => Err(format!("{decoded} are")),
    })
    .await;
    bench.advance(REQUEST_TTL / 2);
    assert_eq!(requester.replies(1).await, expected(&[("reply early", "unavailable")]));
    // The others have not expired: they are answered when the dependency is available again.
    script.dependency_unavailable(false);
    let late = [("reply late 1", "\"reply late 1\""), ("reply late 2", "\"reply late 2\"")];
    assert_eq!(requester.replies(2).await, expected(&late));
    running.drain().await;
    assert_eq!(deliveries(&bench, REQUESTS, DeliveryOutcome::Expired), 1);
    assert_eq!(deliveries(&bench, REQUESTS, DeliveryOutcome::Requeued), 0);
}

#[tokio::test]
async fn a_request_expires_in_time_after_the_clock_was_set_back() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    let script = Script::default();
    requester.asks(REQUESTS, &["reply before"]).await;
    let mut running = bench.run(Source::requests(), &script, Settings::default());
    assert_eq!(requester.replies(1).await, expected(&[("reply before", "\"reply before\"")]));
    script.dependency_unavailable(true);
    bench.set_clock_back(Duration::from_secs(3_600));
    requester.asks(REQUESTS, &["reply after"]).await;
    running.reaches(ConsumerState::Holding(Dependency::PostgreSql)).await;
    bench.advance(REQUEST_TTL);
    assert_eq!(requester.replies(1).await, expected(&[("reply after", "unavailable")]));
    script.dependency_unavailable(false);
    running.drain().await;
}

#[tokio::test]
async fn an_expired_or_refused_request_does_not_wait_for_the_others_of_its_batch() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    let script = Script::default();
    script.dependency_unavailable(true);
    let settings = Settings { batches_in_flight: 1, ..Settings::default() };
    requester.asks(REQUESTS, &["reply first", "refuse first"]).await;
    let mut running = bench.run(Source::requests(), &script, settings);
    running.reaches(ConsumerState::Holding(Dependency::PostgreSql)).await;
    assert_eq!(requester.replies(1).await, expected(&[("refuse first", "schema")]));
    requester.asks(REQUESTS, &["reply early"]).await;
    eventually("a third request to be decoded", LIMIT, async || match script.decoded() {
        3 => Ok(()),
        decoded => Err(format!("{decoded} are")),
    })
    .await;
    bench.advance(REQUEST_TTL / 2);
    requester.asks(REQUESTS, &["refuse", "reply late"]).await;
    assert_eq!(requester.replies(1).await, expected(&[("refuse", "schema")]));
    bench.advance(REQUEST_TTL / 2);
    let old = [("reply first", "unavailable"), ("reply early", "unavailable")];
    assert_eq!(requester.replies(2).await, expected(&old));
    script.dependency_unavailable(false);
    assert_eq!(requester.replies(1).await, expected(&[("reply late", "\"reply late\"")]));
    running.drain().await;
}

#[tokio::test]
async fn requests_are_held_without_a_call_of_the_handler_for_each() {
    let bench = Bench::new().await;
    let requester = Requester::new(&bench).await;
    let script = Script::default();
    script.dependency_unavailable(true);
    requester.asks(REQUESTS, &["wait"]).await;
    let settings = Settings { batch_size: 1, batches_in_flight: 2, ..Settings::default() };
    let mut running = bench.run(Source::requests(), &script, settings);
    running.reaches(ConsumerState::Holding(Dependency::PostgreSql)).await;
    assert_eq!(script.calls(), 1);
    requester.asks(REQUESTS, &["wait"; 20]).await;
    eventually("all requests to be held", LIMIT, async || match script.decoded() {
        3.. => Ok(()),
        decoded => Err(format!("{decoded} are")),
    })
    .await;
    assert_eq!(script.calls(), 1);
    script.dependency_unavailable(false);
    // No more than two batches are handled at a time, as without a hold.
    script.was_called(3).await;
    script.open_gate();
    script.was_called(4).await;
    assert_eq!(script.calls(), 4);
    (0..20).for_each(|_| script.open_gate());
    script.was_called(22).await;
    running.drain().await;
    assert_eq!(deliveries(&bench, REQUESTS, DeliveryOutcome::Applied), 21);
}

#[tokio::test]
async fn requests_are_consumed_again_after_a_lost_connection_while_a_dependency_is_unavailable() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let script = Script::default();
    script.dependency_unavailable(true);
    bench.publish(REQUESTS, ["reply 1"]).await;
    let handler = script.at(Source::requests());
    let mut running = bench.run_at(endpoints, handler, Settings::default());
    running.reaches(ConsumerState::Holding(Dependency::PostgreSql)).await;
    proxy.reset().await.unwrap();
    script.was_called(2).await;
    running.reaches(ConsumerState::Holding(Dependency::PostgreSql)).await;
    assert_eq!(script.decoded(), 2, "it was redelivered and is held again");
}

#[tokio::test]
async fn a_message_that_is_requeued_after_the_hold_limit_gets_its_reply_at_its_next_delivery() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    bench.raw.queue_delete(DLQ.into(), Default::default()).await.unwrap();
    requester.asks(QUEUE, &["refuse"]).await;
    let settings = Settings { hold_limit: Duration::from_millis(300), ..Settings::default() };
    let running = bench.run(Source::work(WorkQueue::Session), &Script::default(), settings);
    let restarts = Counter::ConsumerRestarts { queue: QUEUE, cause: ConsumerRestart::Hold };
    eventually("the end of the hold", LIMIT, async || match bench.metrics.count(restarts) {
        1.. => Ok(()),
        count => Err(format!("{count} restarts")),
    })
    .await;
    broker::topology::declare(&bench.endpoints).await.unwrap();
    assert_eq!(requester.replies(1).await, expected(&[("refuse", "schema")]));
    bench.eventually_ready(QUEUE, 0).await;
    running.drain().await;
    let sent = Counter::Replies { outcome: ReplyOutcome::Sent };
    assert_eq!(bench.metrics.count(sent), 1);
    assert_eq!(bench.ready(DLQ).await, 2, "the copy of the first delivery and that of the second");
}

#[tokio::test]
async fn a_request_that_was_redelivered_too_often_is_refused() {
    let bench = Bench::new().await;
    let mut requester = Requester::new(&bench).await;
    let script = Script::default();
    requester.asks(REQUESTS, &["wait"]).await;
    for _ in 0..3 {
        let running = bench.run(Source::requests(), &script, Settings::default());
        let before = script.calls();
        script.was_called(before + 1).await;
        drop(running);
        bench.eventually_ready(REQUESTS, 1).await;
    }
    let running = bench.run(Source::requests(), &script, Settings::default());
    assert_eq!(requester.replies(1).await, expected(&[("wait", "internal")]));
    running.drain().await;
}
