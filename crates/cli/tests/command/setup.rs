//! `verbatim setup`.

use fixtures::body;
use serde_json::json;
use testkit::TestEnv;

use crate::support::{Verbatim, prepared, save};

#[tokio::test]
async fn setup_reports_what_it_created_and_the_second_time_that_all_is_there() {
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
    let text = verbatim.run(&["setup"]).await.out;
    assert_eq!(text.matches("already there").count(), 2, "{text}");
}

#[tokio::test]
async fn setup_creates_a_deleted_queue_and_names_it() {
    let (env, verbatim) = prepared().await;
    let queue = format!("/api/queues/{}/domain.retry.5000", env.name);
    env.management().request("DELETE", &queue, "").await.unwrap();
    let report = verbatim.json(&["setup"]).await;
    assert_eq!(report["topology"]["created"], json!(["queue domain.retry.5000"]));
}

#[tokio::test]
async fn setup_reports_a_queue_with_other_arguments_and_still_creates_the_schema() {
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
async fn setup_names_every_unreachable_server_without_its_password() {
    let verbatim = Verbatim::default()
        .with("AMQP_URL", "amqp://user:hunter2@127.0.0.1:9/v")
        .with("DATABASE_URL", "postgres://user:hunter2@127.0.0.1:9/d");
    let ran = verbatim.run(&["setup"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("RabbitMQ at amqp://***@127.0.0.1:9/v: "), "{ran:?}");
    assert!(ran.err.contains("PostgreSQL at postgres://***@127.0.0.1:9/d: "), "{ran:?}");
    assert_eq!(ran.err.matches("nothing listens at this address").count(), 2, "{ran:?}");
    assert!(!ran.err.contains("hunter2"), "{ran:?}");
}

#[tokio::test]
async fn setup_refuses_a_database_that_cannot_store_every_text() {
    let env = TestEnv::new().await;
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("{}_{}", env.name, encoding.to_lowercase());
        env.psql(&format!("CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0"))
            .await
            .unwrap();
        let (server, _) = env.database_url.rsplit_once('/').unwrap();
        let verbatim = Verbatim::of(&env).with("DATABASE_URL", &format!("{server}/{name}"));
        let ran = verbatim.run(&["setup"]).await;
        env.psql(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
        assert_eq!(ran.code, 1, "{ran:?}");
        let cause = format!("the encoding of the database is {encoding}, not UTF8");
        assert!(ran.err.contains(&cause), "{ran:?}");
    }
}

#[tokio::test]
async fn a_closed_pipe_hides_no_problem() {
    let without = Verbatim::default().with("DATABASE_URL", "postgres://user@127.0.0.1:9/d");
    let unreachable = without.with("AMQP_URL", "amqp://user@127.0.0.1:9/v");
    assert_eq!(unreachable.run_unread(&["setup"]).await, 3);
    assert_eq!(unreachable.run_unread(&["lint", "-"]).await, 1);
    assert_eq!(unreachable.run_unread(&["--help"]).await, 0);
}

#[tokio::test]
async fn after_a_restore_every_hot_copy_is_invalid_until_it_is_loaded_again() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({})), body("s", "m-2", &json!({}))]).await;
    let show = ["conversation", "show", "--tenant", "acme", "--session", "s"];
    let source = async || verbatim.json(&show).await["source"].clone();
    assert_eq!((source().await, source().await), (json!("postgresql"), json!("redis")));
    // A restore to before the second message, with the same epoch and generation.
    env.psql("DELETE FROM message_rows WHERE id = 'm-2'").await.unwrap();
    assert_eq!(source().await, "redis", "the hot copy still has the current epoch and generation");

    let ran = verbatim.run(&["setup", "--restored", "--actor", "night shift"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("hot copies          invalidated"), "{ran:?}");
    let shown = verbatim.json(&show).await;
    assert_eq!((&shown["source"], &shown["messages"][1]), (&json!("postgresql"), &json!(null)));
    assert_eq!(source().await, "redis");
    let line = "SELECT actor FROM audit_log WHERE action = 'hot_copies.invalidate'";
    assert_eq!(env.psql(line).await.unwrap().trim(), "night shift");
}
