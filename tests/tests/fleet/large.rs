//! Large bodies and headers: a worker's memory stays within the limit that its settings imply, and its prefetch adapts.

#![expect(clippy::expect_used, reason = "test support: a failure here is the failure of the test")]

use broker::Publication;
use broker::topology::WorkQueue;
use serde_json::{Value, json};
use system_tests::{Agent, COLLECTOR, Counts, LIMIT, SAVER, Scenario, at, message};
use testkit::environment::deep;
use testkit::fleet::Worker;
use testkit::raw_amqp::{RawAmqp, properties};
use testkit::wait::eventually;

const MIB: usize = 1 << 20;

/// The default of `max_inflight_bytes`: bodies of unacknowledged deliveries.
const BUDGET: usize = 64 * MIB;

/// The worker's largest resident memory: twice the budget, and 64 MiB for the process.
pub(crate) const PROMISED: usize = 64 * MIB + 2 * BUDGET;

const PREFETCH: &str = "verbatim_prefetch";
/// The prefetch with bodies of 1 MiB.
const OF_LARGE: f64 = 64.0;
/// The prefetch with small bodies: four batches of 500 in flight and one in the batch builder.
const OF_SMALL: f64 = 2500.0;

#[tokio::test]
async fn large_bodies_stay_within_the_memory_that_was_promised() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    let large = if deep() { 2000 } else { 200 };
    // Many more small bodies than the worker averages over.
    let small = 3000;
    publish(&agent, 0..large, MIB).await;
    publish(&agent, large..large + small, 500).await;

    let worker = scenario.start(SAVER).await;
    stored(&scenario, large + small).await;
    Counts::reach(&worker, PREFETCH, &[], OF_SMALL).await;
    assert_promise(&worker, PROMISED);

    // The prefetch is large when the large bodies arrive.
    publish(&agent, large + small..2 * large + small, MIB).await;
    stored(&scenario, 2 * large + small).await;
    assert_eq!(Counts::of(&worker).await.sum(PREFETCH, &[]), OF_LARGE);
    assert_promise(&worker, PROMISED);
    scenario.drain([worker]).await;
    assert_eq!(scenario.queued().await, []);
}

#[tokio::test]
async fn bodies_far_over_the_limit_become_dead_letters_within_the_memory_that_was_promised() {
    let scenario = Scenario::new().await;
    // RabbitMQ 3.10 accepts up to 128 MiB by default.
    let bytes = if deep() { 128 } else { 16 } * MIB;
    let saver = scenario.start(SAVER).await;
    let agent = scenario.agent();
    // One after the other in the saver, and together in the dead-letter queue.
    for content in [text(bytes), zeros(bytes), text(bytes)] {
        agent.send(vec![Publication::action("conversation.save_message", content)]).await;
    }
    let rejected = [(WorkQueue::SaveMessage.dlq(), 3)];
    eventually("the dead letters", LIMIT, async || {
        let queued = scenario.queued().await;
        if queued == rejected { Ok(()) } else { Err(format!("{queued:?}")) }
    })
    .await;
    // In other dead-letter queues, which the collector consumes at the same time.
    for queue in [WorkQueue::Session, WorkQueue::Statistics] {
        agent.send(vec![Publication::to_queue(queue.dlq(), text(bytes))]).await;
    }
    let collector = scenario.start(COLLECTOR).await;
    let dead_letters =
        "SELECT concat_ws('|', count(*), min(reason), min(length(body)), max(length(body)),
                                         min(tenant_id), count(DISTINCT sha256(body)))
                        FROM dead_letters WHERE queue = 'conversation.save_message'";
    // Each of them takes long: unoptimised code reads and hashes it, beside other tests.
    scenario.until_sql_within(5 * LIMIT, "SELECT count(*) FROM dead_letters", "5").await;
    scenario.until_sql(dead_letters, &format!("3|too_large|{bytes}|{bytes}|large|2")).await;
    // The saver never has a body. The collector has one at a time, and once more one that it publishes again because
    // PostgreSQL was too slow for it beside other tests.
    assert_promise(&saver, 64 * MIB);
    let counts = Counts::of(&collector).await;
    let published = |outcome| counts.sum("verbatim_deliveries_total", &[("outcome", outcome)]);
    let again = published("retried") + published("slow");
    println!("published again: {again}");
    assert_promise(&collector, PROMISED + bytes * if again > 0.0 { 2 } else { 1 });
    scenario.drain([saver, collector]).await;
    // The events that announce the dead letters.
    assert_eq!(scenario.queued().await, [("conversation.statistics", 5)]);
}

