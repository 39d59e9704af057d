//! Properties that the client library cannot read, through the whole fleet.

use serde_json::json;
use system_tests::{COLLECTOR, SAVER, Scenario, key_of, message};
use testkit::raw_amqp::{RawAmqp, nested_header, properties, text_header};

const QUEUE: &[u8] = b"conversation.save_message";
const DLQ: &[u8] = b"conversation.save_message.dlq";

#[tokio::test]
async fn unreadable_messages_are_stored_with_their_bytes_and_their_neighbours_are_saved() {
    let scenario = Scenario::new().await;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let mut raw = RawAmqp::connect(&scenario.amqp_url).await;
    let body = |id: &str| message("unreadable", "s", id, &json!({}));
    let neighbours: Vec<_> = (0..20).map(|n| body(&format!("neighbour {n}"))).collect();
    let lists = [
        properties(Some(b"\xff"), b""),
        properties(Some(b"id"), &text_header(b"\xff", b"")),
        properties(Some(b"id"), &nested_header(b"n", 900)),
        properties(Some(b"id"), &nested_header(b"n", 26_000)),
    ];
    agent.publish_all(&neighbours[..10]).await;
    for queue in [QUEUE, DLQ] {
        for (n, list) in lists.iter().enumerate() {
            let body = body(&format!("{n}")).to_string();
            raw.publish("", queue, list, body.as_bytes()).await;
        }
    }
    agent.publish_all(&neighbours[10..]).await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));

    let saved = "SELECT count(*) FROM messages WHERE tenant_id = 'unreadable'";
    scenario.until_sql(saved, "20").await;
    let stored = "SELECT concat_ws('|', count(*), count(DISTINCT id), min(reason), max(reason), min(message_id))
                  FROM dead_letters";
    scenario.until_sql(stored, "8|8|unreadable|unreadable|0").await;
    for list in &lists {
        let hex: String = list.iter().map(|byte| format!("{byte:02x}")).collect();
        let (start, digits) = (&hex[..hex.len().min(200)], hex.len());
        let bytes = format!(
            "SELECT count(*) FROM dead_letters
             WHERE delivery #>> '{{raw,properties,hex}}' LIKE '{start}%'
               AND length(delivery #>> '{{raw,properties,hex}}') = {digits}"
        );
        assert_eq!(scenario.sql(&bytes).await, "2");
    }
    assert_eq!(reader.both(&key_of(&neighbours[0])).await.len(), 20);
    // Neither died.
    scenario.drain([saver, collector]).await;
    // The events that announce the dead letters.
    assert_eq!(scenario.queued().await, [("conversation.statistics", 8)]);
}
