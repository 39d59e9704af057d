//! Servers that are unavailable, do not respond, restart empty, or are cut off from one worker.

use conversation::Source;
use system_tests::{COLLECTOR, Counts, LIMIT, PublishedActions, SAVER, Scenario, key_of};
use testkit::wait::eventually;

use crate::stores::{server_identities, until_one_meets_another_redis};
use crate::{SAVES, load, proxy, publish, stored, until_holding, until_stored, until_unready};

#[tokio::test]
async fn an_outage_of_postgresql_under_load_costs_time_and_no_attempt() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    let cut_off = [("DATABASE_URL", database.url())];
    let (one, two, collector) = tokio::join!(
        scenario.start_with(SAVER, &cut_off),
        scenario.start_with(SAVER, &cut_off),
        scenario.start(COLLECTOR),
    );
    let messages = load("outage", 3_000, 20);
    publish(&agent, &mut published, &messages[..1_000]).await;
    until_stored(&scenario, 1).await;
    database.cut().await.unwrap();
    publish(&agent, &mut published, &messages[1_000..2_000]).await;
    tokio::join!(until_holding(&one), until_holding(&two));
    for worker in [&one, &two] {
        until_unready(
            worker,
            &["holding: PostgreSQL unavailable", "\"postgresql\":{\"ready\":false"],
        )
        .await;
        assert_eq!(worker.get("/livez").await.unwrap().status, 200);
    }
    let before = stored(&scenario).await;
    assert!(before < 2_000, "{before}");
    publish(&agent, &mut published, &messages[2_000..]).await;
    database.restore().await.unwrap();
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    for worker in [&one, &two] {
        worker.ready(LIMIT).await.unwrap();
        let counts = Counts::of(worker).await;
        assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
        assert!(counts.sum("verbatim_hold_seconds_count", &[("dependency", "postgresql")]) >= 1.0);
    }
    scenario.finish([one, two, collector]).await;
}

#[tokio::test]
async fn a_postgresql_that_stops_answering_during_commits_duplicates_nothing() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    let settings = [("DATABASE_URL", database.url()), ("VERBATIM_DATABASE_TIMEOUT", "1s")];
    let saver = scenario.start_with(SAVER, &settings).await;
    let messages = load("silent", 2_000, 20);
    for (round, part) in messages.chunks(1_000).enumerate() {
        let (early, late) = part.split_at(700);
        publish(&agent, &mut published, early).await;
        until_stored(&scenario, round * 1_000 + 1).await;
        // Commits without a response: whether they took effect is unknown.
        database.freeze();
        publish(&agent, &mut published, late).await;
        let holds = [("queue", SAVES), ("dependency", "postgresql")];
        #[expect(clippy::cast_precision_loss, reason = "two rounds")]
        let least = (round + 1) as f64;
        Counts::reach(&saver, "verbatim_holds_total", &holds, least).await;
        database.restore().await.unwrap();
    }
    published.reconcile(&scenario, &reader).await;
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_hold_beyond_its_limit_requeues_its_messages_and_consumes_them_again() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    let settings = [("DATABASE_URL", database.url()), ("VERBATIM_HOLD_LIMIT", "500ms")];
    let saver = scenario.start_with(SAVER, &settings).await;
    database.cut().await.unwrap();
    publish(&agent, &mut published, &load("held", 100, 4)).await;
    let labels = [("queue", SAVES), ("cause", "hold")];
    Counts::reach(&saver, "verbatim_consumer_restarts_total", &labels, 1.0).await;
    eventually("all messages to be requeued", LIMIT, async || match scenario.queued().await {
        queued if queued == [(SAVES, 100)] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    database.restore().await.unwrap();
    published.reconcile(&scenario, &reader).await;
    let labels = [("queue", SAVES), ("outcome", "requeued")];
    Counts::reach(&saver, "verbatim_deliveries_total", &labels, 1.0).await;
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn redis_restarted_empty_under_load_hides_no_message_from_any_reader() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let (one, two) = tokio::join!(scenario.start(SAVER), scenario.start(SAVER));
    let messages = load("wiped", 4_000, 20);
    publish(&agent, &mut published, &messages[..1_000]).await;
    until_stored(&scenario, 1_000).await;
    assert_eq!(reader.both(&key_of(&messages[0].body)).await.len(), 50);
    let epoch = "SELECT epoch FROM hot_epoch";
    let at_first = scenario.sql(epoch).await;
    let before = server_identities(&[&one, &two]).await;
    let wiped = async {
        scenario.redis().kill().await.unwrap();
        scenario.redis().start_empty().await.unwrap();
    };
    let ((), ()) = tokio::join!(publish(&agent, &mut published, &messages[1_000..3_000]), wiped);
    // No reader runs meanwhile: the savers detect the restart.
    until_one_meets_another_redis(&[&one, &two], before).await;

    // Redis is stopped for a while: saving and reading continue in PostgreSQL.
    scenario.redis().stop().await.unwrap();
    publish(&agent, &mut published, &messages[3_000..]).await;
    until_stored(&scenario, 4_000).await;
    for worker in [&one, &two] {
        until_unready(worker, &["\"redis\":{\"ready\":false", "Redis unavailable"]).await;
    }
    let transcript = reader.transcript(&key_of(&messages[0].body)).await;
    assert_eq!((transcript.source, transcript.messages.len()), (Source::Database, 200));
    assert!(!transcript.degraded);
    scenario.redis().start().await.unwrap();
    published.reconcile(&scenario, &reader).await;
    for worker in [&one, &two] {
        worker.ready(LIMIT).await.unwrap();
    }
    assert_ne!(scenario.sql(epoch).await, at_first, "hot copies of the former Redis are invalid");
    let (first, second) = tokio::join!(Counts::of(&one), Counts::of(&two));
    let sum = |name| first.sum(name, &[]) + second.sum(name, &[]);
    assert!(sum("verbatim_hot_generation_changes_total") >= 1.0);
    scenario.finish([one, two]).await;
}

#[tokio::test]
async fn one_of_two_savers_cut_off_from_redis_misleads_no_reader() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let redis = proxy(&scenario.redis_url).await;
    let behind_it = [("REDIS_URL", redis.url())];
    let (cut_off, other) =
        tokio::join!(scenario.start_with(SAVER, &behind_it), scenario.start(SAVER));
    let messages = load("alone", 400, 4);
    publish(&agent, &mut published, &messages[..100]).await;
    until_stored(&scenario, 100).await;
    for body in &messages[..4] {
        assert_eq!(
            reader.both(&key_of(&body.body)).await.len(),
            25,
            "loaded, with its completeness marker"
        );
    }
    redis.cut().await.unwrap();
    for part in messages[100..].chunks(20) {
        publish(&agent, &mut published, part).await;
    }
    published.reconcile(&scenario, &reader).await;
    Counts::reach(&cut_off, "verbatim_hot_generation_changes_total", &[], 1.0).await;
    let counts = Counts::of(&other).await;
    assert_eq!(counts.sum("verbatim_hot_generation_changes_total", &[]), 0.0);
    let (log, other_log) = (cut_off.log(), other.log());
    assert!(log.contains("Redis unavailable"), "{log}");
    assert!(!other_log.contains("Redis unavailable"), "{other_log}");
    scenario.finish([cut_off, other]).await;
}