#[tokio::test]
async fn headers_that_fill_a_frame_stay_within_the_memory_that_was_promised() {
    let scenario = Scenario::new().await;
    let messages = if deep() { 2000 } else { 100 };
    let queues = [WorkQueue::SaveMessage.name(), WorkQueue::SaveMessage.dlq()];
    let mut raw = RawAmqp::connect(&scenario.amqp_url).await;
    // Booleans: of all values they need the most memory for their bytes.
    let values = [&b"\x01vA"[..], &100_000_u32.to_be_bytes(), &b"t\x01".repeat(50_000)].concat();
    let headers = properties(None, &values);
    for (n, queue) in (0..messages).flat_map(|n| queues.map(|queue| (n, queue))) {
        let body = of_size(n, 1000).to_string();
        raw.publish("", queue.as_bytes(), &headers, body.as_bytes()).await;
    }
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    stored(&scenario, messages).await;
    let dead_letters = "SELECT count(*) FROM dead_letters";
    scenario.until_sql(dead_letters, &messages.to_string()).await;
    for worker in [&saver, &collector] {
        assert_promise(worker, PROMISED);
    }
    scenario.drain([saver, collector]).await;
}

/// Waits until so many messages are stored, a hundred at a time.
async fn stored(scenario: &Scenario, messages: usize) {
    for least in (0..messages).step_by(100).chain([messages]) {
        scenario.until_sql(&format!("SELECT count(*) >= {least} FROM messages"), "true").await;
    }
}

/// Publishes messages whose bodies have this many bytes.
async fn publish(agent: &Agent, ids: std::ops::Range<usize>, bytes: usize) {
    let ids: Vec<usize> = ids.collect();
    for some in ids.chunks((20 * MIB / bytes).max(1)) {
        let bodies: Vec<Value> = some.iter().map(|id| of_size(*id, bytes)).collect();
        agent.publish_all(&bodies).await;
    }
}

/// A message whose body has exactly this many bytes, with a JSON escape: so the decoded content cannot
/// borrow from the body.
fn of_size(id: usize, bytes: usize) -> Value {
    let micros = i64::try_from(id).expect("a few thousand");
    let with = |content: String| {
        let extra = json!({"content": content, "timestamp": at(micros)});
        message("large", &format!("s{}", id % 50), &format!("m{id:05}"), &extra)
    };
    let least = with("\n".to_owned()).to_string().len();
    with(format!("\n{}", "words ".repeat(bytes / 6 + 1).split_at(bytes - least).0))
}

/// A message whose body has exactly this many bytes, as text.
fn text(bytes: usize) -> Vec<u8> {
    of_size(0, bytes).to_string().into_bytes()
}

/// A message whose body has exactly this many bytes, most of them an array of zeros.
fn zeros(bytes: usize) -> Vec<u8> {
    let beginning = r#"{"action_type":"conversation.save_message","tenant_id":"large","session_id":"s","content":["#;
    let rest = bytes - beginning.len() - "0]}".len();
    let space = " ".repeat(rest % 2);
    [beginning, &space, &"0,".repeat(rest / 2), "0]}"].concat().into_bytes()
}

/// Checks the peak resident memory of a worker (proc(5), `VmHWM`), in bytes.
pub(crate) fn assert_promise(worker: &Worker, promised: usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    let (most, promised) = (kib / 1024, promised / MIB);
    assert!(most <= promised, "peak resident memory {most} MiB, promised {promised} MiB");
}
