//! Bodies and header tables with random faults: each message is saved, recorded or a dead letter, as `verbatim lint`
//! says, and no process fails.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use broker::Publication;
use broker::topology::WorkQueue;
use domain::action::Action;
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use domain::envelope::Envelope;
use domain::failure::DeadLetterReason;
use domain::fleet::worker_of_action;
use fixtures::decoded_with;
use fixtures::examples::{ACTIONS, malformed};
use futures_util::future::join_all;
use serde_json::{Value, json};
use system_tests::{COLLECTOR, LIMIT, MIGRATION, Random, SAVER, STATISTICS, Scenario, message};
use testkit::environment::deep;
use testkit::fleet::Worker;
use testkit::raw_amqp::{RawAmqp, properties};
use testkit::wait::eventually;
use uuid::Uuid;

const QUEUE: WorkQueue = WorkQueue::SaveMessage;

/// How many bodies, and how many header tables.
fn many() -> usize {
    if deep() { 50_000 } else { 5_000 }
}

/// A new seed, which a failed test prints with its output.
fn random() -> Random {
    let (seed, _) = Uuid::new_v4().as_u64_pair();
    eprintln!("seed {seed}");
    Random::new(seed)
}

#[tokio::test]
async fn every_mutated_body_is_stored_or_a_dead_letter_as_lint_says() {
    let (scenario, mut random) = (Scenario::new().await, random());
    let bodies: Vec<Vec<u8>> = (0..many()).map(|n| mutated_body(n, &mut random)).collect();
    let mut refused = BTreeMap::new();
    let mut most = 0;
    for body in &bodies {
        let decoded = decoded_with(body, &Envelope::default());
        most += decoded.as_ref().map_or(1, |action| action.messages().count().max(1));
        let reasons: Vec<DeadLetterReason> = match decoded {
            Ok(Action::SaveMessages(action)) => {
                let refused = action.elements.iter().filter_map(|it| it.message.as_ref().err());
                // An atomic action is one dead letter.
                let many = if action.atomic { 1 } else { action.elements.len() };
                refused.map(|refusal| refusal.reason).take(many).collect()
            }
            // A mutation may correct a malformed body of an action that no worker carries out. A request expires.
            Ok(action) if worker_of_action(action.kind()).is_some() => continue,
            Ok(action) if action.kind().is_request() => continue,
            Ok(_) => vec![DeadLetterReason::UnknownAction],
            Err(refusal) => vec![refusal.reason],
        };
        most += reasons.len();
        for reason in reasons {
            *refused.entry(reason.as_str()).or_insert(0_usize) += 1;
        }
    }
    assert_lint_agrees(&scenario, &bodies).await;

    let workers = every_worker(&scenario).await;
    for some in bodies.chunks(1_000) {
        let publications = some.iter().map(|body| Publication::action(QUEUE.name(), body.clone()));
        scenario.agent().send(publications.collect()).await;
    }
    let expected: usize = refused.values().sum();
    dead_letters(&scenario, expected).await;
    drain_until_all_queues_are_empty(&scenario, workers).await;
    let by_reason = async |count: &str| -> BTreeMap<String, usize> {
        let by_reason = format!(
            "SELECT coalesce(json_object_agg(reason, many), '{{}}')
             FROM (SELECT reason, {count} AS many FROM dead_letters GROUP BY reason) AS dead_letters"
        );
        serde_json::from_str(&scenario.sql(&by_reason).await).unwrap()
    };
    let (mut found, mut rows) = (by_reason("sum(copies)").await, by_reason("count(*)").await);
    // Two bodies with one id and different content: no body alone is at fault.
    let conflicts = found.remove(DeadLetterReason::Conflict.as_str()).unwrap_or(0);
    rows.remove(DeadLetterReason::Conflict.as_str());
    assert!(found.keys().map(String::as_str).eq(refused.keys().copied()), "{found:?} {refused:?}");
    // Equal bodies are one row. One that RabbitMQ did not confirm in time arrives as another copy of its row.
    for (reason, refused) in &refused {
        assert!(
            rows[*reason] <= *refused && *refused <= found[*reason],
            "{reason}: {refused} refused, {rows:?}, {found:?}"
        );
    }
    let count = async |table| {
        scenario.sql(&format!("SELECT count(*) FROM {table}")).await.parse::<usize>().unwrap()
    };
    let (messages, events) = (count("message_rows").await, count("session_events").await);
    let stored = messages + events + conflicts + expected;
    eprintln!("{messages} messages, {events} session events, {conflicts} conflicts, {found:?}");
    // Of some, the mutation changed nothing that tells two actions apart, or two events are one.
    assert!(stored <= most && messages > bodies.len() / 10 && events > bodies.len() / 100);
}

