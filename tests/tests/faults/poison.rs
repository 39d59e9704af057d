//! Messages that cannot be saved, and the other messages of their batches, which are.

use system_tests::{COLLECTOR, Counts, PublishedActions, SAVER, Scenario};

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
async fn a_message_redelivered_too_often_is_quarantined_and_saved() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let messages = with_ids("suspect", 10, 2);
    let ids: Vec<&str> = messages.iter().filter_map(|it| it["message_id"].as_str()).collect();
    // The error code of a full disk: a worker holds these messages.
    scenario.poison("53100", &ids.join(",")).await;
    publish(&agent, &mut published, &messages).await;
    for _ in 0..3 {
        let victim = scenario.launch(SAVER, &[]);
        until_holding(&victim).await;
        victim.kill();
    }
    scenario.sql("TRUNCATE poisoned").await;
    let saver = scenario.start(SAVER).await;
    published.reconcile(&scenario, &reader).await;
    let of = |outcome| [("queue", SAVES), ("outcome", outcome)];
    let counts = Counts::reach(&saver, "verbatim_deliveries_total", &of("applied"), 10.0).await;
    assert_eq!(counts.sum("verbatim_deliveries_total", &of("quarantined")), 10.0);
    scenario.finish([saver]).await;
}
