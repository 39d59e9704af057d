//! Large bodies: a worker's memory stays within what its settings promise, and it recovers from them.

#![expect(clippy::expect_used, reason = "test support: a failure here is the failure of the test")]

use serde_json::{Value, json};
use system_tests::{Agent, Counts, SAVER, Scenario, at, message};
use testkit::environment::deep;
use testkit::fleet::Worker;

const MIB: usize = 1 << 20;

/// What bodies under way may take, by default.
const BUDGET: usize = 64 * MIB;

/// What the worker may take at most: twice the budget, and as much as one for itself.
const PROMISED: usize = 64 * MIB + 2 * BUDGET;

/// How many deliveries may be under way,
const PREFETCH: &str = "verbatim_prefetch";
/// when their bodies have 1 MiB,
const LARGE: f64 = 64.0;
/// and when they are small: four batches of 500 at work and one that gathers.
const SMALL: f64 = 2500.0;

#[tokio::test]
async fn large_bodies_stay_within_the_memory_that_was_promised() {
    let scenario = Scenario::new().await;
    let agent = scenario.agent();
    let count = if deep() { 2000 } else { 200 };
    publish(&agent, 0..count, MIB).await;

    let worker = scenario.start(SAVER).await;
    for stored in (100..=count).step_by(100) {
        scenario.until_sql(&format!("SELECT count(*) >= {stored} FROM messages"), "true").await;
    }
    let most = most_memory(&worker);
    assert!(most <= PROMISED, "{} MiB, promised are {}", most / MIB, PROMISED / MIB);
    assert_eq!(Counts::of(&worker).await.sum(PREFETCH, &[]), LARGE);

    // Many more than the measurements that the worker remembers.
    publish(&agent, count..count + 3000, 500).await;
    let all = count + 3000;
    scenario.until_sql("SELECT count(*) FROM messages", &all.to_string()).await;
    Counts::reach(&worker, PREFETCH, &[], SMALL).await;
    let most = most_memory(&worker);
    assert!(most <= PROMISED, "{} MiB, promised are {}", most / MIB, PROMISED / MIB);
    scenario.drain([worker]).await;
    assert_eq!(scenario.queued().await, []);
}

/// Publishes messages whose bodies have this many bytes.
async fn publish(agent: &Agent, ids: std::ops::Range<usize>, bytes: usize) {
    let ids: Vec<usize> = ids.collect();
    for some in ids.chunks(20 * MIB / bytes) {
        let bodies: Vec<Value> = some.iter().map(|id| of_size(*id, bytes)).collect();
        agent.publish_all(&bodies).await;
    }
}

/// A message whose body has exactly this many bytes, with an escape: its words are not those of the
/// body.
fn of_size(id: usize, bytes: usize) -> Value {
    let micros = i64::try_from(id).expect("a few thousand");
    let with = |content: String| {
        let extra = json!({"content": content, "timestamp": at(micros)});
        message("large", &format!("s{}", id % 50), &format!("m{id:05}"), &extra)
    };
    let least = with("\n".to_owned()).to_string().len();
    with(format!("\n{}", "words ".repeat(bytes / 6 + 1).split_at(bytes - least).0))
}

/// The most memory that a worker ever had resident, in bytes (proc(5), `VmHWM`).
fn most_memory(worker: &Worker) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number of kB") * 1024
}
