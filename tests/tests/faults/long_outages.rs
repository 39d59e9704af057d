//! Long and repeated outages under a steady load: minutes with `--deep`, else seconds.

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{
    Agent, AgentAction, COLLECTOR, Counts, LIMIT, MIGRATION, PublishedActions, SAVER, STATISTICS,
    Scenario, closed, message,
};
use testkit::environment::deep;
use testkit::fleet::Worker;
use testkit::servers::{Kind, Servers};
use testkit::wait::eventually;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{SAVES, load, proxy, publish, until_stored};

/// The content of each message, in bytes.
const CONTENT_BYTES: usize = 4 << 10;

/// How much a worker's memory may grow in an outage after its first quarter. A saver that kept all messages
/// of the other 90 s, half of 1 000 a second, would grow by ten times as much.
const GROWTH_KIB: u64 = 16 << 10;

/// Publish batches a second.
const PARTS: usize = 10;

/// Seconds of load before an outage, in which the prefetch adapts to its size.
const BEFORE: usize = 3;

/// Sessions that close in each outage.
const CLOSING: usize = 5;

#[tokio::test]
async fn a_long_outage_of_each_server_under_load_costs_time_and_no_attempt() {
    let (outage, rate, hold_limit) = if deep() { (120, 1_000, "20s") } else { (3, 300, "500ms") };
    let outage = Duration::from_secs(outage);
    let scenario = Scenario::new().await;
    let (broker, redis, database) = tokio::join!(
        proxy(&scenario.amqp_url),
        proxy(&scenario.redis_url),
        proxy(&scenario.database_url),
    );
    let urls =
        [("AMQP_URL", broker.url()), ("REDIS_URL", redis.url()), ("DATABASE_URL", database.url())];
    // The hold limit of the second saver is shorter than the outage: it requeues its deliveries.
    let shorter: Vec<_> = urls.into_iter().chain([("VERBATIM_HOLD_LIMIT", hold_limit)]).collect();
    let (one, two, migration, collector, statistics) = tokio::join!(
        scenario.start_with(SAVER, &urls),
        scenario.start_with(SAVER, &shorter),
        scenario.start_with(MIGRATION, &urls),
        scenario.start_with(COLLECTOR, &urls),
        scenario.start_with(STATISTICS, &urls),
    );
    let fleet = [&one, &two, &migration, &collector, &statistics];
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let in_an_outage = usize::try_from(outage.as_secs()).unwrap() * rate;
    let round = BEFORE * rate + in_an_outage;
    let messages = load("long", 3 * round, 3 * round / 300);
    let rounds = messages.chunks(round);
    let mut dead_letters = Vec::new();
    for (server, messages) in [&database, &redis, &broker].into_iter().zip(rounds) {
        let (before, during) = messages.split_at(BEFORE * rate);
        let sessions = sessions(dead_letters.len());
        let one_each: Vec<_> =
            sessions.iter().map(|it| message("long", it, it, &json!({}))).collect();
        publish(&agent, &mut published, &one_each).await;
        steadily(&agent, &mut published, before, rate).await;
        until_stored(&scenario, published.len()).await;
        server.cut().await.unwrap();
        let closes = sessions.iter().map(|it| closed("long", it, &json!({})));
        agent.publish_all(&closes.collect::<Vec<_>>()).await;
        dead_letters.push(unknown_action(dead_letters.len()));
        agent.publish_all(&dead_letters[dead_letters.len() - 1..]).await;
        tokio::join!(steadily(&agent, &mut published, during, rate), memory_stays(fleet, outage));
        if deep() && dead_letters.len() == 1 {
            // More messages were queued than the prefetch allows.
            prefetch_full(&one).await;
        }
        server.restore().await.unwrap();
        until_stored(&scenario, published.len()).await;
        for worker in fleet {
            worker.ready(LIMIT).await.unwrap();
        }
    }
    published.add_confirmed(&dead_letters);
    published.reconcile(&scenario, &reader).await;
    let attempts = "SELECT string_agg(concat(message_id, ' ', attempts), ', ' ORDER BY message_id)
                FROM dead_letters";
    assert_eq!(scenario.sql(attempts).await, "unknown0 1, unknown1 1, unknown2 1");
    let archived = "SELECT count(*) FROM conversations WHERE status = 'archived'
                    AND session_id LIKE 'closing%'";
    scenario.until_sql(archived, &(3 * CLOSING).to_string()).await;
    let of = |name| [("queue", SAVES), ("cause", name)];
    Counts::reach(&two, "verbatim_consumer_restarts_total", &of("hold"), 1.0).await;
    // The statistics-worker acknowledges its events without a server, so it has nothing to hold.
    for worker in &fleet[..4] {
        let counts = Counts::reach(worker, "verbatim_holds_total", &[], 1.0).await;
        assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
        assert_eq!(counts.sum("verbatim_deliveries_total", &[("outcome", "quarantined")]), 0.0);
    }
    scenario.finish([one, two, migration, collector, statistics]).await;
}

