//! The results of a publish: `Ok` and each error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::topology::{self, WorkQueue};
use broker::{Endpoints, Publication, PublishError, Publisher};
use futures_util::future::join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use metrics::{Counter, Metrics, PublishOutcome};
use testkit::TestEnv;
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Bench, LIMIT};

const QUEUE: &str = WorkQueue::SaveMessage.name();

#[tokio::test]
async fn an_unroutable_publish_is_an_error_although_the_broker_confirms_it() {
    let bench = Bench::new().await;
    let result = bench.publisher.publish(Publication::to_queue("nowhere", Vec::new())).await;
    let expected =
        PublishError::Unroutable { exchange: String::new(), routing_key: "nowhere".to_owned() };
    assert_eq!(result, Err(expected));
    let outcome = PublishOutcome::Unroutable;
    assert_eq!(bench.metrics.count(Counter::Publishes { outcome }), 1);
}

#[tokio::test]
async fn an_unroutable_publish_with_large_headers_fails_alone() {
    let bench = Bench::new().await;
    let message = |queue| {
        let mut message = Publication::to_queue(queue, Vec::new());
        message.fleet_headers.history.reasons = vec!["x".repeat(1_000); 4];
        Arc::new(message)
    };
    let queues = [QUEUE, "nowhere", QUEUE];
    let results = bench.publisher.publish_all(queues.map(message)).await;
    assert!(matches!(results[1], Err(PublishError::Unroutable { .. })), "{results:?}");
    assert_eq!((&results[0], &results[2]), (&Ok(()), &Ok(())));
}

#[tokio::test]
async fn two_hundred_concurrent_callers_get_the_result_of_their_own_message() {
    let bench = Bench::new().await;
    let calls = (0..200).map(|n| {
        let publisher = bench.publisher.clone();
        let queue = if n % 2 == 0 { QUEUE } else { "nowhere" };
        async move { publisher.publish(Publication::to_queue(queue, vec![b'x'; n])).await }
    });
    for (n, result) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(result.is_ok(), n % 2 == 0, "{n}: {result:?}");
        assert!(matches!(result, Ok(()) | Err(PublishError::Unroutable { .. })), "{n}: {result:?}");
    }
    bench.eventually_ready(QUEUE, 100).await;
}

#[tokio::test]
async fn many_messages_are_published_in_order() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, 0..3000).await;
    for n in 0..3000 {
        assert_eq!(bench.take(QUEUE).await.data, n.to_string().into_bytes());
    }
}

#[tokio::test]
async fn a_message_whose_deadline_has_passed_is_not_sent() {
    let bench = Bench::new().await;
    let message = |body: &str| [Arc::new(Publication::to_queue(QUEUE, body.into()))];
    let later = Instant::now() + Duration::from_secs(60);
    assert_eq!(bench.publisher.publish_all_before(later, message("early")).await, [Ok(())]);
    let late = bench.publisher.publish_all_before(Instant::now(), message("late")).await;
    assert_eq!(late, [Err(PublishError::TooLate)]);
    // The connection serves the next publish.
    bench.publish(QUEUE, ["next"]).await;
    bench.eventually_ready(QUEUE, 2).await;
    for expected in ["early", "next"] {
        assert_eq!(bench.take(QUEUE).await.data, expected.as_bytes());
    }
    let connections = bench.metrics.count(Counter::BrokerConnections);
    assert_eq!(connections, 1, "a publish that is too late needs no new connection");
}

#[tokio::test]
async fn every_message_is_persistent_and_has_an_id() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, ["one"]).await;
    let properties = bench.take(QUEUE).await.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert!(properties.message_id().is_some());
}

