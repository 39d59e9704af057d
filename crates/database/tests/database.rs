//! Behaviour that needs a real PostgreSQL: locks, snapshots, migrations, errors.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use database::{
    ClaimCriteria, Database, HotWrites, SaveRow, Saved, SchemaError, SessionUpdate, Settings,
    Wanted,
};
use domain::action::{ConversationSource, TimeSource};
use domain::failure::FailureClass;
use domain::ids::{AgentId, ConversationKey, MessageId, SessionId, TenantId, UserId};
use domain::message::{Content, Details, Json, Message};
use domain::session_event::SessionEvent;
use fixtures::{received_at, stored};
use sqlx::{Connection, PgConnection};
use testkit::TestEnv;
use testkit::wait::eventually;

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
    database.migrate(|| {}).await.unwrap();
    (env, database)
}

/// The event of a session that opened.
fn opened() -> SessionUpdate {
    let opened = fixtures::action(&serde_json::json!({
        "action_type": "conversation.session_opened", "tenant_id": "acme", "session_id": "s",
    }));
    let event = SessionEvent::of(&opened).unwrap();
    SessionUpdate::new(key(), ConversationSource::Explicit, TimeSource::Receipt, Arc::new(event))
}

fn key() -> ConversationKey {
    ConversationKey::parse("acme", "c").unwrap()
}

fn message(id: &str) -> Message {
    stored(id, received_at().micros())
}

async fn save(database: &Database, id: &str) -> database::Result<Vec<Saved>> {
    save_message(database, message(id)).await
}

async fn save_message(database: &Database, message: Message) -> database::Result<Vec<Saved>> {
    let (key, session) = (key(), SessionId::new("s").unwrap());
    let row = SaveRow::new(&key, &session, &message);
    Ok(database.save(&[row], HotWrites::Follow, &|| 7, Wanted::Each).await?.rows)
}

fn due() -> ClaimCriteria {
    ClaimCriteria {
        grace: Duration::ZERO,
        idle: Duration::from_secs(1800),
        lease: Duration::from_secs(30),
    }
}

async fn request_close(env: &TestEnv) {
    env.psql("UPDATE conversations SET close_requested_at = now()").await.unwrap();
}

#[tokio::test]
async fn the_schema_is_created_once_and_a_missing_or_old_one_is_reported() {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    let missing = database.verify_schema().await.unwrap_err();
    assert!(matches!(missing, SchemaError::Missing), "{missing}");
    assert!(missing.to_string().contains("verbatim setup"), "{missing}");
    let version = database.migrate(|| {}).await.unwrap();
    assert_eq!(database.migrate(|| {}).await.unwrap(), version);
    database.verify_schema().await.unwrap();

    env.psql("DELETE FROM _sqlx_migrations").await.unwrap();
    let old = database.verify_schema().await.unwrap_err();
    assert!(old.to_string().contains("verbatim setup"), "{old}");
}

#[tokio::test]
async fn a_close_waits_for_an_open_save_transaction() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    request_close(&env).await;

    // A save that holds its lock and has not committed yet.
    let mut saving = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = saving.begin().await.unwrap();
    sqlx::query("SELECT FROM conversations WHERE id = 'c' FOR KEY SHARE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    assert!(database.claim(&due(), 10).await.unwrap().is_empty(), "the next sweep takes the row");
    transaction.commit().await.unwrap();

    let claims = database.claim(&due(), 10).await.unwrap();
    assert_eq!(claims.len(), 1);
    // A save between the count and the last write has the same effect.
    let mut transaction = saving.begin().await.unwrap();
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
async fn a_save_waits_for_a_close_and_then_reopens_the_conversation() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    request_close(&env).await;
    let claims = database.claim(&due(), 10).await.unwrap();
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
    assert!(
        database.archive_closed(&closed).await.unwrap().is_empty(),
        "the claim is no longer valid"
    );
    let status = env.psql("SELECT status, close_token IS NULL FROM conversations").await.unwrap();
    assert_eq!(status.trim(), "active|t");
}

