//! What only PostgreSQL itself can show: locks, snapshots, migrations, errors.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use database::{Database, Due, EpochChange, HotWrites, SaveRow, Saved, SchemaError, Settings};
use domain::failure::FailureClass;
use domain::ids::{AgentId, ConversationKey, MessageId, SessionId, TenantId, UserId};
use domain::message::{Content, Json, Message, Role};
use domain::time::Timestamp;
use sqlx::{Connection, PgConnection};
use testkit::TestEnv;

fn open(url: &str) -> Database {
    Database::open(&Settings {
        url: url.to_owned(),
        application: "test".to_owned(),
        connections: 5,
        time_out: Duration::from_secs(10),
        lock_time_out: Duration::from_millis(200),
    })
    .unwrap()
}

async fn migrated() -> (TestEnv, Database) {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    database.migrate().await.unwrap();
    (env, database)
}

fn key() -> ConversationKey {
    ConversationKey::parse("acme", "c").unwrap()
}

fn message(id: &str) -> Message {
    let at = Timestamp::parse("2026-11-20T10:00:00Z").unwrap();
    Message {
        id: MessageId::new(id).unwrap(),
        role: Role::User,
        content: Content::Text(format!("words of {id}")),
        tool_calls: None,
        tool_call_id: None,
        tokens_estimate: None,
        user_id: None,
        agent_id: None,
        model_name: None,
        processing_time_ms: None,
        created_at: at,
        received_at: at,
        metadata: None,
    }
}

async fn save(database: &Database, id: &str) -> database::Result<Vec<Saved>> {
    save_message(database, message(id)).await
}

async fn save_message(database: &Database, message: Message) -> database::Result<Vec<Saved>> {
    let (key, session) = (key(), SessionId::new("s").unwrap());
    let row = SaveRow {
        key: &key,
        session: &session,
        tenant_tier: None,
        message: &message,
        body_hash: message.body_hash(),
    };
    Ok(database.save(&[row], HotWrites::Follow, &|| 7).await?.rows)
}

fn due() -> Due {
    Due {
        grace: Duration::ZERO,
        idle: Duration::from_secs(1800),
        lease: Duration::from_secs(30),
        limit: 10,
    }
}

async fn ask_to_close(env: &TestEnv) {
    env.psql("UPDATE conversations SET close_requested_at = now()").await.unwrap();
}

#[tokio::test]
async fn the_schema_is_made_once_and_a_missing_one_is_named() {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    let missing = database.verify_schema().await.unwrap_err();
    assert!(matches!(missing, SchemaError::Missing), "{missing}");
    assert!(missing.to_string().contains("verbatim setup"), "{missing}");
    let version = database.migrate().await.unwrap();
    assert_eq!(database.migrate().await.unwrap(), version);
    database.verify_schema().await.unwrap();

    env.psql("DELETE FROM _sqlx_migrations").await.unwrap();
    let old = database.verify_schema().await.unwrap_err();
    assert!(old.to_string().contains("verbatim setup"), "{old}");
}

