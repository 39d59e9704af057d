//! Dead letters over HTTP.

use serde_json::{Value, json};
use system_tests::{ApiServer, COLLECTOR, LIMIT, SAVER, Scenario, message};
use testkit::wait::eventually;

use crate::{ids, started, started_with, with_status};

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

/// Publishes an action that no queue's worker accepts, and waits for its dead letter.
async fn dead_letter_of(scenario: &Scenario, api: &ApiServer, key: &str, body: &Value) -> Value {
    let before = api.json(key, "/api/dead-letters").await["dead_letters"].as_array().unwrap().len();
    scenario.agent().publish(body).await;
    eventually("another dead letter", LIMIT, async || {
        let list = api.json(key, "/api/dead-letters").await;
        match list["dead_letters"].as_array().unwrap().as_slice() {
            all if all.len() > before => Ok(all[0].clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

fn path_of(dead_letter: &Value, what: &str) -> String {
    format!("/api/dead-letters/{}{what}", dead_letter["id"].as_str().unwrap())
}

#[tokio::test]
async fn a_dead_letter_is_replayed_when_its_cause_is_removed_and_takes_effect_once() {
    let (scenario, api) = started().await;
    let _workers = [SAVER, COLLECTOR].map(|worker| scenario.launch(worker, &[]));
    let (acme, globex) =
        (api.key("acme", &["operate", "read"]).await, api.key("globex", &["operate"]).await);
    let refused = json!({"role": "user", "content": "refused by a constraint"});
    scenario.sql("ALTER TABLE message_rows ADD CONSTRAINT no_refused CHECK (content NOT LIKE 'refused%')").await;
    let body = message("acme", "s", "m", &refused);
    let own = dead_letter_of(&scenario, &api, &acme, &body).await;
    // Another tenant replays and discards nothing.
    for what in ["/replay", "/discard"] {
        let reason = json!({ "reason": "mine" });
        with_status(&api.post(&globex, &path_of(&own, what), &[], &reason).await, 404);
    }
    // Its cause is still there: it fails again, and the answer says as what.
    let again = api.post(&acme, &path_of(&own, "/replay?wait=durable"), &[], &Value::Null).await;
    with_status(&again, 200);
    let again: Value = serde_json::from_str(&again.body).unwrap();
    assert_eq!(
        (&again["status"], &again["failed_again"]),
        (&json!("replayed"), &json!(true)),
        "{again}"
    );
    let next = json!({ "id": again["failed_again_as"]["id"] });
    // Edited, it names another tenant: this one does not write there.
    let edit = format!("UPDATE dead_letters SET edited_body = replace(convert_from(body, 'UTF8'), 'acme', 'globex')::bytea,
                                                edited_at = now(), edited_by = 'o' WHERE id = '{}'", next["id"].as_str().unwrap());
    scenario.sql(&edit).await;
    let path = path_of(&next, "/replay");
    let foreign = api.post(&acme, &path, &[], &Value::Null).await;
    with_status(&foreign, 409);
    assert!(foreign.body.contains("another tenant"), "{}", foreign.body);
    let state =
        "SELECT status || ' ' || replay_fault FROM dead_letters WHERE edited_body IS NOT NULL";
    assert!(scenario.sql(state).await.starts_with("open its body names another tenant"));
    scenario
        .sql("UPDATE dead_letters SET edited_body = NULL, edited_at = NULL, edited_by = NULL")
        .await;
    // The first one is no longer open.
    with_status(&api.post(&acme, &path_of(&own, "/replay"), &[], &Value::Null).await, 409);
    scenario.sql("ALTER TABLE message_rows DROP CONSTRAINT no_refused").await;
    let done = api.post(&acme, &path_of(&next, "/replay?wait=durable"), &[], &Value::Null).await;
    with_status(&done, 200);
    let done: Value = serde_json::from_str(&done.body).unwrap();
    assert_eq!(done["failed_again"], json!(false), "{done}");
    assert_eq!(scenario.sql("SELECT count(*) FROM messages").await, "1");
    let log = scenario
        .sql("SELECT string_agg(action || ' ' || (actor LIKE 'API key %') || ' ' || tenant_id, ', ' ORDER BY id)
              FROM audit_log WHERE action LIKE 'dead_letter%.replay%' AND action NOT LIKE '%_ended'")
        .await;
    let run = |result| format!("dead_letters.replay true acme, dead_letter.{result} true acme");
    assert_eq!(log, [run("replay"), run("replay_failed"), run("replay")].join(", "));
}

#[tokio::test]
async fn a_dead_letter_is_discarded_with_a_reason_and_not_twice() {
    let (scenario, api) = started().await;
    let _workers = [SAVER, COLLECTOR].map(|worker| scenario.launch(worker, &[]));
    let acme = api.key("acme", &["operate"]).await;
    let body = message("acme", "s", "m", &json!({"role": "bot", "content": "x"}));
    let own = dead_letter_of(&scenario, &api, &acme, &body).await;
    let discard = path_of(&own, "/discard");
    for (body, place) in [
        (json!([]), "#"),
        (json!({}), "#/reason"),
        (json!({"reason": 1}), "#/reason"),
        (json!({"reason": ""}), "#/reason"),
        (json!({"reason": "a\u{0}"}), "#/reason"),
        (json!({"reason": "x".repeat(1001)}), "#/reason"),
        (json!({"reason": "x", "w/y": "y"}), "#/w~1y"),
    ] {
        let refused = api.post(&acme, &discard, &[], &body).await;
        let problem = with_status(&refused, 422);
        assert_eq!(problem["errors"][0]["pointer"], json!(place), "{body}");
    }
    let reason = json!({"reason": "a test of the \"quotes\""});
    with_status(&api.post(&acme, &discard, &[], &reason).await, 200);
    with_status(&api.post(&acme, &discard, &[], &reason).await, 409);
    let shown = api.json(&acme, &path_of(&own, "")).await;
    assert_eq!(
        (&shown["status"], &shown["status_reason"]),
        (&json!("discarded"), &reason["reason"])
    );
    let reader = api.key("acme", &["read", "write"]).await;
    with_status(&api.post(&reader, &discard, &[], &reason).await, 403);
}

#[tokio::test]
async fn an_operator_sees_and_decides_about_dead_letters_that_name_no_tenant() {
    let (scenario, api) = started().await;
    let _workers = [SAVER, COLLECTOR].map(|worker| scenario.launch(worker, &[]));
    let (acme, operator) =
        (api.key("acme", &["operate"]).await, api.operator_key(&["operate"]).await);
    let nobodys = dead_letter_of(
        &scenario,
        &api,
        &operator,
        &json!({"action_type": "conversation.save_message"}),
    )
    .await;
    let body = message("globex", "s", "m", &json!({"role": "bot", "content": "x"}));
    let of_globex = dead_letter_of(&scenario, &api, &operator, &body).await;
    assert_eq!(ids(&api.json(&operator, "/api/dead-letters").await["dead_letters"]).len(), 2);
    let first = api.json(&operator, "/api/dead-letters?limit=1").await;
    let cursor = first["next"].as_str().unwrap();
    let second = api.json(&operator, &format!("/api/dead-letters?limit=1&cursor={cursor}")).await;
    assert_eq!(ids(&second["dead_letters"]), ids(&json!([nobodys])));
    // The cursor of every tenant is none of one tenant.
    let of_one = format!("/api/dead-letters?limit=1&tenant_id=globex&cursor={cursor}");
    with_status(&api.get(&operator, &of_one).await, 422);
    for dead_letter in [&nobodys, &of_globex] {
        with_status(&api.get(&acme, &path_of(dead_letter, "")).await, 404);
        with_status(&api.get(&operator, &path_of(dead_letter, "?tenant_id=acme")).await, 404);
        with_status(&api.get(&operator, &path_of(dead_letter, "")).await, 200);
    }
    let replayed =
        api.post(&operator, &path_of(&nobodys, "/replay?wait=durable"), &[], &Value::Null).await;
    with_status(&replayed, 200);
    let reason = json!({"reason": "not ours"});
    with_status(&api.post(&operator, &path_of(&of_globex, "/discard"), &[], &reason).await, 200);
    let log = scenario
        .sql(
            "SELECT string_agg(concat_ws(' ', action, tenant_id), ', ' ORDER BY id) FROM audit_log
              WHERE action IN ('dead_letter.replay', 'dead_letter.discard')",
        )
        .await;
    assert_eq!(log, "dead_letter.replay, dead_letter.discard globex");
}

#[tokio::test]
async fn without_the_role_for_operators_the_endpoints_say_so() {
    let (_scenario, api) = started_with(&[("API_OPERATOR_DATABASE_URL", "")]).await;
    let key = api.key("acme", &["operate"]).await;
    let problem = with_status(&api.get(&key, "/api/dead-letters").await, 501);
    assert!(problem["detail"].as_str().unwrap().contains("API_OPERATOR_DATABASE_URL"), "{problem}");
}