#[tokio::test]
async fn a_conversation_that_is_deleted_during_a_save_is_inserted_again() {
    let (env, _) = migrated().await;
    env.psql(
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
         VALUES ('acme', 'c', 's', now(), 1)",
    )
    .await
    .unwrap();
    let mut dropper = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = dropper.begin().await.unwrap();
    sqlx::query("DELETE FROM conversations").execute(&mut *transaction).await.unwrap();
    let slow = with_long_timeouts(&env);
    let saving = tokio::spawn(async move { save(&slow, "m1").await });
    until_one_waits_for_a_lock(&env).await;
    transaction.commit().await.unwrap();
    assert_eq!(saving.await.unwrap().unwrap(), [Saved::New]);
    assert_eq!(env.psql("SELECT count(*) FROM conversations").await.unwrap().trim(), "1");
}

#[tokio::test]
async fn a_conversation_that_another_transaction_inserts_during_a_save_is_used() {
    let (env, _) = migrated().await;
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
         VALUES ('acme', 'c', 's', now(), 1)",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    let slow = with_long_timeouts(&env);
    let saving = tokio::spawn(async move { save(&slow, "m1").await });
    until_one_waits_for_a_lock(&env).await;
    transaction.commit().await.unwrap();
    assert_eq!(saving.await.unwrap().unwrap(), [Saved::New]);
    let stored = "SELECT c.hot_generation, m.id FROM conversations c
                  JOIN messages m ON m.tenant_id = c.tenant_id AND m.conversation_id = c.id";
    assert_eq!(env.psql(stored).await.unwrap().trim(), "1|m1");
}

#[tokio::test]
async fn a_message_that_two_processes_save_at_once_is_stored_once() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    // The other process, between its insert and its commit.
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO message_rows (conversation, id, role, content, created_at, received_at, body_hash)
         SELECT conversation, 'm2', role, 'content of m2', created_at, received_at, $1 FROM message_rows",
    )
    .bind(message("m2").body_hash().0)
    .execute(&mut *transaction)
    .await
    .unwrap();
    let slow = with_long_timeouts(&env);
    let saving = tokio::spawn(async move { save(&slow, "m2").await });
    until_one_waits_for_a_lock(&env).await;
    transaction.commit().await.unwrap();
    let saved = saving.await.unwrap().unwrap();
    assert!(
        matches!(&saved[..], [Saved::Duplicate(stored)] if **stored == message("m2")),
        "{saved:?}"
    );
    // The next batch is compared with the stored messages first; new messages are stored all the same.
    assert_eq!(save(&database, "m3").await.unwrap(), [Saved::New]);
}

#[tokio::test]
async fn rows_that_change_in_each_attempt_are_a_transient_failure() {
    let (env, database) = migrated().await;
    // Each insert or update has no effect, as if another transaction had come first.
    env.psql(
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER skip BEFORE INSERT ON conversations FOR EACH ROW EXECUTE FUNCTION skip();
         CREATE TRIGGER skip BEFORE UPDATE ON hot_epoch FOR EACH ROW EXECUTE FUNCTION skip()",
    )
    .await
    .unwrap();
    for error in [
        save(&database, "m1").await.unwrap_err(),
        database.apply_sessions(&[opened()], &|| 7).await.unwrap_err(),
        database.record_server_identity("redis", 7).await.unwrap_err(),
    ] {
        assert_eq!(error.class(), FailureClass::Transient, "{error}");
    }
}

