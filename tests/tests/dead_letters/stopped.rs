//! A replay whose process gets no time for longer than its lease: it sends nothing that it no longer holds.
//!
//! The processes are test builds, which stop themselves (SIGSTOP) at a named step and have a short lease.

use failpoints::{REPLAY_LEASE, STOP_AT, Step};
use serde_json::{Value, json};
use system_tests::{LIMIT, Scenario, as_dead_letter, message};
use testkit::process::{Process, Signal};
use testkit::wait::eventually;

use crate::SAVES;

const REPLAY: [&str; 6] = ["dead-letters", "replay", "--all", "--watch", "0s", "--json"];
const LEASE_MS: &str = "2000";

#[tokio::test]
async fn a_replay_stopped_before_it_confirms_its_lease_does_not_send_what_was_discarded() {
    discarded_while_stopped(Step::ReplayTaken).await;
}

#[tokio::test]
async fn a_replay_stopped_right_before_it_publishes_does_not_send_what_was_discarded() {
    discarded_while_stopped(Step::ReplayHeld).await;
}

#[tokio::test]
async fn what_a_stopped_replay_no_longer_holds_stays_open_and_the_next_replay_sends_it() {
    let scenario = with_dead_letters(1).await;
    let replay = stopped_at(&scenario, Step::ReplayHeld).await;
    until_the_lease_ended(&scenario).await;
    let report = continued(&replay, 1).await;
    assert_eq!((&report["replayed"], &report["no_longer_held"]), (&json!(0), &json!(1)));
    assert_eq!(scenario.queued().await, []);
    let open = "SELECT concat_ws('|', status, replay_fault IS NULL) FROM dead_letters";
    assert_eq!(scenario.sql(open).await, "open|t");
    let again = scenario.verbatim(&REPLAY).await;
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!(scenario.queued().await, [(SAVES, 1)]);
}

#[tokio::test]
async fn a_replay_stopped_for_less_than_its_lease_sends_everything() {
    let scenario = with_dead_letters(3).await;
    let settings = [(STOP_AT, Step::ReplayHeld.name())];
    let replay = scenario.launch_verbatim(&REPLAY, &settings);
    until_stopped(&replay).await;
    let report = continued(&replay, 0).await;
    assert_eq!((&report["replayed"], &report["no_longer_held"]), (&json!(3), &json!(0)));
    assert_eq!(scenario.queued().await, [(SAVES, 3)]);
}

/// Stops a replay at a step, discards its dead letters when its lease has ended, and lets it continue.
async fn discarded_while_stopped(step: Step) {
    let scenario = with_dead_letters(3).await;
    let replay = stopped_at(&scenario, step).await;
    let held = "SELECT count(*) FROM dead_letters WHERE replay_run IS NOT NULL";
    assert_eq!(scenario.sql(held).await, "1", "a replay begins with one dead letter");
    until_the_lease_ended(&scenario).await;
    let discard = ["dead-letters", "discard", "--all", "--why", "its replay is stopped"];
    let discarded = scenario.verbatim(&discard).await;
    assert_eq!(discarded.status.code(), Some(0), "{discarded:?}");

    let report = continued(&replay, 1).await;
    assert_eq!(scenario.queued().await, [], "nothing is published: {report}");
    let counts = ["matched", "replayed", "failed", "no_longer_held", "skipped", "skipped_open"];
    assert_eq!(counts.map(|name| report[name].as_i64()), [3, 0, 0, 1, 2, 0].map(Some), "{report}");
    let first = &report["no_longer_held_ids"][0];
    let first = format!(
        "SELECT replay_run IS NOT NULL FROM dead_letters WHERE id = '{}'",
        first.as_str().unwrap()
    );
    assert_eq!(scenario.sql(&first).await, "t");
    let states = "SELECT string_agg(DISTINCT status || status_reason, ',') FROM dead_letters";
    assert_eq!(scenario.sql(states).await, "discardedits replay is stopped");
    let replayed = "SELECT count(*) FROM audit_log WHERE action LIKE 'dead_letter.replay%'";
    assert_eq!(scenario.sql(replayed).await, "0");
}

async fn with_dead_letters(count: usize) -> Scenario {
    let scenario = Scenario::with_failpoints().await;
    let dead_letters: Vec<_> = (0..count)
        .map(|n| as_dead_letter(&message("held", "s", &format!("m{n}"), &json!({})).to_string()))
        .collect();
    scenario.store_dead_letters(&dead_letters).await;
    scenario
}

async fn stopped_at(scenario: &Scenario, step: Step) -> Process {
    let settings = [(STOP_AT, step.name()), (REPLAY_LEASE, LEASE_MS)];
    let replay = scenario.launch_verbatim(&REPLAY, &settings);
    until_stopped(&replay).await;
    replay
}

async fn until_stopped(replay: &Process) {
    eventually("the replay to be stopped", LIMIT, async || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", replay.pid()));
        let status = status.map_err(|error| format!("{error}: {}", replay.log_tail()))?;
        match status.lines().find(|line| line.starts_with("State:")) {
            Some(state) if state.contains("T (stopped)") => Ok(()),
            state => Err(format!("{state:?}: {}", replay.log_tail())),
        }
    })
    .await;
}

async fn until_the_lease_ended(scenario: &Scenario) {
    let held = "SELECT count(*) FROM dead_letters WHERE replay_lease_until > clock_timestamp()";
    scenario.until_sql(held, "0").await;
}

/// Continues a stopped replay, and returns its report when it has ended with this exit code.
async fn continued(replay: &Process, code: i32) -> Value {
    replay.signal(Signal::Continue).unwrap();
    let status = replay.wait(LIMIT).await.unwrap();
    let log = replay.log();
    assert_eq!(status.code(), Some(code), "{log}");
    let json = &log[log.find('{').unwrap_or_default()..];
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    values.next().unwrap_or_else(|| panic!("no report: {log}")).unwrap()
}
