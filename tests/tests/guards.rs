//! The tests of the loss table fail without the code that they are about: for each guard a test build of the
//! workers leaves it out, and a test whose row rests on it must fail. All guards with `--deep`, else two.
//!
//! The run prints the rows that are proven so, and those whose guards no test build can leave out.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failure here is the failure of the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use failpoints::{Guard, OFF};
use testkit::environment::deep;
use testkit::fleet::{BUILT, Fleet};
use tokio::task::JoinSet;

/// A test that must fail without a guard, and its test program.
#[derive(Debug, Clone, Copy)]
struct Proof {
    guard: Guard,
    program: &'static str,
    test: &'static str,
}

const FAULTS: &str = "faults";
const DEAD_LETTERS: &str = "dead_letters";
const FLEET: &str = "fleet";

/// The first two fail soon, and run every day.
const PROOFS: [Proof; Guard::ALL.len()] = [
    proof(
        Guard::Quarantine,
        FAULTS,
        "a_message_that_kills_its_worker_becomes_a_dead_letter_and_all_others_are_saved",
    ),
    proof(
        Guard::ReceiptOrder,
        FLEET,
        "messages_with_an_amqp_timestamp_read_in_the_order_of_receipt",
    ),
    proof(
        Guard::AcknowledgementAfterEffect,
        FAULTS,
        "a_drain_that_cannot_finish_ends_at_its_deadline_or_at_a_second_signal",
    ),
    proof(
        Guard::CopyBeforeAcknowledgement,
        FAULTS,
        "a_collector_killed_midway_stores_every_dead_letter_and_none_twice",
    ),
    proof(
        Guard::StoredMessageRecognised,
        FAULTS,
        "a_worker_killed_after_it_saved_and_before_it_acknowledged_duplicates_nothing",
    ),
    proof(
        Guard::FailedAppendInvalidates,
        FAULTS,
        "a_redis_that_is_full_demoted_or_restored_from_an_old_file_misleads_no_reader",
    ),
    proof(
        Guard::HoldInOutage,
        FAULTS,
        "an_outage_of_postgresql_under_load_costs_time_and_no_attempt",
    ),
    proof(
        Guard::SavedAgainInvalidates,
        FAULTS,
        "after_a_crash_between_the_stores_a_message_without_an_identity_misleads_no_reader",
    ),
    proof(
        Guard::DeadLetterInvalidates,
        FAULTS,
        "a_stored_message_that_becomes_a_dead_letter_misleads_no_reader",
    ),
    proof(
        Guard::DrainFinishes,
        FAULTS,
        "savers_added_and_replaced_under_load_share_it_and_drain_what_was_delivered",
    ),
    proof(
        Guard::DeadLetterStored,
        FLEET,
        "of_conflicting_contents_on_two_replicas_one_is_stored_and_one_becomes_a_dead_letter",
    ),
    proof(
        Guard::UnroutedRerouted,
        DEAD_LETTERS,
        "rerouted_messages_arrive_once_while_the_queue_of_others_is_missing",
    ),
    proof(
        Guard::CloseTakenOver,
        FAULTS,
        "a_closer_killed_midway_is_replaced_by_another_and_each_conversation_closes_once",
    ),
    proof(Guard::DeadLetterIdDerived, FAULTS, "a_crash_of_a_saver_at_copied_changes_nothing"),
    proof(
        Guard::ReplayHoldsItsLease,
        DEAD_LETTERS,
        "a_replay_stopped_before_it_confirms_its_lease_does_not_send_what_was_discarded",
    ),
    proof(Guard::SlowQueue, FAULTS, "a_slow_message_delays_no_other_and_is_saved"),
    proof(
        Guard::SuccessBeside,
        FAULTS,
        "a_failure_of_postgresql_that_hits_everything_makes_no_dead_letter",
    ),
    proof(
        Guard::SlowCloseApart,
        FAULTS,
        "a_migration_worker_stops_in_time_while_it_closes_a_slow_conversation",
    ),
];

/// Proofs that run every day.
const EVERY_DAY: usize = 2;

/// Tests at the same time: most of the time they wait.
const AT_ONCE: usize = 3;

