//! Queues and exchanges that are full or missing.

use std::time::Duration;

use serde_json::json;
use system_tests::{COLLECTOR, Counts, LIMIT, PublishedActions, SAVER, Scenario};
use testkit::environment::deep;
use testkit::servers::{Kind, Servers};
use testkit::wait::eventually;

use crate::{SAVES, load, proxy, publish, stored, until_stored, until_unready, with_ids};

/// Where the dead letters of [`SAVES`] wait for the dead-letter collector.
const DEAD_LETTERS: &str = "conversation.save_message.dlq";

#[tokio::test]
async fn a_dead_letter_refused_by_a_full_queue_is_held_until_there_is_room() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let messages = with_ids("full", 120, 4);
    let (bad, good) = messages.split_at(100);
    let ids: Vec<&str> = bad.iter().filter_map(|it| it["message_id"].as_str()).collect();
    scenario.poison("22023", &ids.join(",")).await;
    // No dead-letter collector runs.
    scenario.rabbit().policy(DEAD_LETTERS, &json!({"max-length": 2})).await;
    let saver = scenario.start(SAVER).await;
    let (dead_letters, refused) =
        ([("queue", SAVES), ("outcome", "dead_lettered")], [("outcome", "refused")]);
    // One by one: RabbitMQ rejects publishes only a few messages after a queue is full.
    let mut sent = 0.0;
    for message in bad {
        publish(&agent, &mut published, std::slice::from_ref(message)).await;
        sent += 1.0;
        let is_refused =
            eventually("the dead letter to be confirmed or refused", LIMIT, async || {
                let counts = Counts::of(&saver).await;
                let refused = counts.sum("verbatim_publishes_total", &refused) > 0.0;
                let stored = counts.sum("verbatim_deliveries_total", &dead_letters);
                if refused || stored == sent { Ok(refused) } else { Err(format!("{counts:?}")) }
            });
        if is_refused.await {
            break;
        }
    }
    publish(&agent, &mut published, good).await;
    until_unready(&saver, &["holding: RabbitMQ unavailable"]).await;
    let holds = [("queue", SAVES), ("dependency", "rabbitmq")];
    let counts = Counts::reach(&saver, "verbatim_holds_total", &holds, 1.0).await;
    assert!(counts.sum("verbatim_publishes_total", &refused) >= 1.0, "{counts:?}");
    assert!(saver.log().contains("a queue is full"), "{}", saver.log_tail());

    let collector = scenario.start(COLLECTOR).await;
    published.reconcile(&scenario, &reader).await;
    saver.ready(LIMIT).await.unwrap();
    let counts = Counts::of(&saver).await;
    assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_dead_letter_whose_queue_is_missing_is_held_until_the_queue_is_declared() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    scenario.poison("22023", "m00001").await;
    let saver = scenario.start(SAVER).await;
    scenario.rabbit().delete_queue(DEAD_LETTERS).await;
    publish(&agent, &mut published, &load("missing-dlq", 20, 1)).await;
    until_unready(&saver, &["holding: RabbitMQ unavailable"]).await;
    let holds = [("queue", SAVES), ("dependency", "rabbitmq")];
    let counts = Counts::reach(&saver, "verbatim_holds_total", &holds, 1.0).await;
    let unroutable = counts.sum("verbatim_publishes_total", &[("outcome", "unroutable")]);
    assert!(unroutable >= 1.0, "{counts:?}");
    let log = saver.log();
    let unroutable = format!("no queue takes routing key `{DEAD_LETTERS}`");
    assert!(log.contains("consumption paused") && log.contains(&unroutable), "{log}");

    scenario.declare().await;
    let collector = scenario.start(COLLECTOR).await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(
        scenario.sql("SELECT string_agg(message_id, ',') FROM dead_letters").await,
        "m00001"
    );
    saver.ready(LIMIT).await.unwrap();
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_missing_exchange_closes_a_channel_and_the_retry_for_it_is_held() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    scenario.poison("P0001", "m00001").await;
    let saver = scenario.start(SAVER).await;
    scenario.rabbit().delete_exchange("domain.retry.1000").await;
    publish(&agent, &mut published, &load("exchange", 20, 1)).await;
    until_stored(&scenario, 19).await;
    let holds = [("queue", SAVES), ("dependency", "rabbitmq")];
    let counts = Counts::reach(&saver, "verbatim_holds_total", &holds, 1.0).await;
    assert!(counts.sum("verbatim_publishes_total", &[("outcome", "unknown")]) >= 1.0);
    let log = saver.log();
    assert!(log.contains("no exchange 'domain.retry.1000'"), "{log}");

    scenario.sql("TRUNCATE poisoned").await;
    scenario.declare().await;
    published.reconcile(&scenario, &reader).await;
    saver.ready(LIMIT).await.unwrap();
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_deleted_queue_loses_its_ready_messages_and_the_delivered_ones_are_saved() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    // A small prefetch, so that some messages stay ready in the queue.
    let settings = [
        ("DATABASE_URL", database.url()),
        ("VERBATIM_BATCH_SIZE", "10"),
        ("VERBATIM_BATCHES_IN_FLIGHT", "1"),
    ];
    let saver = scenario.start_with(SAVER, &settings).await;
    database.cut().await.unwrap();
    let messages = load("gone", 220, 4);
    agent.publish_all(&messages[..200]).await;
    // RabbitMQ delivers in order: the first messages are delivered, the last ones are ready.
    let ready = eventually("every message to be delivered or ready", LIMIT, async || {
        let held = [("queue", SAVES), ("state", "unacknowledged")];
        let held = Counts::of(&saver).await.sum("verbatim_queue_messages", &held);
        let queued = scenario.queued().await;
        let ready = queued.iter().find(|(queue, _)| *queue == SAVES).map_or(0, |it| it.1);
        if ready > 0 && held + f64::from(ready) == 200.0 {
            Ok(usize::try_from(ready).unwrap())
        } else {
            Err(format!("{held} held, {ready} ready"))
        }
    })
    .await;
    let (delivered, _) = messages[..200].split_at(200 - ready);
    published.add_confirmed(delivered);
    scenario.rabbit().delete_queue(SAVES).await;
    database.restore().await.unwrap();
    until_stored(&scenario, delivered.len()).await;
    let ended = [("queue", SAVES), ("cause", "stream_ended")];
    Counts::reach(&saver, "verbatim_consumer_restarts_total", &ended, 1.0).await;
    assert!(saver.log().contains("RabbitMQ cancelled the consumer"), "{}", saver.log_tail());

    scenario.declare().await;
    publish(&agent, &mut published, &messages[200..]).await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(stored(&scenario).await, 220 - ready);
    saver.ready(LIMIT).await.unwrap();
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_message_that_waits_for_a_retry_survives_the_deletion_of_its_queue() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    if !deep() {
        // The time after which RabbitMQ repeats a dead-lettering that no queue confirmed: 3 min by default.
        let three_seconds =
            "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 3000).";
        servers.get(Kind::RabbitMq).rabbitmqctl(&["eval", three_seconds]).await.unwrap();
    }
    let scenario = Scenario::with_own(servers).await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    scenario.poison("P0001", "m00001").await;
    let saver = scenario.start(SAVER).await;
    publish(&agent, &mut published, &load("waits", 20, 1)).await;
    until_stored(&scenario, 19).await;
    let retries = [("queue", SAVES), ("class", "retryable")];
    Counts::reach(&saver, "verbatim_retries_total", &retries, 2.0).await;
    // The message waits for the retry delay of 5 s, and then for its queue.
    scenario.rabbit().delete_queue(SAVES).await;
    scenario.sql("TRUNCATE poisoned").await;
    eventually("the retry delay to end", LIMIT, async || match scenario.queued().await {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    })
    .await;
    let failed = [("queue", SAVES), ("cause", "error")];
    Counts::reach(&saver, "verbatim_consumer_restarts_total", &failed, 1.0).await;
    assert!(saver.log().contains("no queue 'conversation.save_message'"), "{}", saver.log_tail());
    scenario.declare().await;
    saver.ready(LIMIT).await.unwrap();
    let limit = if deep() { Duration::from_secs(240) } else { LIMIT };
    eventually("the message to be saved", limit, async || match stored(&scenario).await {
        20 => Ok(()),
        stored => Err(format!("{stored} are stored")),
    })
    .await;
    published.reconcile(&scenario, &reader).await;
    scenario.finish([saver]).await;
}
