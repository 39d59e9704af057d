//! What a fleet makes of dying workers, dead servers and cut cables: time passes, and nothing is lost
//! or doubled.
//!
//! Each test owns its servers. A proxy stands before whatever is to be cut, so that the test itself,
//! which looks from outside, is never cut off.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use conversation::Source;
use domain::status::ConversationStatus;
use serde_json::{Value, json};
use system_tests::{
    Agent, Counts, LIMIT, Ledger, MIGRATION, SAVER, STATISTICS, Scenario, at, closed, key, message,
};
use testkit::environment::deep;
use testkit::fleet::Worker;
use testkit::process::Signal;
use testkit::proxy::Proxy;
use testkit::servers::Kind;
use testkit::wait::eventually;

const SAVES: &str = "conversation.save_message";

/// So many messages of a tenant, dealt out to conversations in turn, each later than the one before.
fn load(tenant: &str, messages: usize, conversations: usize) -> Vec<Value> {
    let one = |n: usize| {
        let session = format!("s{}", n % conversations);
        let timestamp = at(i64::try_from(n).unwrap());
        message(tenant, &session, &format!("m{n:05}"), &json!({"timestamp": timestamp}))
    };
    (0..messages).map(one).collect()
}

/// Publishes, and enters what is confirmed into the books.
async fn publish(agent: &Agent, ledger: &mut Ledger, messages: &[Value]) {
    agent.publish_all(messages).await;
    ledger.confirm(messages);
}

async fn proxy(url: &str) -> Proxy {
    Proxy::before(url).await.unwrap()
}

/// Waits until `/readyz` says why it is not ready, in words that hold these.
async fn unready(worker: &Worker, words: &[&str]) {
    eventually(format!("{} to tell {words:?}", worker.name()), LIMIT, async || {
        let answer = worker.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
        let told = words.iter().all(|words| answer.body.contains(words));
        if told && answer.status == 503 { Ok(()) } else { Err(answer.body) }
    })
    .await;
}

/// How many messages PostgreSQL has.
async fn stored(scenario: &Scenario) -> usize {
    scenario.sql("SELECT count(*) FROM messages").await.parse().unwrap()
}

async fn until_stored(scenario: &Scenario, least: usize) {
    let query = format!("SELECT (count(*) >= {least})::text FROM messages");
    scenario.until_sql(&query, "true").await;
}

async fn held(worker: &Worker) {
    let labels = [("queue", SAVES), ("store", "postgresql")];
    Counts::reach(worker, "verbatim_holds_total", &labels, 1.0).await;
}

// Workers that die.

#[tokio::test]
async fn a_worker_killed_before_it_could_save_leaves_its_deliveries_to_the_next() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let database = proxy(&scenario.database_url).await;
    let doomed = scenario.start_with(SAVER, &[("DATABASE_URL", database.url())]).await;
    database.cut().await.unwrap();
    publish(&agent, &mut ledger, &load("before", 300, 10)).await;
    held(&doomed).await;
    unready(&doomed, &["holding: postgresql is away"]).await;
    doomed.kill();
    assert_eq!(stored(&scenario).await, 0);

    let next = scenario.start(SAVER).await;
    ledger.reconcile(&scenario, &eyes).await;
    Counts::reach(&next, "verbatim_redeliveries_total", &[("queue", SAVES)], 1.0).await;
    scenario.rest([next]).await;
}

#[tokio::test]
async fn a_worker_killed_after_it_saved_and_before_it_acknowledged_doubles_nothing() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let broker = proxy(&scenario.amqp_url).await;
    let database = proxy(&scenario.database_url).await;
    let settings = [("DATABASE_URL", database.url()), ("AMQP_URL", broker.url())];
    let doomed = scenario.start_with(SAVER, &settings).await;
    database.cut().await.unwrap();
    publish(&agent, &mut ledger, &load("after", 40, 4)).await;
    held(&doomed).await;
    // From here on nothing that it says reaches RabbitMQ.
    broker.freeze();
    database.restore().await.unwrap();
    until_stored(&scenario, 1).await;
    // It may have more batches than one; what is committed stays what it is.
    doomed.kill();
    let before = stored(&scenario).await;
    broker.cut().await.unwrap();

    let next = scenario.start(SAVER).await;
    ledger.reconcile(&scenario, &eyes).await;
    let labels = [("queue", SAVES), ("outcome", "duplicate")];
    #[expect(clippy::cast_precision_loss, reason = "40 messages at most")]
    let before = before as f64;
    let counts = Counts::reach(&next, "verbatim_deliveries_total", &labels, before).await;
    assert_eq!(counts.sum("verbatim_messages_duplicate_total", &[]), before);
    scenario.rest([next]).await;
}

