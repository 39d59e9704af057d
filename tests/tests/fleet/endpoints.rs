//! The workers' endpoints: `/livez`, `/readyz`, `/metrics`.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use system_tests::{Counts, ServerSet, closed, key_of, message, opened};
use testkit::wait::eventually;

use crate::{ARCHIVED, saved};

#[tokio::test]
async fn every_counter_of_a_typical_load_has_the_expected_value() {
    let servers = ServerSet::own().await;
    let ServerSet { scenario, savers, migration, statistics, collector } = &servers;
    let (agent, rabbit, reader) = (scenario.agent(), scenario.rabbit(), scenario.reader());
    let body = |id: &str, content: &str| message("day", "s", id, &json!({"content": content}));
    agent.publish(&opened("day", "s", &json!({}))).await;
    let key = key_of(&body("1", ""));
    // First the message, then its duplicate and its conflict: they may be delivered to different savers.
    agent.publish(&body("1", "hi")).await;
    saved(&reader, &key, 1).await;
    agent.publish_all(&[body("1", "hi"), body("1", "ho"), body("2", "bye")]).await;
    let mut anonymous = body("", "anonymous");
    for field in ["message_id", "timestamp"] {
        anonymous.as_object_mut().unwrap().remove(field);
    }
    rabbit.publish("conversation.save_message", &json!({}), &anonymous.to_string()).await;
    rabbit.publish("conversation.save_message", &json!({}), "{").await;
    rabbit.publish("conversation.unknown", &json!({}), &body("3", "unroutable").to_string()).await;
    saved(&reader, &key, 4).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "2").await;
    agent.publish(&closed("day", "s", &json!({}))).await;
    reader.reaches(&key, ARCHIVED).await;
    let totals = "SELECT sum(messages)::text FROM daily_stats";
    scenario.until_sql(totals, "4").await;
    agent.publish(&message("day", "s", "4", &json!({}))).await;
    saved(&reader, &key, 5).await;
    agent.publish(&closed("day", "empty", &json!({}))).await;
    let emptied = "SELECT count(*) FROM conversations WHERE status <> 'archived'";
    scenario.until_sql(totals, "5").await;
    scenario.until_sql(emptied, "0").await;

    let save = ("queue", "conversation.save_message");
    let outcome = |outcome| vec![save, ("outcome", outcome)];
    let of_savers = [
        ("verbatim_messages_saved_total", vec![], 5.0),
        ("verbatim_messages_duplicate_total", vec![], 1.0),
        ("verbatim_messages_conflict_total", vec![], 1.0),
        ("verbatim_messages_without_identity_total", vec![], 1.0),
        ("verbatim_messages_without_timestamp_total", vec![], 1.0),
        ("verbatim_conversations_reopened_total", vec![], 1.0),
        ("verbatim_deliveries_total", outcome("applied"), 5.0),
        ("verbatim_deliveries_total", outcome("duplicate"), 1.0),
        ("verbatim_deliveries_total", outcome("dead_lettered"), 2.0),
        ("verbatim_publishes_total", vec![("outcome", "confirmed")], 2.0),
        ("verbatim_batch_messages_sum", vec![save], 7.0),
    ];
    for (name, labels, expected) in of_savers {
        eventually(format!("{name} {labels:?} = {expected}"), system_tests::LIMIT, async || {
            let (one, two) = tokio::join!(Counts::of(&savers[0]), Counts::of(&savers[1]));
            let sum = one.sum(name, &labels) + two.sum(name, &labels);
            if (sum - expected).abs() < 0.5 { Ok(()) } else { Err(sum.to_string()) }
        })
        .await;
    }
    let by_close = vec![("cause", "session_closed")];
    let of_migration = [
        ("verbatim_session_events_total", vec![("event", "opened")], 1.0),
        ("verbatim_session_events_total", vec![("event", "closed")], 2.0),
        ("verbatim_conversations_closed_total", by_close, 2.0),
        ("verbatim_conversations_closed_empty_total", vec![], 1.0),
        ("verbatim_close_seconds_count", vec![], 2.0),
        ("verbatim_publish_seconds_count", vec![], 2.0),
    ];
    for (name, labels, least) in of_migration {
        Counts::reach(migration, name, &labels, least).await;
    }
    let conflict = vec![save, ("reason", "conflict")];
    let of_statistics = [
        ("verbatim_statistics_recomputed_total", vec![], 2.0),
        ("verbatim_daily_buckets_recomputed_total", vec![], 2.0),
    ];
    for (name, labels, least) in of_statistics {
        Counts::reach(statistics, name, &labels, least).await;
    }
    let of_collector = [
        ("verbatim_dead_letters_stored_total", conflict.clone(), 1.0),
        ("verbatim_messages_rerouted_total", vec![("cause", "unrouted")], 1.0),
        ("verbatim_dead_letters", conflict, 1.0),
        ("verbatim_dead_letters", vec![save, ("reason", "malformed_json")], 1.0),
        ("verbatim_queue_consumers", vec![save], 2.0),
        ("verbatim_queue_exists", vec![save], 1.0),
        ("verbatim_counted_timestamp_seconds", vec![("what", "queues")], 1.0),
        ("verbatim_counted_timestamp_seconds", vec![("what", "rows")], 1.0),
    ];
    for (name, labels, least) in of_collector {
        Counts::reach(collector, name, &labels, least).await;
    }
}

#[tokio::test]
async fn every_worker_reports_liveness_readiness_and_metrics() {
    let ServerSet { savers, migration, statistics, collector, .. } = ServerSet::shared().await;
    let servers = ["postgresql", "redis", "rabbitmq", "process"];
    let queues: [(_, &[&str]); 5] = [
        (&savers[0], &["conversation.save_message", "conversation.save_message.slow"]),
        (&savers[1], &["conversation.save_message", "conversation.save_message.slow"]),
        (migration, &["conversation.session", "conversation.session.slow"]),
        (statistics, &["conversation.statistics"]),
        (
            collector,
            &[
                "domain.unrouted",
                "bot.state",
                "conversation.save_message.dlq",
                "conversation.save_message.dlq.slow",
                "conversation.session.dlq",
                "conversation.session.dlq.slow",
                "conversation.statistics.dlq",
                "conversation.statistics.dlq.slow",
                "bot.state.dlq",
                "bot.state.dlq.slow",
                "domain.unrouted.dlq",
                "domain.unrouted.dlq.slow",
            ],
        ),
    ];
    for (worker, queues) in queues {
        let live = worker.get("/livez").await.unwrap();
        assert_eq!(live.status, 200, "{}", live.body);
        let tasks: Value = serde_json::from_str(&live.body).unwrap();
        assert_eq!(tasks["live"], true, "{tasks}");

        let ready = worker.get("/readyz").await.unwrap();
        let checks: Value = serde_json::from_str(&ready.body).unwrap();
        let names: BTreeSet<&str> =
            checks["checks"].as_object().unwrap().keys().map(String::as_str).collect();
        let expected: BTreeSet<&str> = servers.iter().chain(queues).copied().collect();
        assert_eq!(names, expected, "{}", worker.name());

        let counts = Counts::of(worker).await;
        for definition in metrics::definitions() {
            let closed = definition.labels.iter().all(|label| label.values.is_some());
            if closed && definition.kind == metrics::Kind::Counter {
                assert!(counts.has(definition.name), "{} of {}", definition.name, worker.name());
            }
        }
        assert!(counts.has("verbatim_build_info") && counts.has("process_resident_memory_bytes"));
        assert_eq!(counts.sum("verbatim_panics_total", &[]), 0.0);
    }
}
