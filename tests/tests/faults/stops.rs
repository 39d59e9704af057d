//! A worker that handles a slow or locked item stops in time, and another one finishes the item.

use domain::failure_policy::SLOW_LIMITS;
use domain::status::ConversationStatus;
use serde_json::{Value, json};
use system_tests::{
    COLLECTOR, LIMIT, MIGRATION, SAVER, STATISTICS, Scenario, as_dead_letter, at, closed, key_of,
    message,
};
use testkit::fleet::Worker;
use testkit::wait::eventually;

use crate::slow::{LOCKED, MESSAGES, moved_to_slow_queue, no_dead_letters, settled};
use crate::{SAVES, until_stored, with_ids};

const SESSIONS: &str = "conversation.session";
const EVENTS: &str = "SELECT count(*) FROM session_events";
const REFRESHED: &str = "SELECT count(*) FROM conversations WHERE stats_from IS NOT NULL";

/// Whoever calls `pass()` waits, until [`open_gate`] or for longer than any test.
async fn create_gate(scenario: &Scenario) {
    let gate = "CREATE TABLE gate (open bool);
        CREATE FUNCTION pass() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
            IF NOT EXISTS (SELECT FROM gate) THEN PERFORM pg_sleep(600); END IF;
            RETURN true;
        END $$";
    scenario.sql(gate).await;
}

/// Whoever writes such a row waits.
async fn hold(scenario: &Scenario, event: &str, condition: &str) {
    create_gate(scenario).await;
    let trigger = format!(
        "CREATE FUNCTION wait_for_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pass(); RETURN NEW;
         END $$;
         CREATE TRIGGER gate {event} FOR EACH ROW WHEN ({condition})
         EXECUTE FUNCTION wait_for_gate()"
    );
    scenario.sql(&trigger).await;
}

/// Whoever reads messages waits.
async fn hold_reads_of_messages(scenario: &Scenario) {
    create_gate(scenario).await;
    let view = "ALTER TABLE message_rows RENAME TO stored_rows;
        CREATE VIEW message_rows AS SELECT * FROM stored_rows WHERE pass()";
    scenario.sql(view).await;
}

/// Statements of this program that wait for the gate.
fn waiting(program: &str) -> String {
    format!(
        "SELECT (count(*) > 0)::text FROM pg_stat_activity WHERE datname = current_database()
         AND application_name = '{program}' AND wait_event = 'PgSleep'"
    )
}

/// Nobody waits any more, and nobody will. What waited for a worker that has stopped ends without effect.
async fn open_gate(scenario: &Scenario) {
    scenario.sql("INSERT INTO gate VALUES (true)").await;
    let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event = 'PgSleep' AND pid <> pg_backend_pid()";
    scenario.sql(waiting).await;
}

/// A worker that may take as long as any test for its stop.
async fn patient(scenario: &Scenario, program: &str) -> Worker {
    scenario.start_with(program, &[("VERBATIM_DRAIN_DEADLINE", "120s")]).await
}

/// It does not wait until the longer limits have passed.
async fn stops_in_time(worker: Worker) {
    let status = worker.stop(SLOW_LIMITS[0] / 2).await;
    let status = status.unwrap_or_else(|error| panic!("{error:#}: {}", worker.log_tail()));
    assert!(status.success(), "{status}: {}", worker.log_tail());
}

async fn works_apart(worker: &Worker) {
    eventually("work apart from others", LIMIT, async || {
        let log = worker.log();
        let apart = ["is closed apart from others", "are refreshed apart from others"];
        if apart.iter().any(|line| log.contains(line)) { Ok(()) } else { Err(worker.log_tail()) }
    })
    .await;
}

/// Stops the worker while its slow item waits for the gate, opens the gate, and starts another worker.
async fn replaced_while_it_waits(scenario: &Scenario, program: &str, worker: Worker) -> Worker {
    scenario.until_sql(&waiting(program), "true").await;
    stops_in_time(worker).await;
    open_gate(scenario).await;
    scenario.start(program).await
}

fn closes(tenant: &str) -> Vec<Value> {
    let close = |n: usize| closed(tenant, &format!("s{n}"), &json!({"timestamp": at(1_000)}));
    (0..MESSAGES).map(close).collect()
}