#[tokio::test]
async fn a_migration_waits_for_one_that_is_under_way() {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    sqlx::migrate::Migrate::lock(&mut other).await.unwrap();
    let waits = std::cell::Cell::new(0);
    let migrating = async {
        let counts = || waits.set(waits.get() + 1);
        database.migrate(counts).await.unwrap()
    };
    let unlocking = async {
        // It waits a second time, after its lock timeout.
        let mut began = HashSet::new();
        eventually("a second wait for the lock", Duration::from_secs(60), async || {
            let waits = "SELECT query_start FROM pg_stat_activity
                         WHERE wait_event = 'advisory' AND datname = current_database()";
            began.extend(Some(env.psql(waits).await.unwrap()).filter(|it| !it.is_empty()));
            if began.len() > 1 { Ok(()) } else { Err(format!("{began:?}")) }
        })
        .await;
        sqlx::migrate::Migrate::unlock(&mut other).await.unwrap();
    };
    tokio::join!(migrating, unlocking);
    assert!(waits.get() > 0);
    database.verify_schema().await.unwrap();
}

/// Saves two batches, so that the next one is expected to change no conversation. Removes the close request of
/// a reopened conversation first, because every message would update it.
async fn expect_settled(env: &TestEnv, database: &Database, names: &str) {
    env.psql("UPDATE conversations SET close_requested_at = NULL").await.unwrap();
    for n in 1..=2 {
        assert_eq!(save(database, &format!("{names}{n}")).await.unwrap(), [Saved::New]);
    }
}