#[tokio::test]
async fn kill_9_of_one_of_two_savers_under_a_load_of_20_000_loses_and_doubles_nothing() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let (doomed, survivor) = tokio::join!(scenario.start(SAVER), scenario.start(SAVER));
    let messages = load("twenty", 20_000, 100);
    let (first, rest) = messages.split_at(8_000);
    publish(&agent, &mut ledger, first).await;
    let saving = Counts::reach(&doomed, "verbatim_messages_saved_total", &[], 500.0).await;
    assert!(saving.sum("verbatim_batch_messages_count", &[("queue", SAVES)]) > 0.0);
    // In the middle of the publishes that follow, and of its own batches.
    let dies = async {
        until_stored(&scenario, 9_000).await;
        doomed.kill();
        stored(&scenario).await
    };
    let ((), at_death) = tokio::join!(publish(&agent, &mut ledger, rest), dies);
    assert!(at_death < 20_000, "it died while there was work: {at_death}");
    ledger.reconcile(&scenario, &eyes).await;
    assert_eq!(ledger.len(), 20_000);
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.rest([survivor]).await;
}

#[tokio::test]
async fn a_closer_killed_midway_is_followed_by_another_and_each_conversation_closes_once() {
    let scenario = Scenario::new().await;
    let (agent, eyes) = (scenario.agent(), scenario.eyes());
    let settings = [("VERBATIM_CLOSE_LEASE", "2s"), ("VERBATIM_CLOSE_BATCH", "20")];
    let (saver, statistics, doomed) = tokio::join!(
        scenario.start(SAVER),
        scenario.start(STATISTICS),
        scenario.start_with(MIGRATION, &settings),
    );
    let messages = load("closing", 600, 300);
    agent.publish_all(&messages).await;
    until_stored(&scenario, 600).await;
    let closes: Vec<Value> =
        (0..300).map(|n| closed("closing", &format!("s{n}"), &json!({}))).collect();
    agent.publish_all(&closes).await;
    let archived = "FROM conversations WHERE status = 'archived'";
    scenario.until_sql(&format!("SELECT (count(*) > 0)::text {archived}"), "true").await;
    doomed.kill();
    let other = scenario.start_with(MIGRATION, &settings).await;
    scenario.until_sql(&format!("SELECT count(*) {archived}"), "300").await;

    let wrong = format!("SELECT count(*) {archived} AND message_count <> 2");
    assert_eq!(scenario.sql(&wrong).await, "0");
    let rolled_up = "SELECT concat_ws('|', sum(conversations), sum(messages)) FROM daily_stats";
    scenario.until_sql(rolled_up, "300|600").await;
    for body in &messages[..5] {
        assert_eq!(eyes.transcript(&key(body)).await.messages.len(), 2);
    }
    scenario.rest([saver, other, statistics]).await;
}

#[tokio::test]
async fn a_keeper_killed_midway_stores_every_letter_and_none_twice() {
    let scenario = Scenario::new().await;
    let (saver, doomed) = tokio::join!(scenario.start(SAVER), scenario.start(STATISTICS));
    let bad: Vec<Value> = load("letters", 400, 4)
        .into_iter()
        .map(|mut message| {
            message["role"] = "nobody".into();
            message
        })
        .collect();
    scenario.agent().publish_all(&bad).await;
    scenario.until_sql("SELECT (count(*) > 0)::text FROM dead_letters", "true").await;
    doomed.kill();
    let next = scenario.start(STATISTICS).await;
    let letters = "SELECT concat_ws('|', count(*), count(DISTINCT message_id), min(field))
                   FROM dead_letters WHERE status = 'open'";
    scenario.until_sql(letters, "400|400|role").await;
    scenario.rest([saver, next]).await;
}

