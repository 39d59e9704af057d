//! Errors that speak of an outage, and have a single item as their cause: no other waits for it, and it is not blamed.

use std::time::Duration;

use domain::failure::{Failure, Outcome};
use fixtures::{at_once, closer, refresh, sql, stores, to_save};
use metrics::{Counter, SlowOutcome, SlowWork};
use serde_json::{Value, json};
use testkit::TestEnv;

use crate::closing::{archived, due};
use crate::slowness::hasty;
use crate::statistics;

/// Out of memory, an input/output error, a missing permission.
const CODES: [&str; 3] = ["53200", "58030", "42501"];

/// Makes PostgreSQL fail with this SQLSTATE for the rows of a table that fulfil the condition.
async fn fail(env: &TestEnv, code: &str, event: &str, condition: &str) {
    let trigger = format!(
        "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'made by the test' USING ERRCODE = '{code}';
         END $$;
         CREATE OR REPLACE TRIGGER fail {event} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION fail()"
    );
    sql(env, &trigger).await;
}

fn message(id: &str, content: &str) -> domain::action::SaveMessage {
    to_save("s", id, &json!({"content": content}))
}

fn is_unavailable(outcome: &Outcome) -> bool {
    matches!(outcome, Err(Failure::Unavailable(_)))
}

#[tokio::test]
async fn a_message_for_which_postgresql_fails_as_in_an_outage_is_handled_apart_and_others_are_saved()
 {
    let (env, replica) = stores().await;
    for code in CODES {
        fail(&env, code, "BEFORE INSERT ON message_rows", "NEW.content = 'fail'").await;
        let id = |n: u32| format!("{code} {n}");
        let batch = [message(&id(1), "a"), message(&id(2), "fail"), message(&id(3), "b")];
        let saved = replica.saver.save(&batch).await.unwrap();
        assert!(saved[0].is_ok() && is_unavailable(&saved[1]) && saved[2].is_ok(), "{saved:?}");
        let alone = replica.saver.save(&batch[1..2]).await.unwrap();
        assert!(is_unavailable(&alone[0]), "{alone:?}");
    }
    sql(&env, "DROP TRIGGER fail ON message_rows").await;
    let later = message("53200 2", "fail");
    assert!(replica.save(std::slice::from_ref(&later)).await[0].is_ok());
    // A full disk is an outage, also if a test write is small enough to succeed.
    fail(&env, "53100", "BEFORE INSERT ON message_rows", "NEW.content = 'fail'").await;
    assert!(replica.saver.save(&[message("full", "fail")]).await.is_err());
}

#[tokio::test]
async fn many_messages_that_fail_as_in_an_outage_are_handled_apart_while_test_writes_succeed() {
    let (env, replica) = stores().await;
    fail(&env, "58030", "BEFORE INSERT ON message_rows", "NEW.content = 'fail'").await;
    let failing: Vec<_> = (0..40).map(|n| message(&format!("m{n:02}"), "fail")).collect();
    let saved = replica.saver.save(&failing).await.unwrap();
    assert!(saved.iter().all(is_unavailable), "{saved:?}");
    let with_another = [failing, vec![message("other", "a")]].concat();
    let saved = replica.saver.save(&with_another).await.unwrap();
    assert!(saved[..40].iter().all(is_unavailable) && saved[40].is_ok(), "{saved:?}");
    sql(&env, "CREATE TRIGGER fail_all BEFORE INSERT ON message_rows EXECUTE FUNCTION fail()")
        .await;
    assert!(
        replica.saver.save(&with_another).await.is_err(),
        "test writes fail: the batch is held"
    );
}

/// Messages with the content `slow` take 10 s. Test writes succeed once, and then fail.
async fn slow_rows_and_one_test_write(env: &TestEnv) {
    sql(
        env,
        "CREATE SEQUENCE test_writes;
         CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.content = 'slow' THEN PERFORM pg_sleep(10); END IF;
             IF NEW.content = 'a test write' AND nextval('test_writes') > 1 THEN
                 RAISE EXCEPTION 'made by the test' USING ERRCODE = '58030';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER slow BEFORE INSERT ON message_rows FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
}

#[tokio::test]
async fn many_time_outs_in_a_row_are_no_fault_of_the_messages_if_a_test_write_fails_then() {
    let (env, _) = stores().await;
    slow_rows_and_one_test_write(&env).await;
    let hasty = hasty(&env, Duration::from_millis(500));
    let slow: Vec<_> = (0..32).map(|n| message(&format!("m{n}"), "slow")).collect();
    let saved = hasty.saver.save(&slow).await;
    assert!(saved.is_err(), "PostgreSQL counts as unavailable: {saved:?}");
    assert_eq!(sql(&env, "SELECT last_value FROM test_writes").await, "2");
}

#[tokio::test]
async fn a_session_event_that_fails_as_in_an_outage_is_handled_apart_and_others_are_recorded() {
    let (env, replica) = stores().await;
    fail(&env, "58030", "BEFORE INSERT ON session_events", "NEW.session_id = 'fail'").await;
    let close = |session: &str| -> Value {
        json!({
            "action_type": "conversation.session_closed", "tenant_id": "acme",
            "session_id": session, "timestamp": "2026-11-20T10:05:00Z",
        })
    };
    let events = ["a", "fail", "z"].map(|session| fixtures::action(&close(session)));
    let recorded = replica.sessions.record(&events).await.unwrap();
    assert!(recorded[0].is_ok() && is_unavailable(&recorded[1]) && recorded[2].is_ok());
}

#[tokio::test]
async fn a_conversation_whose_close_fails_as_in_an_outage_delays_no_other() {
    let (env, replica) = stores().await;
    for id in ["a", "fail", "z"] {
        due(&replica, id, 1).await;
    }
    let archives = "NEW.status = 'archived' AND NEW.session_id = 'fail'";
    fail(&env, "58030", "BEFORE UPDATE ON conversations", archives).await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let closer = closer(&env, &hasty, at_once()).await;
    assert_eq!(closer.sweep(20).await.unwrap().archived, 2);
    assert_eq!(archived(&env).await, "a z");
    closer.close_apart(closer.next_apart().await).await;
    let failed = Counter::SlowWork { work: SlowWork::Close, outcome: SlowOutcome::Failed };
    assert_eq!(hasty.metrics.count(failed), 1);
    sql(&env, "DROP TRIGGER fail ON conversations").await;
    sql(&env, "UPDATE conversations SET close_lease_until = now() WHERE status = 'closing'").await;
    closer.sweep(20).await.unwrap();
    closer.close_apart(closer.next_apart().await).await;
    assert_eq!(archived(&env).await, "a fail z");
}

#[tokio::test]
async fn statistics_that_fail_as_in_an_outage_delay_no_others() {
    let (env, replica) = stores().await;
    statistics::archived(&env, &replica, &["a", "fail", "z"]).await;
    let event = "BEFORE INSERT OR UPDATE ON conversation_stats";
    fail(&env, "53200", event, "NEW.agent_id = 'fail'").await;
    refresh(&replica.statistics).await;
    assert_eq!(sql(&env, statistics::DAYS).await, "a z");
}
