//! `verbatim verify`.

use fixtures::body;
use serde_json::json;

use crate::support::{Verbatim, prepared, save};

#[tokio::test]
async fn a_healthy_fleet_is_checked_section_by_section_without_findings() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({})), body("s", "m-2", &json!({}))]).await;
    let report = verbatim.json(&["verify"]).await;
    assert_eq!((&report["result"], &report["findings"]), (&json!("ok"), &json!([])));
    let sections = report["sections"].as_array().unwrap();
    let checked: Vec<_> =
        sections.iter().map(|it| (it["section"].as_str().unwrap(), &it["incomplete"])).collect();
    let expected = ["hot_copies", "conversations", "days", "words", "integrity", "queues"]
        .map(|section| (section, &serde_json::Value::Null));
    assert_eq!(checked, expected);
    let ran = verbatim.run(&["verify"]).await;
    assert!(ran.out.contains("hot copies against rows (Redis, PostgreSQL)\n"), "{ran:?}");
    assert!(ran.out.ends_with("\nno findings\n"), "{ran:?}");
}

#[tokio::test]
async fn damage_is_found_repaired_on_request_and_not_found_again() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({})), body("s", "m-2", &json!({}))]).await;
    // A reader loads the copy.
    verbatim.json(&["conversation", "show", "--tenant", "acme", "--session", "s"]).await;
    env.psql("DELETE FROM message_rows WHERE id = 'm-2'").await.unwrap();

    let ran = verbatim.run(&["verify", "--json"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let finding = &ran.json()["findings"][0];
    assert_eq!(finding["kind"], "hot_copy_surplus");
    assert_eq!((&finding["id"], &finding["repair"]), (&json!("m-2"), &json!("not_requested")));
    let ran = verbatim.run(&["verify"]).await;
    assert!(
        ran.out.contains("`verbatim verify --repair` repairs the repairable findings"),
        "{ran:?}"
    );
    assert_eq!(env.psql("SELECT count(*) FROM audit_log").await.unwrap().trim(), "0");

    let ran = verbatim.run(&["verify", "--repair", "--actor", "ops"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("; repaired\n"), "{ran:?}");
    let audited = env.psql("SELECT actor, action FROM audit_log").await.unwrap();
    assert_eq!(audited.trim(), "ops|repair.invalidate_hot_copy");
    assert_eq!(verbatim.json(&["verify"]).await["result"], "ok");
}

#[tokio::test]
async fn a_finding_that_is_not_repairable_exits_with_1() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({}))]).await;
    env.psql("UPDATE conversations SET close_requested_at = now() - interval '1 hour'")
        .await
        .unwrap();
    let ran = verbatim.run(&["verify", "--repair", "--json"]).await;
    assert_eq!((ran.code, &ran.json()["result"]), (1, &json!("found")), "{ran:?}");
    assert_eq!(ran.json()["findings"][0]["repair"], "not_repairable");
    let later = verbatim.run(&["verify", "--overdue-after", "2h"]).await;
    assert_eq!(later.code, 0, "{later:?}");
}

#[tokio::test]
async fn an_unreachable_server_is_named_and_the_rest_is_checked() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({}))]).await;
    let through = verbatim.clone().with("REDIS_URL", "redis://127.0.0.1:9/0");
    let ran = through.run(&["verify", "--json"]).await;
    assert_eq!((ran.code, &ran.json()["result"]), (3, &json!("incomplete")), "{ran:?}");
    let sections = &ran.json()["sections"];
    assert_eq!(sections[0]["incomplete"]["dependency"], "redis");
    assert_eq!((&sections[1]["checked"], &sections[1]["incomplete"]), (&json!(1), &json!(null)));

    let through = verbatim.with("DATABASE_URL", "postgres://user:hunter2@127.0.0.1:9/d");
    let ran = through.run(&["verify", "--json"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    let report = ran.json();
    let sections = report["sections"].as_array().unwrap();
    let queues = sections.iter().find(|it| it["section"] == "queues").unwrap();
    assert_eq!(queues["incomplete"], json!(null));
    assert!(queues["checked"].as_u64().unwrap() > 10, "{queues}");
    assert!(!ran.out.contains("hunter2"), "{ran:?}");
    // Unrepaired findings outrank an incomplete check.
    let queue = format!("/api/queues/{}/bot.state", env.name);
    env.management().request("DELETE", &queue, "").await.unwrap();
    let ran = Verbatim::of(&env).with("REDIS_URL", "redis://127.0.0.1:9/0").run(&["verify"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[tokio::test]
async fn an_invalid_time_exits_with_2() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({}))]).await;
    let ran = verbatim.run(&["verify", "--since", "yesterday"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("such as 2h or 30min"), "{ran:?}");
    assert_eq!(verbatim.run(&["verify", "--since", "24h"]).await.code, 0);
    assert_eq!(verbatim.run(&["verify", "--since", "2026-11-20T10:00:00Z"]).await.code, 0);
}
