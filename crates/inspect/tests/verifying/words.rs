//! The words by which searches find archived conversations.

use fixtures::{key, refresh, sweep, to_save};
use inspect::Kind;
use serde_json::json;

use crate::world::{STORED, World, one};

#[tokio::test]
async fn words_that_are_missing_wrong_or_too_many_are_found_and_written_again() {
    let world = World::archived().await;
    let id = key("s").conversation;
    let found_by = format!("SELECT finalised_at FROM conversations WHERE id = '{id}'");
    let words = "SELECT string_agg(concat_ws(' ', conversation_id, block, words), '; ' ORDER BY conversation_id, block)
                 FROM conversation_words";
    let right = world.sql(words).await;
    for (damage, detail) in [
        ("DELETE FROM conversation_words".to_owned(), "blocks: 1 missing"),
        ("UPDATE conversation_words SET words = words || '{forged}'".to_owned(), "blocks: 1 different"),
        // A search of its month does not find it.
        (
            "UPDATE conversation_words SET words = array_replace(words, '/2026-11/acme', '/2026-10/acme')"
                .to_owned(),
            "blocks: 1 different",
        ),
        // A search finds only words of the newest close.
        (
            format!("UPDATE conversation_words SET finalised_at = ({found_by}) - interval '1 s'"),
            "blocks: 1 different",
        ),
        (
            "INSERT INTO conversation_words
                 SELECT tenant_id, conversation_id, 1, created_at, finalised_at, words FROM conversation_words"
                .to_owned(),
            "blocks: 1 surplus",
        ),
        ("UPDATE conversation_words SET block = 1".to_owned(), "blocks: 1 missing, 1 surplus"),
    ] {
        world.sql(&format!("{damage} WHERE conversation_id = '{id}'")).await;
        let found = one(&world.repaired(&STORED).await, Kind::WordsDiffer, "s");
        assert_eq!(found.detail, detail, "{damage}");
        // Until a statistics-worker wrote them they are due, which is no finding.
        world.is_clean().await;
        world.fleet().await;
        world.is_clean().await;
        assert_eq!(world.sql(words).await, right, "{damage}");
    }
}

#[tokio::test]
async fn a_block_that_a_long_conversation_lacks_is_found() {
    let world = World::with_messages().await;
    // 8 192 different words are a block.
    let words: String = (0..9_000).map(|n| format!("{n} ")).collect();
    world.replica.save(&[to_save("s", "m4", &json!({"content": words}))]).await;
    world.sql("UPDATE conversations SET close_requested_at = now()").await;
    world.fleet().await;
    let last = "DELETE FROM conversation_words WHERE block = 1 RETURNING conversation_id";
    assert_eq!(world.sql(last).await, key("s").conversation.as_str());
    let found = one(&world.repaired(&STORED).await, Kind::WordsDiffer, "s");
    assert_eq!(found.detail, "blocks: 1 missing");
    world.fleet().await;
    world.is_clean().await;
    assert_eq!(world.sql("SELECT count(*) FROM conversation_words").await, "3");
}

#[tokio::test]
async fn words_of_a_conversation_that_never_ended_or_is_gone_are_found_and_deleted() {
    let world = World::with_messages().await;
    let id = key("s").conversation;
    // No trigger runs, so no foreign key either, as in a restore with --disable-triggers.
    world
        .sql(&format!(
            "SET session_replication_role = replica;
             INSERT INTO conversation_words VALUES ('acme', '{id}', 0, now(), now(), '{{a}}'),
                 ('acme', 'gone', 0, now(), now(), '{{a}}'), ('acme', 'gone', 1, now(), now(), '{{a}}')"
        ))
        .await;
    let found = world.repaired(&STORED).await;
    let mut found: Vec<_> =
        found.iter().map(|it| (it.kind, it.conversation_id.as_deref(), &*it.detail)).collect();
    found.sort();
    let detail = |blocks| {
        format!("blocks: {blocks}; the conversation does not exist, or was never archived")
    };
    let (one, two) = (detail(1), detail(2));
    let mut expected = [
        (Kind::WordsOrphaned, Some(id.as_str()), &*one),
        (Kind::WordsOrphaned, Some("gone"), &*two),
    ];
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(world.sql("SELECT count(*) FROM conversation_words").await, "0");
    world.is_clean().await;
}

#[tokio::test]
async fn words_of_a_conversation_that_goes_on_are_no_finding() {
    let world = World::archived().await;
    world.replica.save(&[to_save("s", "m9", &json!({"content": "more"}))]).await;
    world.is_clean().await;
    world.sql("UPDATE conversations SET close_requested_at = now()").await;
    sweep(&world.closer).await;
    refresh(&world.replica.statistics).await;
    // Archived again, and its new words are due.
    world.is_clean().await;
    world.fleet().await;
    world.is_clean().await;
}
