//! Tests and commands that the documents name exist, and their numbers are those of the code.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use domain::failure_policy as policy;
use domain::fleet::{Consumed, DEAD_LETTER_WORKER, Process, WorkQueue, worker_of};
use testkit::fleet::Fleet;
use testkit::place::workspace;

/// The line before each list of tests.
const PROVEN_BY: &str = "Proven by";

#[test]
fn every_test_that_the_loss_table_names_exists() {
    let text = std::fs::read_to_string(workspace().join("docs/delivery.md")).unwrap();
    let named = proofs(&text);
    assert!(named.len() >= 30, "the loss table names only {named:?}");
    let tests = test_functions();
    let exists = |name: &str| match name.strip_suffix('*') {
        Some(beginning) => tests.iter().any(|test| test.starts_with(beginning)),
        None => tests.contains(name),
    };
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "docs/delivery.md names tests that do not exist: {missing:#?}");
}

#[test]
fn every_row_of_the_loss_table_names_tests_and_every_listed_test_belongs_to_a_row() {
    let text = std::fs::read_to_string(workspace().join("docs/delivery.md")).unwrap();
    let sections: Vec<_> = text.split("\n### ").filter(|it| it.contains(PROVEN_BY)).collect();
    assert!(sections.len() >= 6, "the loss table has only the sections {sections:?}");
    for section in sections {
        let title = section.lines().next().unwrap();
        let (table, list) = section.split_once(PROVEN_BY).unwrap();
        let listed: Vec<usize> =
            list.lines().filter_map(|line| line.split_once(". `")?.0.parse().ok()).collect();
        assert!(
            listed.iter().copied().eq(1..=listed.len()),
            "{title}: the list is numbered {listed:?}"
        );
        let mut used = BTreeSet::new();
        // The rows after the heading and the separator.
        for row in table.lines().filter(|line| line.starts_with('|')).skip(2) {
            let cells: Vec<_> = row.split('|').collect();
            let [_, _, _, _, _, _, proofs, ""] = cells[..] else { panic!("six cells: {row}") };
            for proof in proofs.split(',') {
                let number: Option<usize> = proof.trim().parse().ok();
                used.insert(number.unwrap_or_else(|| {
                    panic!("the last cell must have numbers of the list: {row}")
                }));
            }
        }
        assert!(used.iter().copied().eq(listed), "{title}: the rows name {used:?}");
    }
}

#[test]
fn the_numbers_of_the_failure_policy_are_those_of_the_code() {
    let delivery = std::fs::read_to_string(workspace().join("docs/delivery.md")).unwrap();
    let runbooks = std::fs::read_to_string(workspace().join("docs/operations.md")).unwrap();
    let seconds = policy::RETRY_DELAYS.map(|delay| format!("{} s", delay.as_secs()));
    let [first, second, third] = seconds;
    let (quarantine, suspect) = (policy::QUARANTINE_AFTER, policy::SUSPECT_LIMIT);
    let batch = format!("{} s", policy::BATCH_LIMIT.as_secs_f64());
    let part = format!("{} ms", policy::PART_LIMIT.as_millis());
    let part_lock = format!("{} ms", policy::PART_LOCK_LIMIT.as_millis());
    let [slow, slowest] = policy::SLOW_LIMITS.map(|limit| limit.as_secs());
    let (slow, slowest) = (format!("{slow} s"), format!("{} min", slowest / 60));
    let lock = policy::SLOW_QUEUE_LOCK_LIMIT.as_millis();
    let [locked, locked_slow] =
        [policy::LOCKED_FOR, policy::LOCKED_FOR_SLOW].map(|limit| limit.as_secs());
    for expected in [
        format!("a statement over a batch takes longer than {batch} |"),
        format!("with {part} for each statement over a part,"),
        format!("with {part_lock} for each lock"),
        format!("| too slow | first {slow}, then {slowest} |"),
        format!("it waits {lock} ms for the lock |"),
        format!("For {locked} s it moves messages of that conversation"),
        format!("For {locked_slow} s it does not try those in the slow queue"),
        format!("the limits ({batch}, {slow}, {slowest}) are for the whole transaction"),
        format!("| {quarantine} | a message in its queue |"),
        format!("in groups of up to {},", policy::SUSPECTS_TOGETHER),
        format!("| {suspect} | a suspect |"),
        format!("| {} | a message of a slow queue |", policy::SLOW_MESSAGE_LIMIT),
        format!("| {} | a message that no worker can move", policy::WORK_DELIVERY_LIMIT),
        format!("retried after {first}, {second} and {third}, then it becomes a dead letter"),
        format!("retried in place for about {} s", policy::IN_PLACE_LIMIT.as_secs()),
        format!("probes the dependency at most {} s apart", policy::LONGEST_PAUSE.as_secs()),
        format!("After {} min (`VERBATIM_HOLD_LIMIT`)", policy::HOLD_LIMIT.as_secs() / 60),
        format!("\"no delivery for {} s …", policy::STALL_LIMIT.as_secs()),
    ] {
        assert!(delivery.contains(&expected), "docs/delivery.md must say {expected:?}");
    }
    let (quarantine_word, suspect_word) = (word(quarantine), word(suspect));
    for expected in [
        format!(
            "{} restarts as a rule ({quarantine_word} from its queue, {suspect_word} as a suspect)",
            word(quarantine + suspect)
        ),
        format!("after {quarantine_word} requeues a message is quarantined"),
        format!("in groups of up to {},", policy::SUSPECTS_TOGETHER),
        format!("requeued {suspect_word} times there becomes a dead letter"),
        format!("for it alone ({part}, after its batch took {batch})"),
    ] {
        assert!(runbooks.contains(&expected), "docs/operations.md must say {expected:?}");
    }
}