#[tokio::test]
async fn a_saver_stops_in_time_while_it_saves_a_slow_message() {
    let scenario = Scenario::new().await;
    hold(&scenario, "BEFORE INSERT ON message_rows", "NEW.id = 'm00007'").await;
    scenario.agent().publish_all(&with_ids("stop", MESSAGES, 4)).await;
    let saver = patient(&scenario, SAVER).await;
    until_stored(&scenario, MESSAGES - 1).await;
    moved_to_slow_queue(&saver, SAVES, 1.0).await;
    let saved = "SELECT count(*) FROM messages";
    let another = replaced_while_it_waits(&scenario, SAVER, saver).await;
    scenario.until_sql(saved, &MESSAGES.to_string()).await;
    settled(&another, 1).await;
    scenario.finish([another]).await;
    no_dead_letters(&scenario).await;
}

#[tokio::test]
async fn a_saver_stops_in_time_while_a_conversation_is_locked() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    let messages = with_ids("stop", 2 * MESSAGES, MESSAGES);
    let (first, second) = messages.split_at(MESSAGES);
    let saver = patient(&scenario, SAVER).await;
    agent.publish_all(first).await;
    until_stored(&scenario, MESSAGES).await;
    let stopped = async {
        agent.publish_all(second).await;
        until_stored(&scenario, 2 * MESSAGES - 1).await;
        moved_to_slow_queue(&saver, SAVES, 1.0).await;
        stops_in_time(saver).await;
    };
    scenario.while_open(LOCKED, stopped).await;
    let another = scenario.start(SAVER).await;
    until_stored(&scenario, 2 * MESSAGES).await;
    settled(&another, 1).await;
    no_dead_letters(&scenario).await;
    scenario.finish([another]).await;
}

#[tokio::test]
async fn a_migration_worker_stops_in_time_while_it_records_a_slow_session_event() {
    let scenario = Scenario::new().await;
    hold(&scenario, "BEFORE INSERT ON session_events", "NEW.session_id = 's7'").await;
    scenario.agent().publish_all(&closes("stop")).await;
    let migration = patient(&scenario, MIGRATION).await;
    scenario.until_sql(EVENTS, &(MESSAGES - 1).to_string()).await;
    moved_to_slow_queue(&migration, SESSIONS, 1.0).await;
    let another = replaced_while_it_waits(&scenario, MIGRATION, migration).await;
    scenario.until_sql(EVENTS, &MESSAGES.to_string()).await;
    settled(&another, 1).await;
    scenario.finish([another]).await;
    no_dead_letters(&scenario).await;
}

#[tokio::test]
async fn a_migration_worker_stops_in_time_while_the_conversation_of_a_session_event_is_locked() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    let (saver, migration) = tokio::join!(scenario.start(SAVER), patient(&scenario, MIGRATION));
    agent.publish_all(&with_ids("stop", MESSAGES, MESSAGES)).await;
    until_stored(&scenario, MESSAGES).await;
    let stopped = async {
        agent.publish_all(&closes("stop")).await;
        scenario.until_sql(EVENTS, &(MESSAGES - 1).to_string()).await;
        moved_to_slow_queue(&migration, SESSIONS, 1.0).await;
        stops_in_time(migration).await;
    };
    scenario.while_open(LOCKED, stopped).await;
    let another = scenario.start(MIGRATION).await;
    scenario.until_sql(EVENTS, &MESSAGES.to_string()).await;
    settled(&another, 1).await;
    no_dead_letters(&scenario).await;
    scenario.finish([saver, another]).await;
}

#[tokio::test]
async fn a_migration_worker_stops_in_time_while_it_closes_a_slow_conversation() {
    let scenario = Scenario::new().await;
    let (agent, saver) = (scenario.agent(), scenario.start(SAVER).await);
    agent.publish(&message("stop", "s", "m", &json!({}))).await;
    until_stored(&scenario, 1).await;
    let settings = [("VERBATIM_CLOSE_LEASE", "3s"), ("VERBATIM_DRAIN_DEADLINE", "120s")];
    let migration = scenario.start_with(MIGRATION, &settings).await;
    hold_reads_of_messages(&scenario).await;
    agent.publish(&closed("stop", "s", &json!({}))).await;
    works_apart(&migration).await;
    let archived = "SELECT count(*) FROM conversations WHERE status = 'archived'";
    let another = replaced_while_it_waits(&scenario, MIGRATION, migration).await;
    scenario.until_sql(archived, "1").await;
    scenario.finish([saver, another]).await;
}

