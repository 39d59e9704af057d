//! `verbatim queues`.

use broker::topology;
use fixtures::body;
use serde_json::{Value, json};
use testkit::TestEnv;

use crate::support::{Verbatim, lines, prepared};

#[tokio::test]
async fn every_queue_is_shown_and_work_without_consumers_is_named() {
    let (_env, verbatim) = prepared().await;
    let ran = verbatim.run_on(&["publish", "-"], &lines(&[body("s", "m-1", &json!({}))])).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let queues = verbatim.json(&["queues"]).await;
    let queues = queues.as_array().unwrap();
    assert_eq!(queues.len(), topology::queues().len());
    assert!(queues.iter().all(|row| row["exists"] == true && row["consumers"] == 0));
    let expected = json!({
        "queue": "conversation.save_message", "purpose": "work", "exists": true, "ready": 1,
        "consumers": 0, "worker": "message-save-worker", "about": "messages to save",
    });
    assert_eq!(queues[0], expected);
    let text = verbatim.run(&["queues"]).await.out;
    let hint = "1 message ready in conversation.save_message, but no consumer: start a message-save-worker";
    assert!(text.contains(hint), "{text}");
}

#[tokio::test]
async fn missing_queues_are_marked_and_exit_with_1() {
    let env = TestEnv::new().await;
    let ran = Verbatim::of(&env).run(&["queues", "--json"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let missing = |row: &Value| row["exists"] == false && row["ready"].is_null();
    assert!(ran.json().as_array().unwrap().iter().all(missing), "{ran:?}");
    let text = Verbatim::of(&env).run(&["queues"]).await.out;
    assert!(text.contains("queues missing: run `verbatim setup`"), "{text}");
}