#[tokio::test]
async fn servers_and_workers_killed_one_after_another_under_load_lose_and_double_nothing() {
    const PART: usize = 800;
    let scenario = Scenario::on_own_servers().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let start_all = async || {
        tokio::join!(scenario.start(SAVER), scenario.start(SAVER), scenario.start(STATISTICS))
    };
    let (mut one, mut two, mut statistics) = start_all().await;
    let mut faults = vec![
        Fault::Server(Kind::RabbitMq),
        Fault::Server(Kind::PostgreSql),
        Fault::Server(Kind::Redis),
        Fault::Saver,
        Fault::AllWorkers,
    ];
    if deep() {
        // A walk that visits the five in an order which repeats late.
        faults = (0..40).map(|n: usize| faults[(n * n + n / 3) % 5]).collect();
    }
    let messages = load("killed", faults.len() * PART, 20);
    for (fault, part) in faults.into_iter().zip(messages.chunks(PART)) {
        let (early, late) = part.split_at(PART / 4);
        agent.insist(early).await;
        // While the rest is being published, and the first part saved.
        let strike = async {
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
                    for worker in [&one, &two, &statistics] {
                        worker.kill();
                    }
                    (one, two, statistics) = start_all().await;
                }
            }
        };
        tokio::join!(agent.insist(late), strike);
        ledger.confirm(part);
    }
    ledger.reconcile(&scenario, &eyes).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    for worker in [&one, &two, &statistics] {
        worker.ready(LIMIT).await.unwrap();
    }
    scenario.rest([one, two, statistics]).await;
}

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Server(Kind),
    Saver,
    AllWorkers,
}

// Signals.

#[tokio::test]
async fn sigterm_under_load_drains_everything_that_was_delivered() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let leaving = scenario.start(SAVER).await;
    publish(&agent, &mut ledger, &load("drain", 3_000, 20)).await;
    Counts::reach(&leaving, "verbatim_messages_saved_total", &[], 1.0).await;
    scenario.drain([leaving]).await;
    let saved = stored(&scenario).await;
    let queued: u32 = scenario.queued().await.iter().map(|(_, ready)| ready).sum();
    let queued = usize::try_from(queued).unwrap();
    assert_eq!(saved + queued, 3_000, "what is saved is acknowledged");

    let next = scenario.start(SAVER).await;
    ledger.reconcile(&scenario, &eyes).await;
    let counts = Counts::of(&next).await;
    assert_eq!(counts.sum("verbatim_redeliveries_total", &[]), 0.0, "nothing came twice");
    assert_eq!(counts.sum("verbatim_messages_duplicate_total", &[]), 0.0);
    scenario.rest([next]).await;
}

#[tokio::test]
async fn a_drain_that_cannot_end_is_cut_by_its_deadline_or_by_a_second_signal() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let database = proxy(&scenario.database_url).await;
    let cut_off =
        |deadline| [("DATABASE_URL", database.url()), ("VERBATIM_DRAIN_DEADLINE", deadline)];
    // Each holds what it got: the database is away.
    let (hurried, patient) = (cut_off("500ms"), cut_off("10m"));
    let (hurried, patient) =
        tokio::join!(scenario.start_with(SAVER, &hurried), scenario.start_with(SAVER, &patient));
    database.cut().await.unwrap();
    publish(&agent, &mut ledger, &load("cut", 200, 4)).await;
    tokio::join!(held(&hurried), held(&patient));
    let status = hurried.stop(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(3), "{}", hurried.log_tail());

    patient.signal(Signal::Terminate).unwrap();
    unready(&patient, &["\"process\":{\"ready\":false"]).await;
    assert!(patient.exited().is_none(), "it finishes what it has, if it is let");
    let status = patient.stop(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(4), "{}", patient.log_tail());
    assert_eq!(stored(&scenario).await, 0);

    let next = scenario.start(SAVER).await;
    ledger.reconcile(&scenario, &eyes).await;
    scenario.rest([next]).await;
}

// Servers that are away.

