//! A process that aborts at a failpoint and is started again: the final state is the same as without the
//! crash, except for times and the number of events. Each failpoint of each process has a test.
//!
//! The failpoints are in the crate `failpoints`; test builds of the workers abort at the one that their
//! environment names.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use broker::Publication;
use broker::topology::WorkQueue;
use domain::failure_policy::SUSPECT_LIMIT;
use domain::fleet;
use domain::ids::{ConversationKey, SessionId, TenantId};
use failpoints::{AT, OFF, ON, REPLAY_LEASE, STOP_AT, Step};
use serde_json::json;
use system_tests::{
    Agent, COLLECTOR, Counts, LIMIT, MIGRATION, PublishedActions, SAVER, STATISTICS, Scenario,
    anonymous, as_dead_letter, at, closed, deleted, key_of, message, opened,
};
use testkit::fleet::Worker;
use testkit::wait::eventually;
use tokio::sync::OnceCell;

use crate::{SAVES, load, publish, until_stored, with_ids};

/// SIGABRT (signal(7)): what `abort` ends a process with.
const ABORTED: i32 = 6;

const VERBATIM: &str = fleet::VERBATIM.name();

/// Defines one test for each failpoint and process that reaches it, and the table of these pairs.
macro_rules! crash_tests {
    ($(
        #[$attribute:meta]
        async fn $test:ident() = $crashes:ident($step:ident, $program:ident);
    )*) => {
        const TESTED: &[(Step, &str)] = &[$((Step::$step, $program)),*];

        $(
            #[$attribute]
            async fn $test() {
                $crashes(Step::$step, $program).await;
            }
        )*
    };
}

