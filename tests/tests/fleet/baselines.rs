//! The benchmarks' ideal baseline stores what the worker stores: else the comparison would prove nothing.

use std::time::Duration;

use system_tests::{SAVER, Scenario};

/// Publishing and draining 1 200 messages takes seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// A hash of all message fields that agents set, in order.
const STORED: &str = "SELECT md5(string_agg(concat_ws('|', tenant_id, conversation_id, id, role,
    content, user_id, agent_id, created_at, length(body_hash), format), E'\\n'
    ORDER BY tenant_id, conversation_id, created_at, id)) FROM messages";

/// A hash of the conversations, without `created_at`: until a conversation closes, that is the oldest
/// message of the batch that inserted it, and several batches in flight race for it.
const CONVERSATIONS: &str =
    "SELECT md5(string_agg(concat_ws('|', tenant_id, id, session_id, status,
    agent_id, user_id), E'\\n' ORDER BY tenant_id, id)) FROM conversations";

#[tokio::test]
async fn the_ideal_peer_stores_the_same_rows_as_the_worker() {
    let mut stored = Vec::new();
    for saver in ["ideal", SAVER] {
        let scenario = Scenario::new().await;
        let load = ["preload", "--count", "1200", "--conversations", "70"];
        let status = scenario.peer(&load).wait(LIMIT).await.unwrap();
        assert!(status.success(), "the load: {status}");
        let (mut peer, mut worker) = (None, None);
        match saver {
            SAVER => worker = Some(scenario.start(SAVER).await),
            ideal => peer = Some(scenario.peer(&[ideal])),
        }
        scenario.until_sql("SELECT count(*) FROM messages", "1200").await;
        stored.push((scenario.sql(STORED).await, scenario.sql(CONVERSATIONS).await));
        drop((peer, worker));
    }
    assert_eq!(stored[0], stored[1]);
}
