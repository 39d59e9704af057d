//! The API behind PgBouncer in transaction mode.

use std::sync::Arc;

use serde_json::{Value, json};
use system_tests::{ApiServer, LIMIT, Scenario};
use testkit::servers::PgBouncer;
use tokio::task::JoinSet;

use crate::{archived, ids, with_status};

/// A scenario with a PgBouncer of so many connections before its PostgreSQL.
async fn pooled(server_connections: u32) -> (Scenario, PgBouncer) {
    let scenario = Scenario::new().await;
    // Sets the role up.
    drop(ApiServer::start(&scenario, &[]).await);
    let [url, other] = ApiServer::database_urls(&scenario);
    let pooler = PgBouncer::before(&url, &[&other], server_connections).await.unwrap();
    (scenario, pooler)
}

#[tokio::test]
async fn requests_of_two_tenants_through_a_pooler_are_answered_with_their_own_rows() {
    let (scenario, pooler) = pooled(2).await;
    let settings = [
        ("VERBATIM_API_DATABASE_POOLER", "transaction"),
        ("VERBATIM_KEY_RATE", "10000"),
        ("VERBATIM_KEY_BURST", "10000"),
    ];
    let api = ApiServer::launch(&scenario, pooler.url(), &settings).await;
    api.worker.ready(LIMIT).await.unwrap();
    archived(&scenario, "acme", 5, 2).await;
    archived(&scenario, "globex", 3, 2).await;
    let mut keys = Vec::new();
    for (tenant, count) in [("acme", 5), ("globex", 3)] {
        keys.push((tenant, count, api.key(tenant, &["read", "write", "operate"]).await));
    }
    let api = Arc::new(api);
    let mut clients = JoinSet::new();
    for client in 0..16 {
        let (api, (tenant, count, key)) = (Arc::clone(&api), keys[client % 2].clone());
        clients.spawn(async move {
            for _ in 0..10 {
                let list = api.json(&key, &format!("/api/conversations/list/{tenant}")).await;
                assert_eq!(ids(&list["conversations"]).len(), count, "{tenant}: {list}");
                let full = api.json(&key, "/api/conversations/c0/full").await;
                assert_eq!(full["messages"][0]["content"], format!("said to {tenant}"), "{full}");
                let stats = api.json(&key, &format!("/api/conversations/stats/{tenant}")).await;
                assert_eq!(stats["tenant_id"], tenant, "{stats}");
                let agent = api.json(&key, "/api/agents/ada/stats").await;
                assert_eq!(agent["tenant_id"], tenant, "{agent}");
                let refused = api.json(&key, "/api/dead-letters").await;
                assert_eq!(refused["dead_letters"], json!([]), "{refused}");
            }
        });
    }
    clients.join_all().await;
    let action: Value = json!({"action_type": "conversation.session_opened", "session_id": "s"});
    let (_, _, key) = &keys[0];
    with_status(&api.post(key, "/api/actions", &[], &action).await, 202);
    api.revoke(key).await;
    testkit::wait::eventually("the key to be refused", LIMIT, async || {
        let answer = api.get(key, "/api/dead-letters").await;
        if answer.status == 401 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test]
async fn without_the_setting_a_pooler_in_transaction_mode_keeps_the_api_from_starting() {
    let (scenario, pooler) = pooled(4).await;
    let process = ApiServer::process(&scenario, pooler.url(), &[]).await;
    let status = process.wait(LIMIT).await.unwrap();
    let log = process.log_tail();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("set VERBATIM_API_DATABASE_POOLER=transaction"), "{log}");
}
