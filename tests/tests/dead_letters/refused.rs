//! Dead letters that PostgreSQL refuses: they are stored all the same or reported, and delay no other.

use serde_json::{Value, json};
use system_tests::{COLLECTOR, Counts, SAVER, Scenario, message};
use uuid::Uuid;

use crate::{DEAD_LETTERS, SAVES, dead_letter};

const LONGEST_RETRY: &str = "domain.retry.30000";

#[tokio::test]
async fn a_message_with_an_id_too_large_for_an_index_is_a_dead_letter_and_delays_no_other() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    // A signed token as `session_id`: it does not compress.
    let bytes = std::iter::repeat_with(Uuid::new_v4).flat_map(Uuid::into_bytes);
    let token: String =
        bytes.filter(u8::is_ascii_alphanumeric).take(3_000).map(char::from).collect();
    let too_large = message("indexed", &token, "m1", &json!({}));
    let bad = message("indexed", "s", "m2", &json!({"role": "bot"}));
    let good = message("indexed", "s", "m3", &json!({}));
    scenario.agent().publish_all(&[too_large, bad, good]).await;
    scenario.until_sql("SELECT string_agg(id, ',') FROM messages", "m3").await;
    let stored = "SELECT string_agg(concat_ws('|', message_id, coalesce(session_id, '-'), not_stored), ',' ORDER BY message_id)
                  FROM dead_letters";
    scenario.until_sql(stored, "m1|-,m2|s").await;
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_dead_letter_of_which_less_is_stored_waits_in_an_outage_and_is_not_blamed_for_it() {
    let scenario = Scenario::new().await;
    scenario
        .sql(
            "CREATE SEQUENCE in_part; CREATE SEQUENCE test_writes;
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.not_stored IS NOT NULL THEN
                     PERFORM nextval('in_part');
                     RAISE EXCEPTION 'the outage begins' USING ERRCODE = '58030';
                 END IF;
                 IF (SELECT is_called FROM in_part) THEN
                     PERFORM nextval('test_writes');
                     RAISE EXCEPTION 'the outage goes on' USING ERRCODE = '58030';
                 END IF;
                 IF NEW.body LIKE 'what is%' THEN
                     RAISE EXCEPTION 'refused by the test' USING ERRCODE = '22023';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON dead_letters
                 FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    let collector = scenario.start(COLLECTOR).await;
    scenario.agent().send(vec![dead_letter(1)]).await;
    scenario.until_sql("SELECT is_called FROM test_writes", "true").await;
    scenario.sql("DROP TRIGGER refuse ON dead_letters").await;
    scenario.until_sql("SELECT count(*) FROM dead_letters WHERE not_stored IS NULL", "1").await;
    let counts = Counts::of(&collector).await;
    for outcome in ["slow", "retried"] {
        let moved = [("queue", DEAD_LETTERS), ("outcome", outcome)];
        assert_eq!(counts.sum("verbatim_deliveries_total", &moved), 0.0, "{outcome}");
    }
    scenario.finish([collector]).await;
}

#[tokio::test]
async fn a_dead_letter_that_postgresql_refuses_is_reported_while_it_waits_for_a_retry() {
    let scenario = Scenario::new().await;
    scenario
        .sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.body LIKE 'what is 1?' THEN RAISE EXCEPTION 'refused by the test'; END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON dead_letters
                 FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    let collector = scenario.start(COLLECTOR).await;
    scenario.agent().send((0..3).map(dead_letter).collect()).await;
    let stored =
        "SELECT string_agg(convert_from(body, 'UTF8'), ',' ORDER BY body) FROM dead_letters";
    scenario.until_sql(stored, "what is 0?,what is 2?").await;

    // After the third attempt it waits for 30 s, again and again.
    let retried = [("queue", DEAD_LETTERS), ("outcome", "retried")];
    Counts::reach(&collector, "verbatim_deliveries_total", &retried, 3.0).await;
    let waiting = [("queue", LONGEST_RETRY), ("state", "ready")];
    Counts::reach(&collector, "verbatim_queue_messages", &waiting, 1.0).await;
    let log = collector.log();
    assert!(log.contains("PostgreSQL refused a dead letter (attempt 3); it is retried"), "{log}");
    let verified = scenario.verbatim(&["verify", "--json"]).await;
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    let findings = verified["findings"].as_array().unwrap();
    let finding = findings.iter().find(|it| it["kind"] == "retries_waiting");
    let finding = finding.unwrap_or_else(|| panic!("{verified}"));
    assert_eq!(finding["id"], LONGEST_RETRY);
    assert_eq!(finding["detail"], "1 message waits for its next attempt, 30 s after it failed");

    scenario.sql("DROP TRIGGER refuse ON dead_letters").await;
    let whole = "SELECT count(*) FROM dead_letters WHERE not_stored IS NULL";
    scenario.until_sql(whole, "3").await;
    scenario.finish([collector]).await;
    let verified = scenario.verbatim(&["verify"]).await;
    let verified = String::from_utf8_lossy(&verified.stdout);
    assert!(!verified.contains("retries_waiting"), "{verified}");
    let queues = "SELECT string_agg(DISTINCT queue, ',') FROM dead_letters";
    assert_eq!(scenario.sql(queues).await, SAVES);
}