#[tokio::test]
async fn every_message_with_a_mutated_header_table_is_saved_or_a_dead_letter() {
    let (scenario, mut random) = (Scenario::new().await, random());
    let (mut raw, mut refused) = (RawAmqp::connect(&scenario.amqp_url).await, 0);
    let (mut in_queue, mut in_dlq) = (Vec::new(), 0);
    for n in 0..many() {
        let id = format!("h{n}");
        let body = message("headers", &format!("s{}", n % 50), &id, &json!({})).to_string();
        let table = mutated_table(&mut random);
        let queue = if n % 10 == 0 { QUEUE.dlq() } else { QUEUE.name() };
        if !raw.is_accepted(queue, &properties(Some(id.as_bytes()), &table), body.as_bytes()).await
        {
            refused += 1;
            raw = RawAmqp::connect(&scenario.amqp_url).await;
        } else if n % 10 == 0 {
            in_dlq += 1;
        } else {
            in_queue.push(id);
        }
    }
    eprintln!("RabbitMQ refused {refused}");
    assert!(refused < many() / 10, "RabbitMQ refused {refused}");
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    scenario.finish([saver, collector]).await;
    let unreadable =
        "SELECT coalesce(sum(copies), 0) FROM dead_letters WHERE reason = 'unreadable'";
    let [saved, unreadable, dead_letters] = [
        "SELECT count(*) FROM message_rows",
        unreadable,
        "SELECT coalesce(sum(copies), 0) FROM dead_letters",
    ]
    .map(|query| scenario.sql(query));
    let (saved, unreadable, dead_letters) = tokio::join!(saved, unreadable, dead_letters);
    eprintln!("{saved} saved, {unreadable} unreadable, {dead_letters} dead letters");
    let number = |text: String| text.parse::<usize>().unwrap();
    let (saved, unreadable, dead_letters) =
        (number(saved), number(unreadable), number(dead_letters));
    assert_eq!(saved + dead_letters, in_queue.len() + in_dlq);
    assert!(dead_letters <= unreadable + in_dlq, "a header refuses no message that can be read");
    assert!(saved > in_queue.len() / 10 && unreadable > in_queue.len() / 100);
}

async fn every_worker(scenario: &Scenario) -> Vec<Worker> {
    join_all([SAVER, MIGRATION, STATISTICS, COLLECTOR].map(|program| scenario.start(program))).await
}

/// What a worker publishes last may be for another one that has stopped before: then all are started again.
async fn drain_until_all_queues_are_empty(scenario: &Scenario, mut workers: Vec<Worker>) {
    let waiting = async || {
        let mut queued = scenario.queued().await;
        queued.retain(|(queue, _)| *queue != WorkQueue::Statistics.name());
        if queued.is_empty() { Ok(()) } else { Err(format!("{queued:?}")) }
    };
    // An action may be rerouted, recorded, dead-lettered and stored, each by another worker.
    for _ in 0..5 {
        eventually("empty queues", LIMIT, waiting).await;
        scenario.drain(workers).await;
        if waiting().await.is_ok() {
            return;
        }
        workers = every_worker(scenario).await;
    }
    panic!("messages wait after five drains: {:?}", waiting().await);
}

/// Waits until so many dead letters are stored, a thousand at a time.
async fn dead_letters(scenario: &Scenario, expected: usize) {
    let copies = "SELECT coalesce(sum(copies), 0) >= {} FROM dead_letters";
    for least in (0..expected).step_by(1_000).chain([expected]) {
        scenario.until_sql(&copies.replace("{}", &least.to_string()), "true").await;
    }
}

/// `verbatim lint` refuses the bodies that the workers refuse; those that are one line.
async fn assert_lint_agrees(scenario: &Scenario, bodies: &[Vec<u8>]) {
    let is_line = |body: &&Vec<u8>| {
        !body.contains(&b'\n')
            && !body.trim_ascii().is_empty()
            && body.len() < DEFAULT_MAX_BODY_BYTES
    };
    let lines: Vec<&Vec<u8>> = bodies.iter().filter(is_line).collect();
    let is_refused = |body: &&&Vec<u8>| {
        decoded_with(body, &Envelope::default())
            .map_or(true, |action| action.refused_elements().next().is_some())
    };
    let refused = lines.iter().filter(is_refused).count();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.jsonl", Uuid::new_v4()));
    let text: Vec<u8> = lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
    std::fs::write(&path, text).unwrap();
    let output = scenario.verbatim(&["lint", "--json", path.to_str().unwrap()]).await;
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&findings["lines"], &findings["invalid"]), (&json!(lines.len()), &json!(refused)));
}

