//! One message that is slow, or whose rows are locked, stops no other; and PostgreSQL's own failures are blamed on none.

use std::time::Instant;

use serde_json::{Value, json};
use system_tests::{
    COLLECTOR, Counts, MIGRATION, SAVER, Scenario, as_dead_letter, at, closed, key_of, message,
};
use testkit::environment::deep;
use testkit::fleet::Worker;
use testkit::servers::{Kind, Servers};

use crate::{SAVES, until_stored, with_ids};

pub(crate) const MESSAGES: usize = 40;

const SAVED: &str = "SELECT count(*) FROM messages";

/// The conversation whose row the tests lock.
pub(crate) const LOCKED: &str = "SELECT FROM conversations WHERE session_id = 's7' FOR UPDATE";

/// Waits until PostgreSQL has everything except the slow or locked item, and prints how long that took.
async fn others_are_done(scenario: &Scenario, since: Instant, query: &str, wanted: usize) {
    scenario.until_sql(query, &wanted.to_string()).await;
    eprintln!("the others were done after {:.1?}", since.elapsed());
}

/// Waits until the worker has moved so many deliveries to the slow queue.
pub(crate) async fn moved_to_slow_queue(worker: &Worker, queue: &str, many: f64) {
    let labels = [("queue", queue), ("outcome", "slow")];
    Counts::reach(worker, "verbatim_deliveries_total", &labels, many).await;
}

/// Waits until the worker has settled so many deliveries: one that is stored may not be acknowledged yet.
pub(crate) async fn settled(worker: &Worker, many: usize) {
    Counts::reach(worker, "verbatim_deliveries_total", &[("outcome", "applied")], many as f64)
        .await;
}

pub(crate) async fn no_dead_letters(scenario: &Scenario) {
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
}

#[tokio::test]
async fn messages_of_a_locked_conversation_delay_no_other_message() {
    let scenario = Scenario::new().await;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let messages = with_ids("locked", 2 * MESSAGES, MESSAGES);
    let (first, second) = messages.split_at(MESSAGES);
    let saver = scenario.start(SAVER).await;
    agent.publish_all(first).await;
    until_stored(&scenario, MESSAGES).await;
    let beside = async {
        let since = Instant::now();
        agent.publish_all(second).await;
        others_are_done(&scenario, since, SAVED, 2 * MESSAGES - 1).await;
        moved_to_slow_queue(&saver, SAVES, 1.0).await;
        let later = message("locked", "s1", "later", &json!({}));
        agent.publish(&later).await;
        until_stored(&scenario, 2 * MESSAGES).await;
    };
    scenario.while_open(LOCKED, beside).await;
    until_stored(&scenario, 2 * MESSAGES + 1).await;
    settled(&saver, 2 * MESSAGES + 1).await;
    assert_eq!(reader.both(&key_of(&messages[7])).await.len(), 2);
    no_dead_letters(&scenario).await;
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_session_event_of_a_locked_conversation_delays_no_other_session_event() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    let (saver, migration) = tokio::join!(scenario.start(SAVER), scenario.start(MIGRATION));
    agent.publish_all(&with_ids("locked", MESSAGES, MESSAGES)).await;
    until_stored(&scenario, MESSAGES).await;
    let close = |n: usize| closed("locked", &format!("s{n}"), &json!({"timestamp": at(1_000)}));
    let closes: Vec<Value> = (0..MESSAGES).map(close).collect();
    let events = "SELECT count(*) FROM session_events";
    let beside = async {
        let since = Instant::now();
        agent.publish_all(&closes).await;
        others_are_done(&scenario, since, events, MESSAGES - 1).await;
        agent.publish(&closed("locked", "s1", &json!({"timestamp": at(2_000)}))).await;
        scenario.until_sql(events, &MESSAGES.to_string()).await;
        moved_to_slow_queue(&migration, "conversation.session", 1.0).await;
    };
    scenario.while_open(LOCKED, beside).await;
    settled(&migration, MESSAGES + 1).await;
    no_dead_letters(&scenario).await;
    scenario.finish([saver, migration]).await;
}

/// Makes the insert of one row take so many seconds.
async fn slow(scenario: &Scenario, table: &str, column: &str, value: &str, seconds: u32) {
    let trigger = format!(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.{column} = '{value}' THEN PERFORM pg_sleep({seconds}); END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER slow BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION slow()"
    );
    scenario.sql(&trigger).await;
}

