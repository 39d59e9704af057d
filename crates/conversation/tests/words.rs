//! What searches for words promise, from the message to the page.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use conversation::{Closer, Deleted};
use database::{
    ApiDatabase, ApiRole, ApiRoleKind, PageFilter, PagePosition, Statements, TenantKey, WordSearch,
};
use domain::action::{Action, SaveMessage};
use domain::ids::TenantId;
use domain::words::SearchWords;
use fixtures::{
    Replica, action, at_once, closer, database_settings, key, sql, stores, sweep, to_save,
};
use serde_json::json;
use testkit::TestEnv;

struct World {
    env: TestEnv,
    replica: Replica,
    closer: Closer,
    api: ApiDatabase,
}

impl World {
    async fn new() -> Self {
        let (env, replica) = stores().await;
        let closer = closer(&env, &replica, at_once()).await;
        let key = TenantKey::new([7; 32]);
        let role = ApiRole {
            kind: ApiRoleKind::Tenants,
            name: env.api_role(),
            password: Some("s3cret".to_owned()),
        };
        replica.database.set_up_api_role(&role, std::slice::from_ref(&key)).await.unwrap();
        let (_, address) = env.database_url.rsplit_once('@').unwrap();
        let url = format!("postgres://{}:s3cret@{address}", role.name);
        let api = ApiDatabase::open(&database_settings(&url), key, Statements::Prepared).unwrap();
        api.verify().await.unwrap();
        Self { env, replica, closer, api }
    }

    async fn sql(&self, statement: &str) -> String {
        sql(&self.env, statement).await
    }

    async fn say(&self, session: &str, id: &str, content: &str) {
        let message = to_save(session, id, &json!({ "content": content }));
        self.replica.save(&[message]).await.pop().unwrap().unwrap();
    }

    /// Closes every conversation; no words are written.
    async fn close(&self) {
        self.sql("UPDATE conversations SET close_requested_at = now() WHERE status = 'active'")
            .await;
        while sweep(&self.closer).await.archived > 0 {}
        let left = "SELECT count(*) FROM conversations WHERE status <> 'archived'";
        assert_eq!(self.sql(left).await, "0");
    }

    /// Writes all words; returns of how many conversations.
    async fn write(&self) -> usize {
        let mut written = 0;
        loop {
            match self.replica.words.write().await.unwrap() {
                0 => return written,
                more => written += more,
            }
        }
    }

    async fn archive(&self) -> usize {
        self.close().await;
        self.write().await
    }

    /// The sessions of the conversations of `acme` that are found.
    async fn found(&self, text: &str) -> Vec<String> {
        self.found_of("acme", text).await
    }

    async fn found_of(&self, tenant: &str, text: &str) -> Vec<String> {
        let tenant = TenantId::new(tenant).unwrap();
        let words = SearchWords::parse(text).unwrap();
        let (filter, time) = (PageFilter::default(), Duration::from_secs(5));
        let search = WordSearch { words: &words, filter: &filter, after: None, limit: 50, time };
        let page = self.api.of(&tenant).search_words(&tenant, &search).await.unwrap();
        assert_eq!(page.next, None);
        let mut sessions: Vec<_> = page.conversations.into_iter().map(|it| it.session_id).collect();
        sessions.sort();
        sessions
    }
}

fn of_tenant(tenant: &str, session: &str, content: &str) -> SaveMessage {
    let body = json!({
        "action_type": "conversation.save_message", "tenant_id": tenant, "session_id": session, "message_id": "m",
        "role": "user", "timestamp": "2026-11-20T10:00:00Z", "content": content,
    });
    let Action::SaveMessage(message) = action(&body) else { panic!("a message") };
    *message
}

#[tokio::test]
async fn a_conversation_is_found_by_all_its_words_once_it_is_archived() {
    let world = World::new().await;
    world.say("s", "m1", "Hello, Zoë! Where is ORDER-123?").await;
    world.say("s", "m2", "It's on its way.").await;
    world.say("t", "m1", "hello again").await;
    assert_eq!(world.write().await, 0);
    assert!(world.found("hello").await.is_empty(), "active");
    world.close().await;
    assert!(world.found("hello").await.is_empty(), "its words are not written");
    assert_eq!(world.write().await, 2);
    assert_eq!(world.found("hello").await, ["s", "t"]);
    for text in ["zoë", "ZOË hello", "way 123 order", "order-123 it's", "Zoe\u{308}"] {
        assert_eq!(world.found(text).await, ["s"], "{text}");
    }
    for text in ["zoe", "hell", "again way", "order-124", "user", "2026"] {
        assert!(world.found(text).await.is_empty(), "{text}");
    }
    assert_eq!(world.sql("SELECT count(*) FROM words_due").await, "0");
    assert_eq!(world.write().await, 0);
}

