//! Looking at dead letters.

use archive::DeadLetter;
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{archive, body, prepared};

fn letter(id: u128, reason: DeadLetterReason, tenant: &str, body: &Value) -> DeadLetter {
    let at = Timestamp::parse("2026-11-20T10:00:00Z").unwrap();
    DeadLetter {
        id: Uuid::from_u128(id),
        queue: "conversation.save_message".to_owned(),
        reason,
        field: Some("role".to_owned()),
        error: "`role` must be a role, but is \"bot\"; did you mean `assistant`?".to_owned(),
        tenant_id: Some(tenant.to_owned()),
        conversation_id: None,
        session_id: None,
        message_id: None,
        action_type: Some("conversation.save_message".to_owned()),
        routing_key: "conversation.save_message".to_owned(),
        exchange: "domain.actions".to_owned(),
        body: body.to_string().into_bytes(),
        properties: json!({"content_type": "application/json"}),
        headers: json!({"x-verbatim-queue": "conversation.save_message"}),
        attempts: 1,
        replay_count: 0,
        replay_of: None,
        first_failed_at: at,
        last_failed_at: at,
    }
}

#[tokio::test]
async fn letters_are_counted_by_queue_and_reason_and_listed_by_filter() {
    let (env, verbatim) = prepared().await;
    let nothing = verbatim.run(&["dead-letters", "list"]).await;
    assert_eq!((nothing.code, nothing.out.as_str()), (0, "no open dead letters\n"));

    let bad = body("s", "m-1", json!({"role": "bot"}));
    let letters = [
        letter(1, DeadLetterReason::Schema, "acme", &bad),
        letter(2, DeadLetterReason::Schema, "umbrella", &bad),
        letter(3, DeadLetterReason::Conflict, "acme", &bad),
    ];
    archive(&env).store_dead_letters(&letters).await.unwrap();
    let discard =
        format!("UPDATE dead_letters SET status = 'discarded' WHERE id = '{}'", letters[2].id);
    env.psql(&discard).await.unwrap();

    let count = async |arguments: &[&str]| {
        let arguments = [&["dead-letters", "list"], arguments].concat();
        verbatim.json(&arguments).await["letters"].as_array().unwrap().len()
    };
    assert_eq!(count(&[]).await, 2, "only open ones, unless others are asked for");
    assert_eq!(count(&["--status", "all"]).await, 3);
    assert_eq!(count(&["--status", "discarded"]).await, 1);
    assert_eq!(count(&["--tenant", "acme"]).await, 1);
    assert_eq!(count(&["--status", "all", "--reason", "conflict"]).await, 1);
    assert_eq!(count(&["--queue", "conversation.session"]).await, 0);
    assert_eq!(count(&["--limit", "1"]).await, 1);

    let page = verbatim.json(&["dead-letters", "list", "--limit", "1"]).await;
    assert_eq!((&page["total"], page["open"][0]["letters"].as_u64()), (&json!(2), Some(2)));
    let next = page["next"].as_str().unwrap();
    let rest = verbatim.json(&["dead-letters", "list", "--limit", "1", "--before", next]).await;
    assert_ne!(rest["letters"][0]["id"], page["letters"][0]["id"]);
    let last = rest["letters"][0]["id"].as_str().unwrap();
    assert_eq!(count(&["--before", last]).await, 0);

    let listed = verbatim.json(&["dead-letters", "list", "--tenant", "umbrella"]).await;
    let listed = &listed["letters"];
    assert_eq!(listed[0]["id"], letters[1].id.to_string());
    assert_eq!(listed[0]["body_bytes"], letters[1].body.len());
    assert!(listed[0].get("body").is_none(), "bodies may be large: {listed}");
    let told = verbatim.run(&["dead-letters", "list"]).await.out;
    assert!(told.contains("   2  conversation.save_message  schema\n"), "{told}");
    assert!(told.contains(&letters[0].id.to_string()), "{told}");
}

#[tokio::test]
async fn a_letter_is_shown_with_its_body_and_what_would_mend_it() {
    let (env, verbatim) = prepared().await;
    let bad = body("s", "m-1", json!({"role": "bot"}));
    let letter = letter(7, DeadLetterReason::Schema, "acme", &bad);
    archive(&env).store_dead_letters(std::slice::from_ref(&letter)).await.unwrap();

    let id = letter.id.to_string();
    let shown = verbatim.json(&["dead-letters", "show", &id]).await;
    let body: Value = serde_json::from_str(shown["body"].as_str().unwrap()).unwrap();
    assert_eq!(body, bad);
    assert_eq!(shown["headers"], letter.headers);
    assert!(shown["suggestion"]["text"].as_str().unwrap().contains("role to \"assistant\""));
    let told = verbatim.run(&["dead-letters", "show", &id]).await.out;
    assert!(told.contains("\n    \"role\": \"bot\""), "{told}");
    assert!(
        told.contains(&format!("verbatim dead-letters edit {id} --apply-suggestion")),
        "{told}"
    );
}

#[tokio::test]
async fn a_letter_that_is_not_there_makes_the_exit_code_1() {
    let (_env, verbatim) = prepared().await;
    let ran = verbatim.run(&["dead-letters", "show", &Uuid::nil().to_string()]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("there is no dead letter 00000000"), "{ran:?}");
    let ran = verbatim.run(&["dead-letters", "show", "seven"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
}