crash_tests! {
    #[tokio::test]
    async fn a_crash_of_a_saver_at_save_decoded_changes_nothing()
        = worker_crashes(SaveDecoded, SAVER);
    #[tokio::test]
    async fn a_crash_of_a_saver_at_save_committed_changes_nothing()
        = worker_crashes(SaveCommitted, SAVER);
    #[tokio::test]
    async fn a_crash_of_a_saver_at_save_appended_changes_nothing()
        = worker_crashes(SaveAppended, SAVER);
    #[tokio::test]
    async fn a_crash_of_a_saver_at_copied_changes_nothing()
        = worker_crashes(Copied, SAVER);
    #[tokio::test]
    async fn a_crash_of_a_saver_at_settled_changes_nothing()
        = worker_crashes(Settled, SAVER);
    #[tokio::test]
    async fn a_crash_of_a_saver_at_acknowledged_changes_nothing()
        = worker_crashes(Acknowledged, SAVER);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_copied_changes_nothing()
        = worker_crashes(Copied, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_settled_changes_nothing()
        = worker_crashes(Settled, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_acknowledged_changes_nothing()
        = worker_crashes(Acknowledged, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_deletion_committed_changes_nothing()
        = worker_crashes(DeletionCommitted, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_close_claimed_changes_nothing()
        = worker_crashes(CloseClaimed, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_close_counted_changes_nothing()
        = worker_crashes(CloseCounted, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_close_dropped_changes_nothing()
        = worker_crashes(CloseDropped, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_close_announced_changes_nothing()
        = worker_crashes(CloseAnnounced, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_closer_at_close_archived_changes_nothing()
        = worker_crashes(CloseArchived, MIGRATION);
    #[tokio::test]
    async fn a_crash_of_a_collector_at_copied_changes_nothing()
        = worker_crashes(Copied, COLLECTOR);
    #[tokio::test]
    async fn a_crash_of_a_collector_at_settled_changes_nothing()
        = worker_crashes(Settled, COLLECTOR);
    #[tokio::test]
    async fn a_crash_of_a_collector_at_acknowledged_changes_nothing()
        = worker_crashes(Acknowledged, COLLECTOR);
    #[tokio::test]
    async fn a_crash_of_a_collector_at_dead_letter_stored_changes_nothing()
        = worker_crashes(DeadLetterStored, COLLECTOR);
    #[tokio::test]
    async fn a_crash_of_a_collector_at_dead_letter_announced_changes_nothing()
        = worker_crashes(DeadLetterAnnounced, COLLECTOR);
    #[tokio::test]
    async fn a_crash_of_a_statistics_worker_at_copied_changes_nothing()
        = worker_crashes(Copied, STATISTICS);
    #[tokio::test]
    async fn a_crash_of_a_statistics_worker_at_settled_changes_nothing()
        = worker_crashes(Settled, STATISTICS);
    #[tokio::test]
    async fn a_crash_of_a_statistics_worker_at_acknowledged_changes_nothing()
        = worker_crashes(Acknowledged, STATISTICS);
    #[tokio::test]
    async fn words_are_written_after_a_crash_of_a_statistics_worker_at_words_claimed()
        = words_crash(WordsClaimed, STATISTICS);
    #[tokio::test]
    async fn a_replay_that_crashes_at_replay_taken_is_repeated_and_takes_effect_once()
        = replay_crashes(ReplayTaken, VERBATIM);
    #[tokio::test]
    async fn a_replay_that_crashes_at_replay_held_is_repeated_and_takes_effect_once()
        = replay_crashes(ReplayHeld, VERBATIM);
    #[tokio::test]
    async fn a_replay_that_crashes_at_replay_confirmed_is_repeated_and_takes_effect_once()
        = replay_crashes(ReplayConfirmed, VERBATIM);
    #[tokio::test]
    async fn a_replay_that_crashes_at_replay_marked_is_repeated_and_takes_effect_once()
        = replay_crashes(ReplayMarked, VERBATIM);
}

/// Failpoints of every worker, in its consumer.
const OF_ALL: [Step; 3] = [Step::Copied, Step::Settled, Step::Acknowledged];

#[test]
fn every_failpoint_of_every_process_has_one_test() {
    for step in Step::ALL {
        assert!(TESTED.iter().any(|(tested, _)| *tested == step), "{} has none", step.name());
    }
    for step in OF_ALL {
        for program in fleet::WORKERS.map(fleet::Process::name) {
            assert!(TESTED.contains(&(step, program)), "{} of {program} has none", step.name());
        }
    }
    for (n, pair) in TESTED.iter().enumerate() {
        assert!(!TESTED[..n].contains(pair), "{} of {} has two", pair.0.name(), pair.1);
    }
}

#[test]
fn ordinary_binaries_hold_no_failpoints() {
    let holds = |dir: &str, program: &str, variable: &str| {
        let binary = testkit::place::profile_dir().join(dir).join(program);
        // `grep` searches a binary in a fraction of the time of unoptimised code.
        let mut search = Command::new("grep");
        let status = search.args(["-qaF", variable]).arg(&binary).status().unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{}: {status}", binary.display());
        status.success()
    };
    for program in fleet::processes().into_iter().map(fleet::Process::name) {
        for variable in [AT, ON, STOP_AT, REPLAY_LEASE, OFF] {
            assert!(!holds(".", program, variable), "{program}: {variable}");
        }
        // The API has no step at which a crash would leave something half done.
        let has_steps = program != fleet::CONVERSATION_API.name();
        assert!(
            !has_steps || holds("armed", program, AT),
            "the test build of {program} has none: this test searches wrongly"
        );
    }
}

#[tokio::test]
async fn a_crash_between_a_retry_and_its_acknowledgement_duplicates_nothing() {
    let scenario = Scenario::with_failpoints().await;
    scenario.poison("P0001", "m00003").await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    publish(&agent, &mut published, &load("retry", 20, 2)).await;
    crash(&scenario, SAVER, Step::Copied).await;
    scenario.sql("TRUNCATE poisoned").await;
    // The original and its retry are both delivered.
    let saver = scenario.start(SAVER).await;
    let labels = [("queue", SAVES), ("outcome", "duplicate")];
    Counts::reach(&saver, "verbatim_deliveries_total", &labels, 1.0).await;
    scenario.finish([saver]).await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
}

#[tokio::test]
async fn a_crash_at_any_step_of_an_action_of_several_messages_changes_nothing() {
    let scenario = Scenario::with_failpoints().await;
    let steps = [
        Step::SaveDecoded,
        Step::SaveCommitted,
        Step::SaveAppended,
        Step::Copied,
        Step::Settled,
        Step::Acknowledged,
    ];
    let say = |content: String| json!({"role": "user", "content": content});
    for (number, step) in steps.into_iter().enumerate() {
        let mut messages: Vec<_> = (0..10).map(|n| say(format!("{number}.{n}"))).collect();
        messages[3]["role"] = "bot".into();
        let action = json!({
            "action_type": "conversation.save_messages", "tenant_id": "several", "session_id": "s",
            "action_id": format!("turn-{number}"), "messages": messages,
        });
        scenario.agent().publish(&action).await;
        crash(&scenario, SAVER, step).await;
        let saver = scenario.start(SAVER).await;
        let stored = 9 * (number + 1);
        scenario.until_sql("SELECT count(*) FROM messages", &stored.to_string()).await;
        scenario.drain([saver]).await;
    }
    let stored =
        scenario.sql("SELECT string_agg(content, ' ' ORDER BY created_at, id) FROM messages").await;
    let expected: Vec<_> = (0..steps.len())
        .flat_map(|number| (0..10).filter(|n| *n != 3).map(move |n| format!("{number}.{n}")))
        .collect();
    assert_eq!(stored, expected.join(" "), "no order depends on which attempt saved a message");
    let collector = scenario.start(COLLECTOR).await;
    let dead_letters =
        "SELECT concat_ws('|', count(*), min(copies), max(copies)) FROM dead_letters";
    // One for each action, although some were published twice.
    scenario.until_sql(dead_letters, "6|1|2").await;
    scenario.finish([collector]).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_list_stores_each_message_once_and_misleads_no_reader() {
    let scenario = Scenario::with_failpoints().await;
    let steps = [
        Step::SaveDecoded,
        Step::SaveCommitted,
        Step::SaveAppended,
        Step::Settled,
        Step::Acknowledged,
    ];
    let reader = scenario.reader();
    let key = fixtures::key("s");
    let mut all = fixtures::lists::turns(&["hi", "yes"]);
    let list = |messages: &[serde_json::Value]| fixtures::lists::body("s", messages, &json!({}));
    let saver = scenario.start(SAVER).await;
    scenario.agent().publish(&list(&all)).await;
    scenario.until_sql("SELECT count(*) FROM messages", "2").await;
    // There is a copy, which lacks what a saver could not append.
    assert_eq!(reader.both(&key).await.len(), 2);
    scenario.drain([saver]).await;
    for step in steps {
        all.extend(fixtures::lists::turns(&["yes", "ok"]));
        scenario.agent().publish(&list(&all)).await;
        crash(&scenario, SAVER, step).await;
        let saver = scenario.start(SAVER).await;
        let again = if step == Step::Acknowledged { 0.0 } else { 1.0 };
        let settled = [("queue", SAVES)];
        Counts::reach(&saver, "verbatim_deliveries_total", &settled, again).await;
        scenario.drain([saver]).await;
        let messages = reader.both(&key).await;
        assert_eq!(messages.len(), all.len(), "{step:?}");
    }
    let stored =
        scenario.sql("SELECT string_agg(content, ' ' ORDER BY created_at, id) FROM messages").await;
    let expected: Vec<&str> = all.iter().filter_map(|it| it["content"].as_str()).collect();
    assert_eq!(stored, expected.join(" "));
}

#[tokio::test]
async fn a_crash_between_a_move_to_the_suspect_queue_and_its_acknowledgement_duplicates_nothing() {
    let scenario = Scenario::with_failpoints().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    publish(&agent, &mut published, &load("suspect", 20, 2)).await;
    for _ in 0..3 {
        crash(&scenario, SAVER, Step::SaveDecoded).await;
    }
    crash(&scenario, SAVER, Step::Copied).await;
    // The copies that RabbitMQ confirmed before the crash.
    let copies: u32 = scenario
        .queued()
        .await
        .into_iter()
        .filter(|(queue, _)| *queue != SAVES)
        .map(|it| it.1)
        .sum();
    let saver = scenario.start(SAVER).await;
    let of = |outcome| [("queue", SAVES), ("outcome", outcome)];
    eventually("each original and each copy to be saved or found saved", LIMIT, async || {
        let counts = Counts::of(&saver).await;
        let sum = |outcome| counts.sum("verbatim_deliveries_total", &of(outcome));
        let done = sum("applied") + sum("duplicate");
        if done >= f64::from(20 + copies) {
            Ok(())
        } else {
            Err(format!("{done} with {copies} copies"))
        }
    })
    .await;
    assert!(Counts::of(&saver).await.sum("verbatim_deliveries_total", &of("quarantined")) > 0.0);
    scenario.finish([saver]).await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
}

#[tokio::test]
async fn a_crash_between_the_sending_on_of_an_action_and_its_acknowledgement_duplicates_nothing() {
    let scenario = Scenario::with_failpoints().await;
    let close =
        closed("misrouted", "s", &json!({"action_id": "closed", "timestamp": at(60)})).to_string();
    scenario.rabbit().publish(SAVES, &json!({"delivery_mode": 2}), &close).await;
    crash(&scenario, SAVER, Step::Copied).await;
    let (saver, migration, collector) =
        tokio::join!(scenario.start(SAVER), scenario.start(MIGRATION), scenario.start(COLLECTOR));
    // The copy, and the copy of the redelivered original.
    let labels = [("queue", "conversation.session")];
    Counts::reach(&migration, "verbatim_deliveries_total", &labels, 2.0).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM session_events").await, "1");
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.finish([saver, migration, collector]).await;
}

#[tokio::test]
async fn after_a_crash_between_the_stores_a_message_without_an_identity_misleads_no_reader() {
    let scenario = Scenario::with_failpoints().await;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let first = message("twice", "s", "m1", &json!({}));
    let key = key_of(&first);
    let saver = scenario.start(SAVER).await;
    agent.publish(&first).await;
    until_stored(&scenario, 1).await;
    assert_eq!(reader.both(&key).await.len(), 1);
    scenario.drain([saver]).await;

    scenario.rabbit().publish(SAVES, &json!({"delivery_mode": 2}), &anonymous("twice", 7)).await;
    crash(&scenario, SAVER, Step::SaveCommitted).await;
    let saver = scenario.start(SAVER).await;
    Counts::reach(&saver, "verbatim_messages_saved_total", &[], 1.0).await;
    // The redelivery could not know the first id: the message is stored twice, and a reader gets both.
    assert_eq!(reader.both(&key).await.len(), 3);
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_stored_message_that_becomes_a_dead_letter_misleads_no_reader() {
    let scenario = Scenario::with_failpoints().await;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let (first, deadly) = (message("both", "s", "m1", &json!({})), "m2");
    let second = message("both", "s", deadly, &json!({}));
    let key = key_of(&first);
    let saver = scenario.start(SAVER).await;
    agent.publish(&first).await;
    until_stored(&scenario, 1).await;
    assert_eq!(reader.both(&key).await.len(), 1);
    scenario.drain([saver]).await;

    // A suspect, which is a dead letter after five requeues. The worker that commits it dies before it writes to Redis;
    // the other requeues are RabbitMQ's alone, so that the test is short.
    let suspects = WorkQueue::SaveMessage.suspect();
    agent.send(vec![Publication::to_queue(suspects, second.to_string().into_bytes())]).await;
    crash(&scenario, SAVER, Step::SaveCommitted).await;
    for _ in 1..SUSPECT_LIMIT {
        scenario.rabbit().requeue_first(suspects).await;
    }
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    scenario.until_sql("SELECT message_id FROM dead_letters", deadly).await;
    assert_eq!(scenario.sql("SELECT reason FROM dead_letters").await, "delivery_limit");
    assert_eq!(reader.both(&key).await.len(), 2);

    let replay = ["dead-letters", "replay", "--all"];
    let replayed = scenario.verbatim(&replay).await;
    assert_eq!(replayed.status.code(), Some(0), "{replayed:?}");
    let labels = [("queue", SAVES), ("outcome", "duplicate")];
    Counts::reach(&saver, "verbatim_deliveries_total", &labels, 1.0).await;
    assert_eq!(reader.both(&key).await.len(), 2);
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_crash_between_a_reroute_and_its_acknowledgement_duplicates_nothing() {
    let scenario = Scenario::with_failpoints().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let unroutable = message("reroute", "s", "unroutable", &json!({}));
    let mistyped =
        Publication::action("conversation.saved_message", unroutable.to_string().into_bytes());
    agent.send(vec![mistyped]).await;
    published.add_confirmed([&unroutable]);
    crash(&scenario, COLLECTOR, Step::Settled).await;
    // It was rerouted, is still in domain.unrouted, and is rerouted again.
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let labels = [("queue", SAVES), ("outcome", "duplicate")];
    Counts::reach(&saver, "verbatim_deliveries_total", &labels, 1.0).await;
    scenario.finish([saver, collector]).await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
}

#[tokio::test]
async fn a_message_that_kills_its_worker_becomes_a_dead_letter_and_all_others_are_saved() {
    const MOST_CRASHES: usize = 3 + 5 + 1;
    let scenario = Scenario::with_failpoints().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let mut messages = with_ids("deadly", 500, 10);
    messages[250]["content"] = "this text crashes the worker".into();
    publish(&agent, &mut published, &messages).await;
    let collector = scenario.start(COLLECTOR).await;
    let mut crashes = 0;
    let saver = loop {
        let saver = scenario.launch(SAVER, &[(ON, "this text crashes the worker")]);
        let ended = eventually("the saver's crash, or the dead letter", LIMIT, async || {
            if saver.exited().is_some() {
                return Ok(true);
            }
            match scenario.sql("SELECT count(*) FROM dead_letters").await.as_str() {
                "0" => Err("the saver runs, and there is no dead letter".to_owned()),
                _ => Ok(false),
            }
        });
        if !ended.await {
            break saver;
        }
        let signal = saver.exited().and_then(|status| status.signal());
        assert_eq!(signal, Some(ABORTED), "{}", saver.log_tail());
        crashes += 1;
        assert!(crashes <= MOST_CRASHES, "{crashes} crashes");
    };
    until_stored(&scenario, 499).await;
    published.reconcile(&scenario, &reader).await;
    let dead_letter = "SELECT concat_ws('|', message_id, reason) FROM dead_letters";
    assert_eq!(scenario.sql(dead_letter).await, "m00250|delivery_limit");
    scenario.finish([saver, collector]).await;
}

/// A worker that crashes at a failpoint and is started again changes nothing in the end.
async fn worker_crashes(step: Step, program: &str) {
    let disturbed = final_state(Some((step, program))).await;
    let undisturbed = undisturbed().await;
    let differs = |row: &&String| disturbed.get(*row) != undisturbed.get(*row);
    let difference: BTreeSet<_> =
        disturbed.keys().chain(undisturbed.keys()).filter(differs).collect();
    assert!(difference.is_empty(), "{difference:#?}");
}

/// The final state without a crash; the first test that needs it computes it.
async fn undisturbed() -> &'static State {
    static STATE: OnceCell<State> = OnceCell::const_new();
    STATE.get_or_init(|| final_state(None)).await
}

/// The words of an archived conversation are written by the next process after a crash.
async fn words_crash(step: Step, program: &str) {
    let scenario = Scenario::with_failpoints().await;
    let others = [SAVER, MIGRATION].map(|worker| scenario.launch(worker, &[]));
    let agent = scenario.agent();
    agent.publish(&message("acme", "s", "m", &json!({"content": "hello"}))).await;
    scenario.until_sql("SELECT count(*) FROM messages", "1").await;
    agent.publish(&closed("acme", "s", &json!({}))).await;
    crash(&scenario, program, step).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM conversation_words").await, "0");
    // Its claim ends.
    scenario.sql("UPDATE words_due SET lease_until = clock_timestamp()").await;
    let next = scenario.start(program).await;
    let written = "SELECT concat_ws(' ', (SELECT count(*) FROM words_due), count(*), bool_and('hello' = ANY (words)))
                   FROM conversation_words";
    scenario.until_sql(written, "0 1 t").await;
    scenario.finish(others.into_iter().chain([next])).await;
}

/// A replay of messages without identity that crashes at a failpoint and is repeated sends each once.
async fn replay_crashes(step: Step, _: &str) {
    let scenario = Scenario::with_failpoints().await;
    let dead_letters: Vec<_> = (0..20).map(|n| as_dead_letter(&anonymous("killed", n))).collect();
    scenario.store_dead_letters(&dead_letters).await;
    let replay = ["dead-letters", "replay", "--all", "--watch", "0s", "--rate", "1000"];
    let killed = scenario.verbatim_with(&replay, &[(AT, step.name())]).await;
    assert_eq!(killed.status.signal(), Some(ABORTED), "{killed:?}");
    if step == Step::ReplayConfirmed {
        let early = scenario.verbatim(&replay).await;
        assert_eq!(early.status.code(), Some(1), "some are claimed by the killed run: {early:?}");
    }
    scenario.sql("UPDATE dead_letters SET replay_lease_until = clock_timestamp()").await;
    let again = scenario.verbatim(&replay).await;
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    let saver = scenario.start(SAVER).await;
    scenario.until_sql("SELECT count(*) FROM messages", "20").await;
    scenario.finish([saver]).await;
    let end = "SELECT concat_ws('|', (SELECT count(*) FROM messages), count(*), min(status),
                   max(status), (SELECT count(DISTINCT subject) FROM audit_log
                                 WHERE action = 'dead_letter.replay')) FROM dead_letters";
    assert_eq!(scenario.sql(end).await, "20|20|replayed|replayed|20");
}

/// Starts a worker with a failpoint, and waits until it has aborted there.
async fn crash(scenario: &Scenario, program: &str, step: Step) {
    crashed(scenario.launch(program, &[(AT, step.name())]), step).await;
}

async fn crashed(worker: Worker, step: Step) {
    let status = worker.wait(LIMIT).await.unwrap();
    let (name, log) = (worker.name(), worker.log_tail());
    assert_eq!(status.signal(), Some(ABORTED), "{name} at {}: {status}\n{log}", step.name());
}

/// Runs a fixed load, with a crash of one worker at one failpoint or without, and returns the stored state.
/// The load: three conversations, two of which close; one duplicate; a conflict, two bodies that cannot
/// be decoded, an unknown action and an event that is none, which become dead letters.
async fn final_state(crash_at: Option<(Step, &str)>) -> State {
    let scenario = Scenario::with_failpoints().await;
    // A short lease, so that the claims of a crashed closer are soon taken over.
    let settings = [("VERBATIM_CLOSE_LEASE", "2s")];
    let (mut fleet, mut victim) = (Vec::new(), None);
    for program in fleet::WORKERS.map(fleet::Process::name) {
        match crash_at.filter(|(_, victim)| *victim == program) {
            None => fleet.push(scenario.launch(program, &settings)),
            Some((step, _)) => {
                let armed: Vec<_> = settings.into_iter().chain([(AT, step.name())]).collect();
                victim = Some((program, step, scenario.launch(program, &armed)));
            }
        }
    }
    let agent = scenario.agent();
    begin(&agent).await;
    let crashes_first = |it: &mut (&str, Step, Worker)| it.0 == SAVER && it.1 != Step::Copied;
    if let Some((program, step, worker)) = victim.take_if(crashes_first) {
        crashed(worker, step).await;
        fleet.push(scenario.start_with(program, &settings).await);
    }
    // RabbitMQ requeues deliveries of a dead worker in any order. The conflict must arrive second, so it is
    // published only after the first message is saved.
    scenario.until_sql("SELECT count(*) FROM messages", "90").await;
    end(&agent).await;
    if let Some((program, step, worker)) = victim {
        crashed(worker, step).await;
        fleet.push(scenario.start_with(program, &settings).await);
    }
    let all = "SELECT concat_ws(' ', (SELECT count(*) FROM messages),
                   (SELECT count(*) FROM dead_letters),
                   (SELECT count(*) FROM conversations WHERE status = 'archived'),
                   (SELECT count(*) FROM conversation_stats), (SELECT sum(conversations) FROM daily_stats))";
    scenario.until_sql(all, "88 5 2 2 2").await;
    scenario.finish(fleet).await;
    let mut state = State::new();
    for query in STATE_QUERIES {
        let rows = scenario.sql(&format!("SELECT row_to_json(t) FROM ({query}) t")).await;
        for row in rows.lines() {
            *state.entry(format!("{row} of {query}")).or_default() += 1;
        }
    }
    let reader = scenario.reader();
    for session in ["s0", "s1", "s2"] {
        let (tenant, session) = (TenantId::new("crash").unwrap(), SessionId::new(session).unwrap());
        let (read, stored) =
            reader.transcript_and_stored(&ConversationKey::of_session(tenant, &session)).await;
        assert_eq!(read.messages, stored);
    }
    state
}

/// How often each row is stored: one that is stored twice differs.
type State = BTreeMap<String, usize>;

/// The stored state, without the workers' clock times and without random numbers.
const STATE_QUERIES: [&str; 8] = [
    "SELECT tenant_id, conversation_id, id, deleted_by FROM deleted_messages",
    "SELECT tenant_id, conversation_id, id, role, content, tokens, created_at, body_hash FROM messages",
    // While a conversation is active, its row has only approximate times of messages.
    "SELECT tenant_id, id, session_id, status, message_count, total_tokens, close_reason,
         close_token IS NULL AS released,
         CASE status WHEN 'archived' THEN created_at END AS created_at,
         CASE status WHEN 'archived' THEN last_message_at END AS last_message_at FROM conversations",
    "SELECT tenant_id, conversation_id, session_id, open, last_event_at, close_reason FROM sessions",
    "SELECT tenant_id, conversation_id, action_type, session_id, created_at, reason FROM session_events",
    "SELECT tenant_id, conversation_id, message_count, user_messages, total_tokens,
         duration_seconds FROM conversation_stats",
    "SELECT tenant_id, agent_id, model_name, day, conversations, messages, tokens FROM daily_stats",
    "SELECT queue, reason, field, error, message_id, status, attempts, replay_count FROM dead_letters",
];

async fn begin(agent: &Agent) {
    let mut actions = with_ids("crash", 90, 3);
    for session in ["s0", "s1", "s2"] {
        actions.insert(0, opened("crash", session, &json!({"timestamp": at(0)})));
    }
    agent.publish_all(&actions).await;
}

async fn end(agent: &Agent) {
    let twice = with_ids("crash", 6, 3).remove(5);
    let taken = json!({"content": "different content", "timestamp": at(6)});
    let unreadable = json!({"role": "unknown"});
    let unknown = json!({"action_type": "conversation.summarise"});
    agent.publish(&twice).await;
    agent.publish(&message("crash", "s0", "m00006", &taken)).await;
    agent.publish(&message("crash", "s1", "unreadable", &unreadable)).await;
    agent.publish(&closed("crash", "s2", &json!({"action_id": "soon", "timestamp": "soon"}))).await;
    agent.publish(&message("crash", "s2", "unknown", &unknown)).await;
    let no_event = Publication {
        message_id: "no event".to_owned(),
        ..Publication::event("conversation.none", b"no event".to_vec())
    };
    agent.send(vec![no_event]).await;
    // Of a conversation that closes, and of one that stays active.
    for (id, session) in [("m00010", "s1"), ("m00011", "s2")] {
        agent.publish(&deleted("crash", session, id)).await;
    }
    for session in ["s0", "s1"] {
        agent.publish(&closed("crash", session, &json!({"timestamp": at(1_000)}))).await;
    }
}
