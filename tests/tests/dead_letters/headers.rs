//! Headers set by agents and by RabbitMQ are not copied into retries, dead letters and replays.
//!
//! With a copied `x-death` a retry queue would drop the message without an error. With a copied `CC`
//! RabbitMQ would also route it to other queues. So each test ends with a retry that must be saved.

use serde_json::{Value, json};
use system_tests::{COLLECTOR, Counts, SAVER, Scenario, key_of, message};

use crate::SAVES;

/// The delivery limit of the work queues: after so many requeues RabbitMQ dead-letters a message.
const DELIVERY_LIMIT: usize = 100;

#[tokio::test]
async fn a_replayed_dead_letter_of_the_delivery_limit_survives_a_later_retry() {
    let scenario = Scenario::new().await;
    let (agent, rabbit) = (scenario.agent(), scenario.rabbit());
    let body = message("limit", "s", "m1", &json!({}));
    agent.publish(&body).await;
    for _ in 0..=DELIVERY_LIMIT {
        rabbit.requeue_first(SAVES).await;
    }
    let collector = scenario.start(COLLECTOR).await;
    let dead_letter = "SELECT concat_ws('|', reason, queue, exchange, routing_key,
                      json_array_length(delivery->'headers'->'x-death')) FROM dead_letters";
    let expected = format!("delivery_limit|{SAVES}|domain.actions|{SAVES}|1");
    scenario.until_sql(dead_letter, &expected).await;
    replayed_with_a_retry(&scenario, "m1").await;
    scenario.finish([collector]).await;
    assert_eq!(scenario.reader().stored(&key_of(&body)).await.len(), 1);
}

#[tokio::test]
async fn a_dead_letter_shows_what_its_sender_set_whoever_dead_lettered_it() {
    let scenario = Scenario::new().await;
    let rabbit = scenario.rabbit();
    let properties = json!({
        "content_type": "application/json", "content_encoding": "identity", "delivery_mode": 2,
        "priority": 3, "correlation_id": "c-1", "message_id": "m-1", "timestamp": 1_700_000_000,
        "type": "chat", "app_id": "booking", "cluster_id": "eu",
        "headers": {"x-custom": "own", "retries": 7, "nested": {"list": [true, {"deep": "\u{0}"}]}},
    });
    let bad = message("shown", "s", "m1", &json!({"role": "bot"})).to_string();
    // By RabbitMQ, at the delivery limit; then by a worker.
    rabbit.publish(SAVES, &properties, &bad).await;
    for _ in 0..=DELIVERY_LIMIT {
        rabbit.requeue_first(SAVES).await;
    }
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    scenario.until_sql("SELECT string_agg(reason, ',') FROM dead_letters", "delivery_limit").await;
    rabbit.publish(SAVES, &properties, &bad).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "2").await;
    scenario.finish([saver, collector]).await;

    for reason in ["delivery_limit", "schema"] {
        let id = format!("SELECT id FROM dead_letters WHERE reason = '{reason}'");
        let id = scenario.sql(&id).await;
        let output = scenario.verbatim(&["dead-letters", "show", &id, "--json"]).await;
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut sent = properties.clone();
        let headers = sent.as_object_mut().unwrap().remove("headers").unwrap();
        assert_eq!(shown["properties"], sent, "{reason}");
        let (custom, number) = (&shown["headers"]["x-custom"], &shown["headers"]["retries"]);
        assert_eq!((custom, number), (&headers["x-custom"], &headers["retries"]), "{reason}");
        // JSON holds U+0000, but PostgreSQL's operators on JSON refuse it.
        let zero = json!({"$type": "text", "hex": "00"});
        assert_eq!(shown["headers"]["nested"], json!({"list": [true, {"deep": zero}]}), "{reason}");
        assert_eq!(shown["headers"].as_object().unwrap().len(), 3, "{reason}: {shown}");
        assert_eq!(shown["left_out"], Value::Null, "{reason}");
    }
}

#[tokio::test]
async fn headers_of_an_agent_do_not_redirect_or_drop_its_message() {
    let scenario = Scenario::new().await;
    let rabbit = scenario.rabbit();
    let (user, _) = scenario.amqp_url.trim_start_matches("amqp://").split_once(':').unwrap();
    // A retry queue drops a message whose `x-death` names the target queue already.
    let death = |queue: &str| {
        json!({"queue": queue, "reason": "expired", "count": 1, "exchange": queue,
               "routing-keys": [SAVES], "time": 0})
    };
    let deaths: Vec<Value> = [SAVES, "domain.retry.1000", "domain.retry.5000"].map(death).into();
    let properties = json!({
        "delivery_mode": 2, "expiration": "600000", "user_id": user,
        "headers": {"CC": ["conversation.session"], "x-death": deaths,
                    "x-first-death-queue": "domain.retry.1000", "x-delivery-count": 99},
    });
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let bad = message("own", "s", "m1", &json!({"role": "bot"}));
    rabbit.publish(SAVES, &properties, &bad.to_string()).await;
    let dead_letter = "SELECT concat_ws('|', reason, field, attempts, properties->>'user_id')
                  FROM dead_letters";
    scenario.until_sql(dead_letter, &format!("schema|role|1|{user}")).await;
    // A retry by the worker, of a message that has not been dead-lettered.
    scenario.poison("P0001", "m2").await;
    let good = message("own", "s", "m2", &json!({}));
    rabbit.publish(SAVES, &properties, &good.to_string()).await;
    Counts::reach(&saver, "verbatim_retries_total", &[("queue", SAVES)], 1.0).await;
    scenario.sql("DROP TABLE poisoned CASCADE; DROP FUNCTION refuse() CASCADE").await;
    scenario.until_sql("SELECT string_agg(id, ',') FROM messages", "m2").await;
    scenario.finish([saver]).await;

    let id = scenario.sql("SELECT id FROM dead_letters").await;
    let edit = scenario.verbatim(&["dead-letters", "edit", &id, "--apply-suggestion"]).await;
    assert_eq!(edit.status.code(), Some(0), "{edit:?}");
    replayed_with_a_retry(&scenario, "m1").await;
    // The queues are empty now: no copy was routed by the agent's CC.
    scenario.finish([collector]).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "1");
}

/// Replays every open dead letter while PostgreSQL refuses the message once: so the message passes through
/// a retry queue before it is saved.
async fn replayed_with_a_retry(scenario: &Scenario, id: &str) {
    scenario.poison("P0001", id).await;
    let saver = scenario.start(SAVER).await;
    let arguments = ["dead-letters", "replay", "--all", "--watch", "0s"];
    let replay = scenario.verbatim(&arguments).await;
    assert_eq!(replay.status.code(), Some(0), "{replay:?}");
    Counts::reach(&saver, "verbatim_retries_total", &[("queue", SAVES)], 1.0).await;
    scenario.sql("DROP TABLE poisoned CASCADE; DROP FUNCTION refuse() CASCADE").await;
    let stored = format!("SELECT count(*) FROM messages WHERE id = '{id}'");
    scenario.until_sql(&stored, "1").await;
    scenario.finish([saver]).await;
    assert_eq!(scenario.sql("SELECT string_agg(status, ',') FROM dead_letters").await, "replayed");
}