#[tokio::test]
async fn both_save_statements_store_a_message_the_same_way() {
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
        details: Some(Box::new(Details {
            item: Some(json(r#"{ "type":"message" , "id":1.0}"#)),
            usage: Some(json(r#"{"input_tokens" : 7}"#)),
            finish_reason: Some("stop \"now\"".to_owned()),
            response_id: Some("r-1".to_owned()),
            parent_message_id: Some(MessageId::new("größe").unwrap()),
            context_hash: Some("h".to_owned()),
        })),
        ..message(id)
    };
    // The first inserts the conversation, the second does not change it, the third is sent with the smaller
    // statement.
    for id in ["m1", "m2", "m3"] {
        assert_eq!(save_message(&database, rich(id)).await.unwrap(), [Saved::New]);
    }
    let distinct = "SELECT count(DISTINCT (to_jsonb(m) - 'id')), count(*) FROM message_rows m";
    assert_eq!(env.psql(distinct).await.unwrap().trim(), "1|3");
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
    // Two batches at once, and later both statements: the process is inserted once.
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
async fn a_conversation_that_was_expected_to_be_settled_is_updated_if_it_must_change() {
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

    // As a session event leaves it.
    expect_settled(&env, &database, "silent").await;
    env.psql("UPDATE conversations SET last_message_at = NULL").await.unwrap();
    save(&database, "first").await.unwrap();
    assert_eq!(conversation("last_message_at IS NOT NULL").await, "t");

    expect_settled(&env, &database, "no-agent").await;
    let with_agent = Message { agent_id: Some(AgentId::new("a").unwrap()), ..message("m3") };
    save_message(&database, with_agent).await.unwrap();
    assert_eq!(conversation("agent_id").await, "a");

    expect_settled(&env, &database, "known").await;
    // Its user is set, so only the tombstone excludes the smaller statement.
    env.psql(
        "UPDATE conversations SET user_id = 'u';
         INSERT INTO tombstones VALUES ('acme', 'user', 'u', now())",
    )
    .await
    .unwrap();
    let erased = Message { user_id: Some(UserId::new("u").unwrap()), ..message("m4") };
    assert_eq!(save_message(&database, erased).await.unwrap(), [Saved::Erased]);
    env.psql("DELETE FROM tombstones").await.unwrap();

    expect_settled(&env, &database, "deleted").await;
    env.psql("DELETE FROM message_rows; DELETE FROM conversations").await.unwrap();
    assert_eq!(save(&database, "m5").await.unwrap(), [Saved::New]);
    assert_eq!(conversation("count(*)").await, "1");
}

#[tokio::test]
async fn a_plan_that_was_made_while_the_tables_were_empty_uses_the_primary_key() {
    let (env, _) = migrated().await;
    let statements = [
        (include_str!("../src/save/statement.sql"), 38),
        (include_str!("../src/save/settled.sql"), 27),
        ("SELECT hot_generation FROM conversations WHERE tenant_id = $1 AND id = $2", 2),
    ];
    for (statement, parameters) in statements {
        let nulls = vec!["NULL"; parameters].join(", ");
        let explain = format!(
            "SET plan_cache_mode = force_generic_plan; PREPARE one AS {statement};
             EXPLAIN EXECUTE one ({nulls})"
        );
        let plan = env.psql(&explain).await.unwrap();
        assert_eq!(plan.matches("using conversations_pkey").count(), 1, "{plan}");
    }
}

#[tokio::test]
async fn a_plan_that_was_made_while_the_tables_were_empty_finds_deleted_messages_by_their_index() {
    let (env, _) = migrated().await;
    let statement = "SELECT c.id, EXISTS (SELECT FROM message_rows m WHERE m.conversation = c.number AND m.created_at IS NULL)
                     FROM hot_epoch e LEFT JOIN conversations c ON c.tenant_id = $1 AND c.id = $2";
    let explain = format!(
        "SET plan_cache_mode = force_generic_plan; PREPARE one AS {statement};
         EXPLAIN EXECUTE one (NULL, NULL)"
    );
    let plan = env.psql(&explain).await.unwrap();
    assert!(plan.contains("message_rows_deleted"), "{plan}");
    assert!(!plan.contains("message_rows_pkey"), "{plan}");
}

#[tokio::test]
async fn a_dashboard_reads_days_of_a_tenant_or_an_agent_by_an_index_of_their_own() {
    let (env, _) = migrated().await;
    let of_tenant = "tenant_id = 't' AND day BETWEEN '2026-11-01' AND '2026-11-30'";
    let of_agent = &format!("{of_tenant} AND agent_id = 'a'");
    let of_model = &format!("{of_tenant} AND model_name = 'm'");
    let fill = "INSERT INTO daily_stats (tenant_id, agent_id, model_name, day)
                SELECT 't', 'a' || agent, 'm' || model, date '2026-01-01' + day
                FROM generate_series(1, 20) AS agent, generate_series(1, 5) AS model,
                     generate_series(1, 365) AS day";
    let plan = async |condition: &str| {
        let explain = format!("EXPLAIN SELECT * FROM daily_stats WHERE {condition}");
        env.psql(&explain).await.unwrap()
    };
    for step in ["SELECT 1", fill, "ANALYZE daily_stats"] {
        env.psql(step).await.unwrap();
        for (condition, index) in [
            (of_tenant, "daily_stats_by_day"),
            (of_agent, "daily_stats_by_agent_and_day"),
            (of_model, "daily_stats_by_day"),
        ] {
            let plan = plan(condition).await;
            // The days bound the part of the index that is read.
            let bounds = plan.lines().find(|it| it.contains("Index Cond")).unwrap_or_default();
            assert!(plan.contains(index) && bounds.contains("day >="), "after {step}: {plan}");
        }
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
    // The first statements of the transaction insert rows; the last one finds its table missing.
    env.psql("ALTER TABLE session_events RENAME TO gone").await.unwrap();
    let error = database.apply_sessions(&[opened()], &|| 7).await.unwrap_err();
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

async fn until_one_waits_for_a_lock(env: &TestEnv) {
    testkit::wait::eventually(
        "one session to wait for a lock",
        Duration::from_secs(10),
        async || {
            let waiting = env
                .psql(
                    "SELECT count(*) FROM pg_stat_activity
                 WHERE wait_event_type = 'Lock' AND datname = current_database()",
                )
                .await
                .unwrap();
            if waiting.trim() == "1" { Ok(()) } else { Err(waiting) }
        },
    )
    .await;
}

/// Runs `work`, whose second statement waits for a lock on `table`; releases the lock after running
/// `meanwhile`.
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
        until_one_waits_for_a_lock(env).await;
        let change = format!("{meanwhile}; COMMIT");
        sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut other).await.unwrap();
    };
    tokio::join!(work, change).0
}

/// A database whose lock timeout is longer than the test.
fn with_long_timeouts(env: &TestEnv) -> Database {
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
async fn conversations_that_begin_during_a_page_hide_no_message() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    let begin = "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
                 SELECT 'acme', 'new-' || n, 's', now(), n FROM generate_series(1, 3) AS n";
    let slow = with_long_timeouts(&env);
    let reading = slow.messages_named("m1", None, None, 1);
    let (found, next) = between_its_statements(&env, "message_rows", begin, reading).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let (found, next) = database.messages_named("m1", None, next, 1).await.unwrap();
    assert_eq!((found.len(), next), (0, None));
}

#[tokio::test]
async fn messages_that_arrive_during_a_page_hide_no_orphan() {
    let (env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    env.psql("UPDATE message_rows SET conversation = 4711").await.unwrap();
    // The new messages have a number that exists, below the orphan's.
    let insert = "INSERT INTO message_rows
                    (conversation, id, role, content, created_at, received_at, body_hash)
                SELECT (SELECT number FROM conversations), id, role, content, created_at, received_at, body_hash
                FROM message_rows";
    let slow = with_long_timeouts(&env);
    let reading = slow.orphaned_rows(i64::MIN, 1);
    let (found, checked, next) =
        between_its_statements(&env, "conversations", insert, reading).await.unwrap();
    let found: Vec<_> = found.iter().map(|orphan| orphan.conversation).collect();
    assert_eq!((found, checked, next), (vec![4711], 1, Some(4711)));
}

#[tokio::test]
async fn a_limit_selects_the_newest_dead_letters_audit_entries_and_conversations() {
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
    assert_eq!(
        dead_letters.iter().map(|it| &*it.dead_letter.error).collect::<Vec<_>>(),
        ["2", "3"]
    );
    let entries = database.audit_about(&["s".to_owned()], 2).await.unwrap();
    assert_eq!(entries.iter().map(|it| &*it.action).collect::<Vec<_>>(), ["2", "3"]);
    let conversations = database.conversations_of_session("s", None, 2).await.unwrap();
    assert_eq!(conversations.iter().map(|it| &*it.conversation.id).collect::<Vec<_>>(), ["2", "3"]);
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
    // The connection that timed out is discarded: a pool of one opens another.
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
    .err()
    .unwrap();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    let unreachable = open("postgres://me:s3cret@127.0.0.1:1/db");
    let error = unreachable.numbers(&key()).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

#[tokio::test]
async fn a_conversation_is_not_found_under_another_tenant() {
    let (_env, database) = migrated().await;
    save(&database, "m1").await.unwrap();
    let other = ConversationKey {
        tenant: TenantId::new("other").unwrap(),
        conversation: key().conversation,
    };
    assert!(database.numbers(&other).await.unwrap().conversation.is_none());
    assert!(database.conversation(&other).await.unwrap().is_none());
}

#[tokio::test]
async fn a_refresh_that_finds_nothing_leaves_no_transaction_open() {
    let (env, database) = migrated().await;
    assert_eq!(database.stale_conversations(10, &[]).await.unwrap(), []);
    assert_eq!(database.stale_days(10, &[]).await.unwrap(), []);
    assert!(database.refresh_conversations(&[]).await.unwrap().is_empty());
    let mut observer = PgConnection::connect(&env.database_url).await.unwrap();
    let states = "SELECT array_agg(state) FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name = 'test'";
    let states: Vec<String> = sqlx::query_scalar(states).fetch_one(&mut observer).await.unwrap();
    assert_eq!(states, ["idle"]);
}
