//! Messages that cannot be saved, and the other messages of their batches, which are.

use serde_json::json;
use system_tests::{
    COLLECTOR, Counts, MIGRATION, PublishedActions, SAVER, Scenario, as_dead_letter, at, closed,
};

use crate::slow::{MESSAGES, moved_to_slow_queue, settled};
use crate::{SAVES, load, publish, until_holding, until_stored, with_ids};

#[tokio::test]
async fn one_poisoned_row_in_a_batch_of_500_saves_the_other_499() {
    let scenario = Scenario::new().await;
    scenario.poison("22023", "m00321").await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    publish(&agent, &mut published, &load("poison", 500, 7)).await;
    // A large prefetch and one batch in flight: all queued messages become one batch.
    let settings = [
        ("VERBATIM_MAX_BODY_BYTES", "16KiB"),
        ("VERBATIM_BATCHES_IN_FLIGHT", "1"),
        ("VERBATIM_BATCH_SIZE", "500"),
    ];
    let (saver, collector) =
        tokio::join!(scenario.start_with(SAVER, &settings), scenario.start(COLLECTOR));
    published.reconcile(&scenario, &reader).await;
    let dead_letter =
        "SELECT concat_ws('|', message_id, reason, attempts, error LIKE '%poisoned by the test%')
                  FROM dead_letters";
    assert_eq!(scenario.sql(dead_letter).await, "m00321|schema|1|t");
    let counts = Counts::of(&saver).await;
    let batches = counts.sum("verbatim_batch_messages_count", &[("queue", SAVES)]);
    assert!(batches <= 4.0, "{batches} batches");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn an_unclassified_failure_is_retried_three_times_and_then_a_dead_letter_with_its_history() {
    let scenario = Scenario::new().await;
    scenario.poison("P0001", "m00001,m00002").await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    publish(&agent, &mut published, &load("retry", 20, 1)).await;
    // The other messages of the batch are saved at once.
    until_stored(&scenario, 18).await;
    let retries = [("queue", SAVES), ("class", "retryable")];
    Counts::reach(&saver, "verbatim_retries_total", &retries, 2.0).await;
    // The second message can be saved before its last attempt.
    scenario.sql("DELETE FROM poisoned WHERE id = 'm00002'").await;
    until_stored(&scenario, 19).await;

    // The retry delays: 1 + 5 + 30 s.
    published.reconcile(&scenario, &reader).await;
    let dead_letter =
        "SELECT concat_ws('|', message_id, queue, reason, attempts, routing_key, exchange,
                      json_array_length(delivery->'headers'->'x-verbatim-reasons'),
                      last_failed_at - first_failed_at BETWEEN '35 s' AND '80 s')
                  FROM dead_letters";
    let expected = "m00001|conversation.save_message|attempts_exhausted|4|conversation.save_message|domain.actions|4|t";
    assert_eq!(scenario.sql(dead_letter).await, expected);
    let counts = Counts::reach(&saver, "verbatim_retries_total", &retries, 4.0).await;
    let outcome = |outcome| {
        counts.sum("verbatim_deliveries_total", &[("queue", SAVES), ("outcome", outcome)])
    };
    assert_eq!(outcome("dead_lettered"), 1.0);
    assert_eq!(outcome("applied"), 19.0);
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn an_error_of_an_outage_with_one_item_delays_no_other() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    // Out of memory, an input/output error, a missing permission.
    let poisoned = [
        ("message_rows", "NEW.id = 'm00007'", "53200"),
        ("session_events", "NEW.session_id = 's7'", "58030"),
        ("dead_letters", "NEW.message_id = 'm00007'", "42501"),
    ];
    for (table, condition, code) in poisoned {
        let trigger = format!(
            "CREATE FUNCTION fail_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 RAISE EXCEPTION 'made by the test' USING ERRCODE = '{code}';
             END $$;
             CREATE TRIGGER fail BEFORE INSERT ON {table} FOR EACH ROW WHEN ({condition})
             EXECUTE FUNCTION fail_{table}()"
        );
        scenario.sql(&trigger).await;
    }
    let messages = with_ids("outage", MESSAGES, 4);
    agent.publish_all(&messages).await;
    agent.send(messages.iter().map(|it| as_dead_letter(&it.to_string())).collect()).await;
    let close = |n: usize| closed("outage", &format!("s{n}"), &json!({"timestamp": at(1_000)}));
    agent.publish_all(&(0..MESSAGES).map(close).collect::<Vec<_>>()).await;
    let (saver, migration, collector) =
        tokio::join!(scenario.start(SAVER), scenario.start(MIGRATION), scenario.start(COLLECTOR));
    let tables = ["message_rows", "session_events", "dead_letters"]
        .map(|table| format!("(SELECT count(*) FROM {table})"));
    let stored = format!("SELECT concat_ws(' ', {})", tables.join(", "));
    let all = |n: usize| [n; 3].map(|n| n.to_string()).join(" ");
    scenario.until_sql(&stored, &all(MESSAGES - 1)).await;
    for (worker, queue) in [
        (&saver, SAVES),
        (&migration, "conversation.session"),
        (&collector, "conversation.save_message.dlq"),
    ] {
        moved_to_slow_queue(worker, queue, 1.0).await;
        let counts = Counts::of(worker).await;
        for outcome in ["retried", "dead_lettered"] {
            assert_eq!(counts.sum("verbatim_deliveries_total", &[("outcome", outcome)]), 0.0);
        }
    }
    for (table, ..) in poisoned {
        scenario.sql(&format!("DROP TRIGGER fail ON {table}")).await;
    }
    scenario.until_sql(&stored, &all(MESSAGES)).await;
    for worker in [&saver, &migration, &collector] {
        settled(worker, MESSAGES).await;
    }
    scenario.finish([saver, migration, collector]).await;
}

#[tokio::test]
async fn a_message_redelivered_too_often_is_quarantined_and_saved() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let messages = with_ids("suspect", 10, 2);
    // The error code of a full disk, also for test writes: a worker holds these messages.
    let full = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'made by the test' USING ERRCODE = '53100';
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON message_rows EXECUTE FUNCTION fail()";
    scenario.sql(full).await;
    publish(&agent, &mut published, &messages).await;
    for _ in 0..3 {
        let victim = scenario.launch(SAVER, &[]);
        until_holding(&victim).await;
        victim.kill();
    }
    scenario.sql("DROP TRIGGER fail ON message_rows").await;
    let saver = scenario.start(SAVER).await;
    published.reconcile(&scenario, &reader).await;
    let of = |outcome| [("queue", SAVES), ("outcome", outcome)];
    let counts = Counts::reach(&saver, "verbatim_deliveries_total", &of("applied"), 10.0).await;
    assert_eq!(counts.sum("verbatim_deliveries_total", &of("quarantined")), 10.0);
    scenario.finish([saver]).await;
}
