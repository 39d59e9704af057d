//! Bodies that the workers refuse, and the dead letters with their reasons.

use domain::decode::DEFAULT_MAX_BODY_BYTES;
use domain::fixtures::malformed;
use serde_json::json;
use system_tests::{Counts, ServerSet, key, message};
use testkit::wait::eventually;

use broker::Publication;

/// A message whose body has exactly this many bytes.
fn of_bytes(id: &str, bytes: usize) -> (serde_json::Value, Vec<u8>) {
    let action = |content: String| message("size", "s", id, &json!({"content": content}));
    let frame = action(String::new()).to_string().len();
    let action = action("x".repeat(bytes - frame));
    let body = action.to_string().into_bytes();
    assert_eq!(body.len(), bytes);
    (action, body)
}

#[tokio::test]
async fn a_body_of_a_mebibyte_is_saved_and_one_byte_more_is_a_dead_letter() {
    assert_eq!(DEFAULT_MAX_BODY_BYTES, 1_048_576);
    let scenario = &ServerSet::shared().await.scenario;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let (largest, body) = of_bytes("largest", 1_048_576);
    let (_, larger) = of_bytes("larger", 1_048_577);
    let publish = |body| Publication::action("conversation.save_message", body);
    agent.send(vec![publish(body), publish(larger)]).await;
    let dead_letter = "SELECT concat_ws('|', reason, length(body), queue) FROM dead_letters
                  WHERE reason = 'too_large' AND body LIKE '%\"tenant_id\":\"size\"%'::bytea";
    scenario.until_sql(dead_letter, "too_large|1048577|conversation.save_message").await;
    scenario.until_sql("SELECT count(*) FROM messages WHERE tenant_id = 'size'", "1").await;
    let messages = reader.both(&key(&largest)).await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].content.text(), largest["content"].as_str().unwrap());
}

#[tokio::test]
async fn every_malformed_body_becomes_a_dead_letter_with_its_reason_and_field() {
    let ServerSet { scenario, savers, statistics, .. } = ServerSet::shared().await;
    let bad = malformed(DEFAULT_MAX_BODY_BYTES);
    assert!(bad.len() >= 40, "{}", bad.len());
    let name = |n: usize| format!("malformed-{n}");
    let publications = bad.iter().enumerate().map(|(n, bad)| Publication {
        message_id: name(n),
        ..Publication::action("conversation.save_message", bad.body.to_vec())
    });
    scenario.agent().send(publications.collect()).await;

    let ours = "FROM dead_letters WHERE properties->>'message_id' LIKE 'malformed-%'";
    scenario.until_sql(&format!("SELECT count(*) {ours}"), &bad.len().to_string()).await;
    let rows = format!(
        "SELECT json_object_agg(properties->>'message_id',
             json_build_array(reason, field, length(body), copies, attempts, queue, error <> '')) {ours}"
    );
    let rows: serde_json::Value = serde_json::from_str(&scenario.sql(&rows).await).unwrap();
    for (n, bad) in bad.iter().enumerate() {
        // U+0000 is replaced in text columns, which cannot hold it; the stored body keeps it.
        let field = bad.field.map(|field| field.replace('\0', "\u{fffd}"));
        let (reason, bytes) = (bad.reason.as_str(), bad.body.len());
        let expected = json!([reason, field, bytes, 1, 1, "conversation.save_message", true]);
        assert_eq!(rows[name(n)], expected, "{}", bad.name);
    }
    let bodies = format!(
        "SELECT json_object_agg(properties->>'message_id', encode(body, 'hex')) {ours}
         AND length(body) < 1000"
    );
    let bodies: serde_json::Value = serde_json::from_str(&scenario.sql(&bodies).await).unwrap();
    for (n, bad) in bad.iter().enumerate().filter(|(_, bad)| bad.body.len() < 1000) {
        let hex: String = bad.body.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bodies[name(n)], hex, "{} is stored byte for byte", bad.name);
    }

    assert_eq!(scenario.sql("SELECT count(*) FROM messages WHERE tenant_id = 't'").await, "0");
    #[expect(clippy::cast_precision_loss, reason = "some hundred dead letters")]
    let all = bad.len() as f64;
    let labels = [("queue", "conversation.save_message")];
    Counts::reach(statistics, "verbatim_dead_letters_stored_total", &labels, all).await;
    eventually("the savers to count the dead letters", system_tests::LIMIT, async || {
        let (one, two) = tokio::join!(Counts::of(&savers[0]), Counts::of(&savers[1]));
        let labels = [labels[0], ("outcome", "dead_lettered")];
        let sum =
            [one, two].map(|it| it.sum("verbatim_deliveries_total", &labels)).iter().sum::<f64>();
        if sum >= all { Ok(()) } else { Err(sum.to_string()) }
    })
    .await;
}
