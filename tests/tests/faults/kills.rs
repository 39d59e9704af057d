//! Processes killed with SIGKILL.

use serde_json::{Value, json};
use system_tests::{
    COLLECTOR, Counts, LIMIT, MIGRATION, PublishedActions, SAVER, STATISTICS, Scenario, closed,
    key_of,
};
use testkit::environment::deep;
use testkit::servers::Kind;

use crate::{
    SAVES, load, load_in_all_ways, proxy, publish, stored, until_holding, until_stored,
    until_unready, with_ids,
};

#[tokio::test]
async fn a_worker_killed_before_it_saved_leaves_its_deliveries_to_the_next() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    let victim = scenario.start_with(SAVER, &[("DATABASE_URL", database.url())]).await;
    database.cut().await.unwrap();
    publish(&agent, &mut published, &load("before", 300, 10)).await;
    until_holding(&victim).await;
    until_unready(&victim, &["holding: PostgreSQL unavailable"]).await;
    victim.kill();
    assert_eq!(stored(&scenario).await, 0);

    let next = scenario.start(SAVER).await;
    published.reconcile(&scenario, &reader).await;
    Counts::reach(&next, "verbatim_redeliveries_total", &[("queue", SAVES)], 1.0).await;
    scenario.finish([next]).await;
}

#[tokio::test]
async fn a_worker_killed_after_it_saved_and_before_it_acknowledged_duplicates_nothing() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let broker = proxy(&scenario.amqp_url).await;
    let database = proxy(&scenario.database_url).await;
    let settings = [("DATABASE_URL", database.url()), ("AMQP_URL", broker.url())];
    let victim = scenario.start_with(SAVER, &settings).await;
    database.cut().await.unwrap();
    publish(&agent, &mut published, &load("after", 40, 4)).await;
    until_holding(&victim).await;
    // From here on its acknowledgements do not reach RabbitMQ.
    broker.freeze();
    database.restore().await.unwrap();
    until_stored(&scenario, 1).await;
    // It may have several batches; after the kill no more are committed.
    victim.kill();
    let before = stored(&scenario).await;
    broker.cut().await.unwrap();

    let next = scenario.start(SAVER).await;
    published.reconcile(&scenario, &reader).await;
    let labels = [("queue", SAVES), ("outcome", "duplicate")];
    #[expect(clippy::cast_precision_loss, reason = "40 messages at most")]
    let before = before as f64;
    let counts = Counts::reach(&next, "verbatim_deliveries_total", &labels, before).await;
    assert_eq!(counts.sum("verbatim_messages_duplicate_total", &[]), before);
    scenario.finish([next]).await;
}

#[tokio::test]
async fn kill_9_of_one_of_two_savers_under_a_load_of_20_000_loses_and_duplicates_nothing() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let (victim, survivor) = tokio::join!(scenario.start(SAVER), scenario.start(SAVER));
    let messages = load_in_all_ways("twenty", 20_000, 100);
    let (first, rest) = messages.split_at(8_000);
    publish(&agent, &mut published, first).await;
    let saving = Counts::reach(&victim, "verbatim_messages_saved_total", &[], 500.0).await;
    assert!(saving.sum("verbatim_batch_messages_count", &[("queue", SAVES)]) > 0.0);
    // Killed during the following publishes, and during its batches.
    let kill = async {
        until_stored(&scenario, 9_000).await;
        victim.kill();
        stored(&scenario).await
    };
    let ((), at_kill) = tokio::join!(publish(&agent, &mut published, rest), kill);
    assert!(at_kill < 20_000, "it was killed while there was work: {at_kill}");
    published.reconcile(&scenario, &reader).await;
    assert_eq!(published.len(), 20_000);
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.finish([survivor]).await;
}

