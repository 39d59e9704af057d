//! Replays of dead letters: each is published once, and one that fails again is reported.

use std::time::Duration;

use broker::Publisher;
use database::{Actor, DeadLetterFilter, ReplayedBefore, Selection};
use dead_letters::{
    DeadLetterValidator, Ended, ReplayReport, ReplaySettings, Replayer, StopOnFailure,
};
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use domain::failure::DeadLetterReason;
use domain::ids::MAX_ID_BYTES;
use fixtures::{database, endpoints};
use metrics::Metrics;
use serde_json::{Value, json};
use system_tests::{
    COLLECTOR, LIMIT, SAVER, Scenario, anonymous, as_dead_letter, as_dead_letter_for, at, key_of,
    message,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::SAVES;

const VALIDATOR: DeadLetterValidator =
    DeadLetterValidator { max_body_bytes: DEFAULT_MAX_BODY_BYTES };

#[tokio::test]
async fn of_10_000_replayed_dead_letters_9_999_are_saved_once_and_the_bad_one_fails_again() {
    const MANY: i64 = 10_000;
    const BAD: i64 = 6_543;
    let scenario = Scenario::new().await;
    let dead_letters = (0..MANY).map(|n| {
        let role = if n == BAD { "bot" } else { "user" };
        let session = format!("s{}", n % 100);
        let extra = json!({"role": role, "timestamp": at(n)});
        as_dead_letter(&message("many", &session, &format!("m{n:05}"), &extra).to_string())
    });
    let collector = scenario.start(COLLECTOR).await;
    scenario.agent().send(dead_letters.collect()).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "10000").await;
    // The event of a dead letter follows its commit.
    crate::until_queued(&scenario, "conversation.statistics", 10_000).await;

    let state =
        "SELECT md5(string_agg(d::text, '' ORDER BY id)) || (SELECT count(*) FROM audit_log)
                 FROM dead_letters d";
    let (before, queued) = (scenario.sql(state).await, scenario.queued().await);
    let bad = "SELECT id FROM dead_letters WHERE message_id = 'm06543' AND replay_count = ";
    let bad_one = scenario.sql(&format!("{bad} 0")).await;
    for n in 0..30 {
        let arguments: &[&str] = match n % 3 {
            0 => &["dead-letters", "list"],
            1 => &["dead-letters", "list", "--group", "--status", "all"],
            _ => &["dead-letters", "show", &bad_one],
        };
        let output = scenario.verbatim(arguments).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    assert_eq!((scenario.sql(state).await, scenario.queued().await), (before, queued));

    let saver = scenario.start(SAVER).await;
    let arguments = ["dead-letters", "replay", "--all", "--rate", "1500", "--json"];
    let replay = scenario.verbatim(&arguments).await;
    assert_eq!(replay.status.code(), Some(1), "one failed again: {replay:?}");
    let report: Value = serde_json::from_slice(&replay.stdout).unwrap();
    let counts = ["matched", "replayed", "failed", "failed_again"].map(|name| report[name].clone());
    assert_eq!(counts.map(|count| count.as_i64()), [MANY, MANY, 0, 1].map(Some), "{report}");
    assert_eq!(report["ended"], "complete");

    scenario.until_sql("SELECT count(*) FROM messages", "9999").await;
    let again = scenario.sql(&format!("{bad} 1")).await;
    assert_eq!(report["failed_again_as"][0]["id"], again);
    let states =
        "SELECT string_agg(concat_ws('|', status, replay_count, dead_letters, copies), ', ') FROM
                  (SELECT status, replay_count, count(*) AS dead_letters, sum(copies) AS copies
                   FROM dead_letters GROUP BY 1, 2 ORDER BY 1, 2) AS s";
    assert_eq!(scenario.sql(states).await, "open|1|1|1, replayed|0|10000|10000");
    let recorded = "SELECT concat_ws('|', count(*), count(DISTINCT subject), count(DISTINCT actor))
                 FROM audit_log WHERE action = 'dead_letter.replay'";
    assert_eq!(scenario.sql(recorded).await, "10000|10000|1");
    // The dead letter and its failed replay name each other.
    let shown = |id: String| {
        let scenario = &scenario;
        async move {
            let shown = scenario.verbatim(&["dead-letters", "show", &id, "--json"]).await;
            serde_json::from_slice::<Value>(&shown.stdout).unwrap()
        }
    };
    assert_eq!(shown(again.clone()).await["replay_of"], bad_one);
    assert_eq!(shown(bad_one).await["failed_again_as"], json!([again]));
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_replay_that_ends_before_it_is_recorded_is_repeated_and_takes_effect_once() {
    let scenario = Scenario::new().await;
    let identified = message("crash", "s", "m1", &json!({}));
    let dead_letters =
        [as_dead_letter(&identified.to_string()), as_dead_letter(&anonymous("crash", 1))];
    scenario.store_dead_letters(&dead_letters).await;
    let replayer = replayer(&scenario);
    let sent = run(&replayer, Selection::All, StopOnFailure::WholeBatch).await;
    assert_eq!((sent.replayed, scenario.queued().await), (2, vec![(SAVES, 2)]));
    // Published and confirmed, but not recorded: as when the process ends there.
    let unrecorded = "UPDATE dead_letters SET status = 'open', status_changed_at = NULL,
                          replay_lease_until = clock_timestamp() + interval '1 minute'";
    scenario.sql(unrecorded).await;
    let state = "SELECT string_agg(DISTINCT status, ',') FROM dead_letters";

    let meanwhile = run(&replayer, Selection::All, StopOnFailure::WholeBatch).await;
    assert_eq!((meanwhile.matched, meanwhile.replayed, meanwhile.skipped), (2, 0, 2));
    scenario.sql("UPDATE dead_letters SET replay_lease_until = clock_timestamp()").await;
    let again = run(&replayer, Selection::All, StopOnFailure::WholeBatch).await;
    assert_eq!((again.replayed, &again.ended), (2, &Ended::Complete));
    assert_eq!(scenario.queued().await, [(SAVES, 4)]);
    assert_eq!(scenario.sql(state).await, "replayed");

    let saver = scenario.start(SAVER).await;
    scenario.until_sql("SELECT count(*) FROM messages", "2").await;
    scenario.finish([saver]).await;
    assert_eq!(scenario.reader().both(&key_of(&identified)).await.len(), 2);
}

#[tokio::test]
async fn two_concurrent_replays_publish_each_dead_letter_once() {
    let scenario = Scenario::new().await;
    let dead_letters: Vec<_> = (0..300)
        .map(|n| as_dead_letter(&message("twice", "s", &format!("m{n}"), &json!({})).to_string()))
        .collect();
    scenario.store_dead_letters(&dead_letters).await;
    let (one, other) = (replayer(&scenario), replayer(&scenario));
    let (one, other) = tokio::join!(
        run(&one, Selection::All, StopOnFailure::Never),
        run(&other, Selection::All, StopOnFailure::Never)
    );
    assert_eq!(one.replayed + other.replayed, 300, "{one:?} {other:?}");
    assert_eq!(scenario.queued().await, [(SAVES, 300)]);
    let states = "SELECT concat_ws('|', count(*), min(status), count(DISTINCT replay_run) <= 2)
                  FROM dead_letters WHERE replay_lease_until IS NULL";
    assert_eq!(scenario.sql(states).await, "300|replayed|t");
}

#[tokio::test]
async fn a_replayed_dead_letter_whose_queue_is_missing_stays_open_with_the_error() {
    let scenario = Scenario::new().await;
    let dead_letters: Vec<_> = (0..20)
        .map(|n| as_dead_letter(&message("missing", "s", &format!("m{n}"), &json!({})).to_string()))
        .collect();
    scenario.store_dead_letters(&dead_letters).await;
    scenario.rabbit().delete_queue(SAVES).await;
    let replayer = replayer(&scenario);
    let report = run(&replayer, Selection::All, StopOnFailure::WholeBatch).await;
    // A replay begins with one dead letter and ends when its publish fails.
    assert_eq!((report.matched, report.replayed, report.failed), (20, 0, 1));
    assert_eq!(report.ended, Ended::NothingAccepted);
    assert!(report.failures[0].fault.contains("no queue takes"), "{report:?}");
    let states = "SELECT string_agg(concat_ws('|', status, dead_letters, faults), ', ') FROM
                  (SELECT status, count(*) AS dead_letters, count(replay_fault) AS faults
                   FROM dead_letters WHERE replay_lease_until IS NULL GROUP BY 1) AS s";
    assert_eq!(scenario.sql(states).await, "open|20|1");

    scenario.declare().await;
    let report = run(&replayer, Selection::All, StopOnFailure::WholeBatch).await;
    assert_eq!((report.replayed, report.ended), (20, Ended::Complete));
    assert_eq!(scenario.sql(states).await, "replayed|20|0");
}

#[tokio::test]
async fn dead_letters_refused_by_a_full_queue_stay_open_with_the_error() {
    let scenario = Scenario::new().await;
    let dead_letters: Vec<_> = (0..200)
        .map(|n| as_dead_letter(&message("full", "s", &format!("m{n}"), &json!({})).to_string()))
        .collect();
    scenario.store_dead_letters(&dead_letters).await;
    let rabbit = scenario.rabbit();
    rabbit.delete_queue(SAVES).await;
    let small = json!({
        "x-queue-type": "quorum", "x-overflow": "reject-publish", "x-max-length": 1,
    });
    rabbit.queue_with(SAVES, &small).await;
    // A quorum queue rejects publishes only some time after it is full.
    let report = run(&replayer(&scenario), Selection::All, StopOnFailure::Never).await;
    assert!(report.failed > 0 && report.replayed > 0, "{report:?}");
    assert_eq!((report.replayed + report.failed, &report.ended), (200, &Ended::Complete));
    assert!(report.failures[0].fault.contains("a queue is full"), "{report:?}");
    let states = "SELECT string_agg(concat_ws('|', status, dead_letters, faults), ', ') FROM
                  (SELECT status, count(*) AS dead_letters, count(replay_fault) AS faults
                   FROM dead_letters WHERE replay_lease_until IS NULL GROUP BY 1 ORDER BY 1) AS s";
    let (sent, refused) = (report.replayed, report.failed);
    let expected = format!("open|{refused}|{refused}, replayed|{sent}|0");
    assert_eq!(scenario.sql(states).await, expected);
    assert_eq!(scenario.queued().await, [(SAVES, u32::try_from(sent).unwrap())]);
}

#[tokio::test]
async fn a_replay_ends_after_one_dead_letter_if_the_cause_persists() {
    let scenario = Scenario::new().await;
    let bad = json!({"role": "bot"});
    let dead_letters: Vec<_> = (0..50)
        .map(|n| as_dead_letter(&message("still", "s", &format!("m{n}"), &bad).to_string()))
        .collect();
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    scenario.agent().send(dead_letters).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "50").await;
    let replayer = replayer(&scenario);
    let report = watched(&replayer, Selection::All, StopOnFailure::WholeBatch).await;
    assert_eq!((report.replayed, report.failed_again, &report.ended), (1, 1, &Ended::FailedAgain));
    // With `StopOnFailure::Never` all others fail again, each once.
    let first_time = DeadLetterFilter {
        replayed_before: Some(ReplayedBefore::Never),
        ..DeadLetterFilter::default()
    };
    let report = watched(&replayer, Selection::Matching(first_time), StopOnFailure::Never).await;
    assert_eq!((report.matched, report.replayed, report.failed_again), (49, 49, 49));
    let states = "SELECT string_agg(concat_ws('|', status, replay_count, dead_letters), ', ') FROM
                  (SELECT status, replay_count, count(*) AS dead_letters
                   FROM dead_letters GROUP BY 1, 2 ORDER BY 1, 2) AS s";
    assert_eq!(scenario.sql(states).await, "open|1|50, replayed|0|50");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_replay_that_fails_as_a_discarded_dead_letter_reopens_it_and_ends() {
    let scenario = Scenario::new().await;
    let bad = json!({"role": "bot"});
    let dead_letters: Vec<_> = (0..3)
        .map(|n| as_dead_letter(&message("again", "s", &format!("m{n}"), &bad).to_string()))
        .collect();
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    scenario.agent().send(dead_letters).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "3").await;
    let replayer = replayer(&scenario);
    let report = watched(&replayer, Selection::All, StopOnFailure::Never).await;
    assert_eq!((report.replayed, report.failed_again), (3, 3));
    // The failed replays are discarded, long after they were dead-lettered.
    let discard = "UPDATE dead_letters SET last_failed_at = last_failed_at - interval '1 hour',
                      status = CASE replay_count WHEN 0 THEN 'open' ELSE 'discarded' END,
                      status_changed_at = clock_timestamp() - interval '1 minute'";
    scenario.sql(discard).await;
    let report = watched(&replayer, Selection::All, StopOnFailure::WholeBatch).await;
    assert_eq!((report.replayed, report.failed_again, &report.ended), (1, 1, &Ended::FailedAgain));
    let states =
        "SELECT string_agg(concat_ws('|', status, replay_count, dead_letters, copies), ', ') FROM
                  (SELECT status, replay_count, count(*) AS dead_letters, sum(copies) AS copies
                   FROM dead_letters GROUP BY 1, 2 ORDER BY 2, 1) AS s";
    assert_eq!(
        scenario.sql(states).await,
        "open|0|2|2, replayed|0|1|1, discarded|1|2|2, open|1|1|2"
    );
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn two_dead_letters_of_one_message_that_are_replayed_and_fail_alike_stay_two() {
    let scenario = Scenario::new().await;
    let bad = message("alike", "s", "m1", &json!({"role": "bot"})).to_string();
    let with = |reason| as_dead_letter_for(&bad, reason);
    let reasons = [DeadLetterReason::AttemptsExhausted, DeadLetterReason::DeliveryLimit];
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    scenario.agent().send(reasons.map(with).into()).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "2").await;
    let replayer = replayer(&scenario);
    let report = watched(&replayer, Selection::All, StopOnFailure::Never).await;
    assert_eq!((report.replayed, report.failed_again), (2, 2), "each failed again");
    let failures = "SELECT concat_ws('|', count(*), count(DISTINCT replay_of), max(copies))
                    FROM dead_letters WHERE replay_count = 1";
    assert_eq!(scenario.sql(failures).await, "2|2|1");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn four_failures_in_a_row_do_not_end_a_successful_replay_and_five_do() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let dead_letters = [("four", 3..7), ("five", 3..8)].map(|(tenant, bad)| {
        (0..20).map(move |n| {
            let role = if bad.contains(&n) { "bot" } else { "user" };
            let extra = json!({"role": role, "timestamp": at(n)});
            as_dead_letter(&message(tenant, "s", &format!("m{n:02}"), &extra).to_string())
        })
    });
    scenario.agent().send(dead_letters.into_iter().flatten().collect()).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "40").await;
    let in_order = "UPDATE dead_letters SET stored_at = stored_at - interval '1 minute' *
                        (100 - substr(message_id, 2)::integer)";
    scenario.sql(in_order).await;
    let replayer = replayer(&scenario);
    let settings =
        ReplaySettings { largest_batch: 1, watch: LIMIT, ..settings(StopOnFailure::WholeBatch) };
    for (tenant, counts, ended) in
        [("four", (20, 4), Ended::Complete), ("five", (8, 5), Ended::FailedAgain)]
    {
        let filter =
            DeadLetterFilter { tenant: Some(tenant.to_owned()), ..DeadLetterFilter::default() };
        let report = run_with(&replayer, Selection::Matching(filter), &settings).await;
        assert_eq!(
            ((report.replayed, report.failed_again), &report.ended),
            (counts, &ended),
            "{tenant}"
        );
    }
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_failure_that_shows_only_after_retries_ends_a_replay() {
    let scenario = Scenario::new().await;
    let ids: Vec<_> = (0..100).map(|n| format!("m{n}")).collect();
    let dead_letter =
        |id: &String| as_dead_letter(&message("late", "s", id, &json!({})).to_string());
    let dead_letters: Vec<_> = ids.iter().map(dead_letter).collect();
    scenario.poison("P0001", &ids.join(",")).await;
    // Retries after a second each, not after 1, 5 and 30: of two limits RabbitMQ takes the lower.
    for queue in ["domain.retry.5000", "domain.retry.30000"] {
        scenario.rabbit().policy(queue, &json!({"message-ttl": 1_000})).await;
    }
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    scenario.agent().send(dead_letters).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "100").await;
    // The first fails again after its retries; meanwhile one dead letter at a time is replayed.
    let watch = Duration::from_millis(250);
    let settings = ReplaySettings { watch, ..settings(StopOnFailure::WholeBatch) };
    let report = run_with(&replayer(&scenario), Selection::All, &settings).await;
    assert_eq!(report.ended, Ended::FailedAgain, "{report:?}");
    assert!(report.replayed < 50, "{report:?}");
    drop((saver, collector));
}