/// A unit of work that takes longer than any that a worker waits for, except with the longer limits; in the deep run
/// longer than the first of these.
fn seconds() -> u32 {
    if deep() { 35 } else { 4 }
}

/// The workers of these tests wait this long for PostgreSQL, except with the longer limits.
const SETTINGS: [(&str, &str); 1] = [("VERBATIM_DATABASE_TIMEOUT", "3s")];

#[tokio::test]
async fn a_slow_message_delays_no_other_and_is_saved() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    slow(&scenario, "message_rows", "id", "m00007", seconds()).await;
    agent.publish_all(&with_ids("slow", MESSAGES, 4)).await;
    let saver = scenario.start_with(SAVER, &SETTINGS).await;
    others_are_done(&scenario, Instant::now(), SAVED, MESSAGES - 1).await;
    moved_to_slow_queue(&saver, SAVES, 1.0).await;
    until_stored(&scenario, MESSAGES).await;
    settled(&saver, MESSAGES).await;
    no_dead_letters(&scenario).await;
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_slow_session_event_delays_no_other_and_is_recorded() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    slow(&scenario, "session_events", "session_id", "s7", seconds()).await;
    let close = |n: usize| closed("slow", &format!("s{n}"), &json!({"timestamp": at(1_000)}));
    let closes: Vec<Value> = (0..MESSAGES).map(close).collect();
    agent.publish_all(&closes).await;
    let migration = scenario.start_with(MIGRATION, &SETTINGS).await;
    let events = "SELECT count(*) FROM session_events";
    others_are_done(&scenario, Instant::now(), events, MESSAGES - 1).await;
    moved_to_slow_queue(&migration, "conversation.session", 1.0).await;
    scenario.until_sql(events, &MESSAGES.to_string()).await;
    settled(&migration, MESSAGES).await;
    no_dead_letters(&scenario).await;
    scenario.finish([migration]).await;
}

#[tokio::test]
async fn a_close_of_very_many_conversations_delays_no_other_session_event() {
    let (many, scenario) = (if deep() { 250_000 } else { 25_000 }, Scenario::new().await);
    let agent = scenario.agent();
    let (before, tenant) = ("'2020-01-01T00:00:00Z'", "'many'");
    let conversations = format!("SELECT 'c' || n AS id FROM generate_series(1, {many}) AS n");
    for insert in [
        format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
             SELECT {tenant}, id, 's', {before}, 1 FROM ({conversations}) AS c"
        ),
        format!(
            "INSERT INTO sessions (tenant_id, conversation_id, session_id, open, last_event_at)
             SELECT {tenant}, id, 's', true, {before} FROM ({conversations}) AS c"
        ),
        format!(
            "INSERT INTO session_events (tenant_id, conversation_id, id, action_type, session_id, created_at,
                                         received_at, effective_at, everywhere, content_hash)
             SELECT {tenant}, id, id, 'conversation.session_opened', 's', {before}, {before}, {before}, false, ''
             FROM ({conversations}) AS c"
        ),
    ] {
        scenario.sql(&insert).await;
    }
    let close = |session: &str| closed("many", session, &json!({"timestamp": at(1_000)}));
    let others: Vec<Value> = (0..MESSAGES).map(|n| close(&format!("s{n}"))).collect();
    agent.publish_all(&[vec![close("s")], others].concat()).await;
    let migration = scenario.start(MIGRATION).await;
    let closes =
        "SELECT count(*) FROM session_events WHERE action_type LIKE '%closed' AND session_id";
    others_are_done(&scenario, Instant::now(), &format!("{closes} <> 's'"), MESSAGES).await;
    scenario.until_sql(&format!("{closes} = 's'"), &many.to_string()).await;
    settled(&migration, MESSAGES + 1).await;
    no_dead_letters(&scenario).await;
    scenario.finish([migration]).await;
}

#[tokio::test]
async fn a_slow_dead_letter_delays_no_other_and_is_stored() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    slow(&scenario, "dead_letters", "message_id", "m00007", seconds()).await;
    let dead_letters = with_ids("slow", MESSAGES, 4);
    let dead_letters = dead_letters.iter().map(|it| as_dead_letter(&it.to_string()));
    agent.send(dead_letters.collect()).await;
    let collector = scenario.start_with(COLLECTOR, &SETTINGS).await;
    let stored = "SELECT count(*) FROM dead_letters";
    others_are_done(&scenario, Instant::now(), stored, MESSAGES - 1).await;
    moved_to_slow_queue(&collector, "conversation.save_message.dlq", 1.0).await;
    scenario.until_sql(stored, &MESSAGES.to_string()).await;
    settled(&collector, MESSAGES).await;
    scenario.finish([collector]).await;
}