#[test]
fn the_tables_of_queues_name_every_work_queue_with_its_worker() {
    let [architecture, runbooks] = ["docs/architecture.md", "docs/operations.md"]
        .map(|file| std::fs::read_to_string(workspace().join(file)).unwrap());
    for (file, text, heading, none) in [
        (
            "docs/architecture.md",
            &architecture,
            "## Exchanges and queues",
            "no worker of this version",
        ),
        (
            "docs/operations.md",
            &runbooks,
            "### VerbatimWorkWithoutConsumers",
            "none in this version",
        ),
    ] {
        let section = section(text, heading);
        for queue in WorkQueue::ALL {
            let name = format!("`{}`", queue.name());
            let worker = worker_of(Consumed::Work(queue)).map_or(none, Process::name);
            // The name is in the first cell.
            let is_row = |line: &str| {
                let cells: Vec<_> = line.split('|').collect();
                cells.get(1).is_some_and(|cell| cell.contains(&name)) && line.contains(worker)
            };
            assert!(
                section.lines().any(is_row),
                "{file}: the table under `{heading}` needs a row of {name} with {worker:?}"
            );
        }
    }
    let work = |consumed: &Consumed| match consumed {
        Consumed::Work(queue) => Some(format!("`{}`", queue.name())),
        Consumed::DeadLetters => None,
    };
    let own: Vec<_> = DEAD_LETTER_WORKER.consumes().iter().filter_map(work).collect();
    let all = WorkQueue::ALL.len() as u64;
    let (queues, together) = (word(all), word(all + own.len() as u64));
    let expected = format!("for {together} queues ({} and {queues} `.dlq`)", own.join(", "));
    assert!(runbooks.contains(&expected), "docs/operations.md must say {expected:?}");
}

#[tokio::test]
async fn every_command_that_the_runbooks_name_exists() {
    let text = std::fs::read_to_string(workspace().join("docs/operations.md")).unwrap();
    let named: BTreeSet<Vec<&str>> = commands(&text).collect();
    assert!(named.len() >= 8, "only these commands were found: {named:?}");
    let fleet = Fleet::new().await;
    for command in named {
        let output = fleet.command("verbatim").args(&command).arg("--help").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docs/operations.md names {command:?}: {stderr}");
    }
}

fn word(number: u64) -> &'static str {
    ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        [usize::try_from(number).unwrap()]
}

/// The lines from a heading to the next one.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap();
    rest.split_once("\n#").map_or(rest, |(section, _)| section)
}

/// The words after `verbatim`, up to the first argument or option.
fn commands(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.split("verbatim ").skip(1).map(|rest| {
        let code = rest.split(['`', '\n']).next().unwrap_or_default();
        let is_command = |word: &&str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        };
        code.split(' ').take_while(is_command).collect()
    })
}

/// The names in the numbered lists under [`PROVEN_BY`].
fn proofs(text: &str) -> BTreeSet<String> {
    let mut proofs = BTreeSet::new();
    let mut in_list = false;
    for line in text.lines() {
        if line == PROVEN_BY {
            in_list = true;
        } else if line.starts_with('#') {
            in_list = false;
        } else if in_list && line.starts_with(|first: char| first.is_ascii_digit()) {
            proofs.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    proofs
}

/// The names of all functions with a test attribute.
fn test_functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in rust_files() {
        let text = std::fs::read_to_string(file).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) = line.strip_prefix("async fn ").or(line.strip_prefix("fn "))
                && std::mem::take(&mut is_test)
            {
                names.extend(rest.split('(').next().map(str::to_owned));
            }
        }
    }
    names
}

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["crates", "tests"] {
        collect(&workspace().join(folder), &mut files);
    }
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