#[tokio::test]
async fn a_cancelled_replay_releases_its_claims_and_records_what_it_published() {
    let scenario = Scenario::new().await;
    let dead_letters: Vec<_> = (0..40)
        .map(|n| as_dead_letter(&message("stop", "s", &format!("m{n}"), &json!({})).to_string()))
        .collect();
    scenario.store_dead_letters(&dead_letters).await;
    let (replayer, stop, actor) = (replayer(&scenario), CancellationToken::new(), actor());
    let settings = ReplaySettings { rate: Some(20.0), ..settings(StopOnFailure::WholeBatch) };
    let report = replayer
        .run(Selection::All, &actor, &settings, &stop, |progress| {
            if progress.replayed >= 5 {
                stop.cancel();
            }
        })
        .await
        .unwrap();
    assert_eq!(report.ended, Ended::Interrupted);
    let sent = report.replayed;
    assert!((5..40).contains(&sent), "{report:?}");
    let states = "SELECT concat_ws('|', count(*) FILTER (WHERE status = 'replayed'),
                      count(replay_lease_until)) FROM dead_letters";
    assert_eq!(scenario.sql(states).await, format!("{sent}|0"));
    assert_eq!(scenario.queued().await, [(SAVES, u32::try_from(sent).unwrap())]);
    let ended = "SELECT concat_ws('|', actor, detail->>'replayed', detail->>'ended') FROM audit_log
                 WHERE action = 'dead_letters.replay_ended'";
    assert_eq!(scenario.sql(ended).await, format!("a test|{sent}|interrupted"));
}