#[tokio::test]
async fn a_conversation_that_goes_on_is_found_again_when_it_is_archived_again() {
    let world = World::new().await;
    world.say("s", "m1", "first").await;
    world.archive().await;
    world.say("s", "m2", "second").await;
    assert!(world.found("first").await.is_empty(), "it is active");
    world.close().await;
    assert!(world.found("first").await.is_empty(), "its words are older than its archiving");
    // Twice due: archived once more before its words are written.
    world.say("s", "m3", "third").await;
    world.close().await;
    assert_eq!(world.sql("SELECT count(*) FROM words_due").await, "2");
    assert_eq!(world.write().await, 2);
    assert_eq!(world.found("first second third").await, ["s"]);
    assert_eq!(world.sql("SELECT count(*) FROM conversation_words").await, "1");
}

#[tokio::test]
async fn words_of_a_deleted_message_are_gone_with_it() {
    let world = World::new().await;
    world.say("s", "m1", "kept").await;
    world.say("s", "m2", "secret").await;
    world.archive().await;
    assert_eq!(world.found("secret").await, ["s"]);
    let body = json!({
        "action_type": "conversation.delete_message", "tenant_id": "acme", "session_id": "s", "action_id": "d",
        "message_id": "m2",
    });
    let Action::DeleteMessage(common, payload) = action(&body) else { panic!("a deletion") };
    let deleted = world.replica.deletions.delete(&[(&common, &payload.message_id)]).await.unwrap();
    assert_eq!(*deleted[0].as_ref().unwrap(), Deleted::Now);
    let stored = "SELECT count(*) FROM conversation_words WHERE words::text LIKE '%secret%'";
    assert_eq!(world.sql(stored).await, "0");
    assert!(world.found("secret").await.is_empty() && world.found("kept").await.is_empty());
    world.archive().await;
    assert_eq!(world.found("kept").await, ["s"]);
    assert!(world.found("secret").await.is_empty());
    world.sql("DELETE FROM conversations").await;
    assert_eq!(world.sql("SELECT count(*) FROM conversation_words").await, "0");
}

#[tokio::test]
async fn no_message_and_no_search_reaches_another_tenant() {
    let world = World::new().await;
    let forged =
        "/2026-11/globex /2026-11-20T10:00/globex /globex/2026-11 '/2026-11/globex' & ! | :* \\";
    let messages = [
        of_tenant("acme", "a", &format!("{forged} shared ours")),
        of_tenant("globex", "g", &format!("{forged} shared theirs")),
        of_tenant("a'b\\/2026-11", "q", "shared quoted"),
    ];
    world.replica.save(&messages).await;
    assert_eq!(world.archive().await, 3);
    let marks = "SELECT string_agg(word, ' ' ORDER BY length(word)) FROM conversation_words, unnest(words) AS word
                 WHERE word LIKE '/%' AND tenant_id = 'acme'";
    assert_eq!(
        world.sql(marks).await,
        "/2026-11/acme /2026-11-20/acme /2026-11-20T10/acme /2026-11-20T10:00/acme"
    );
    for (tenant, session) in [("acme", "a"), ("globex", "g"), ("a'b\\/2026-11", "q")] {
        assert_eq!(world.found_of(tenant, "shared").await, [session]);
    }
    assert!(world.found("theirs").await.is_empty());
    // What it says itself is found, and nothing else.
    for text in [
        "/2026-11/globex",
        "/globex/2026-11",
        "shared' OR true --",
        "shared | globex",
        "!nothing & shared",
        "shared:*",
        "2026 11 20T10",
    ] {
        let found = world.found(text).await;
        assert!(found.iter().all(|session| session == "a"), "{text}: {found:?}");
    }
    assert_eq!(world.found("/2026-11/globex").await, ["a"], "it says so");
    assert!(world.found_of("initech", "shared").await.is_empty());
}

#[tokio::test]
async fn words_that_are_too_long_or_too_many_keep_no_conversation_from_being_archived_and_found() {
    let world = World::new().await;
    let long = "x".repeat(3_000);
    world.say("s", "m0", &format!("before {long} after")).await;
    // 2 MB of words that all differ.
    let mut words = BTreeMap::new();
    for part in 0..4 {
        let text: String = (0..50_000).map(|n| format!("w{part}{n:05}x ")).collect();
        words.insert(part, format!("w{part}49999x w{part}49998x"));
        world.say("s", &format!("m{}", part + 1), &text).await;
    }
    world.say("t", "m1", "before another").await;
    assert_eq!(world.archive().await, 2);
    assert_eq!(world.found("before after").await, ["s"]);
    for text in words.values() {
        assert_eq!(world.found(text).await, ["s"], "{text}");
    }
    let blocks = "SELECT count(*), max(cardinality(words)) FROM conversation_words
                  WHERE conversation_id <> (SELECT id FROM conversations WHERE session_id = 't')";
    assert_eq!(world.sql(blocks).await, "25|8196");
    // When it is archived with fewer words, the blocks that it had before are gone.
    world.sql("DELETE FROM message_rows WHERE id LIKE 'm_' AND id > 'm0'").await;
    world.say("s", "m9", "end").await;
    world.archive().await;
    assert_eq!(world.found("before end").await, ["s"]);
    assert!(world.found(&words[&3]).await.is_empty());
    assert_eq!(world.sql("SELECT count(*) FROM conversation_words").await, "2");
}