#[tokio::test]
async fn commits_that_wait_for_a_lost_standby_are_an_outage_and_move_no_message() {
    let servers = Servers::start(&[Kind::PostgreSql]).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let agent = scenario.agent();
    let saver = scenario.start_with(SAVER, &SETTINGS).await;
    let messages = with_ids("commits", MESSAGES, 4);
    let (before, during) = messages.split_at(MESSAGES / 2);
    agent.publish_all(before).await;
    until_stored(&scenario, before.len()).await;
    let set_standbys = async |change: &str| {
        scenario.sql(&format!("ALTER SYSTEM {change}")).await;
        scenario.sql("SELECT pg_reload_conf()").await;
    };
    // Each save locks the row of its conversation now, until its commit is at its end.
    scenario.sql("UPDATE conversations SET touched_at = touched_at - interval '1 hour'").await;
    set_standbys("SET synchronous_standby_names = '*'").await;
    agent.publish_all(during).await;
    Counts::reach(&saver, "verbatim_holds_total", &[("dependency", "postgresql")], 1.0).await;
    for _ in 0..10 {
        scenario.sql("SELECT pg_sleep(1)").await;
        let counts = Counts::of(&saver).await;
        for outcome in ["retried", "dead_lettered", "slow"] {
            let settled = counts.sum("verbatim_deliveries_total", &[("outcome", outcome)]);
            assert_eq!(settled, 0.0, "{outcome}");
        }
    }
    set_standbys("RESET synchronous_standby_names").await;
    until_stored(&scenario, MESSAGES).await;
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_failure_of_postgresql_that_hits_everything_makes_no_dead_letter() {
    let (seconds, scenario) = (if deep() { 600 } else { 60 }, Scenario::new().await);
    let agent = scenario.agent();
    // Nobody knows these as faults of a message: a stop before a wraparound, an internal error, a wrong state, and an
    // exception of a trigger.
    let fails = "CREATE SEQUENCE failures;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'made by the test'
                USING ERRCODE = ('{54000,XX000,55000,P0001}'::text[])[1 + nextval('failures') % 4];
        END $$";
    scenario.sql(fails).await;
    let tables = ["message_rows", "session_events", "dead_letters"];
    for table in tables {
        let trigger =
            format!("CREATE TRIGGER fail BEFORE INSERT ON {table} EXECUTE FUNCTION fail()");
        scenario.sql(&trigger).await;
    }
    let refused = as_dead_letter(&message("fails", "s", "refused", &json!({})).to_string());
    agent.send(vec![refused]).await;
    agent.publish_all(&with_ids("fails", 20, 4)).await;
    let close = |n: usize| closed("fails", &format!("s{n}"), &json!({"timestamp": at(1_000)}));
    agent.publish_all(&(0..4).map(close).collect::<Vec<_>>()).await;
    let [saver, migration, collector] =
        [SAVER, MIGRATION, COLLECTOR].map(|program| scenario.launch(program, &[]));
    for worker in [&saver, &migration, &collector] {
        Counts::reach(worker, "verbatim_holds_total", &[("dependency", "postgresql")], 1.0).await;
    }
    for _ in 0..seconds {
        scenario.sql("SELECT pg_sleep(1)").await;
        for worker in [&saver, &migration, &collector] {
            let counts = Counts::of(worker).await;
            for outcome in ["retried", "dead_lettered", "slow"] {
                let settled = counts.sum("verbatim_deliveries_total", &[("outcome", outcome)]);
                assert_eq!(settled, 0.0, "{outcome}: {}", worker.name());
            }
        }
    }
    for table in tables {
        scenario.sql(&format!("DROP TRIGGER fail ON {table}")).await;
    }
    until_stored(&scenario, 20).await;
    scenario.until_sql("SELECT count(*) FROM session_events", "4").await;
    scenario.until_sql("SELECT string_agg(message_id, ',') FROM dead_letters", "refused").await;
    scenario.finish([saver, migration, collector]).await;
}