#[tokio::test]
async fn a_replay_saves_the_edited_copy_and_keeps_the_original_body() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let bad = message("edited", "s", "m1", &json!({"role": "bot"}));
    scenario.agent().publish(&bad).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "1").await;
    let id = scenario.sql("SELECT id FROM dead_letters").await;
    for arguments in [
        &["dead-letters", "edit", &id, "--apply-suggestion", "--actor", "night shift"][..],
        &["dead-letters", "replay", &id, "--actor", "night shift"],
    ] {
        let ran = scenario.verbatim(arguments).await;
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    }
    let saved =
        "SELECT concat_ws('|', id, role, created_at = '2026-11-20T10:00:00Z') FROM messages";
    scenario.until_sql(saved, "m1|assistant|t").await;
    let bodies = "SELECT concat_ws('|', status, convert_from(body, 'UTF8')::json->>'role',
                    convert_from(edited_body, 'UTF8')::json->>'role', edited_by) FROM dead_letters";
    assert_eq!(scenario.sql(bodies).await, "replayed|bot|assistant|night shift");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_dead_letter_with_the_longest_ids_is_stored_traced_and_replayed() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let [tenant, session, message_id] = ["t", "s", "m"].map(|it| it.repeat(MAX_ID_BYTES));
    let bad = json!({
        "action_type": "conversation.save_message", "tenant_id": tenant, "session_id": session,
        "conversation_id": session, "message_id": message_id, "role": "bot", "content": "hi",
        "user_id": -1_001_234_567_890_i64, "agent_id": tenant, "model_name": tenant,
    });
    scenario.agent().publish(&bad).await;
    let ids =
        "SELECT concat_ws('|', length(tenant_id), length(session_id), length(conversation_id),
                                length(message_id), not_stored) FROM dead_letters";
    let all = [MAX_ID_BYTES; 4].map(|bytes| bytes.to_string()).join("|");
    scenario.until_sql(ids, &all).await;
    let id = scenario.sql("SELECT id FROM dead_letters").await;
    for arguments in [
        &["dead-letters", "edit", &id, "--apply-suggestion"][..],
        &["dead-letters", "replay", &id],
        &["trace", &message_id],
    ] {
        let ran = scenario.verbatim(arguments).await;
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    }
    let saved =
        "SELECT concat_ws('|', length(tenant_id), length(conversation_id), length(id), user_id)
                 FROM messages";
    let wanted = format!("{MAX_ID_BYTES}|{MAX_ID_BYTES}|{MAX_ID_BYTES}|-1001234567890");
    scenario.until_sql(saved, &wanted).await;
    // Retries and dead letters of a message that was decoded carry its ids in headers.
    let conflict = json!({
        "action_type": "conversation.save_message", "tenant_id": tenant, "session_id": session,
        "conversation_id": session, "message_id": message_id, "role": "user", "content": "ho",
    });
    scenario.agent().publish(&conflict).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters WHERE reason = 'conflict'", "1").await;
    scenario.finish([saver, collector]).await;
}