#[tokio::test]
async fn a_close_waits_for_an_open_save_transaction() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    ask_to_close(&env).await;

    // A saver that has its lock and has not committed yet.
    let mut saver = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = saver.begin().await.unwrap();
    sqlx::query("SELECT FROM conversations WHERE id = 'c' FOR KEY SHARE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    assert!(database.claim(&due()).await.unwrap().is_empty(), "the row is left for the next look");
    transaction.commit().await.unwrap();

    let claims = database.claim(&due()).await.unwrap();
    assert_eq!(claims.len(), 1);
    // The same between the count and the last write.
    let mut transaction = saver.begin().await.unwrap();
    sqlx::query("SELECT FROM conversations WHERE id = 'c' FOR KEY SHARE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let closed = database.totals(&claims).await.unwrap();
    assert_eq!(closed.len(), 1);
    assert!(database.archive_closed(&closed).await.unwrap().is_empty());
    transaction.commit().await.unwrap();
    assert_eq!(database.archive_closed(&closed).await.unwrap(), [key()]);
}

#[tokio::test]
async fn a_saver_waits_for_a_close_and_then_reopens() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    ask_to_close(&env).await;
    let claims = database.claim(&due()).await.unwrap();
    let closed = database.totals(&claims).await.unwrap();
    assert_eq!(closed.len(), 1);

    let mut closer = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = closer.begin().await.unwrap();
    sqlx::query("SELECT FROM conversations WHERE id = 'c' FOR UPDATE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let blocked = save(&database, "m2").await.unwrap_err();
    assert_eq!(blocked.class(), FailureClass::Transient, "{blocked}");
    transaction.commit().await.unwrap();

    assert_eq!(save(&database, "m2").await.unwrap(), [Saved::New]);
    assert!(database.archive_closed(&closed).await.unwrap().is_empty(), "the claim is gone");
    let status = env.psql("SELECT status, close_token IS NULL FROM conversations").await.unwrap();
    assert_eq!(status.trim(), "active|t");
}

#[tokio::test]
async fn a_conversation_that_is_dropped_under_a_saver_is_made_again() {
    let (env, database) = migrated().await;
    env.psql(
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
         VALUES ('acme', 'c', 's', now(), 1)",
    )
    .await
    .unwrap();
    let mut dropper = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = dropper.begin().await.unwrap();
    sqlx::query("DELETE FROM conversations").execute(&mut *transaction).await.unwrap();
    let saving = tokio::spawn({
        let database = database.clone();
        async move { save(&database, "m1").await }
    });
    until_somebody_waits(&env).await;
    transaction.commit().await.unwrap();
    assert_eq!(saving.await.unwrap().unwrap(), [Saved::New]);
    assert_eq!(env.psql("SELECT count(*) FROM conversations").await.unwrap().trim(), "1");
}

#[tokio::test]
async fn a_conversation_that_another_transaction_makes_meanwhile_is_shared() {
    let (env, database) = migrated().await;
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
         VALUES ('acme', 'c', 's', now(), 1)",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    let saving = tokio::spawn({
        let database = database.clone();
        async move { save(&database, "m1").await }
    });
    until_somebody_waits(&env).await;
    transaction.commit().await.unwrap();
    assert_eq!(saving.await.unwrap().unwrap(), [Saved::New]);
    let stored = "SELECT c.hot_generation, m.id FROM conversations c
                  JOIN messages m ON m.tenant_id = c.tenant_id AND m.conversation_id = c.id";
    assert_eq!(env.psql(stored).await.unwrap().trim(), "1|m1");
}

#[tokio::test]
async fn a_message_that_two_savers_bring_at_once_is_stored_by_one() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    // The other saver, between its insert and its commit.
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO message_rows (conversation, id, role, content, created_at, received_at, body_hash)
         SELECT conversation, 'm2', role, 'words of m2', created_at, received_at, $1 FROM message_rows",
    )
    .bind(message("m2").body_hash().0)
    .execute(&mut *transaction)
    .await
    .unwrap();
    let saving = tokio::spawn({
        let database = database.clone();
        async move { save(&database, "m2").await }
    });
    until_somebody_waits(&env).await;
    transaction.commit().await.unwrap();
    let saved = saving.await.unwrap().unwrap();
    assert!(
        matches!(&saved[..], [Saved::Duplicate(stored)] if **stored == message("m2")),
        "{saved:?}"
    );
    // What the doubt that stays does to a batch of new ones: nothing.
    assert_eq!(save(&database, "m3").await.unwrap(), [Saved::New]);
}

/// After this the archive expects that the conversation stays as it is. One that came back is asked to
/// close again, and would be changed by every message.
async fn expect_settled(env: &TestEnv, database: &Database, names: &str) {
    env.psql("UPDATE conversations SET close_requested_at = NULL").await.unwrap();
    for n in 1..=2 {
        assert_eq!(save(database, &format!("{names}{n}")).await.unwrap(), [Saved::New]);
    }
}