#[tokio::test]
async fn postgresql_away_under_load_costs_time_and_no_attempt() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let database = proxy(&scenario.database_url).await;
    let cut_off = [("DATABASE_URL", database.url())];
    let (one, two, statistics) = tokio::join!(
        scenario.start_with(SAVER, &cut_off),
        scenario.start_with(SAVER, &cut_off),
        scenario.start(STATISTICS),
    );
    let messages = load("away", 3_000, 20);
    publish(&agent, &mut ledger, &messages[..1_000]).await;
    until_stored(&scenario, 1).await;
    database.cut().await.unwrap();
    publish(&agent, &mut ledger, &messages[1_000..2_000]).await;
    tokio::join!(held(&one), held(&two));
    for worker in [&one, &two] {
        unready(worker, &["holding: postgresql is away", "\"postgresql\":{\"ready\":false"]).await;
        assert_eq!(worker.get("/livez").await.unwrap().status, 200);
    }
    let before = stored(&scenario).await;
    assert!(before < 2_000, "{before}");
    publish(&agent, &mut ledger, &messages[2_000..]).await;
    database.restore().await.unwrap();
    ledger.reconcile(&scenario, &eyes).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    for worker in [&one, &two] {
        worker.ready(LIMIT).await.unwrap();
        let counts = Counts::of(worker).await;
        assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
        assert!(counts.sum("verbatim_hold_seconds_count", &[("store", "postgresql")]) >= 1.0);
    }
    scenario.rest([one, two, statistics]).await;
}

#[tokio::test]
async fn a_postgresql_that_falls_silent_in_the_middle_of_commits_doubles_nothing() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let database = proxy(&scenario.database_url).await;
    let settings = [("DATABASE_URL", database.url()), ("VERBATIM_DATABASE_TIMEOUT", "1s")];
    let saver = scenario.start_with(SAVER, &settings).await;
    let messages = load("silent", 2_000, 20);
    for (round, part) in messages.chunks(1_000).enumerate() {
        let (early, late) = part.split_at(700);
        publish(&agent, &mut ledger, early).await;
        until_stored(&scenario, round * 1_000 + 1).await;
        // Commits whose answers never come: nobody knows whether they took effect.
        database.freeze();
        publish(&agent, &mut ledger, late).await;
        let holds = [("queue", SAVES), ("store", "postgresql")];
        #[expect(clippy::cast_precision_loss, reason = "two rounds")]
        let least = (round + 1) as f64;
        Counts::reach(&saver, "verbatim_holds_total", &holds, least).await;
        database.restore().await.unwrap();
    }
    ledger.reconcile(&scenario, &eyes).await;
    scenario.rest([saver]).await;
}

#[tokio::test]
async fn a_hold_that_lasts_too_long_gives_its_messages_back_and_takes_them_again() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let database = proxy(&scenario.database_url).await;
    let settings = [("DATABASE_URL", database.url()), ("VERBATIM_HOLD_LIMIT", "500ms")];
    let saver = scenario.start_with(SAVER, &settings).await;
    database.cut().await.unwrap();
    publish(&agent, &mut ledger, &load("held", 100, 4)).await;
    let labels = [("queue", SAVES), ("cause", "hold")];
    Counts::reach(&saver, "verbatim_consumer_restarts_total", &labels, 1.0).await;
    eventually("everything is back in the queue", LIMIT, async || match scenario.queued().await {
        back if back == [(SAVES, 100)] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    database.restore().await.unwrap();
    ledger.reconcile(&scenario, &eyes).await;
    let labels = [("queue", SAVES), ("outcome", "returned")];
    Counts::reach(&saver, "verbatim_deliveries_total", &labels, 1.0).await;
    scenario.rest([saver]).await;
}

#[tokio::test]
async fn redis_restarted_empty_under_load_hides_no_message_from_any_reader() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let (one, two) = tokio::join!(scenario.start(SAVER), scenario.start(SAVER));
    let messages = load("wiped", 4_000, 20);
    publish(&agent, &mut ledger, &messages[..1_000]).await;
    until_stored(&scenario, 1_000).await;
    assert_eq!(eyes.both(&key(&messages[0])).await.len(), 50);
    let epoch = "SELECT epoch FROM hot_epoch";
    let at_first = scenario.sql(epoch).await;
    let wiped = async {
        scenario.redis().kill().await.unwrap();
        scenario.redis().start_empty().await.unwrap();
    };
    let ((), ()) = tokio::join!(publish(&agent, &mut ledger, &messages[1_000..3_000]), wiped);

    // And away for a while: PostgreSQL alone goes on.
    scenario.redis().stop().await.unwrap();
    publish(&agent, &mut ledger, &messages[3_000..]).await;
    until_stored(&scenario, 4_000).await;
    for worker in [&one, &two] {
        unready(worker, &["\"redis\":{\"ready\":false", "Redis is away"]).await;
    }
    let transcript = eyes.transcript(&key(&messages[0])).await;
    assert_eq!((transcript.source, transcript.messages.len()), (Source::Archive, 200));
    assert!(!transcript.degraded);
    scenario.redis().start().await.unwrap();
    ledger.reconcile(&scenario, &eyes).await;
    for worker in [&one, &two] {
        worker.ready(LIMIT).await.unwrap();
    }
    assert_ne!(scenario.sql(epoch).await, at_first, "no copy of a former Redis counts");
    let (first, second) = tokio::join!(Counts::of(&one), Counts::of(&two));
    let sum = |name| first.sum(name, &[]) + second.sum(name, &[]);
    assert!(sum("verbatim_hot_generation_changes_total") >= 1.0);
    scenario.rest([one, two]).await;
}