fn replayer(scenario: &Scenario) -> Replayer {
    let metrics = Metrics::new();
    let publisher = Publisher::new(endpoints(&scenario.amqp_url), metrics.clone());
    Replayer::new(database(&scenario.database_url), publisher, metrics, VALIDATOR)
}

fn actor() -> Actor {
    Actor { name: "a test".to_owned(), run: Uuid::now_v7(), tenant: None }
}

/// Settings without watching the outcome, for runs without a worker.
fn settings(stop: StopOnFailure) -> ReplaySettings {
    ReplaySettings { rate: Some(1_000.0), largest_batch: 100, watch: Duration::ZERO, stop }
}

async fn run(replayer: &Replayer, selection: Selection, stop: StopOnFailure) -> ReplayReport {
    run_with(replayer, selection, &settings(stop)).await
}

/// A run that waits for the outcome of each replayed dead letter.
async fn watched(replayer: &Replayer, selection: Selection, stop: StopOnFailure) -> ReplayReport {
    let settings = ReplaySettings { watch: LIMIT, ..settings(stop) };
    run_with(replayer, selection, &settings).await
}

async fn run_with(
    replayer: &Replayer,
    selection: Selection,
    settings: &ReplaySettings,
) -> ReplayReport {
    let never = CancellationToken::new();
    replayer.run(selection, &actor(), settings, &never, |_| {}).await.unwrap()
}

#[tokio::test]
async fn an_action_that_an_older_worker_did_not_know_is_saved_when_it_is_replayed() {
    let scenario = Scenario::new().await;
    let say = |content: &str| json!({"role": "user", "content": content});
    let action = json!({
        "action_type": "conversation.save_messages", "tenant_id": "older", "session_id": "s",
        "action_id": "turn", "messages": [say("one"), say("two"), say("three")],
    });
    let unknown = as_dead_letter_for(&action.to_string(), DeadLetterReason::UnknownAction);
    scenario.store_dead_letters(&[unknown]).await;
    let replayed = scenario.verbatim(&["dead-letters", "replay", "--all"]).await;
    assert_eq!(replayed.status.code(), Some(0), "{replayed:?}");
    let saver = scenario.start(SAVER).await;
    let contents = "SELECT string_agg(content, ' ' ORDER BY created_at, id) FROM messages";
    scenario.until_sql(contents, "one two three").await;
    scenario.finish([saver]).await;
}
