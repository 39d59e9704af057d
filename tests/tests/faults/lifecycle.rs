//! How workers start, and how they end after SIGTERM.

use domain::fleet;
use domain::status::ConversationStatus;
use serde_json::json;
use system_tests::{Counts, LIMIT, PublishedActions, SAVER, Scenario, closed, key_of, message};
use testkit::process::Signal;
use testkit::wait::eventually;

use crate::{SAVES, load, proxy, publish, stored, until_holding, until_stored, until_unready};

#[tokio::test]
async fn sigterm_under_load_drains_everything_that_was_delivered() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let leaving = scenario.start(SAVER).await;
    publish(&agent, &mut published, &load("drain", 3_000, 20)).await;
    Counts::reach(&leaving, "verbatim_messages_saved_total", &[], 1.0).await;
    scenario.drain([leaving]).await;
    let saved = stored(&scenario).await;
    let queued: u32 = scenario.queued().await.iter().map(|(_, ready)| ready).sum();
    let queued = usize::try_from(queued).unwrap();
    assert_eq!(saved + queued, 3_000, "every saved message is acknowledged");

    let next = scenario.start(SAVER).await;
    published.reconcile(&scenario, &reader).await;
    let counts = Counts::of(&next).await;
    assert_eq!(counts.sum("verbatim_redeliveries_total", &[]), 0.0, "nothing was redelivered");
    assert_eq!(counts.sum("verbatim_messages_duplicate_total", &[]), 0.0);
    scenario.finish([next]).await;
}

#[tokio::test]
async fn a_drain_that_cannot_finish_ends_at_its_deadline_or_at_a_second_signal() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    let cut_off =
        |deadline| [("DATABASE_URL", database.url()), ("VERBATIM_DRAIN_DEADLINE", deadline)];
    // Both hold their deliveries while the database is unavailable.
    let (short, long) = (cut_off("500ms"), cut_off("10m"));
    let (short, long) =
        tokio::join!(scenario.start_with(SAVER, &short), scenario.start_with(SAVER, &long));
    database.cut().await.unwrap();
    publish(&agent, &mut published, &load("cut", 200, 4)).await;
    tokio::join!(until_holding(&short), until_holding(&long));
    let status = short.stop(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(3), "{}", short.log_tail());

    long.signal(Signal::Terminate).unwrap();
    until_unready(&long, &["\"process\":{\"ready\":false"]).await;
    assert!(long.exited().is_none(), "it waits until its batches are finished");
    let status = long.stop(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(4), "{}", long.log_tail());
    assert_eq!(stored(&scenario).await, 0);

    let next = scenario.start(SAVER).await;
    published.reconcile(&scenario, &reader).await;
    scenario.finish([next]).await;
}

#[tokio::test]
async fn a_fleet_started_before_its_servers_reports_what_is_missing_and_becomes_ready() {
    let scenario = Scenario::new().await;
    let (broker, redis, database) = tokio::join!(
        proxy(&scenario.amqp_url),
        proxy(&scenario.redis_url),
        proxy(&scenario.database_url),
    );
    for server in [&broker, &redis, &database] {
        server.cut().await.unwrap();
    }
    let settings =
        [("AMQP_URL", broker.url()), ("REDIS_URL", redis.url()), ("DATABASE_URL", database.url())];
    let workers = fleet::WORKERS.map(|worker| scenario.launch(worker.name(), &settings));
    let missing =
        |names: &[&str]| names.iter().map(|it| format!("\"{it}\":{{\"ready\":false")).collect();
    let all: Vec<String> = missing(&["rabbitmq", "redis", "postgresql"]);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for worker in &workers {
        until_unready(worker, &all).await;
        assert_eq!(worker.get("/livez").await.unwrap().status, 200);
        eventually(format!("{} to report all three as down", worker.name()), LIMIT, async || {
            let body = worker.get("/metrics").await.map_err(|error| error.to_string())?.body;
            let down = body.matches("verbatim_dependency_up{dependency=").count();
            if down == 3 { Ok(()) } else { Err(body) }
        })
        .await;
    }
    let two: Vec<String> = missing(&["rabbitmq", "redis"]);
    let two: Vec<&str> = two.iter().map(String::as_str).collect();
    database.restore().await.unwrap();
    for worker in &workers {
        until_unready(worker, &[two[0], two[1], "\"postgresql\":{\"ready\":true}"]).await;
    }
    redis.restore().await.unwrap();
    for worker in &workers {
        until_unready(worker, &[two[0], "\"redis\":{\"ready\":true}"]).await;
    }
    broker.restore().await.unwrap();
    for worker in &workers {
        worker.ready(LIMIT).await.unwrap();
    }
    let body = message("early", "s", "m", &json!({}));
    scenario.agent().publish(&body).await;
    until_stored(&scenario, 1).await;
    scenario.agent().publish(&closed("early", "s", &json!({}))).await;
    scenario.reader().reaches(&key_of(&body), ConversationStatus::Archived).await;
    scenario.finish(workers).await;
}

