//! The shapes in which programs send messages, saved and counted on real servers.

use domain::envelope::Envelope;
use fixtures::shapes::{Expected, shapes};
use fixtures::{applied, at_once, closer, decoded_with, saving, sql, stores, sweep};

#[tokio::test]
async fn every_shape_that_is_met_is_stored_with_its_role_text_and_tokens() {
    let (env, replica) = stores().await;
    let mut expected = Vec::new();
    for shape in shapes() {
        let Expected::Saved { role, tokens, text } = shape.expected else { continue };
        let save = saving(decoded_with(&shape.body, &Envelope::default()).unwrap());
        assert_eq!(replica.save(&[save]).await, [applied()], "{}", shape.name);
        expected.push(format!("{role}|{tokens}|{text}"));
    }
    sql(&env, "UPDATE conversations SET close_requested_at = now()").await;
    let closer = closer(&env, &replica, at_once()).await;
    while sweep(&closer).await.archived > 0 {}

    let stored = "SELECT string_agg(concat_ws('|', role, tokens, content), E'\\n'
                                    ORDER BY received_at, conversation_id COLLATE \"C\", id)
                  FROM messages";
    let mut stored: Vec<String> = sql(&env, stored).await.lines().map(str::to_owned).collect();
    stored.sort();
    expected.sort();
    assert_eq!(stored, expected);
}
