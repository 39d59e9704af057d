//! `conversation.delete_message`, over RabbitMQ.

use serde_json::{Value, json};
use system_tests::{
    COLLECTOR, Counts, MIGRATION, SAVER, STATISTICS, Scenario, as_dead_letter, at, closed, deleted,
    message,
};

#[tokio::test]
async fn a_deleted_message_is_not_stored_again_when_it_is_redelivered_or_replayed() {
    let scenario = Scenario::new().await;
    let workers = tokio::join!(
        scenario.start(SAVER),
        scenario.start(MIGRATION),
        scenario.start(COLLECTOR),
        scenario.start(STATISTICS),
    );
    let agent = scenario.agent();
    let messages: Vec<Value> = (1..=3)
        .map(|n| message("delete", "s", &format!("m{n}"), &json!({"timestamp": at(n)})))
        .collect();
    agent.publish_all(&messages).await;
    scenario.until_sql("SELECT count(*) FROM messages", "3").await;
    let delete = deleted("delete", "s", "m2");
    for deleted in [true, true] {
        let reply = scenario.reply_to(&delete).await;
        assert_eq!(reply["data"]["deleted"], deleted, "{reply}");
    }
    let mut other = delete.clone();
    other["action_id"] = "another".into();
    assert_eq!(scenario.reply_to(&other).await["data"]["deleted"], false);

    // A redelivery; a dead letter of the message; one of the deletion.
    agent.publish(&messages[1]).await;
    scenario.store_dead_letters(&[as_dead_letter(&messages[1].to_string())]).await;
    let replayed = scenario.verbatim(&["dead-letters", "replay", "--all"]).await;
    assert_eq!(replayed.status.code(), Some(0), "{replayed:?}");
    Counts::reach(&workers.0, "verbatim_messages_erased_total", &[], 2.0).await;
    let ids = "SELECT string_agg(id, ' ' ORDER BY created_at) FROM messages";
    assert_eq!(scenario.sql(ids).await, "m1 m3");

    // After archiving, and before the message.
    agent.publish(&closed("delete", "s", &json!({"timestamp": at(10)}))).await;
    let counts = "SELECT concat_ws('|', status, message_count) FROM conversations";
    scenario.until_sql(counts, "archived|2").await;
    assert_eq!(scenario.reply_to(&deleted("delete", "s", "m3")).await["data"]["deleted"], true);
    scenario.until_sql(counts, "archived|1").await;
    assert_eq!(scenario.reply_to(&deleted("delete", "s", "m4")).await["data"]["deleted"], true);
    agent.publish(&message("delete", "s", "m4", &json!({"timestamp": at(4)}))).await;
    Counts::reach(&workers.0, "verbatim_messages_erased_total", &[], 3.0).await;
    scenario.until_sql(counts, "archived|1").await;
    scenario.until_sql("SELECT message_count FROM conversation_stats", "1").await;
    let shown = scenario.verbatim(&["trace", "m3", "--json"]).await;
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let traced = &shown["items"][0];
    assert_eq!(
        (&traced["state"], &traced["hot"]),
        (&json!("deleted"), &json!("not_checked")),
        "{shown}"
    );
    let timeline = traced["timeline"].as_array().unwrap();
    assert!(timeline.iter().any(|it| it["text"] == "by the action delete m3"), "{shown}");
    scenario.finish([workers.0, workers.1, workers.2, workers.3]).await;
}