#[tokio::test]
async fn connections_to_rabbitmq_reset_and_cut_under_load_lose_nothing() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let (first, second) = tokio::join!(proxy(&scenario.amqp_url), proxy(&scenario.amqp_url));
    let (of_one, of_two) = ([("AMQP_URL", first.url())], [("AMQP_URL", second.url())]);
    let (one, two) =
        tokio::join!(scenario.start_with(SAVER, &of_one), scenario.start_with(SAVER, &of_two));
    let restarts = [("queue", SAVES), ("cause", "error")];
    for (round, part) in load("cable", 4_000, 20).chunks(1_000).enumerate() {
        publish(&agent, &mut published, part).await;
        until_stored(&scenario, round * 1_000 + 1).await;
        first.reset().await.unwrap();
        if round == 2 {
            second.cut().await.unwrap();
            until_unready(&two, &["\"rabbitmq\":{\"ready\":false", "not registered"]).await;
        }
    }
    second.restore().await.unwrap();
    published.reconcile(&scenario, &reader).await;
    for worker in [&one, &two] {
        worker.ready(LIMIT).await.unwrap();
        Counts::reach(worker, "verbatim_consumer_restarts_total", &restarts, 1.0).await;
    }
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.finish([one, two]).await;
}

#[tokio::test]
async fn a_queue_deleted_under_its_consumer_is_consumed_again_once_it_is_declared() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let messages = load("deleted", 200, 4);
    publish(&agent, &mut published, &messages[..100]).await;
    until_stored(&scenario, 100).await;
    let settled = [("queue", SAVES)];
    Counts::reach(&saver, "verbatim_deliveries_total", &settled, 100.0).await;
    scenario.rabbit().delete_queue(SAVES).await;
    until_unready(&saver, &["not registered with the queue"]).await;
    // Confirmed although the queue is missing: unroutable messages wait in domain.unrouted.
    publish(&agent, &mut published, &messages[100..]).await;
    assert_eq!(stored(&scenario).await, 100);
    scenario.declare().await;
    published.reconcile(&scenario, &reader).await;
    saver.ready(LIMIT).await.unwrap();
    scenario.finish([saver, collector]).await;
}