/// A scenario with an archived conversation whose statistics are not computed yet.
async fn with_an_archived_conversation() -> Scenario {
    let scenario = Scenario::new().await;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let (saver, migration) = tokio::join!(scenario.start(SAVER), scenario.start(MIGRATION));
    let body = message("stop", "s", "m", &json!({}));
    agent.publish(&body).await;
    until_stored(&scenario, 1).await;
    agent.publish(&closed("stop", "s", &json!({}))).await;
    reader.reaches(&key_of(&body), ConversationStatus::Archived).await;
    scenario.finish([saver, migration]).await;
    scenario
}

#[tokio::test]
async fn a_statistics_worker_stops_in_time_while_it_computes_slow_statistics() {
    let scenario = with_an_archived_conversation().await;
    hold(&scenario, "BEFORE INSERT ON conversation_stats", "true").await;
    let statistics = patient(&scenario, STATISTICS).await;
    works_apart(&statistics).await;
    let another = replaced_while_it_waits(&scenario, STATISTICS, statistics).await;
    scenario.until_sql(REFRESHED, "1").await;
    scenario.finish([another]).await;
}

#[tokio::test]
async fn a_statistics_worker_stops_in_time_while_it_computes_a_slow_day() {
    let scenario = with_an_archived_conversation().await;
    hold(&scenario, "BEFORE UPDATE ON daily_stats", "NOT NEW.dirty").await;
    let statistics = patient(&scenario, STATISTICS).await;
    works_apart(&statistics).await;
    let another = replaced_while_it_waits(&scenario, STATISTICS, statistics).await;
    scenario.until_sql("SELECT count(*) FROM daily_stats WHERE NOT dirty", "1").await;
    scenario.finish([another]).await;
}

#[tokio::test]
async fn a_statistics_worker_stops_in_time_while_a_conversation_is_locked() {
    let scenario = with_an_archived_conversation().await;
    let stopped = async {
        let statistics = patient(&scenario, STATISTICS).await;
        works_apart(&statistics).await;
        stops_in_time(statistics).await;
    };
    scenario.while_open("SELECT FROM conversations FOR UPDATE", stopped).await;
    let another = scenario.start(STATISTICS).await;
    scenario.until_sql(REFRESHED, "1").await;
    scenario.finish([another]).await;
}

#[tokio::test]
async fn a_dead_letter_worker_stops_in_time_while_it_stores_a_slow_dead_letter() {
    let scenario = Scenario::new().await;
    hold(&scenario, "BEFORE INSERT ON dead_letters", "NEW.message_id = 'm00007'").await;
    let dead_letters = with_ids("stop", MESSAGES, 4);
    let dead_letters = dead_letters.iter().map(|it| as_dead_letter(&it.to_string()));
    scenario.agent().send(dead_letters.collect()).await;
    let collector = patient(&scenario, COLLECTOR).await;
    let stored = "SELECT count(*) FROM dead_letters";
    scenario.until_sql(stored, &(MESSAGES - 1).to_string()).await;
    moved_to_slow_queue(&collector, "conversation.save_message.dlq", 1.0).await;
    let another = replaced_while_it_waits(&scenario, COLLECTOR, collector).await;
    scenario.until_sql(stored, &MESSAGES.to_string()).await;
    settled(&another, 1).await;
    scenario.finish([another]).await;
}

#[tokio::test]
async fn a_dead_letter_worker_stops_in_time_while_a_dead_letter_is_locked() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    let dead_letters = with_ids("stop", MESSAGES, 4);
    let dead_letters: Vec<_> =
        dead_letters.iter().map(|it| as_dead_letter(&it.to_string())).collect();
    let collector = patient(&scenario, COLLECTOR).await;
    agent.send(dead_letters.clone()).await;
    let copies = "SELECT sum(copies) FROM dead_letters";
    scenario.until_sql(copies, &MESSAGES.to_string()).await;
    let stopped = async {
        agent.send(dead_letters).await;
        scenario.until_sql(copies, &(2 * MESSAGES - 1).to_string()).await;
        moved_to_slow_queue(&collector, "conversation.save_message.dlq", 1.0).await;
        stops_in_time(collector).await;
    };
    let locked = "SELECT FROM dead_letters WHERE message_id = 'm00007' FOR UPDATE";
    scenario.while_open(locked, stopped).await;
    let another = scenario.start(COLLECTOR).await;
    scenario.until_sql(copies, &(2 * MESSAGES).to_string()).await;
    settled(&another, 1).await;
    scenario.finish([another]).await;
}