#[tokio::test]
async fn a_closer_killed_midway_is_replaced_by_another_and_each_conversation_closes_once() {
    let scenario = Scenario::new().await;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let settings = [("VERBATIM_CLOSE_LEASE", "2s")];
    let (saver, statistics, victim) = tokio::join!(
        scenario.start(SAVER),
        scenario.start(STATISTICS),
        scenario.start_with(MIGRATION, &settings),
    );
    let messages = load("closing", 600, 300);
    agent.publish_all(&messages).await;
    until_stored(&scenario, 600).await;
    let closes: Vec<Value> =
        (0..300).map(|n| closed("closing", &format!("s{n}"), &json!({}))).collect();
    // A closer that has claimed conversations cannot count their tokens, so the kill strikes in the middle.
    let closing = "SELECT (count(*) > 0)::text FROM conversations WHERE status = 'closing'";
    let kill = async {
        agent.publish_all(&closes).await;
        scenario.until_sql(closing, "true").await;
        victim.kill();
    };
    scenario.while_open("LOCK TABLE message_tokens IN SHARE MODE", kill).await;
    let archived = "FROM conversations WHERE status = 'archived'";
    let other = scenario.start_with(MIGRATION, &settings).await;
    scenario.until_sql(&format!("SELECT count(*) {archived}"), "300").await;

    let wrong = format!("SELECT count(*) {archived} AND message_count <> 2");
    assert_eq!(scenario.sql(&wrong).await, "0");
    let rolled_up = "SELECT concat_ws('|', sum(conversations), sum(messages)) FROM daily_stats";
    scenario.until_sql(rolled_up, "300|600").await;
    for body in &messages[..5] {
        assert_eq!(reader.transcript(&key_of(&body.body)).await.messages.len(), 2);
    }
    scenario.finish([saver, other, statistics]).await;
}

#[tokio::test]
async fn a_collector_killed_midway_stores_every_dead_letter_and_none_twice() {
    let scenario = Scenario::new().await;
    let (saver, victim) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let bad: Vec<Value> = with_ids("dead-letters", 400, 4)
        .into_iter()
        .map(|mut message| {
            message["role"] = "unknown".into();
            message
        })
        .collect();
    scenario.agent().publish_all(&bad).await;
    scenario.until_sql("SELECT (count(*) > 0)::text FROM dead_letters", "true").await;
    victim.kill();
    let next = scenario.start(COLLECTOR).await;
    let dead_letters = "SELECT concat_ws('|', count(*), count(DISTINCT message_id), min(field))
                   FROM dead_letters WHERE status = 'open'";
    scenario.until_sql(dead_letters, "400|400|role").await;
    scenario.finish([saver, next]).await;
}

#[tokio::test]
async fn servers_and_workers_killed_one_after_another_under_load_lose_and_duplicate_nothing() {
    const PART: usize = 800;
    let scenario = Scenario::on_own_servers().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let start_all = async || {
        tokio::join!(scenario.start(SAVER), scenario.start(SAVER), scenario.start(COLLECTOR))
    };
    let (mut one, mut two, mut collector) = start_all().await;
    let mut faults = vec![
        Fault::Server(Kind::RabbitMq),
        Fault::Server(Kind::PostgreSql),
        Fault::Server(Kind::Redis),
        Fault::Saver,
        Fault::AllWorkers,
    ];
    if deep() {
        // 40 faults, in an order of the five that repeats late.
        faults = (0..40).map(|n: usize| faults[(n * n + n / 3) % 5]).collect();
    }
    let messages = load("killed", faults.len() * PART, faults.len() * 4);
    for (fault, part) in faults.into_iter().zip(messages.chunks(PART)) {
        let (early, late) = part.split_at(PART / 4);
        agent.publish_until_confirmed(early).await;
        // While the rest is published and the first part is saved.
        let inject = async {
            match fault {
                Fault::Server(kind) => {
                    let server = scenario.server(kind);
                    server.kill().await.unwrap();
                    match kind {
                        Kind::Redis => server.start_empty().await.unwrap(),
                        _ => server.start().await.unwrap(),
                    }
                }
                Fault::Saver => {
                    one.kill();
                    one = scenario.start(SAVER).await;
                }
                Fault::AllWorkers => {
                    for worker in [&one, &two, &collector] {
                        worker.kill();
                    }
                    (one, two, collector) = start_all().await;
                }
            }
        };
        tokio::join!(agent.publish_until_confirmed(late), inject);
        published.add_confirmed(part);
    }
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    for worker in [&one, &two, &collector] {
        worker.ready(LIMIT).await.unwrap();
    }
    scenario.finish([one, two, collector]).await;
}

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Server(Kind),
    Saver,
    AllWorkers,
}
