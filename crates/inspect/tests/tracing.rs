//! What tracing promises: every dead letter with the id is reported, and a stored message is reported as stored.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use fixtures::{key, sql, stores, to_save};
use inspect::{MatchKind, State, TraceReport, Tracer};
use serde_json::json;
use testkit::TestEnv;

/// Stores a dead letter as a dead-letter collector would.
async fn store_dead_letter(
    env: &TestEnv,
    id: u128,
    session: &str,
    conversation: &str,
    message: &str,
) {
    let id = uuid::Uuid::from_u128(id);
    sql(
        env,
        &format!(
            "INSERT INTO dead_letters (id, queue, reason, error, tenant_id, session_id,
                 conversation_id, message_id, routing_key, exchange, body, properties, headers,
                 attempts, replay_count, first_failed_at, last_failed_at, status)
             VALUES ('{id}', 'conversation.save_message', 'schema', 'no role', 'acme', '{session}',
                 {conversation}, {message}, 'r', 'x', '', '{{}}', '{{}}', 1, 0, now(), now(),
                 'replayed')"
        ),
    )
    .await;
}

async fn trace(tracer: &Tracer, id: &str) -> TraceReport {
    tracer.trace(id, None, &mut |_| {}).await.unwrap()
}

#[tokio::test]
async fn dead_letters_that_name_no_message_are_reported_beside_the_conversation_of_their_session() {
    let (env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    store_dead_letter(&env, 1, "s", "NULL", "NULL").await;
    store_dead_letter(&env, 2, "s", "NULL", "NULL").await;
    let tracer = Tracer::new(replica.database.clone(), None, None);
    let traced = trace(&tracer, "s").await;
    let matched: Vec<_> = traced.items.iter().map(|item| item.matched).collect();
    let expected = [MatchKind::Session, MatchKind::DeadLetter, MatchKind::DeadLetter];
    assert_eq!(matched, expected, "{traced:#?}");
}

#[tokio::test]
async fn a_message_that_a_replay_saved_is_stored_whichever_id_it_is_found_by() {
    let (env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    let conversation = format!("'{}'", key("s").conversation);
    store_dead_letter(&env, 0xab, "another", &conversation, "'m1'").await;
    let tracer = Tracer::new(replica.database.clone(), None, None);
    let dead_letter = uuid::Uuid::from_u128(0xab).simple().to_string();
    for id in ["another", "m1", &dead_letter, &dead_letter.to_uppercase()] {
        let traced = trace(&tracer, id).await;
        let [item] = &traced.items[..] else { panic!("{id}: {traced:#?}") };
        assert_eq!(item.state, State::Active, "{id}: {item:#?}");
        let what: Vec<_> = item.timeline.iter().map(|event| event.what).collect();
        assert!(what.contains(&"saved") && what.contains(&"replayed"), "{id}: {what:?}");
    }
}
