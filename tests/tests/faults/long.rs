//! Outages that last, and outages without end, under a steady load. Minutes with `--deep`, else
//! seconds.

use std::time::Duration;

use serde_json::Value;
use system_tests::{Agent, Counts, LIMIT, Ledger, SAVER, STATISTICS, Scenario};
use testkit::environment::deep;
use testkit::fleet::Worker;
use testkit::servers::{Kind, Servers};
use testkit::wait::eventually;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{SAVES, load, proxy, stored, until_stored};

/// What a worker's memory may grow in an outage after its first quarter: less than a second of the
/// load, if it were kept.
const GROWTH_KIB: u64 = 16 << 10;

/// How often a second messages are published.
const PARTS: usize = 10;

#[tokio::test]
async fn a_long_outage_of_each_server_under_load_costs_time_and_no_attempt() {
    let (outage, rate, patience) = if deep() { (120, 1_000, "20s") } else { (3, 300, "500ms") };
    let outage = Duration::from_secs(outage);
    let scenario = Scenario::new().await;
    let (broker, redis, database) = tokio::join!(
        proxy(&scenario.amqp_url),
        proxy(&scenario.redis_url),
        proxy(&scenario.database_url),
    );
    let urls =
        [("AMQP_URL", broker.url()), ("REDIS_URL", redis.url()), ("DATABASE_URL", database.url())];
    // The second one holds for less than the outage, gives back what it has, and waits.
    let shorter: Vec<_> = urls.into_iter().chain([("VERBATIM_HOLD_LIMIT", patience)]).collect();
    let (one, two, statistics) = tokio::join!(
        scenario.start_with(SAVER, &urls),
        scenario.start_with(SAVER, &shorter),
        scenario.start(STATISTICS),
    );
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    let in_an_outage = usize::try_from(outage.as_secs()).unwrap() * rate;
    let messages = load("long", 3 * (rate + in_an_outage), 3 * in_an_outage / 300 + 10);
    for (server, messages) in
        [&database, &redis, &broker].into_iter().zip(messages.chunks(rate + in_an_outage))
    {
        let (before, during) = messages.split_at(rate);
        steadily(&agent, &mut ledger, before, rate).await;
        until_stored(&scenario, ledger.len()).await;
        server.cut().await.unwrap();
        tokio::join!(
            steadily(&agent, &mut ledger, during, rate),
            memory_stays(&one, outage),
            memory_stays(&two, outage),
        );
        server.restore().await.unwrap();
        until_stored(&scenario, ledger.len()).await;
        for worker in [&one, &two] {
            worker.ready(LIMIT).await.unwrap();
        }
    }
    ledger.reconcile(&scenario, &eyes).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    let of = |name| [("queue", SAVES), ("cause", name)];
    Counts::reach(&two, "verbatim_consumer_restarts_total", &of("hold"), 1.0).await;
    for worker in [&one, &two] {
        let counts = Counts::reach(worker, "verbatim_holds_total", &[], 1.0).await;
        assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
        assert_eq!(counts.sum("verbatim_deliveries_total", &[("outcome", "suspected")]), 0.0);
    }
    scenario.rest([one, two, statistics]).await;
}

#[tokio::test]
async fn rabbitmq_killed_again_and_again_while_hands_are_full_makes_no_dead_letter() {
    let (kills, part) = if deep() { (25, 200) } else { (3, 100) };
    let scenario = Scenario::with_own(Servers::start(&[Kind::RabbitMq]).await.unwrap()).await;
    let (agent, eyes, mut ledger) = (scenario.agent(), scenario.eyes(), Ledger::default());
    // While there is a gate, whoever saves waits before it.
    let gate = "CREATE TABLE gate ();
                CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    WHILE EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.02); END LOOP;
                    RETURN NULL;
                END $$;
                CREATE TRIGGER wait BEFORE INSERT ON message_rows
                    FOR EACH STATEMENT EXECUTE FUNCTION wait()";
    scenario.sql(gate).await;
    let slowly = [("VERBATIM_DATABASE_TIMEOUT", "1m")];
    let (one, two, statistics) = tokio::join!(
        scenario.start_with(SAVER, &slowly),
        scenario.start_with(SAVER, &slowly),
        scenario.start(STATISTICS),
    );
    let messages = load("kills", (kills + 1) * part, 20);
    let mut parts = messages.chunks(part);
    let mut more = async |ledger: &mut Ledger| {
        let part = parts.next().unwrap();
        agent.insist(part).await;
        ledger.confirm(part);
    };
    more(&mut ledger).await;
    for kill in 0..kills {
        scenario.sql("INSERT INTO gate DEFAULT VALUES").await;
        // Those whose saver went away at the last kill wait at the gate as well.
        let left_behind = saving(&scenario).await;
        more(&mut ledger).await;
        eventually("full hands, or a suspect alone", LIMIT, async || {
            let (held, saving) = (in_hand(&[&one, &two]).await, saving(&scenario).await);
            if held > 0.0 || saving > left_behind { Ok(()) } else { Err(format!("{saving} save")) }
        })
        .await;
        let rabbitmq = scenario.server(Kind::RabbitMq);
        rabbitmq.kill().await.unwrap();
        rabbitmq.start().await.unwrap();
        if kill % 2 == 1 {
            // Time enough for some.
            let before = stored(&scenario).await;
            scenario.sql("DELETE FROM gate").await;
            until_stored(&scenario, ledger.len().min(before + 1)).await;
        }
    }
    scenario.sql("DELETE FROM gate").await;
    ledger.reconcile(&scenario, &eyes).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    let (one_saw, two_saw) = tokio::join!(Counts::of(&one), Counts::of(&two));
    let redelivered = [&one_saw, &two_saw]
        .map(|counts| counts.sum("verbatim_redeliveries_total", &[("queue", SAVES)]));
    assert!(redelivered.iter().sum::<f64>() > 0.0, "{redelivered:?}");
    scenario.rest([one, two, statistics]).await;
}

/// Publishes so many messages a second, and enters them into the books.
async fn steadily(agent: &Agent, ledger: &mut Ledger, messages: &[Value], rate: usize) {
    let mut beat = interval(Duration::from_secs(1) / u32::try_from(PARTS).unwrap());
    for part in messages.chunks(rate / PARTS) {
        beat.tick().await;
        agent.publish_all(part).await;
        ledger.confirm(part);
    }
}

/// Looks at a worker's memory for so long; from the first quarter on it is to stay what it is.
async fn memory_stays(worker: &Worker, during: Duration) {
    let began = Instant::now();
    let mut looks = interval(during / 100);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut settled, mut highest) = (0, 0);
    while began.elapsed() < during {
        looks.tick().await;
        let now = resident_kib(worker);
        if began.elapsed() < during / 4 {
            settled = settled.max(now);
        }
        highest = highest.max(now);
    }
    assert!(highest <= settled + GROWTH_KIB, "{}: {settled}, then {highest} KiB", worker.name());
}

fn resident_kib(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn in_hand(workers: &[&Worker]) -> f64 {
    let held = [("queue", SAVES), ("state", "unacknowledged")];
    let mut sum = 0.0;
    for worker in workers {
        sum += Counts::of(worker).await.sum("verbatim_queue_messages", &held);
    }
    sum
}

/// How many statements are saving.
async fn saving(scenario: &Scenario) -> usize {
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%Saves a batch%'
                  AND state = 'active' AND datname = current_database() AND pid <> pg_backend_pid()";
    scenario.sql(active).await.parse().unwrap()
}