#[tokio::test]
async fn a_saver_alone_cut_off_from_redis_misleads_no_reader() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let redis = proxy(&scenario.redis_url).await;
    let behind_it = [("REDIS_URL", redis.url())];
    let (cut_off, other) =
        tokio::join!(scenario.start_with(SAVER, &behind_it), scenario.start(SAVER));
    let messages = load("alone", 400, 4);
    publish(&agent, &mut ledger, &messages[..100]).await;
    until_stored(&scenario, 100).await;
    for body in &messages[..4] {
        assert_eq!(eyes.both(&key(body)).await.len(), 25, "loaded and marked as complete");
    }
    redis.cut().await.unwrap();
    for part in messages[100..].chunks(20) {
        publish(&agent, &mut ledger, part).await;
    }
    ledger.reconcile(&scenario, &eyes).await;
    Counts::reach(&cut_off, "verbatim_hot_generation_changes_total", &[], 1.0).await;
    let counts = Counts::of(&other).await;
    assert_eq!(counts.sum("verbatim_hot_generation_changes_total", &[]), 0.0);
    scenario.rest([cut_off, other]).await;
}

#[tokio::test]
async fn connections_to_rabbitmq_reset_and_cut_under_load_lose_nothing() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let (first, second) = tokio::join!(proxy(&scenario.amqp_url), proxy(&scenario.amqp_url));
    let (of_one, of_two) = ([("AMQP_URL", first.url())], [("AMQP_URL", second.url())]);
    let (one, two) =
        tokio::join!(scenario.start_with(SAVER, &of_one), scenario.start_with(SAVER, &of_two));
    let restarts = [("queue", SAVES), ("cause", "error")];
    for (round, part) in load("cable", 4_000, 20).chunks(1_000).enumerate() {
        publish(&agent, &mut ledger, part).await;
        until_stored(&scenario, round * 1_000 + 1).await;
        first.reset().await.unwrap();
        if round == 2 {
            second.cut().await.unwrap();
            unready(&two, &["\"rabbitmq\":{\"ready\":false", "not registered"]).await;
        }
    }
    second.restore().await.unwrap();
    ledger.reconcile(&scenario, &eyes).await;
    for worker in [&one, &two] {
        worker.ready(LIMIT).await.unwrap();
        Counts::reach(worker, "verbatim_consumer_restarts_total", &restarts, 1.0).await;
    }
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.rest([one, two]).await;
}

#[tokio::test]
async fn a_queue_deleted_under_its_consumer_is_consumed_again_once_it_is_back() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let (saver, statistics) = tokio::join!(scenario.start(SAVER), scenario.start(STATISTICS));
    let messages = load("deleted", 200, 4);
    publish(&agent, &mut ledger, &messages[..100]).await;
    until_stored(&scenario, 100).await;
    let settled = [("queue", SAVES)];
    Counts::reach(&saver, "verbatim_deliveries_total", &settled, 100.0).await;
    scenario.side().delete_queue(SAVES).await;
    unready(&saver, &["not registered with the queue"]).await;
    // Confirmed although its queue is missing: it waits where what is unrouted waits.
    publish(&agent, &mut ledger, &messages[100..]).await;
    assert_eq!(stored(&scenario).await, 100);
    scenario.declare().await;
    ledger.reconcile(&scenario, &eyes).await;
    saver.ready(LIMIT).await.unwrap();
    scenario.rest([saver, statistics]).await;
}

// Starting.