#[tokio::test]
async fn a_full_queue_refuses_and_keeps_what_it_confirmed() {
    let bench = Bench::new().await;
    let mut arguments = FieldTable::default();
    for (name, value) in [("x-queue-type", "quorum"), ("x-overflow", "reject-publish")] {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    bench.raw.queue_declare("small".into(), options, arguments).await.unwrap();
    // A quorum queue refuses publishes only a moment after it is full.
    let mut confirmed = 0;
    eventually("a refusal", LIMIT, async || {
        match bench.publisher.publish(Publication::to_queue("small", b"more".to_vec())).await {
            Err(PublishError::Refused) => Ok(()),
            Ok(()) => {
                confirmed += 1;
                Err(format!("{confirmed} confirmed"))
            }
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    bench.eventually_ready("small", confirmed).await;
}

#[tokio::test]
async fn publishes_fail_during_an_outage_and_succeed_after_it() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let limit = Duration::from_millis(500);
    let publisher = Publisher::with_timeout(endpoints, Metrics::new(), limit);
    publisher.publish(Publication::to_queue(QUEUE, b"before".to_vec())).await.unwrap();

    proxy.cut().await.unwrap();
    let result = publisher.publish(Publication::to_queue(QUEUE, b"meanwhile".to_vec())).await;
    assert!(
        matches!(result, Err(PublishError::Unreachable(_) | PublishError::Unknown(_))),
        "{result:?}"
    );
    proxy.restore().await.unwrap();
    publisher.publish(Publication::to_queue(QUEUE, b"after".to_vec())).await.unwrap();
}

#[tokio::test]
async fn a_missing_confirm_is_an_error_after_the_timeout() {
    let bench = Bench::new().await;
    let proxy = Proxy::before(&bench.url).await.unwrap();
    let endpoints = Endpoints::parse(proxy.url(), "test").unwrap();
    let limit = Duration::from_millis(300);
    let publisher = Publisher::with_timeout(endpoints, Metrics::new(), limit);
    publisher.publish(Publication::to_queue(QUEUE, b"before".to_vec())).await.unwrap();
    proxy.freeze();
    let frozen = publisher.publish(Publication::to_queue(QUEUE, b"frozen".to_vec()));
    let frozen = tokio::time::timeout(LIMIT, frozen).await.unwrap();
    assert!(matches!(frozen, Err(PublishError::Unknown(_))), "{frozen:?}");
}

#[tokio::test]
async fn of_several_addresses_a_reachable_one_is_used() {
    let bench = Bench::new().await;
    // Nothing listens on port 9 (discard).
    let addresses = format!("amqp://127.0.0.1:9/x,{}", bench.url);
    let endpoints = Endpoints::parse(&addresses, "test").unwrap();
    let publisher = Publisher::new(endpoints, Metrics::new());
    publisher.publish(Publication::to_queue(QUEUE, Vec::new())).await.unwrap();
}

#[tokio::test]
async fn a_server_that_accepts_and_sends_nothing_does_not_delay_a_caller_beyond_its_timeout() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let endpoints = Endpoints::parse(&url, "test").unwrap();
    let limit = Duration::from_millis(500);
    let publisher = Publisher::with_timeout(endpoints, Metrics::new(), limit);
    let called = tokio::time::Instant::now();
    let error = publisher.publish(Publication::to_queue("queue", Vec::new())).await.unwrap_err();
    assert!(matches!(error, PublishError::Unreachable(_)), "{error}");
    // The limit of the handshake alone is 5 s.
    assert!(called.elapsed() < 6 * limit, "{:?}", called.elapsed());
}

#[tokio::test]
async fn a_connection_that_takes_longer_than_one_call_serves_the_next() {
    let env = TestEnv::new().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    // The handshake with the first address fails after 5 s. Then the second address is tried.
    let urls = format!("amqp://127.0.0.1:{port},{}", env.amqp_url);
    let endpoints = Endpoints::parse(&urls, "test").unwrap();
    topology::declare(&Endpoints::parse(&env.amqp_url, "test").unwrap()).await.unwrap();
    let limit = Duration::from_secs(1);
    let publisher = Publisher::with_timeout(endpoints, Metrics::new(), limit);
    eventually("a publish", LIMIT, async || {
        let publication = Publication::to_queue(WorkQueue::Session.dlq(), Vec::new());
        publisher.publish(publication).await.map_err(|error| error.to_string())
    })
    .await;
}
