//! One tenant's keys, cursors and tags are worth nothing for another tenant's data.

use crate::{archived, ids, started, with_status};

#[tokio::test]
async fn what_belongs_to_another_tenant_is_answered_as_what_never_was() {
    let (scenario, api) = started().await;
    for tenant in ["acme", "globex"] {
        archived(&scenario, tenant, 5, 5).await;
    }
    scenario.sql("UPDATE conversations SET id = 'only-' || tenant_id WHERE id = 'c4'").await;
    let (acme, globex) = (api.key("acme", &["read"]).await, api.key("globex", &["read"]).await);
    // All harvested from globex.
    let list = api.json(&globex, "/api/conversations/list/globex?limit=2").await;
    let cursor = list["next"].as_str().unwrap();
    let full = "/api/conversations/c0/full";
    let page = api.json(&globex, &format!("{full}?limit=2")).await;
    let message_cursor = page["next"].as_str().unwrap();
    let tag = api.get(&globex, full).await.header("etag").unwrap().to_owned();

    let without_id = |mut problem: serde_json::Value| {
        problem["request_id"] = serde_json::Value::Null;
        problem
    };
    for (foreign, never) in [
        ("/api/conversations/only-globex/full", "/api/conversations/only-nobody/full"),
        ("/api/conversations/list/globex", "/api/conversations/list/nobody"),
        ("/api/conversations/stats/globex", "/api/conversations/stats/nobody"),
        (
            "/api/conversations/c0/full?tenant_id=globex",
            "/api/conversations/c0/full?tenant_id=nobody",
        ),
        ("/api/agents/ada/stats?tenant_id=globex", "/api/agents/ada/stats?tenant_id=nobody"),
    ] {
        let foreign = with_status(&api.get(&acme, foreign).await, 404);
        let never = with_status(&api.get(&acme, never).await, 404);
        assert_eq!(without_id(foreign), without_id(never));
    }
    for (path, cursor) in [
        ("/api/conversations/list/acme?limit=2", cursor),
        (&format!("{full}?limit=2"), message_cursor),
    ] {
        let foreign = with_status(&api.get(&acme, &format!("{path}&cursor={cursor}")).await, 422);
        let garbage = with_status(&api.get(&acme, &format!("{path}&cursor=AAAA")).await, 422);
        assert_eq!(without_id(foreign), without_id(garbage));
    }
    // Both tenants have a conversation c0: each reads its own, also with the tag of the other's.
    let own = api.get_with(&acme, full, &[("if-none-match", &tag)]).await;
    let own = with_status(&own, 200);
    assert_eq!(own["tenant_id"], "acme");
    assert!(!own.to_string().contains("said to globex"), "{own}");
    let theirs = api.json(&globex, full).await.to_string();
    assert!(theirs.contains("said to globex") && !theirs.contains("said to acme"), "{theirs}");
}

/// On few connections, so that each serves both tenants in turn.
#[tokio::test]
async fn interleaved_requests_of_two_tenants_see_their_own_rows() {
    let (scenario, api) = crate::started_with(&[
        ("VERBATIM_API_DATABASE_CONNECTIONS", "2"),
        ("VERBATIM_KEY_RATE", "100000"),
        ("VERBATIM_KEY_BURST", "100000"),
    ])
    .await;
    for tenant in ["acme", "globex"] {
        archived(&scenario, tenant, 20, 2).await;
    }
    let keys = [api.key("acme", &["read"]).await, api.key("globex", &["read"]).await];
    let rounds = if testkit::environment::deep() { 2_000 } else { 200 };
    let reads = (0..rounds).map(async |n| {
        let (key, tenant, other) = match n % 2 {
            0 => (&keys[0], "acme", "globex"),
            _ => (&keys[1], "globex", "acme"),
        };
        let body = match n % 3 {
            0 => api.json(key, &format!("/api/conversations/c{}/full", n % 20)).await,
            _ => api.json(key, &format!("/api/conversations/list/{tenant}?limit=5")).await,
        };
        match n % 3 {
            0 => assert_eq!(ids(&body["messages"]).len(), 2),
            _ => assert_eq!(ids(&body["conversations"]).len(), 5),
        }
        assert!(!body.to_string().contains(other), "{tenant}: {body}");
    });
    let reads: Vec<_> = reads.collect();
    let mut reads = futures_util::stream::iter(reads);
    use futures_util::StreamExt as _;
    reads.by_ref().buffer_unordered(16).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn who_tries_keys_or_tenants_is_an_anomaly_and_normal_use_is_none() {
    let (scenario, api) = crate::started_with(&[
        ("VERBATIM_ANOMALY_READS_MINIMUM", "20"),
        ("VERBATIM_ANOMALY_READS_FACTOR", "1"),
    ])
    .await;
    archived(&scenario, "acme", 2, 10).await;
    let key = api.key("acme", &["read", "write"]).await;
    let counted = async |kind: &str| {
        let metrics = api.worker.get("/metrics").await.unwrap().body;
        let name = format!("verbatim_anomalies_total{{kind=\"{kind}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
    };
    for _ in 0..2 {
        with_status(&api.get(&key, "/api/conversations/c0/full").await, 200);
        with_status(&api.get(&key, "/api/conversations/unknown/full").await, 404);
        with_status(&api.get(&key, "/api/conversations/list/globex").await, 404);
    }
    for _ in 0..10 {
        with_status(&api.request("GET", "/api/conversations/c0/full", &[]).await, 401);
    }
    for kind in ["refused_keys", "foreign_tenants", "reads"] {
        assert_eq!(counted(kind).await, "0", "{kind}");
    }
    with_status(&api.request("GET", "/api/conversations/c0/full", &[]).await, 401);
    let foreign = serde_json::json!({"action_type": "conversation.session_opened", "session_id": "s", "tenant_id": "globex"});
    with_status(&api.post(&key, "/api/actions", &[], &foreign).await, 404);
    with_status(&api.get(&key, "/api/conversations/c1/full").await, 200);
    for kind in ["refused_keys", "foreign_tenants", "reads"] {
        assert_eq!(counted(kind).await, "1", "{kind}");
    }
}
