//! Dead letters over HTTP.

use serde_json::{Value, json};
use system_tests::{COLLECTOR, LIMIT, SAVER, message};
use testkit::wait::eventually;

use crate::{ids, started, with_status};

#[tokio::test]
async fn a_refused_action_is_listed_and_shown_to_its_tenant_alone() {
    let (scenario, api) = started().await;
    let _workers = [SAVER, COLLECTOR].map(|worker| scenario.launch(worker, &[]));
    let agent = scenario.agent();
    for tenant in ["acme", "globex"] {
        agent
            .publish(&message(
                tenant,
                "s",
                "m",
                &json!({"role": "bot", "content": format!("of {tenant}")}),
            ))
            .await;
    }
    let (acme, globex) =
        (api.key("acme", &["operate"]).await, api.key("globex", &["operate"]).await);
    let listed = async |key: &str| {
        eventually("a dead letter", LIMIT, async || {
            let list = api.json(key, "/api/dead-letters").await;
            match list["dead_letters"].as_array().unwrap().as_slice() {
                [one] => Ok(one.clone()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    };
    let (own, foreign) = (listed(&acme).await, listed(&globex).await);
    assert_eq!(
        (&own["reason"], &own["field"], &own["status"]),
        (&json!("schema"), &json!("role"), &json!("open"))
    );
    let path = |it: &Value| format!("/api/dead-letters/{}", it["id"].as_str().unwrap());
    let shown = api.json(&acme, &path(&own)).await;
    assert!(shown["body"].as_str().unwrap().contains("of acme"), "{shown}");
    assert_eq!(shown["id"], own["id"]);
    with_status(&api.get(&acme, &path(&foreign)).await, 404);
    with_status(
        &api.get(&acme, "/api/dead-letters/0b7a1f9e-3c55-4a53-9d0e-6f2f5f3c9a11").await,
        404,
    );
    with_status(&api.get(&acme, "/api/dead-letters?tenant_id=globex").await, 404);
    let operator = api.operator_key(&["operate"]).await;
    let all = api.json(&operator, "/api/dead-letters?tenant_id=globex").await;
    assert_eq!(ids(&all["dead_letters"]), ids(&json!([foreign])));
}

#[tokio::test]
async fn pages_of_dead_letters_have_each_once_and_internal_errors_are_shown_to_operators_alone() {
    let (scenario, api) = started().await;
    scenario
        .sql("INSERT INTO dead_letters (id, queue, reason, error, tenant_id, routing_key, exchange, body, properties, headers,
                                        attempts, replay_count, first_failed_at, last_failed_at, status, stored_at)
              SELECT gen_random_uuid(), 'q' || n % 2, CASE n % 3 WHEN 0 THEN 'attempts_exhausted' ELSE 'schema' END,
                     'server db-1 says no', 'acme', 'r', '', CASE n WHEN 1 THEN '\\xff'::bytea ELSE '{}' END, '{}', '{}', 1, 0,
                     now(), now(), CASE n % 5 WHEN 0 THEN 'discarded' ELSE 'open' END,
                     timestamptz '2026-01-01' + (n / 4) * interval '1 second'
              FROM generate_series(1, 40) AS n")
        .await;
    let key = api.key("acme", &["operate"]).await;
    for (query, total) in [
        ("?status=any", 40),
        ("?status=open", 32),
        ("?status=discarded", 8),
        ("?queue=q1&status=any", 20),
        ("?reason=attempts_exhausted&status=any", 13),
        ("?action_type=none", 0),
    ] {
        let path = format!("/api/dead-letters{query}");
        let whole = api.json(&key, &format!("{path}&limit=200")).await;
        assert_eq!(ids(&whole["dead_letters"]).len(), total, "{query}");
        let (mut found, mut cursor) = (vec![], String::new());
        loop {
            let page = api.json(&key, &format!("{path}&limit=7{cursor}")).await;
            found.extend(ids(&page["dead_letters"]));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(found, ids(&whole["dead_letters"]), "{query}");
    }
    let operator = api.operator_key(&["operate"]).await;
    let internal = "/api/dead-letters?reason=attempts_exhausted&tenant_id=acme&limit=1";
    let error = async |key: &str| api.json(key, internal).await["dead_letters"][0]["error"].clone();
    assert_eq!(error(&operator).await, "server db-1 says no");
    assert!(!error(&key).await.as_str().unwrap().contains("db-1"));
    let binary = scenario.sql("SELECT id FROM dead_letters WHERE length(body) = 1").await;
    let shown = api.json(&key, &format!("/api/dead-letters/{binary}")).await;
    assert_eq!((&shown["body"], &shown["body_base64"]), (&Value::Null, &json!("/w==")));
    with_status(&api.get(&key, "/api/dead-letters/x").await, 422);
}
