//! Conversations: sessions, the grace period, archiving, statistics, reopening.

use conversation::Source;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use system_tests::{
    COLLECTOR, MIGRATION, SAVER, STATISTICS, Scenario, ServerSet, at, closed, key_of, message,
    opened,
};
use testkit::wait::eventually;

use crate::{ACTIVE, ARCHIVED, about, ids, saved, wait_for_another_close};

#[tokio::test]
async fn a_message_is_hot_and_durable_and_a_closed_conversation_archived_with_its_statistics() {
    let scenario = &ServerSet::shared().await.scenario;
    let (agent, rabbit, reader) = (scenario.agent(), scenario.rabbit(), scenario.reader());
    rabbit.listen("events-of-whole").await;
    let of_agent = |role: &str, micros| json!({"role": role, "timestamp": at(micros), "agent_id": "ada", "model_name": "gpt-4o"});
    let messages = [
        message("whole", "s", "1", &of_agent("user", 0)),
        message("whole", "s", "2", &of_agent("assistant", 2_000_000)),
        message("whole", "s", "3", &of_agent("user", 10_000_000)),
        message("whole", "s", "4", &of_agent("assistant", 14_000_000)),
    ];
    let key = key_of(&messages[0]);
    agent.publish(&opened("whole", "s", &json!({}))).await;
    agent.publish_all(&messages).await;
    saved(&reader, &key, 4).await;
    assert_eq!(ids(&reader.both(&key).await), ["1", "2", "3", "4"]);

    agent.publish(&closed("whole", "s", &json!({"reason": "done", "satisfaction": 5}))).await;
    reader.reaches(&key, ARCHIVED).await;
    let transcript = reader.transcript(&key).await;
    assert_eq!(
        (ids(&transcript.messages), transcript.status),
        (vec!["1", "2", "3", "4"], Some(ARCHIVED))
    );
    assert_eq!(transcript.source, Source::Database, "the hot copy is deleted");

    scenario
        .until_sql(
            "SELECT concat_ws('|', agent_id, message_count, user_messages, assistant_messages,
                    duration_seconds, avg_response_seconds, satisfaction, day)
             FROM conversation_stats WHERE tenant_id = 'whole'",
            "ada|4|2|2|14|3|5|2026-11-20",
        )
        .await;
    scenario
        .until_sql(
            "SELECT concat_ws('|', agent_id, model_name, day, conversations, messages, tokens > 0,
                    avg_duration_seconds, avg_response_seconds, responses, avg_satisfaction, ratings, dirty)
             FROM daily_stats WHERE tenant_id = 'whole'",
            "ada|gpt-4o|2026-11-20|1|4|t|14|3|2|5|1|f",
        )
        .await;
    let events = rabbit.bodies("events-of-whole", 1).await;
    let migrated: Vec<_> = events.iter().filter(|it| it["tenant_id"] == "whole").collect();
    assert_eq!(migrated.len(), 1, "{migrated:?}");
    assert_eq!(migrated[0]["event_type"], "conversation.migrated");
    assert_eq!(
        (&migrated[0]["message_count"], &migrated[0]["close_reason"]),
        (&json!(4), &json!("done"))
    );
    rabbit.delete_queue("events-of-whole").await;
}

#[tokio::test]
async fn a_conversation_stays_open_until_its_last_session_closes() {
    let servers = ServerSet::shared().await;
    let (agent, reader) = (servers.scenario.agent(), servers.scenario.reader());
    let one = json!({"conversation_id": "both"});
    let body = message("two-sessions", "phone", "m", &one);
    agent
        .publish_all(&[opened("two-sessions", "phone", &one), opened("two-sessions", "web", &one)])
        .await;
    agent.publish(&body).await;
    saved(&reader, &key_of(&body), 1).await;
    agent.publish(&closed("two-sessions", "phone", &one)).await;
    wait_for_another_close(servers, &reader, "two-sessions-witness").await;
    reader.reaches(&key_of(&body), ACTIVE).await;
    agent.publish(&closed("two-sessions", "web", &one)).await;
    reader.reaches(&key_of(&body), ARCHIVED).await;
}