#[tokio::test]
async fn words_of_conversations_are_found_in_pages_of_few_and_of_many() {
    let world = World::new().await;
    let messages: Vec<_> = (0..45)
        .map(|n| {
            let content = format!("common {} {}", n % 2, if n == 44 { "rare" } else { "" });
            let at = format!("2024-{:02}-03T10:00:00Z", 1 + n % 12);
            to_save(&format!("s{n}"), "m", &json!({"content": content, "timestamp": at}))
        })
        .collect();
    world.replica.save(&messages).await;
    assert_eq!(world.archive().await, 45);
    let tenant = TenantId::new("acme").unwrap();
    let (database, filter) = (world.api.of(&tenant), PageFilter::default());
    for (text, total) in [("common", 45), ("common 1", 22), ("rare", 1), ("never", 0)] {
        let words = SearchWords::parse(text).unwrap();
        // 1 ns: each page has one look-up in the index alone.
        for (limit, time) in [(200, 5_000_000_000), (1, 5_000_000_000), (7, 5_000_000_000), (7, 1)]
        {
            let time = Duration::from_nanos(time);
            let (mut found, mut after): (Vec<PagePosition>, Option<PagePosition>) =
                Default::default();
            loop {
                let after_this = after.take();
                let search = WordSearch {
                    words: &words,
                    filter: &filter,
                    after: after_this.as_ref(),
                    limit,
                    time,
                };
                let page = database.search_words(&tenant, &search).await.unwrap();
                let positions = page.conversations.into_iter();
                found.extend(
                    positions.map(|it| PagePosition { created_at: it.created_at, id: it.id }),
                );
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            assert_eq!(found.len(), total, "{text} by {limit} within {time:?}");
            let newest_first = |pair: &[PagePosition]| {
                (pair[0].created_at, &pair[0].id) > (pair[1].created_at, &pair[1].id)
            };
            assert!(found.windows(2).all(newest_first), "{text} by {limit}: {found:?}");
        }
    }
}

#[tokio::test]
async fn what_a_process_claimed_that_was_killed_is_written_when_its_lease_ends() {
    let world = World::new().await;
    world.say("s", "m", "hello").await;
    world.close().await;
    let claimed = world.replica.database.claim_words(20, Duration::from_secs(60)).await.unwrap();
    assert_eq!(claimed.iter().map(|it| &it.key).collect::<Vec<_>>(), [&key("s")]);
    assert_eq!(world.write().await, 0, "claimed");
    assert!(world.replica.database.words_lag().await.unwrap() > Duration::ZERO);
    world.sql("UPDATE words_due SET lease_until = now()").await;
    assert_eq!(world.write().await, 1);
    assert_eq!(world.found("hello").await, ["s"]);
    assert_eq!(world.replica.database.words_lag().await.unwrap(), Duration::ZERO);
    // The killed one goes on after all, and the conversation was archived again meanwhile: its words stay.
    world.say("s", "m2", "more").await;
    world.archive().await;
    let old = [database::WordBlock { conversation: 0, number: 0, words: "old".to_owned() }];
    let done = [database::WordsDone { conversation: 0, blocks: 0 }];
    let lease = Duration::from_secs(60);
    world.replica.database.write_words(&claimed, &old, &done, lease).await.unwrap();
    assert_eq!(world.found("hello more").await, ["s"]);
    assert!(world.found("old").await.is_empty());
}

#[tokio::test]
async fn a_conversation_whose_words_postgresql_refuses_does_not_keep_others_from_being_found() {
    let world = World::new().await;
    for session in ["s", "t", "u"] {
        world.say(session, "m", "hello").await;
    }
    world.close().await;
    world
        .sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = 'data_exception'; END$$;
             DO $$BEGIN EXECUTE format('CREATE TRIGGER refuse BEFORE INSERT ON conversation_words FOR EACH ROW
                 WHEN (NEW.conversation_id = %L) EXECUTE FUNCTION refuse()',
                 (SELECT id FROM conversations WHERE session_id = 't')); END$$",
        )
        .await;
    assert_eq!(world.write().await, 3);
    assert_eq!(world.found("hello").await, ["s", "u"]);
    assert_eq!(world.sql("SELECT count(*) FROM words_due").await, "1");
    world
        .sql("DROP TRIGGER refuse ON conversation_words; UPDATE words_due SET lease_until = now()")
        .await;
    assert_eq!(world.write().await, 1);
    assert_eq!(world.found("hello").await, ["s", "t", "u"]);
}
