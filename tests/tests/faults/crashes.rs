//! A process that aborts at each failpoint and is started again: the final state is the same as without
//! the crash, except for times and the number of events.
//!
//! The failpoints are in the crate `failpoints`; test builds of the workers abort at the one that their
//! environment names.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use broker::Publication;
use domain::fleet;
use domain::ids::{ConversationKey, SessionId, TenantId};
use failpoints::{AT, ON, Step};
use serde_json::{Value, json};
use system_tests::{
    Agent, COLLECTOR, Counts, LIMIT, MIGRATION, PublishedMessages, SAVER, STATISTICS, Scenario, at,
    closed, message, opened,
};
use testkit::fleet::Worker;
use testkit::wait::eventually;

use crate::poison::poison;
use crate::{SAVES, load, publish, until_stored};

/// SIGABRT (signal(7)): what `abort` ends a process with.
const ABORTED: i32 = 6;

/// The failpoints of the workers, and the worker that reaches each.
const STEPS: [(Step, &str); 22] = [
    (Step::SaveDecoded, SAVER),
    (Step::SaveCommitted, SAVER),
    (Step::SaveAppended, SAVER),
    (Step::Copied, SAVER),
    (Step::Settled, SAVER),
    (Step::Acknowledged, SAVER),
    (Step::Copied, MIGRATION),
    (Step::Settled, MIGRATION),
    (Step::Acknowledged, MIGRATION),
    (Step::CloseClaimed, MIGRATION),
    (Step::CloseCounted, MIGRATION),
    (Step::CloseDropped, MIGRATION),
    (Step::CloseAnnounced, MIGRATION),
    (Step::CloseArchived, MIGRATION),
    (Step::DeadLetterStored, COLLECTOR),
    (Step::DeadLetterAnnounced, COLLECTOR),
    (Step::Copied, COLLECTOR),
    (Step::Settled, COLLECTOR),
    (Step::Acknowledged, COLLECTOR),
    (Step::Copied, STATISTICS),
    (Step::Settled, STATISTICS),
    (Step::Acknowledged, STATISTICS),
];

/// Failpoints of every worker, in its consumer.
const OF_ALL: [Step; 3] = [Step::Copied, Step::Settled, Step::Acknowledged];

/// Failpoints of operators' commands; `dead_letters/replays.rs` tests them.
const OF_OPERATORS: [Step; 2] = [Step::ReplayConfirmed, Step::ReplayMarked];

#[test]
fn every_failpoint_has_a_test() {
    for step in Step::ALL {
        let tested = STEPS.iter().map(|(step, _)| step).chain(&OF_OPERATORS);
        assert!(tested.into_iter().any(|it| *it == step), "{}", step.name());
    }
    for step in OF_ALL {
        for program in fleet::WORKERS.map(fleet::Process::name) {
            assert!(STEPS.contains(&(step, program)), "{} of {program}", step.name());
        }
    }
}

#[test]
fn ordinary_binaries_hold_no_failpoints() {
    let holds = |dir: &str, program: &str| {
        let binary = testkit::place::profile_dir().join(dir).join(program);
        let bytes = std::fs::read(&binary).unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        bytes.windows(AT.len()).any(|window| window == AT.as_bytes())
    };
    for program in fleet::processes().into_iter().map(fleet::Process::name) {
        assert!(!holds(".", program), "{program}");
        assert!(
            holds("armed", program),
            "the test build of {program} has none: this test searches wrongly"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_a_crash_at_any_failpoint_ends_in_the_same_state() {
    let undisturbed = final_state(None).await;
    for case in STEPS {
        let (step, program) = case;
        let disturbed = final_state(Some(case)).await;
        let difference: Vec<_> = disturbed.symmetric_difference(&undisturbed).collect();
        assert!(difference.is_empty(), "{program} crashed at {}: {difference:#?}", step.name());
    }
}

#[tokio::test]
async fn a_crash_between_a_retry_and_its_acknowledgement_duplicates_nothing() {
    let scenario = Scenario::with_failpoints().await;
    poison(&scenario, "P0001", "m00003").await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedMessages::default());
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
async fn a_crash_between_a_move_to_the_suspect_queue_and_its_acknowledgement_duplicates_nothing() {
    let scenario = Scenario::with_failpoints().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedMessages::default());
    publish(&agent, &mut published, &load("suspect", 20, 2)).await;
    for _ in 0..3 {
        crash(&scenario, SAVER, Step::SaveDecoded).await;
    }
    crash(&scenario, SAVER, Step::Copied).await;
    let saver = scenario.start(SAVER).await;
    let labels = [("queue", SAVES), ("outcome", "quarantined")];
    Counts::reach(&saver, "verbatim_deliveries_total", &labels, 1.0).await;
    scenario.finish([saver]).await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
}

#[tokio::test]
async fn a_crash_between_a_reroute_and_its_acknowledgement_duplicates_nothing() {
    let scenario = Scenario::with_failpoints().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedMessages::default());
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
        (scenario.agent(), scenario.reader(), PublishedMessages::default());
    let mut messages = load("deadly", 500, 10);
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
async fn final_state(crash_at: Option<(Step, &str)>) -> BTreeSet<String> {
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
    scenario.until_sql(all, "90 5 2 2 2").await;
    scenario.finish(fleet).await;
    let mut state = BTreeSet::new();
    for query in STATE_QUERIES {
        let rows = scenario.sql(&format!("SELECT row_to_json(t) FROM ({query}) t")).await;
        state.extend(rows.lines().map(|row| format!("{row} of {query}")));
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

/// The stored state, without the workers' clock times and without random numbers.
const STATE_QUERIES: [&str; 6] = [
    "SELECT tenant_id, conversation_id, id, role, content, tokens, created_at, body_hash FROM messages",
    // While a conversation is active, its row has only approximate times of messages.
    "SELECT tenant_id, id, session_id, status, message_count, total_tokens, close_reason,
         close_token IS NULL AS released,
         CASE status WHEN 'archived' THEN created_at END AS created_at,
         CASE status WHEN 'archived' THEN last_message_at END AS last_message_at FROM conversations",
    "SELECT tenant_id, conversation_id, session_id, open, last_event_at FROM sessions",
    "SELECT tenant_id, conversation_id, message_count, user_messages, total_tokens,
         duration_seconds FROM conversation_stats",
    "SELECT tenant_id, agent_id, day, conversations, messages, tokens FROM daily_stats",
    "SELECT queue, reason, field, error, message_id, status, attempts, replay_count FROM dead_letters",
];

async fn begin(agent: &Agent) {
    let mut actions: Vec<Value> = load("crash", 90, 3);
    for session in ["s0", "s1", "s2"] {
        actions.insert(0, opened("crash", session, &json!({"timestamp": at(0)})));
    }
    agent.publish_all(&actions).await;
}

async fn end(agent: &Agent) {
    let twice = load("crash", 6, 3).remove(5);
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
    for session in ["s0", "s1"] {
        agent.publish(&closed("crash", session, &json!({"timestamp": at(1_000)}))).await;
    }
}
