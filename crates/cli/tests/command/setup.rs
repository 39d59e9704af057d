//! Making the schema and the topology.

use serde_json::json;
use testkit::TestEnv;

use crate::support::Verbatim;

#[tokio::test]
async fn setup_says_what_it_made_and_the_second_time_that_all_is_there() {
    let env = TestEnv::new().await;
    let verbatim = Verbatim::of(&env);
    let first = verbatim.json(&["setup"]).await;
    assert_eq!(first["schema"]["state"], "created");
    assert!(first["schema"]["version"].as_i64().is_some_and(|version| version >= 1), "{first}");
    assert_eq!(first["topology"]["already_there"], 0);
    let created = first["topology"]["created"].as_array().unwrap();
    assert!(created.contains(&json!("exchange domain.actions")), "{first}");
    assert!(created.contains(&json!("queue conversation.save_message.dlq")), "{first}");

    let second = verbatim.json(&["setup"]).await;
    assert_eq!(second["schema"]["state"], "already_there");
    assert_eq!(second["topology"]["created"], json!([]));
    assert_eq!(second["topology"]["already_there"], created.len());
    let told = verbatim.run(&["setup"]).await.out;
    assert_eq!(told.matches("already there").count(), 2, "{told}");
}

#[tokio::test]
async fn setup_makes_the_one_queue_that_was_deleted_and_names_it() {
    let (env, verbatim) = crate::support::prepared().await;
    let queue = format!("/api/queues/{}/domain.retry.5000", env.name);
    env.management().request("DELETE", &queue, "").await.unwrap();
    let mended = verbatim.json(&["setup"]).await;
    assert_eq!(mended["topology"]["created"], json!(["queue domain.retry.5000"]));
}

#[tokio::test]
async fn setup_reports_a_queue_that_would_lose_messages_and_makes_the_schema_all_the_same() {
    let env = TestEnv::new().await;
    let queue = format!("/api/queues/{}/conversation.session", env.name);
    let other = r#"{"durable":true,"arguments":{"x-queue-type":"quorum"}}"#;
    env.management().request("PUT", &queue, other).await.unwrap();
    let ran = Verbatim::of(&env).run(&["setup", "--json"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("queue `conversation.session`"), "{ran:?}");
    assert_eq!(ran.json()["schema"]["state"], "created");
    assert_eq!(ran.json()["topology"], json!(null));
}

#[tokio::test]
async fn setup_names_every_server_that_is_away_without_its_password() {
    let verbatim = Verbatim::default()
        .with("AMQP_URL", "amqp://user:hunter2@127.0.0.1:9/v")
        .with("DATABASE_URL", "postgres://user:hunter2@127.0.0.1:9/d");
    let ran = verbatim.run(&["setup"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("RabbitMQ at amqp://***@127.0.0.1:9/v: "), "{ran:?}");
    assert!(ran.err.contains("PostgreSQL at postgres://***@127.0.0.1:9/d: "), "{ran:?}");
    assert_eq!(ran.err.matches("nothing listens there").count(), 2, "{ran:?}");
    assert!(!ran.err.contains("hunter2"), "{ran:?}");
}