#[tokio::test]
async fn a_message_is_stored_the_same_whether_its_conversation_was_expected_to_stay_or_not() {
    let (env, database) = migrated().await;
    let json = |text: &str| Json::parse(text.to_owned()).unwrap();
    let rich = |id| Message {
        content: Content::Parts {
            text: "words".to_owned(),
            json: json(r#"[{"type": "text", "text": "words"}]"#),
        },
        tool_calls: Some(json(r#"[{"id": "call-1"}]"#)),
        tool_call_id: Some("call-1".to_owned()),
        tokens_estimate: Some(9),
        user_id: Some(UserId::new("u").unwrap()),
        agent_id: Some(AgentId::new("a").unwrap()),
        model_name: Some("gpt-4".to_owned()),
        processing_time_ms: Some(1.5),
        metadata: Some(json(r#"{"k": "v"}"#)),
        ..message(id)
    };
    // The first makes the conversation, the second leaves it as it is, the third was expected to.
    for id in ["m1", "m2", "m3"] {
        assert_eq!(save_message(&database, rich(id)).await.unwrap(), [Saved::New]);
    }
    let kinds = "SELECT count(DISTINCT (to_jsonb(m) - 'id')), count(*) FROM message_rows m";
    assert_eq!(env.psql(kinds).await.unwrap().trim(), "1|3");
    let again = save_message(&database, rich("m3")).await.unwrap();
    assert!(
        matches!(&again[..], [Saved::Duplicate(stored)] if **stored == rich("m3")),
        "{again:?}"
    );
}

#[tokio::test]
async fn every_message_names_the_process_that_saved_it() {
    let (env, unsigned) = migrated().await;
    let one = unsigned.clone().saving_as("saver", "host-1:7".to_owned());
    let other = unsigned.clone().saving_as("saver", "host-2:7".to_owned());
    // At once, and with both statements: a process is entered once.
    let again = one.clone();
    let (first, second) = tokio::join!(save(&one, "a1"), save(&again, "a2"));
    assert_eq!((first.unwrap(), second.unwrap()), (vec![Saved::New], vec![Saved::New]));
    expect_settled(&env, &one, "b").await;
    expect_settled(&env, &other, "c").await;
    assert_eq!(save(&unsigned, "d").await.unwrap(), [Saved::New]);
    let signed = "SELECT string_agg(m.id || ' ' || coalesce(w.process || ' ' || w.instance, '-'), ', ' ORDER BY m.id)
                  FROM message_rows m LEFT JOIN writers w ON w.id = m.saved_by";
    let expected = "a1 saver host-1:7, a2 saver host-1:7, b1 saver host-1:7, b2 saver host-1:7, \
                    c1 saver host-2:7, c2 saver host-2:7, d -";
    assert_eq!(env.psql(signed).await.unwrap().trim(), expected);
    assert_eq!(env.psql("SELECT count(*) FROM writers").await.unwrap().trim(), "2");
}

#[tokio::test]
async fn a_conversation_that_was_expected_to_stay_and_must_change_changes() {
    let (env, database) = migrated().await;
    let conversation = async |columns: &str| {
        let query = format!("SELECT {columns} FROM conversations");
        env.psql(&query).await.unwrap().trim().to_owned()
    };
    expect_settled(&env, &database, "archived").await;
    env.psql("UPDATE conversations SET status = 'archived'").await.unwrap();
    save(&database, "m1").await.unwrap();
    assert_eq!(conversation("status, reopened").await, "active|t");

    expect_settled(&env, &database, "untouched").await;
    env.psql("UPDATE conversations SET touched_at = now() - interval '1 hour'").await.unwrap();
    save(&database, "m2").await.unwrap();
    assert_eq!(conversation("touched_at > now() - interval '1 minute'").await, "t");

    // As a session's opening leaves it.
    expect_settled(&env, &database, "silent").await;
    env.psql("UPDATE conversations SET last_message_at = NULL").await.unwrap();
    save(&database, "first").await.unwrap();
    assert_eq!(conversation("last_message_at IS NOT NULL").await, "t");

    expect_settled(&env, &database, "nobodys").await;
    let said = Message { agent_id: Some(AgentId::new("a").unwrap()), ..message("m3") };
    save_message(&database, said).await.unwrap();
    assert_eq!(conversation("agent_id").await, "a");

    expect_settled(&env, &database, "known").await;
    // Its user is known, so nothing but the tombstone stands in the way.
    env.psql(
        "UPDATE conversations SET user_id = 'u';
         INSERT INTO tombstones VALUES ('acme', 'user', 'u', now())",
    )
    .await
    .unwrap();
    let erased = Message { user_id: Some(UserId::new("u").unwrap()), ..message("m4") };
    assert_eq!(save_message(&database, erased).await.unwrap(), [Saved::Erased]);
    env.psql("DELETE FROM tombstones").await.unwrap();

    expect_settled(&env, &database, "there").await;
    env.psql("DELETE FROM message_rows; DELETE FROM conversations").await.unwrap();
    assert_eq!(save(&database, "m5").await.unwrap(), [Saved::New]);
    assert_eq!(conversation("count(*)").await, "1");
}

#[tokio::test]
async fn a_plan_that_was_made_while_the_tables_were_empty_walks_the_primary_key() {
    let (env, _database) = migrated().await;
    let statements = [
        (include_str!("../src/save/statement.sql"), 35),
        (include_str!("../src/save/settled.sql"), 24),
        ("SELECT hot_generation FROM conversations WHERE tenant_id = $1 AND id = $2", 2),
    ];
    for (statement, parameters) in statements {
        let nulls = vec!["NULL"; parameters].join(", ");
        let explain = format!(
            "SET plan_cache_mode = force_generic_plan; PREPARE one AS {statement};
             EXPLAIN EXECUTE one ({nulls})"
        );
        let plan = env.psql(&explain).await.unwrap();
        assert_eq!(plan.matches("conversations_pkey").count(), 1, "{plan}");
    }
}

#[tokio::test]
async fn connections_that_the_server_ended_cost_one_failure() {
    let (env, database) = migrated().await;
    let at_once = async || {
        let (key, other) = (key(), key());
        let (one, two) = tokio::join!(database.numbers(&key), database.numbers(&other));
        one.and(two)
    };
    at_once().await.unwrap();
    env.psql(
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await
    .unwrap();
    let error = database.numbers(&key()).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
    at_once().await.unwrap();
}

#[tokio::test]
async fn work_that_failed_leaves_no_transaction_open() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    ask_to_close(&env).await;
    let claims = database.claim(&due()).await.unwrap();
    // The first statement of the transaction takes a row; the second one finds a table gone.
    env.psql("ALTER TABLE sessions RENAME TO gone; DELETE FROM message_rows").await.unwrap();
    let error = database.drop_empty(&claims).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
    testkit::wait::eventually("the rollback", Duration::from_secs(10), async || {
        let open = env
            .psql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
            .await
            .unwrap();
        if open.trim() == "0" { Ok(()) } else { Err(open) }
    })
    .await;
}

async fn until_somebody_waits(env: &TestEnv) {
    testkit::wait::eventually("the saver to wait", Duration::from_secs(10), async || {
        let waiting = env
            .psql(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE wait_event_type = 'Lock' AND datname = current_database()",
            )
            .await
            .unwrap();
        if waiting.trim() == "1" { Ok(()) } else { Err(waiting) }
    })
    .await;
}

/// Does some work whose second statement finds a table locked, and is let on after `meanwhile`.
async fn between_its_statements<T>(
    env: &TestEnv,
    table: &str,
    meanwhile: &str,
    work: impl Future<Output = T>,
) -> T {
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
    sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut other).await.unwrap();
    let change = async {
        until_somebody_waits(env).await;
        let change = format!("{meanwhile}; COMMIT");
        sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut other).await.unwrap();
    };
    tokio::join!(work, change).0
}

fn patient(env: &TestEnv) -> Database {
    Database::open(&Settings {
        url: env.database_url.clone(),
        application: "test".to_owned(),
        connections: 1,
        time_out: Duration::from_secs(30),
        lock_time_out: Duration::from_secs(30),
    })
    .unwrap()
}

#[tokio::test]
async fn conversations_that_begin_meanwhile_push_no_message_out_of_sight() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    let begin = "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
                 SELECT 'acme', 'new-' || n, 's', now(), n FROM generate_series(1, 3) AS n";
    let patient = patient(&env);
    let looking = patient.messages_named("m1", None, None, 1);
    let (found, next) = between_its_statements(&env, "message_rows", begin, looking).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let (found, next) = database.messages_named("m1", None, next, 1).await.unwrap();
    assert_eq!((found.len(), next), (0, None));
}

#[tokio::test]
async fn messages_that_come_meanwhile_push_no_orphan_out_of_sight() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    env.psql("UPDATE message_rows SET conversation = 4711").await.unwrap();
    // Only known numbers come, below the orphan's.
    let come = "INSERT INTO message_rows
                    (conversation, id, role, content, created_at, received_at, body_hash)
                SELECT (SELECT number FROM conversations), id, role, content, created_at, received_at, body_hash
                FROM message_rows";
    let patient = patient(&env);
    let looking = patient.orphaned_rows(i64::MIN, 1);
    let (found, looked_at, next) =
        between_its_statements(&env, "conversations", come, looking).await.unwrap();
    let found: Vec<_> = found.iter().map(|orphan| orphan.conversation).collect();
    assert_eq!((found, looked_at, next), (vec![4711], 1, Some(4711)));
}

#[tokio::test]
async fn of_too_many_dead_letters_deeds_and_conversations_the_newest_are_told() {
    let (env, database) = migrated().await;
    env.psql(
        "INSERT INTO dead_letters (id, queue, reason, error, session_id, routing_key, exchange, body,
                                   properties, headers, attempts, replay_count, first_failed_at,
                                   last_failed_at, stored_at)
             SELECT gen_random_uuid(), 'q', 'schema', n::text, 's', 'q', '', '', '{}', '{}', 1, 0,
                    now(), now(), now() + n * interval '1 s'
             FROM generate_series(1, 3) AS n;
         INSERT INTO audit_log (actor, action, subject)
             SELECT 'me', n::text, 's' FROM generate_series(1, 3) AS n;
         INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
             SELECT 'acme', n::text, 's', now() + n * interval '1 s', n
             FROM generate_series(1, 3) AS n",
    )
    .await
    .unwrap();
    let dead_letters = database.dead_letters_about("s", None, 2).await.unwrap();
    assert_eq!(dead_letters.iter().map(|it| &*it.error).collect::<Vec<_>>(), ["2", "3"]);
    let deeds = database.audit_about(&["s".to_owned()], 2).await.unwrap();
    assert_eq!(deeds.iter().map(|it| &*it.action).collect::<Vec<_>>(), ["2", "3"]);
    let conversations = database.conversations_of_session("s", None, 2).await.unwrap();
    assert_eq!(conversations.iter().map(|it| &*it.id).collect::<Vec<_>>(), ["2", "3"]);
}

