//! The audit log of the API.

use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::json;
use system_tests::LIMIT;
use testkit::wait::eventually;

use crate::{archived, started, started_with, with_status};

#[tokio::test]
async fn each_transcript_that_leaves_is_an_entry_and_other_requests_are_counted() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 2, 3).await;
    let key = api.key("acme", &["read"]).await;
    let headers = [("x-request-id", "of-the-test")];
    let read = api.get_with(&key, "/api/conversations/c0/full?limit=2", &headers).await;
    with_status(&read, 200);
    let etag = read.header("etag").unwrap().to_owned();
    let again = [("if-none-match", etag.as_str())];
    let read = api.get_with(&key, "/api/conversations/c0/full?limit=2", &again).await;
    with_status(&read, 304);
    with_status(&api.get(&key, "/api/conversations/c9/full").await, 404);
    for _ in 0..3 {
        api.json(&key, "/api/conversations/list/acme").await;
    }
    api.json(&key, "/api/conversations/stats/acme").await;
    let id = access::ApiKey::parse(&key).unwrap().id().to_owned();
    let entries = scenario
        .sql("SELECT string_agg(concat_ws('|', actor, action, tenant_id, subject, detail->>'messages',
                                          CASE detail->>'request_id' WHEN 'of-the-test' THEN 'named' END,
                                          detail->>'address'), ', ' ORDER BY id)
              FROM audit_log WHERE action = 'conversation.read'")
        .await;
    let one = format!("API key {id}|conversation.read|acme|c0|2");
    assert_eq!(entries, format!("{one}|named|127.0.0.1, {one}|127.0.0.1"));
    // The counts are written at the latest when the process stops.
    assert!(api.worker.stop(LIMIT).await.unwrap().success());
    let counts = scenario
        .sql("SELECT string_agg(concat_ws('|', actor, tenant_id, subject, requests), ', ' ORDER BY subject)
              FROM (SELECT actor, tenant_id, subject, sum((detail->>'requests')::int) AS requests
                    FROM audit_log WHERE action = 'api.requests' GROUP BY 1, 2, 3) AS c")
        .await;
    let count = |endpoint: &str, requests| format!("API key {id}|acme|{endpoint}|{requests}");
    assert_eq!(counts, [count("list_conversations", 3), count("tenant_stats", 1)].join(", "));
}

#[tokio::test]
async fn no_transcript_leaves_without_its_entry() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 1, 1).await;
    let key = api.key("acme", &["read"]).await;
    let path = "/api/conversations/c0/full";
    with_status(&api.get(&key, path).await, 200);
    scenario.sql("ALTER TABLE audit_log ADD CONSTRAINT none CHECK (false) NOT VALID").await;
    let refused = api.get(&key, path).await;
    assert!(!refused.body.contains("said to acme"), "{refused:?}");
    with_status(&refused, 500);
    api.json(&key, "/api/conversations/list/acme").await;
    scenario.sql("ALTER TABLE audit_log DROP CONSTRAINT none").await;
    with_status(&api.get(&key, path).await, 200);
    assert_eq!(
        scenario.sql("SELECT count(*) FROM audit_log WHERE action = 'conversation.read'").await,
        "2"
    );
}

#[tokio::test]
async fn a_count_that_postgresql_refuses_keeps_no_other_from_being_written_and_is_logged() {
    let (scenario, api) = started().await;
    let keys = [api.key("acme", &["read"]).await, api.key("acme", &["read"]).await];
    for key in &keys {
        api.json(key, "/api/conversations/list/acme").await;
    }
    let [refused, written] = keys.map(|key| access::ApiKey::parse(&key).unwrap().id().to_owned());
    let check = format!("CHECK (actor <> 'API key {refused}') NOT VALID");
    scenario.sql(&format!("ALTER TABLE audit_log ADD CONSTRAINT not_this_key {check}")).await;
    assert!(api.worker.stop(LIMIT).await.unwrap().success());
    let actors = "SELECT string_agg(actor, ', ') FROM audit_log WHERE action = 'api.requests'";
    assert_eq!(scenario.sql(actors).await, format!("API key {written}"));
    let log = api.worker.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("it is dropped")).collect();
    assert!(lines.len() == 1 && lines[0].contains(&refused), "{lines:?} in {log}");
    for content in ["api.requests", "acme", "list_conversations", "not_this_key"] {
        assert!(lines[0].contains(content), "{content} in {lines:?}");
    }
}

#[tokio::test]
async fn audited_reads_at_once_share_commits() {
    let settings = [("VERBATIM_KEY_RATE", "100000"), ("VERBATIM_KEY_BURST", "100000")];
    let (scenario, api) = started_with(&settings).await;
    archived(&scenario, "acme", 10, 2).await;
    let key = api.key("acme", &["read"]).await;
    // A commit takes 20 ms: one after the other would take 20 s.
    scenario
        .sql("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$;
              CREATE TRIGGER slow AFTER INSERT ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION slow()")
        .await;
    let reads = stream::iter(0..1_000).map(|n| {
        let (api, key) = (&api, &key);
        async move { api.get(key, &format!("/api/conversations/c{}/full", n % 10)).await.status }
    });
    let statuses: Vec<u16> = reads.buffer_unordered(64).collect().await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let counts = "SELECT count(*) || ' ' || (count(DISTINCT xmin::text) < 250) FROM audit_log WHERE action = 'conversation.read'";
    assert_eq!(scenario.sql(counts).await, "1000 true");
    let chains = "SELECT string_agg(process || ' ' || n, ', ') FROM audit_chains WHERE n >= 1000";
    assert_eq!(scenario.sql(chains).await, "conversation-api 1000");
}

#[tokio::test]
async fn an_anomaly_is_an_entry_and_checkpoints_are_made() {
    let (scenario, api) = started().await;
    let collector = scenario.launch(system_tests::COLLECTOR, &[]);
    for _ in 0..12 {
        with_status(&api.get("vbt_x", "/api/conversations/list/acme").await, 401);
    }
    eventually("the entry of the anomaly", LIMIT, async || {
        let sql = "SELECT string_agg(action || ' ' || subject, ', ') FROM audit_log WHERE action LIKE 'anomaly.%'";
        match scenario.sql(sql).await.as_str() {
            "anomaly.refused_keys 127.0.0.1" => Ok(()),
            other => Err(format!("{other:?}; {}", api.worker.log_tail())),
        }
    })
    .await;
    drop(collector);
    // A worker makes the first checkpoint when it starts.
    let _collector = scenario.launch(system_tests::COLLECTOR, &[]);
    eventually("a checkpoint", LIMIT, async || {
        match scenario.sql("SELECT count(*) FROM audit_checkpoints").await.as_str() {
            "0" => Err("none".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    assert_ne!(
        scenario.sql("SELECT json_array_length(chains) FROM audit_checkpoints LIMIT 1").await,
        json!(0).to_string()
    );
}
