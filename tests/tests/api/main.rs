//! The conversation-api over real HTTP, on real servers.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod anomalies;
mod audit;
mod dead_letters;
mod isolation;
mod keys;
mod memory;
mod outages;
mod pooler;
mod publishing;
mod reading;
mod refusing;
mod replica;
mod replica_failing;
mod schemathesis;
mod searching;
mod signatures;
mod tls;

use serde_json::Value;
use system_tests::{ApiServer, Scenario};
use testkit::http::Response;

/// Servers and a replica of the API.
pub(crate) async fn started() -> (Scenario, ApiServer) {
    started_with(&[]).await
}

/// [`started`], with settings of the API.
pub(crate) async fn started_with(settings: &[(&str, &str)]) -> (Scenario, ApiServer) {
    let scenario = Scenario::new().await;
    let api = ApiServer::start(&scenario, settings).await;
    (scenario, api)
}

/// Stores archived conversations c0, c1, … of a tenant, each with so many messages.
pub(crate) async fn archived(scenario: &Scenario, tenant: &str, conversations: u32, messages: u32) {
    scenario
        .sql(&format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, agent_id, user_id, status,
                                        message_count, total_tokens, finalised_at)
             SELECT '{tenant}', 'c' || n, 's', timestamptz '2026-01-01' + n * interval '1 minute', n, 'ada', 'u' || n % 3,
                    'archived', {messages}, 10, now()
             FROM generate_series(0, {conversations} - 1) AS n;
             INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT number, created_at + m * interval '1 second', now(), 'm' || m, 'user', 'said to {tenant}', ''
             FROM conversations, generate_series(0, {messages} - 1) AS m WHERE tenant_id = '{tenant}'"
        ))
        .await;
}

/// The answer, which must have this status.
pub(crate) fn with_status(response: &Response, status: u16) -> Value {
    assert_eq!(response.status, status, "{response:?}");
    if response.body.is_empty() {
        return Value::Null;
    }
    let value: Value = serde_json::from_str(&response.body).unwrap();
    if status >= 400 {
        let kind = response.header("content-type");
        assert_eq!(kind, Some("application/problem+json"), "{response:?}");
        assert_eq!(value["status"], status, "{response:?}");
        assert_eq!(value["request_id"].as_str(), response.header("x-request-id"), "{response:?}");
    }
    value
}

/// The ids of a list of conversations or messages.
pub(crate) fn ids(items: &Value) -> Vec<String> {
    items.as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect()
}