#[tokio::test]
async fn of_two_replicas_that_meet_a_new_server_identity_one_changes_the_epoch() {
    let (_env, database) = migrated().await;
    assert_eq!(database.record_server_identity("a:1", 10).await.unwrap(), EpochChange::Changed);
    assert_eq!(database.record_server_identity("a:1", 11).await.unwrap(), EpochChange::Same);
    let (one, two) = tokio::join!(
        database.record_server_identity("b:1", 20),
        database.record_server_identity("b:1", 21)
    );
    let changes = [one.unwrap(), two.unwrap()];
    assert_eq!(changes.iter().filter(|c| **c == EpochChange::Changed).count(), 1, "{changes:?}");
    let epoch = database.numbers(&key()).await.unwrap().hot_epoch;
    assert!([20, 21].contains(&epoch), "{epoch}");
}

#[tokio::test]
async fn a_read_only_server_and_a_frozen_one_are_unavailable() {
    let (env, database) = migrated().await;
    env.psql(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", env.name))
        .await
        .unwrap();
    let read_only = open(&env.database_url);
    let error = save(&read_only, "m1").await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
    assert_eq!(read_only.probe().await.unwrap_err().class(), FailureClass::Unavailable);
    database.probe().await.unwrap();

    let proxy = testkit::proxy::Proxy::before(&env.database_url).await.unwrap();
    let frozen = Database::open(&Settings {
        url: proxy.url().to_owned(),
        application: "test".to_owned(),
        connections: 1,
        time_out: Duration::from_millis(300),
        lock_time_out: Duration::from_secs(1),
    })
    .unwrap();
    frozen.numbers(&key()).await.unwrap();
    proxy.freeze();
    let error = frozen.numbers(&key()).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
    // The silent connection no longer counts: a pool of one tries to make another.
    let error = frozen.numbers(&key()).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
    assert!(proxy.count().accepted >= 2, "{:?} {error}", proxy.count());
    proxy.restore().await.unwrap();
    testkit::wait::eventually("an answer after the freeze", Duration::from_secs(10), async || {
        frozen.numbers(&key()).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn an_error_never_shows_the_password() {
    let error = Database::open(&Settings {
        url: "postgres://me:s3cret@127.0.0.1:1/db?sslmode=nonsense".to_owned(),
        application: "test".to_owned(),
        connections: 2,
        time_out: Duration::from_secs(1),
        lock_time_out: Duration::from_secs(1),
    })
    .unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    let away = open("postgres://me:s3cret@127.0.0.1:1/db");
    let error = away.numbers(&key()).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    assert!(!format!("{away:?}").contains("s3cret"), "{away:?}");
}

#[tokio::test]
async fn a_row_without_a_tenant_of_that_name_is_nobodys() {
    let (_env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    let other = ConversationKey {
        tenant: TenantId::new("other").unwrap(),
        conversation: key().conversation,
    };
    assert!(database.numbers(&other).await.unwrap().conversation.is_none());
    assert!(database.conversation(&other).await.unwrap().is_none());
}