#[tokio::test]
async fn a_fleet_that_starts_before_its_servers_lives_says_what_is_missing_and_gets_ready() {
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
    let workers = [SAVER, MIGRATION, STATISTICS].map(|program| scenario.launch(program, &settings));
    let missing =
        |names: &[&str]| names.iter().map(|it| format!("\"{it}\":{{\"ready\":false")).collect();
    let all: Vec<String> = missing(&["rabbitmq", "redis", "postgresql"]);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for worker in &workers {
        unready(worker, &all).await;
        assert_eq!(worker.get("/livez").await.unwrap().status, 200);
    }
    let two: Vec<String> = missing(&["rabbitmq", "redis"]);
    let two: Vec<&str> = two.iter().map(String::as_str).collect();
    database.restore().await.unwrap();
    for worker in &workers {
        unready(worker, &[two[0], two[1], "\"postgresql\":{\"ready\":true}"]).await;
    }
    redis.restore().await.unwrap();
    for worker in &workers {
        unready(worker, &[two[0], "\"redis\":{\"ready\":true}"]).await;
    }
    broker.restore().await.unwrap();
    for worker in &workers {
        worker.ready(LIMIT).await.unwrap();
    }
    let body = message("early", "s", "m", &json!({}));
    scenario.agent().publish(&body).await;
    until_stored(&scenario, 1).await;
    scenario.agent().publish(&closed("early", "s", &json!({}))).await;
    scenario.eyes().reaches(&key(&body), ConversationStatus::Archived).await;
    scenario.rest(workers).await;
}

#[tokio::test]
async fn a_worker_stops_at_servers_that_are_not_prepared_and_names_what_prepares_them() {
    let scenario = Scenario::unprepared().await;
    let ends = async |program: &str| {
        let worker = scenario.launch(program, &[]);
        let status = worker.wait(LIMIT).await.unwrap();
        assert_eq!(status.code(), Some(1), "{program}: {}", worker.log_tail());
        worker.log()
    };
    for program in [SAVER, MIGRATION, STATISTICS] {
        let log = ends(program).await;
        assert!(log.contains("no Verbatim schema") && log.contains("verbatim setup"), "{log}");
    }
    scenario.migrate().await;
    let log = ends(SAVER).await;
    assert!(log.contains("verbatim setup") && log.contains("conversation.save_message"), "{log}");

    // A queue that would lose messages: not a quorum queue.
    scenario.side().queue(SAVES).await;
    let log = ends(SAVER).await;
    let named = log.contains("queue `conversation.save_message`: `x-");
    assert!(named && log.contains("arguments cannot be changed"), "{log}");

    scenario.sql("UPDATE _sqlx_migrations SET version = 0").await;
    let log = ends(SAVER).await;
    assert!(log.contains("is at version 0") && log.contains("verbatim setup"), "{log}");
}

#[tokio::test]
async fn a_setting_that_makes_no_sense_is_named_and_no_secret_is() {
    let scenario = Scenario::unprepared().await;
    for (name, value, said) in [
        ("VERBATIM_BATCH_SIZE", "0", "1 to 100000"),
        ("VERBATIM_HOLD_LIMIT", "soon", "soon"),
        ("AMQP_URL", "", "AMQP_URL"),
        ("DATABASE_URL", "mysql://user:hidden@localhost/x", "postgres"),
        ("VERBATIM_CONFIG", "/does/not/exist.yaml", "/does/not/exist.yaml"),
    ] {
        let worker = scenario.launch(SAVER, &[(name, value)]);
        let status = worker.wait(LIMIT).await.unwrap();
        let log = worker.log();
        assert_eq!(status.code(), Some(2), "{name}={value}: {log}");
        assert!(log.contains(name) || name == "VERBATIM_CONFIG", "{name} is named: {log}");
        assert!(log.contains(said) && !log.contains("hidden"), "{log}");
    }
}

// Messages that cannot be saved.

/// Makes PostgreSQL refuse the messages whose ids are in the table `poisoned`, with this SQLSTATE.
async fn poison(scenario: &Scenario, sqlstate: &str, ids: &str) {
    let trigger = format!(
        "CREATE TABLE poisoned AS SELECT unnest('{{{ids}}}'::text[]) AS id;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF EXISTS (SELECT FROM poisoned WHERE id = NEW.id) THEN
                 RAISE EXCEPTION 'poisoned by the test' USING ERRCODE = '{sqlstate}';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse()"
    );
    scenario.sql(&trigger).await;
}

