//! What a fleet makes of dying workers, dead servers and cut cables: time passes, and nothing is lost
//! or doubled.
//!
//! Each test owns its servers. A proxy stands before whatever is to be cut, so that the test itself,
//! which looks from outside, is never cut off.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

mod clusters;
mod consumer_timeout;
mod crashes;
mod kills;
mod lifecycle;
mod long_outages;
mod outages;
mod poison;
mod queues;
mod scaling;
mod stores;

use serde_json::{Value, json};
use system_tests::{Agent, Counts, LIMIT, PublishedMessages, Scenario, at, message};
use testkit::fleet::Worker;
use testkit::proxy::Proxy;
use testkit::wait::eventually;

pub(crate) const SAVES: &str = "conversation.save_message";

/// So many messages of a tenant, dealt out to conversations in turn, each later than the one before.
pub(crate) fn load(tenant: &str, messages: usize, conversations: usize) -> Vec<Value> {
    let one = |n: usize| {
        let session = format!("s{}", n % conversations);
        let timestamp = at(i64::try_from(n).unwrap());
        message(tenant, &session, &format!("m{n:05}"), &json!({"timestamp": timestamp}))
    };
    (0..messages).map(one).collect()
}

/// Publishes, and enters what is confirmed into the books.
pub(crate) async fn publish(agent: &Agent, published: &mut PublishedMessages, messages: &[Value]) {
    agent.publish_all(messages).await;
    published.add_confirmed(messages);
}

pub(crate) async fn proxy(url: &str) -> Proxy {
    Proxy::before(url).await.unwrap()
}

/// Waits until `/readyz` says why it is not ready, in words that hold these.
pub(crate) async fn unready(worker: &Worker, words: &[&str]) {
    eventually(format!("{} to on_progress {words:?}", worker.name()), LIMIT, async || {
        let answer = worker.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
        let told = words.iter().all(|words| answer.body.contains(words));
        if told && answer.status == 503 { Ok(()) } else { Err(answer.body) }
    })
    .await;
}

/// How many messages PostgreSQL has.
pub(crate) async fn stored(scenario: &Scenario) -> usize {
    scenario.sql("SELECT count(*) FROM messages").await.parse().unwrap()
}

pub(crate) async fn until_stored(scenario: &Scenario, least: usize) {
    let query = format!("SELECT (count(*) >= {least})::text FROM messages");
    scenario.until_sql(&query, "true").await;
}

pub(crate) async fn held(worker: &Worker) {
    let labels = [("queue", SAVES), ("store", "postgresql")];
    Counts::reach(worker, "verbatim_holds_total", &labels, 1.0).await;
}
