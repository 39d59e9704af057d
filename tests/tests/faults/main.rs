//! Killed workers, stopped servers and network faults: they cost time, and no message is lost or
//! duplicated.
//!
//! Each test has private servers or a private part of shared ones. Workers connect through proxies where
//! connections are cut; the test itself connects directly.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

mod clusters;
mod consumer_timeout;
mod crashes;
mod failovers;
mod kills;
mod lifecycle;
mod long_outages;
mod outages;
mod poison;
mod queues;
mod scaling;
mod slow;
mod stops;
mod stores;

use serde_json::{Value, json};
use system_tests::{
    Agent, AgentAction, AsAction, Counts, LIMIT, PublishedActions, Scenario, at, message,
};
use testkit::fleet::Worker;
use testkit::proxy::Proxy;
use testkit::wait::eventually;

pub(crate) const SAVES: &str = "conversation.save_message";

/// So many messages of a tenant, in turn for each conversation, with ascending timestamps and message ids.
pub(crate) fn with_ids(tenant: &str, messages: usize, conversations: usize) -> Vec<Value> {
    let one = |n: usize| {
        let session = format!("s{}", n % conversations);
        let timestamp = at(i64::try_from(n).unwrap());
        message(tenant, &session, &format!("m{n:05}"), &json!({"timestamp": timestamp}))
    };
    (0..messages).map(one).collect()
}

/// The same messages, in turn with each kind of identity ([`AgentAction::identified_in_turn`]).
pub(crate) fn load(tenant: &str, messages: usize, conversations: usize) -> Vec<AgentAction> {
    let messages = with_ids(tenant, messages, conversations).into_iter().enumerate();
    messages.map(|(n, message)| AgentAction::identified_in_turn(n, message)).collect()
}

/// The same messages, some of them without any identity: they may be stored twice.
pub(crate) fn load_in_all_ways(
    tenant: &str,
    messages: usize,
    conversations: usize,
) -> Vec<AgentAction> {
    let messages = with_ids(tenant, messages, conversations).into_iter().enumerate();
    messages.map(|(n, message)| AgentAction::sent_in_turn(n, message)).collect()
}

/// Publishes actions and records them as confirmed.
pub(crate) async fn publish(
    agent: &Agent,
    published: &mut PublishedActions,
    actions: &[impl AsAction],
) {
    let actions: Vec<AgentAction> = actions.iter().map(AsAction::as_action).collect();
    agent.publish_all(&actions).await;
    published.add_confirmed(&actions);
}

pub(crate) async fn proxy(url: &str) -> Proxy {
    Proxy::before(url).await.unwrap()
}

/// Waits until `/readyz` returns 503 with a body that contains all of these texts.
pub(crate) async fn until_unready(worker: &Worker, texts: &[&str]) {
    eventually(format!("{} to be unready with {texts:?}", worker.name()), LIMIT, async || {
        let response = worker.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
        let all = texts.iter().all(|text| response.body.contains(text));
        if all && response.status == 503 { Ok(()) } else { Err(response.body) }
    })
    .await;
}

/// How many messages PostgreSQL has.
pub(crate) async fn stored(scenario: &Scenario) -> usize {
    scenario.sql("SELECT count(*) FROM messages").await.parse().unwrap()
}

/// Waits until PostgreSQL has at least so many messages.
pub(crate) async fn until_stored(scenario: &Scenario, least: usize) {
    let query = format!("SELECT (count(*) >= {least})::text FROM messages");
    scenario.until_sql(&query, "true").await;
}

/// Waits until a saver holds a batch because PostgreSQL is unavailable.
pub(crate) async fn until_holding(worker: &Worker) {
    let labels = [("queue", SAVES), ("dependency", "postgresql")];
    Counts::reach(worker, "verbatim_holds_total", &labels, 1.0).await;
}