#[tokio::test]
async fn a_worker_exits_if_setup_has_not_run_and_names_the_setup_command() {
    let ends = async |scenario: &Scenario, program: &str| {
        let worker = scenario.launch(program, &[]);
        let status = worker.wait(LIMIT).await.unwrap();
        assert_eq!(status.code(), Some(1), "{program}: {}", worker.log_tail());
        worker.log()
    };
    // One fault at a time: of two faults a worker names the one that it finds first.
    let (no_schema, no_queues) = tokio::join!(Scenario::unprepared(), Scenario::unprepared());
    no_schema.declare().await;
    for worker in fleet::WORKERS {
        let log = ends(&no_schema, worker.name()).await;
        assert!(log.contains("no Verbatim schema") && log.contains("verbatim setup"), "{log}");
    }
    no_schema.migrate().await;
    no_schema
        .sql("DELETE FROM _sqlx_migrations WHERE version > 1; UPDATE _sqlx_migrations SET version = 0")
        .await;
    let log = ends(&no_schema, SAVER).await;
    assert!(log.contains("is at version 0") && log.contains("verbatim setup"), "{log}");

    no_queues.migrate().await;
    let log = ends(&no_queues, SAVER).await;
    assert!(log.contains("verbatim setup") && log.contains("conversation.save_message"), "{log}");
    // The queue exists, but is no quorum queue: it could lose messages.
    no_queues.rabbit().queue(SAVES).await;
    let log = ends(&no_queues, SAVER).await;
    let named = log.contains("queue `conversation.save_message`: `x-");
    assert!(named && log.contains("arguments cannot be changed"), "{log}");
}

#[tokio::test]
async fn setup_and_workers_refuse_a_server_that_may_lose_commits() {
    let scenario = Scenario::unprepared().await;
    let refuse = [("VERBATIM_ALLOW_FSYNC_OFF", "false")];
    let setup = scenario.verbatim_with(&["setup"], &refuse).await;
    let text = String::from_utf8(setup.stderr).unwrap();
    assert_eq!(setup.status.code(), Some(1), "{text}");
    let cause = "PostgreSQL runs with fsync = off and full_page_writes = off";
    assert!(text.contains(cause) && text.contains("VERBATIM_ALLOW_FSYNC_OFF"), "{text}");
    let schema = "SELECT to_regclass('conversations') IS NULL";
    assert_eq!(scenario.sql(schema).await, "t", "the schema was not created");

    tokio::join!(scenario.migrate(), scenario.declare());
    let worker = scenario.launch(SAVER, &refuse);
    let status = worker.wait(LIMIT).await.unwrap();
    let log = worker.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(cause) && log.contains("VERBATIM_ALLOW_FSYNC_OFF"), "{log}");
}

#[tokio::test]
async fn an_invalid_setting_is_named_and_no_secret_is_logged() {
    let scenario = Scenario::unprepared().await;
    for (name, value, expected) in [
        ("VERBATIM_BATCH_SIZE", "0", "1 to 100000"),
        ("VERBATIM_HOLD_LIMIT", "soon", "soon"),
        ("AMQP_URL", "", "AMQP_URL"),
        ("DATABASE_URL", "mysql://user:hidden@localhost/x", "postgres"),
        ("DATABASE_URL", "postgres://u:hidden@localhost/x?sslmod=verify-full", "sslmode"),
        ("DATABASE_URL", "postgres://u:hidden@localhost/x?sslpassword=hidden", "sslpassword"),
        ("AMQP_URL", "amqp://u:hidden@localhost/v?cacertfile=hidden", "cacertfile"),
        ("VERBATIM_CONFIG", "/does/not/exist.yaml", "/does/not/exist.yaml"),
    ] {
        let worker = scenario.launch(SAVER, &[(name, value)]);
        let status = worker.wait(LIMIT).await.unwrap();
        let log = worker.log();
        assert_eq!(status.code(), Some(2), "{name}={value}: {log}");
        assert!(log.contains(name) || name == "VERBATIM_CONFIG", "{name} is named: {log}");
        assert!(log.contains(expected) && !log.contains("hidden"), "{log}");
    }
}
