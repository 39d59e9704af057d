//! `verbatim trace`.

use database::{CollectedDeadLetter, DeadLetter};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use fixtures::{body, database};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{SAVER, Verbatim, lines, prepared, save};

/// The events of a timeline, in order.
fn events(item: &Value) -> Vec<&str> {
    item["timeline"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect()
}

fn moment<'a>(item: &'a Value, what: &str) -> &'a str {
    let timeline = item["timeline"].as_array().unwrap();
    timeline.iter().find(|it| it["what"] == what).unwrap()["text"].as_str().unwrap()
}

async fn only(verbatim: &Verbatim, arguments: &[&str]) -> Value {
    let mut traced = verbatim.json(&[&["trace"], arguments].concat()).await;
    let items = traced["items"].as_array_mut().unwrap();
    assert_eq!(items.len(), 1, "{items:#?}");
    items.pop().unwrap()
}

/// A dead letter of this message, which failed four times within 36 s.
fn dead_letter(id: u128, tenant: &str, message: &str) -> CollectedDeadLetter {
    let mut collected = fixtures::dead_letter(id);
    collected.dead_letter = DeadLetter {
        reason: DeadLetterReason::AttemptsExhausted.to_string(),
        field: None,
        error: "it failed".to_owned(),
        tenant_id: Some(tenant.to_owned()),
        conversation_id: Some("c-dead".to_owned()),
        session_id: Some("s-dead".to_owned()),
        message_id: Some(message.to_owned()),
        attempts: 4,
        last_failed_at: Timestamp::parse("2026-11-20T10:00:36Z").unwrap().into(),
        ..collected.dead_letter
    };
    collected
}

#[tokio::test]
async fn a_saved_and_archived_message_is_traced_with_worker_and_times() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({})), body("s", "m-2", &json!({}))]).await;
    let item = only(&verbatim, &["m-1"]).await;
    assert_eq!((&item["matched"], &item["state"]), (&json!("message"), &json!("active")));
    assert_eq!((&item["tenant_id"], &item["message_id"]), (&json!("acme"), &json!("m-1")));
    assert_eq!(item["hot"], "no_hot_copy");
    assert_eq!(events(&item), ["published", "received", "saved"]);
    assert!(
        moment(&item, "saved").starts_with(&format!("by message-save-worker {SAVER}, ")),
        "{item}"
    );

    // A reader loads the copy.
    verbatim.json(&["conversation", "show", "--tenant", "acme", "--session", "s"]).await;
    assert_eq!(only(&verbatim, &["m-1"]).await["hot"], "in_hot_copy");

    env.psql(
        "UPDATE conversations SET status = 'archived', message_count = 2, close_reason = 'user_left',
             close_requested_at = now(), closed_at = now(), finalised_at = now()",
    )
    .await
    .unwrap();
    let item = only(&verbatim, &["m-1"]).await;
    assert_eq!(item["state"], "archived");
    let expected =
        ["published", "received", "saved", "close requested", "close started", "archived"];
    assert_eq!(events(&item), expected);
    assert_eq!(moment(&item, "close requested"), "its last session closed; reason: user_left");

    let id = item["conversation_id"].as_str().unwrap();
    let by_id = only(&verbatim, &[id]).await;
    assert_eq!((&by_id["matched"], &by_id["message_id"]), (&json!("conversation"), &json!(null)));
    let by_session = only(&verbatim, &["s"]).await;
    assert_eq!(by_session["matched"], "session");
    assert_eq!(by_session["conversation_id"], id);
    let text = verbatim.run(&["trace", "m-1"]).await.out;
    assert!(
        text.contains("now           stored in PostgreSQL; the conversation is archived"),
        "{text}"
    );
}