const fn proof(guard: Guard, program: &'static str, test: &'static str) -> Proof {
    Proof { guard, program, test }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_guard_a_test_of_its_rows_fails() {
    for guard in Guard::ALL {
        assert!(PROOFS.iter().any(|proof| proof.guard == guard), "{guard:?} has no proof");
    }
    // Once, and not by each of the tests.
    Fleet::armed().await;
    let mut proofs = PROOFS[..if deep() { PROOFS.len() } else { EVERY_DAY }].iter().copied();
    let (mut running, mut proven, mut unproven) = (JoinSet::new(), BTreeMap::new(), Vec::new());
    for proof in proofs.by_ref().take(AT_ONCE) {
        running.spawn_blocking(move || fails_without(proof));
    }
    while let Some(proof) = running.join_next().await {
        match proof.unwrap() {
            Ok(Proof { guard, test, .. }) => {
                println!("without {}: {test} fails", guard.name());
                proven.insert(test, guard);
            }
            Err(passed) => unproven.push(passed),
        }
        if let Some(proof) = proofs.next() {
            running.spawn_blocking(move || fails_without(proof));
        }
    }
    report(&proven);
    assert!(unproven.is_empty(), "{}", unproven.join("\n"));
}

/// Runs a test without a guard. The error is that it passed.
fn fails_without(proof: Proof) -> Result<Proof, String> {
    let Proof { guard, program, test } = proof;
    let output = Command::new(test_program(program, test))
        .args([test, "--test-threads=1"])
        .env(OFF, guard.name())
        .env(BUILT, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("0 passed; 1 failed") {
        return Ok(proof);
    }
    let name = guard.name();
    Err(format!("without the guard {name} ({guard:?}) {test} should fail, and passed:\n{text}"))
}

/// The newest build of a test program that has exactly one test of this name, beside this program. Several packages
/// may have a program of the same name.
fn test_program(name: &str, test: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built =
        std::fs::read_dir(own.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let is_build = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_string_lossy();
        let hash = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|hash| !hash.contains(['.', '-']))
    };
    let mut builds: Vec<PathBuf> = built.filter(is_build).collect();
    builds.sort_by_key(|path| std::cmp::Reverse(modified(path)));
    let found = builds.into_iter().find(|path| {
        let listed = Command::new(path).args([test, "--list"]).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).contains("\n1 test, ")
    });
    found.unwrap_or_else(|| panic!("no build of {name} has exactly one test {test}"))
}

fn modified(path: &Path) -> std::time::SystemTime {
    path.metadata().and_then(|metadata| metadata.modified()).unwrap()
}

/// Prints the rows of the loss table whose test failed without a guard, and the others.
fn report(proven: &BTreeMap<&str, Guard>) {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for (row, tests) in rows() {
        let guards: BTreeSet<&str> = tests
            .iter()
            .flat_map(|test| proven.iter().filter(move |(proven, _)| matches(test, proven)))
            .map(|(_, guard)| guard.name())
            .collect();
        if guards.is_empty() {
            without.push(row);
        } else {
            with.push(format!("{row}: {}", guards.into_iter().collect::<Vec<_>>().join(", ")));
        }
    }
    println!("\nrows of the loss table proven by leaving out a guard: {}", with.len());
    with.iter().for_each(|row| println!("  {row}"));
    println!("rows without a guard that this run left out: {}", without.len());
    without.iter().for_each(|row| println!("  {row}"));
    assert!(!with.is_empty(), "no row of docs/delivery.md names a test of a guard");
}

/// Whether a name in the loss table, which may end with `*`, is that of a test.
fn matches(named: &str, test: &str) -> bool {
    named.strip_suffix('*').map_or(named == test, |beginning| test.starts_with(beginning))
}

/// The rows of the loss table, each with its tests.
fn rows() -> Vec<(String, Vec<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/delivery.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, tables) = text.split_once("## The loss table").unwrap();
    let (tables, _) = tables.split_once("## How an operator notices").unwrap();
    let mut rows = Vec::new();
    for section in tables.split("\n### ").skip(1) {
        let numbered = section.lines().filter_map(|line| line.split_once(". `"));
        let tests: BTreeMap<&str, Vec<String>> = numbered
            .map(|(number, names)| {
                let names = names.split('`').step_by(2).map(str::to_owned);
                (number, names.filter(|name| !name.contains(' ')).collect())
            })
            .collect();
        for line in section.lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let Some(numbers) =
                cells.last().filter(|it| it.starts_with(|c: char| c.is_ascii_digit()))
            else {
                continue;
            };
            let of = numbers.split(", ").filter_map(|number| tests.get(number)).flatten();
            rows.push((cells[..2].join(" ").trim().to_owned(), of.cloned().collect()));
        }
    }
    rows
}