#[tokio::test]
async fn a_repeated_close_closes_once() {
    let servers = ServerSet::shared().await;
    let (scenario, agent, reader) =
        (&servers.scenario, servers.scenario.agent(), servers.scenario.reader());
    scenario.rabbit().listen("events-of-repeated").await;
    let body = message("repeated", "s", "m", &json!({}));
    let close = closed("repeated", "s", &json!({"timestamp": at(60_000_000)}));
    agent.publish(&body).await;
    saved(&reader, &key_of(&body), 1).await;
    agent.publish_all(&[close.clone(), close.clone(), close.clone()]).await;
    reader.reaches(&key_of(&body), ARCHIVED).await;
    agent.publish_all(&[close.clone(), close]).await;
    wait_for_another_close(servers, &reader, "repeated-witness").await;
    reader.reaches(&key_of(&body), ARCHIVED).await;
    let events = scenario.rabbit().take("events-of-repeated").await;
    let events: Vec<Value> = events
        .iter()
        .map(|it| serde_json::from_str(it["payload"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(about(&events, &key_of(&body)), ["conversation.migrated"]);
    scenario.rabbit().delete_queue("events-of-repeated").await;
}

#[tokio::test]
async fn a_message_after_archiving_reopens_the_conversation_and_it_is_archived_again() {
    let ServerSet { scenario, .. } = ServerSet::shared().await;
    let (agent, rabbit, reader) = (scenario.agent(), scenario.rabbit(), scenario.reader());
    rabbit.listen("events-of-late").await;
    let first = message("late", "s", "1", &json!({}));
    let key = key_of(&first);
    agent.publish(&first).await;
    saved(&reader, &key, 1).await;
    agent.publish(&closed("late", "s", &json!({}))).await;
    reader.reaches(&key, ARCHIVED).await;
    agent.publish(&message("late", "s", "2", &json!({"timestamp": at(1)}))).await;
    let rolled_up =
        "SELECT string_agg(messages::text, ',') FROM daily_stats WHERE tenant_id = 'late'";
    scenario.until_sql(rolled_up, "2").await;
    reader.reaches(&key, ARCHIVED).await;
    assert_eq!(ids(&reader.transcript(&key).await.messages), ["1", "2"]);
    let mut events = Vec::new();
    let expected = ["conversation.migrated", "conversation.migrated", "conversation.reopened"];
    eventually("three events", system_tests::LIMIT, async || {
        events.extend(rabbit.bodies("events-of-late", 0).await);
        let mut seen = about(&events, &key);
        seen.sort_unstable();
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    rabbit.delete_queue("events-of-late").await;
}

#[tokio::test]
async fn an_idle_session_is_closed() {
    let scenario = &ServerSet::shared().await.scenario;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let body = message("idle", "s", "m", &json!({}));
    agent.publish(&body).await;
    saved(&reader, &key_of(&body), 1).await;
    scenario
        .sql("UPDATE conversations SET touched_at = now() - interval '2 hours' WHERE tenant_id = 'idle'")
        .await;
    reader.reaches(&key_of(&body), ARCHIVED).await;
    let reason = "SELECT close_reason FROM conversations WHERE tenant_id = 'idle'";
    assert_eq!(scenario.sql(reason).await, "idle");
}

#[tokio::test]
async fn a_reconnection_within_the_grace_period_withdraws_the_close() {
    let scenario = Scenario::new().await;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let (saver, long_grace) = tokio::join!(
        scenario.start(SAVER),
        scenario.start_with(MIGRATION, &[("VERBATIM_CLOSE_GRACE", "1h")]),
    );
    let [returning, leaving] =
        ["returns", "leaves"].map(|it| message("grace", it, "m", &json!({})));
    agent.publish_all(&[returning.clone(), leaving.clone()]).await;
    scenario.until_sql("SELECT count(*) FROM messages", "2").await;
    let times = [at(1_000_000), at(2_000_000)].map(|it| json!({"timestamp": it}));
    for session in ["returns", "leaves"] {
        agent.publish(&closed("grace", session, &times[0])).await;
    }
    let requested = "SELECT count(close_requested_at) FROM conversations";
    scenario.until_sql(requested, "2").await;
    agent.publish(&opened("grace", "returns", &times[1])).await;
    scenario.until_sql(requested, "1").await;

    // For a worker without grace period, both closes would be due.
    scenario.drain([long_grace]).await;
    let no_grace = scenario.start_with(MIGRATION, &[("VERBATIM_CLOSE_GRACE", "0s")]).await;
    reader.reaches(&key_of(&leaving), ARCHIVED).await;
    reader.reaches(&key_of(&returning), ACTIVE).await;
    let late = closed("grace", "returns", &json!({"timestamp": at(3_000_000)}));
    agent.publish(&late).await;
    reader.reaches(&key_of(&returning), ARCHIVED).await;
    scenario.drain([saver, no_grace]).await;
}

#[tokio::test]
async fn two_of_every_worker_close_each_conversation_and_store_each_dead_letter_once() {
    let servers = ServerSet::own().await;
    let ServerSet { scenario, .. } = &servers;
    let (other_migration, other_statistics, other_collector) = tokio::join!(
        scenario.start(MIGRATION),
        scenario.start(STATISTICS),
        scenario.start(COLLECTOR),
    );
    let (agent, rabbit) = (scenario.agent(), scenario.rabbit());
    rabbit.listen("events").await;
    let sessions: Vec<String> = (0..150).map(|n| format!("s{n}")).collect();
    let messages = sessions.iter().flat_map(|session| {
        let reply = json!({"role": "assistant", "timestamp": at(1_000_000), "agent_id": session});
        [message("many", session, "1", &json!({})), message("many", session, "2", &reply)]
    });
    agent.publish_all(&messages.collect::<Vec<_>>()).await;
    scenario.until_sql("SELECT count(*) FROM messages", "300").await;
    let bad =
        sessions.iter().map(|session| message("many", session, "3", &json!({"role": "none"})));
    agent.publish_all(&bad.collect::<Vec<_>>()).await;
    let ends: Vec<Value> = sessions.iter().map(|it| closed("many", it, &json!({}))).collect();
    agent.publish_all(&ends).await;

    let rolled_up =
        "SELECT concat_ws('|', count(*), sum(conversations), sum(messages)) FROM daily_stats
                     WHERE NOT dirty AND conversations > 0";
    scenario.until_sql(rolled_up, "150|150|300").await;
    let dead_letters = "SELECT concat_ws('|', count(*), sum(copies)) FROM dead_letters";
    scenario.until_sql(dead_letters, "150|150").await;
    let ServerSet { savers: [one, two], migration, statistics, collector, .. } = servers;
    let first = [one, two, migration, statistics, collector];
    let others = [other_migration, other_statistics, other_collector];
    servers.scenario.finish(first.into_iter().chain(others)).await;

    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for event in rabbit.bodies("events", 300).await {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        *seen.entry(format!("{} {}", text("event_type"), text("conversation_id"))).or_default() +=
            1;
    }
    let migrated = seen.iter().filter(|(event, _)| event.starts_with("conversation.migrated"));
    assert_eq!(migrated.clone().count(), 150);
    assert!(migrated.clone().all(|(_, times)| *times == 1), "{seen:?}");
}

#[tokio::test]
async fn a_close_counts_a_save_transaction_that_was_open_when_it_began() {
    let servers = ServerSet::shared().await;
    let (scenario, agent, reader) =
        (&servers.scenario, servers.scenario.agent(), servers.scenario.reader());
    let body = message("open-save", "s", "1", &json!({}));
    agent.publish(&body).await;
    saved(&reader, &key_of(&body), 1).await;
    // The statements of a saver, stopped between its insert and its commit.
    let save = "SELECT FROM conversations WHERE tenant_id = 'open-save' FOR KEY SHARE;
        INSERT INTO message_rows
            SELECT (jsonb_populate_record(m, '{\"id\": \"2\"}')).* FROM message_rows m
            WHERE conversation = (SELECT number FROM conversations WHERE tenant_id = 'open-save')";
    let close = async {
        agent.publish(&closed("open-save", "s", &json!({}))).await;
        wait_for_another_close(servers, &reader, "open-save-witness").await;
        let status = "SELECT status FROM conversations WHERE tenant_id = 'open-save'";
        assert_ne!(scenario.sql(status).await, "archived", "a save transaction is open");
    };
    scenario.while_open(save, close).await;
    reader.reaches(&key_of(&body), ARCHIVED).await;
    let counted = "SELECT message_count FROM conversations WHERE tenant_id = 'open-save'";
    assert_eq!(scenario.sql(counted).await, "2");
    assert_eq!(ids(&reader.transcript(&key_of(&body)).await.messages), ["1", "2"]);
}