#[tokio::test]
async fn a_dead_letter_is_found_by_its_own_id_its_message_and_its_conversation() {
    let (env, verbatim) = prepared().await;
    database(&env.database_url)
        .store_dead_letters(&[dead_letter(7, "acme", "m-dead")], &[])
        .await
        .unwrap();
    let id = Uuid::from_u128(7).to_string();
    for (id, matched) in [(&*id, "dead_letter"), ("m-dead", "message"), ("c-dead", "dead_letter")] {
        let item = only(&verbatim, &[id]).await;
        assert_eq!((&item["matched"], &item["state"]), (&json!(matched), &json!("dead_letter")));
        assert_eq!(events(&item), ["failed", "dead-lettered", "dead letter stored"]);
        assert_eq!(
            moment(&item, "failed"),
            "the first of 4 attempts, in conversation.save_message"
        );
    }

    env.psql(
        "UPDATE dead_letters SET status = 'discarded', status_changed_at = now(), status_reason = 'a test';
         INSERT INTO audit_log (actor, action, tenant_id, subject)
             SELECT 'ops', 'dead_letter.discard', tenant_id, id::text FROM dead_letters",
    )
    .await
    .unwrap();
    let item = only(&verbatim, &["m-dead"]).await;
    assert_eq!(item["state"], "discarded");
    assert_eq!(events(&item)[3..], ["discarded", "operator"]);
    assert_eq!(moment(&item, "operator"), "dead_letter.discard by ops");
}

#[tokio::test]
async fn a_replayed_dead_letter_is_part_of_the_timeline_of_its_saved_message() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({"conversation_id": "c-dead"}))]).await;
    database(&env.database_url)
        .store_dead_letters(&[dead_letter(7, "acme", "m-1")], &[])
        .await
        .unwrap();
    env.psql("UPDATE dead_letters SET status = 'replayed', status_changed_at = now()")
        .await
        .unwrap();
    for id in ["m-1", &Uuid::from_u128(7).to_string()] {
        let item = only(&verbatim, &[id]).await;
        assert_eq!(item["state"], "active");
        let expected = [
            "published",
            "failed",
            "dead-lettered",
            "received",
            "saved",
            "dead letter stored",
            "replayed",
        ];
        let mut sorted = events(&item);
        sorted.sort_unstable();
        let mut wanted = expected.to_vec();
        wanted.sort_unstable();
        assert_eq!(sorted, wanted);
    }
}

#[tokio::test]
async fn an_id_that_several_tenants_use_is_shown_for_each() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({}))]).await;
    save(&env, &[body("s", "m-1", &json!({"tenant_id": "umbrella"}))]).await;
    database(&env.database_url)
        .store_dead_letters(&[dead_letter(7, "hooli", "m-1")], &[])
        .await
        .unwrap();
    let traced = verbatim.json(&["trace", "m-1"]).await;
    let tenants: Vec<_> =
        traced["items"].as_array().unwrap().iter().map(|it| &it["tenant_id"]).collect();
    assert_eq!(tenants, ["acme", "hooli", "umbrella"]);
    let item = only(&verbatim, &["m-1", "--tenant", "umbrella"]).await;
    assert_eq!(item["tenant_id"], "umbrella");
    let text = verbatim.run(&["trace", "m-1"]).await.out;
    assert!(text.starts_with("3 items have the id m-1\n"), "{text}");
}

#[tokio::test]
async fn an_unknown_id_is_reported_with_the_ready_messages() {
    let (env, verbatim) = prepared().await;
    let ran = verbatim.run(&["trace", "m-9"]).await;
    assert_eq!(
        (ran.code, &*ran.out),
        (
            1,
            "PostgreSQL has no message, conversation, session or dead letter with the id m-9\nno message is ready in any queue\n"
        )
    );
    let published =
        verbatim.run_on(&["publish", "-"], &lines(&[body("s", "m-9", &json!({}))])).await;
    assert_eq!(published.code, 0, "{published:?}");
    let ran = verbatim.run(&["trace", "m-9"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out.contains("it may still be in a queue:\n  1 ready in conversation.save_message\n"),
        "{ran:?}"
    );
    let alone = Verbatim::default().with("DATABASE_URL", &env.database_url);
    let ran = alone.run(&["trace", "m-9"]).await;
    assert!(ran.out.contains("queues not checked: AMQP_URL is not set"), "{ran:?}");
}