#[tokio::test]
async fn one_poisoned_row_in_a_batch_of_500_saves_the_other_499() {
    let scenario = Scenario::new().await;
    poison(&scenario, "22023", "m00321").await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    publish(&agent, &mut ledger, &load("poison", 500, 7)).await;
    // Large prefetch, one batch at a time, and patience: all that waits becomes one batch.
    let settings = [
        ("VERBATIM_MAX_BODY_BYTES", "16KiB"),
        ("VERBATIM_BATCHES_IN_FLIGHT", "1"),
        ("VERBATIM_BATCH_SIZE", "500"),
    ];
    let (saver, statistics) =
        tokio::join!(scenario.start_with(SAVER, &settings), scenario.start(STATISTICS));
    ledger.reconcile(&scenario, &eyes).await;
    let letter =
        "SELECT concat_ws('|', message_id, reason, attempts, error LIKE '%poisoned by the test%')
                  FROM dead_letters";
    assert_eq!(scenario.sql(letter).await, "m00321|schema|1|t");
    let counts = Counts::of(&saver).await;
    let batches = counts.sum("verbatim_batch_messages_count", &[("queue", SAVES)]);
    assert!(batches <= 4.0, "{batches} batches");
    scenario.rest([saver, statistics]).await;
}

#[tokio::test]
async fn an_unclassified_failure_is_retried_three_times_and_then_a_dead_letter_with_its_history() {
    let scenario = Scenario::new().await;
    poison(&scenario, "P0001", "m00001,m00002").await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let (saver, statistics) = tokio::join!(scenario.start(SAVER), scenario.start(STATISTICS));
    publish(&agent, &mut ledger, &load("retry", 20, 1)).await;
    // Their neighbours do not wait for them.
    until_stored(&scenario, 18).await;
    let retries = [("queue", SAVES), ("class", "retryable")];
    Counts::reach(&saver, "verbatim_retries_total", &retries, 2.0).await;
    // Whatever was wrong with the second one is mended before its last attempt.
    scenario.sql("DELETE FROM poisoned WHERE id = 'm00002'").await;
    until_stored(&scenario, 19).await;

    // 1 + 5 + 30 s.
    ledger.reconcile(&scenario, &eyes).await;
    let letter = "SELECT concat_ws('|', message_id, queue, reason, attempts, routing_key, exchange,
                      json_array_length(headers->'x-verbatim-reasons'),
                      last_failed_at - first_failed_at BETWEEN '35 s' AND '80 s')
                  FROM dead_letters";
    let expected = "m00001|conversation.save_message|attempts_exhausted|4|conversation.save_message|domain.actions|4|t";
    assert_eq!(scenario.sql(letter).await, expected);
    let counts = Counts::reach(&saver, "verbatim_retries_total", &retries, 4.0).await;
    let outcome = |outcome| {
        counts.sum("verbatim_deliveries_total", &[("queue", SAVES), ("outcome", outcome)])
    };
    assert_eq!(outcome("dead_lettered"), 1.0);
    assert_eq!(outcome("applied"), 19.0);
    scenario.rest([saver, statistics]).await;
}

#[tokio::test]
async fn a_message_that_came_back_too_often_is_tried_alone_and_saved() {
    let scenario = Scenario::new().await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let messages = load("suspect", 10, 2);
    let ids: Vec<&str> = messages.iter().filter_map(|it| it["message_id"].as_str()).collect();
    // A full disk: whoever has these messages holds them.
    poison(&scenario, "53100", &ids.join(",")).await;
    publish(&agent, &mut ledger, &messages).await;
    for _ in 0..3 {
        let doomed = scenario.launch(SAVER, &[]);
        held(&doomed).await;
        doomed.kill();
    }
    scenario.sql("TRUNCATE poisoned").await;
    let saver = scenario.start(SAVER).await;
    ledger.reconcile(&scenario, &eyes).await;
    let of = |outcome| [("queue", SAVES), ("outcome", outcome)];
    let counts = Counts::reach(&saver, "verbatim_deliveries_total", &of("applied"), 10.0).await;
    assert_eq!(counts.sum("verbatim_deliveries_total", &of("suspected")), 10.0);
    scenario.rest([saver]).await;
}