#[tokio::test]
async fn rabbitmq_killed_again_and_again_while_the_prefetch_is_full_makes_no_dead_letter() {
    let (kills, part) = if deep() { (25, 200) } else { (3, 100) };
    let scenario = Scenario::with_own(Servers::start(&[Kind::RabbitMq]).await.unwrap()).await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    // While the table `gate` has a row, every insert waits.
    let gate = "CREATE TABLE gate ();
                CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    WHILE EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.02); END LOOP;
                    RETURN NULL;
                END $$;
                CREATE TRIGGER wait BEFORE INSERT ON message_rows
                    FOR EACH STATEMENT EXECUTE FUNCTION wait();
                INSERT INTO gate DEFAULT VALUES";
    scenario.sql(gate).await;
    let (one, two, collector) = tokio::join!(
        scenario.start_with(SAVER, &SMALL_PREFETCH),
        scenario.start_with(SAVER, &SMALL_PREFETCH),
        scenario.start(COLLECTOR),
    );
    for (kill, messages) in load("kills", kills * part, 20).chunks(part).enumerate() {
        // Far more than both prefetches, so that they fill again although messages were quarantined.
        agent.publish_until_confirmed(messages).await;
        published.add_confirmed(messages);
        tokio::join!(prefetch_full(&one), prefetch_full(&two));
        let rabbitmq = scenario.server(Kind::RabbitMq);
        rabbitmq.kill().await.unwrap();
        rabbitmq.start().await.unwrap();
        // Two kills, a pause, then five kills between pauses: a message requeued three times is quarantined.
        if kill % 5 == 1 {
            scenario.sql("DELETE FROM gate").await;
            until_stored(&scenario, published.len()).await;
            nothing_queued(&scenario).await;
            scenario.sql("INSERT INTO gate DEFAULT VALUES").await;
        }
    }
    scenario.sql("DELETE FROM gate").await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    let (one_saw, two_saw) = tokio::join!(Counts::of(&one), Counts::of(&two));
    let sum = |name, labels: &[_]| one_saw.sum(name, labels) + two_saw.sum(name, labels);
    // Each kill requeues 40 deliveries; at least 20 of them are counted as redelivered.
    let redelivered = sum("verbatim_redeliveries_total", &[("queue", SAVES)]);
    assert!(redelivered >= f64::from(20 * u16::try_from(kills).unwrap()), "{redelivered}");
    let quarantined = sum("verbatim_deliveries_total", &[("outcome", "quarantined")]);
    assert!(quarantined > 0.0 || !deep(), "{quarantined}");
    scenario.finish([one, two, collector]).await;
}

/// Savers with a prefetch of 20 at most: one batch of ten in flight, and the next one. Their statement
/// timeout is longer than the test's waits.
const SMALL_PREFETCH: [(&str, &str); 3] = [
    ("VERBATIM_BATCH_SIZE", "10"),
    ("VERBATIM_BATCHES_IN_FLIGHT", "1"),
    ("VERBATIM_DATABASE_TIMEOUT", "2m"),
];

/// Waits until a saver has as many unacknowledged deliveries as its prefetch allows.
async fn prefetch_full(saver: &Worker) {
    let held = [("queue", SAVES), ("state", "unacknowledged")];
    eventually(format!("the prefetch of {} to be full", saver.name()), LIMIT, async || {
        let counts = Counts::of(saver).await;
        let held = counts.sum("verbatim_queue_messages", &held);
        let prefetch = counts.sum("verbatim_prefetch", &[("queue", SAVES)]);
        if prefetch > 0.0 && held >= prefetch {
            Ok(())
        } else {
            Err(format!("{held} of {prefetch} deliveries"))
        }
    })
    .await;
}

async fn nothing_queued(scenario: &Scenario) {
    eventually("empty queues", LIMIT, async || match scenario.queued().await {
        queued if queued.is_empty() => Ok(()),
        queued => Err(format!("{queued:?}")),
    })
    .await;
}

/// The sessions that close in an outage.
fn sessions(outage: usize) -> Vec<String> {
    (0..CLOSING).map(|n| format!("closing{outage}-{n}")).collect()
}

/// An action of unknown type: it is unroutable, and the dead-letter collector gets it during the outage.
fn unknown_action(outage: usize) -> Value {
    let unknown = json!({"action_type": "conversation.summarise"});
    message("long", "unknown", &format!("unknown{outage}"), &unknown)
}

/// Publishes `rate` messages a second, each with [`CONTENT_BYTES`], and records them as confirmed.
async fn steadily(
    agent: &Agent,
    published: &mut PublishedActions,
    messages: &[AgentAction],
    rate: usize,
) {
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(PARTS).unwrap());
    for part in messages.chunks(rate / PARTS) {
        ticks.tick().await;
        let mut part = part.to_vec();
        for action in &mut part {
            let content = action.body["content"].as_str().unwrap();
            action.body["content"] = format!("{content:<CONTENT_BYTES$}").into();
        }
        publish(agent, published, &part).await;
    }
}

/// Measures the memory of workers for so long, and checks that it does not grow after the first quarter.
/// Only in a deep run: in seconds nothing grows.
async fn memory_stays(workers: [&Worker; 5], during: Duration) {
    if !deep() {
        return;
    }
    let began = Instant::now();
    let mut samples = interval(during / 100);
    samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut settled, mut highest) = ([0; 5], [0; 5]);
    while began.elapsed() < during {
        samples.tick().await;
        let now = workers.map(resident_kib);
        for (highest, now) in highest.iter_mut().zip(now) {
            *highest = now.max(*highest);
        }
        if began.elapsed() < during / 4 {
            settled = highest;
        }
    }
    for ((worker, settled), highest) in workers.iter().zip(settled).zip(highest) {
        assert!(
            highest <= settled + GROWTH_KIB,
            "{}: {settled}, then {highest} KiB",
            worker.name()
        );
    }
}

fn resident_kib(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}
