//! A sender's own `x-death`: RabbitMQ before 4.0 takes it for its own, and then does not dead-letter the message.
//!
//! The expectations are those of `docs/operations.md`, which tells an operator how to find and free such messages.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use system_tests::{COLLECTOR, LIMIT, SAVER, Scenario, message};
use testkit::servers::{Kind, Server, Servers};
use testkit::wait::eventually;

use crate::{DEAD_LETTERS, SAVES};

/// RabbitMQ dead-letters so many messages of a queue at once, by default.
const PREFETCH: usize = 32;

#[tokio::test]
async fn messages_with_a_forged_x_death_are_found_and_those_behind_them_are_saved() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let (rabbit, server) = (scenario.rabbit(), scenario.server(Kind::RabbitMq));
    let death = json!({"queue": DEAD_LETTERS, "reason": "expired", "count": 1, "exchange": "",
                       "routing-keys": [DEAD_LETTERS], "time": 1_700_000_000});
    let forged = json!({"expiration": "1", "delivery_mode": 2, "headers": {"x-death": [death]}});
    // No worker consumes: a worker that gets such a message before it expires saves it.
    for n in 0..PREFETCH {
        let body = message("forged", "s", &format!("f{n}"), &json!({}));
        rabbit.publish(SAVES, &forged, &body.to_string()).await;
    }
    let honest = message("forged", "s", "m1", &json!({}));
    rabbit
        .publish(SAVES, &json!({"expiration": "1", "delivery_mode": 2}), &honest.to_string())
        .await;

    // AMQP shows none of them, the command of the runbook shows all.
    until_listed(server, PREFETCH + 1).await;
    assert_eq!(scenario.queued().await, []);
    assert_eq!(rabbit.take(SAVES).await, Vec::<Value>::new());
    server.rabbitmqctl(&["purge_queue", SAVES]).await.unwrap();
    until_listed(server, PREFETCH + 1).await;
    let log = server.log_tail();
    assert!(log.contains("Cannot forward any dead-letter messages"), "{log}");
    assert!(log.contains("cycle detected"), "{log}");

    // RabbitMQ dead-letters more of them at once: the honest one is rerouted and saved.
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let more = "application:set_env(rabbit, dead_letter_worker_consumer_prefetch, 1000).";
    // What RabbitMQ cannot route while its queues still start, it publishes again after 3 min by default.
    let sooner = "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 5000).";
    for setting in [more, sooner] {
        server.rabbitmqctl(&["eval", setting]).await.unwrap();
    }
    server.rabbitmqctl(&["stop_app"]).await.unwrap();
    server.rabbitmqctl(&["start_app"]).await.unwrap();
    scenario.until_sql("SELECT string_agg(id, ',') FROM messages", "m1").await;
    until_listed(server, PREFETCH).await;

    // The others can only be deleted.
    rabbit.policy(SAVES, &json!({"overflow": "drop-head"})).await;
    until_listed(server, 0).await;
    scenario.finish([saver, collector]).await;
}

/// Waits until this many messages of [`SAVES`] are neither ready nor unacknowledged.
async fn until_listed(server: &Server, kept: usize) {
    let list = [
        "list_queues",
        "name",
        "messages",
        "messages_ready",
        "messages_unacknowledged",
        "--formatter",
        "json",
    ];
    eventually(format!("{kept} messages kept in {SAVES}"), LIMIT, async || {
        let listed = server.rabbitmqctl(&list).await.map_err(|error| error.to_string())?;
        let listed: Vec<BTreeMap<String, Value>> =
            serde_json::from_str(&listed).map_err(|error| format!("{error}: {listed}"))?;
        let queue = listed.iter().find(|queue| queue["name"] == SAVES);
        let queue = queue.ok_or_else(|| format!("{listed:?}"))?;
        let number = |name: &str| queue[name].as_u64().unwrap_or(0);
        let ready = number("messages_ready") + number("messages_unacknowledged");
        if number("messages") == ready + kept as u64 { Ok(()) } else { Err(format!("{queue:?}")) }
    })
    .await;
}