/// An example or a malformed body with an id of its own, and up to four mutations.
fn mutated_body(n: usize, random: &mut Random) -> Vec<u8> {
    const STORED: [&str; 3] =
        ["conversation.save_message", "conversation.session_", "conversation.feedback"];
    let stored = |name: &str| STORED.iter().any(|prefix| name.starts_with(prefix));
    let examples: Vec<&str> =
        ACTIONS.iter().filter(|it| stored(it.name)).map(|it| it.body).collect();
    let mut body = if random.below(10) == 0 {
        let malformed = malformed(1_000);
        random.one_of(&malformed).body.to_vec()
    } else {
        let example = examples[random.index(examples.len())];
        let mut body: Value = serde_json::from_str(example).unwrap();
        let fields = if body["data"].is_object() { &mut body["data"] } else { &mut body };
        let several = fields["messages"].is_array();
        fields[if several { "action_id" } else { "message_id" }] = json!(format!("m{n}"));
        body.to_string().into_bytes()
    };
    for _ in 0..random.below(5) {
        mutate(&mut body, random);
    }
    body
}

fn mutate(body: &mut Vec<u8>, random: &mut Random) {
    const VALUES: [&str; 14] = [
        "null",
        "true",
        "4.0",
        "-0",
        "1e999",
        "1e-999",
        "123456789012345678901234567890",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "\"\"",
        "[]",
        "{}",
        "[[[[[[]]]]]]",
        "{\"a\":1,\"a\":2}",
    ];
    const PIECES: [&[u8]; 12] = [
        b"\"",
        b"\\",
        b",",
        b"}",
        b"]",
        b"{",
        b":",
        b"\xff",
        b"\xed\xa0\x80",
        b"\0",
        b"\t",
        b"\xef\xbb\xbf",
    ];
    let at = random.index(body.len() + 1);
    let to = (at + random.index(20)).min(body.len());
    match random.below(7) {
        0 if at < body.len() => body[at] ^= 1 << random.below(8),
        1 => body.truncate(at),
        2 => drop(body.drain(at..to)),
        3 => {
            let again = body[at..to].to_vec();
            body.splice(at..at, again);
        }
        4 => drop(body.splice(at..at, random.one_of(&PIECES).to_vec())),
        // Another value of some member.
        _ => {
            let value = random.one_of(&VALUES);
            let colons: Vec<usize> = body
                .windows(2)
                .enumerate()
                .filter(|(_, it)| *it == b"\":")
                .map(|(n, _)| n + 2)
                .collect();
            let Some(from) = colons.get(random.index(colons.len().max(1))).copied() else { return };
            let end = body[from..].iter().position(|it| b",}".contains(it)).unwrap_or(0);
            body.splice(from..from + end, value.bytes());
        }
    }
}

/// A header table of random names and values; sometimes with a random fault.
fn mutated_table(random: &mut Random) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..=random.below(4) {
        table.extend(name(random));
        table.extend(value(random, 0));
    }
    if random.below(20) == 0 {
        let at = random.index(table.len());
        table[at] ^= 1 << random.below(8);
    }
    table
}

fn name(random: &mut Random) -> Vec<u8> {
    const NAMES: [&[u8]; 12] = [
        b"",
        b"a",
        b"traceparent",
        b"x-death",
        b"x-delivery-count",
        b"x-first-death-queue",
        b"x-verbatim-attempt",
        b"x-verbatim-slow-level",
        b"x-verbatim-dead-letter",
        b"x-verbatim-reason",
        b"x-verbatim-queue",
        b"\xff\xfe",
    ];
    let length = random.index(20);
    let name =
        if random.below(4) == 0 { random.bytes(length) } else { random.one_of(&NAMES).to_vec() };
    [&[u8::try_from(name.len()).unwrap()], name.as_slice()].concat()
}

/// A value of any type that RabbitMQ knows (its `rabbit_binary_parser`).
fn value(random: &mut Random, depth: usize) -> Vec<u8> {
    const FIXED: [(u8, usize); 13] = [
        (b't', 1),
        (b'b', 1),
        (b'B', 1),
        (b's', 2),
        (b'u', 2),
        (b'I', 4),
        (b'i', 4),
        (b'l', 8),
        (b'f', 4),
        (b'd', 8),
        (b'D', 5),
        (b'T', 8),
        (b'V', 0),
    ];
    let with_length = |kind: u8, bytes: Vec<u8>| {
        [&[kind][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes].concat()
    };
    match random.below(6) {
        0 => with_length(
            b'S',
            if random.below(2) == 0 { random.bytes(12) } else { b"text".to_vec() },
        ),
        1 => with_length(b'x', random.bytes(8)),
        2 if depth < 40 => {
            let items = (0..random.below(3)).flat_map(|_| value(random, depth + 1)).collect();
            with_length(b'A', items)
        }
        3 if depth < 40 => {
            let members = (0..random.below(3))
                .flat_map(|_| [name(random), value(random, depth + 1)].concat());
            let members = members.collect();
            with_length(b'F', members)
        }
        4 if depth == 0 && random.below(20) == 0 => {
            (0..30 + random.below(20)).fold(vec![b'V'], |inner, _| with_length(b'A', inner))
        }
        _ => {
            let (kind, bytes) = *random.one_of(&FIXED);
            [vec![kind], random.bytes(bytes)].concat()
        }
    }
}
