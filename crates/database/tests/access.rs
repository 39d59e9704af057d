//! What the role of the conversation-api sees: rows of one tenant at a time, whatever the statement.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use database::{
    Actor, ApiDatabase, ApiRole, ApiRoleChange, ApiRoleKind, Database, NewApiKey, NewAuditEntry,
    OperatorDatabase, SchemaError, Statements, TenantKey, secret_hash,
};
use domain::failure::FailureClass;
use domain::ids::{ConversationKey, TenantId};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use support::{api_role, migrated, settings};
use testkit::TestEnv;
use uuid::Uuid;

/// A database with two tenants, and a role of the API.
struct Archive {
    env: TestEnv,
    owner: Database,
    role: ApiRole,
    api_url: String,
    operator_url: String,
}

impl Archive {
    async fn new() -> Self {
        let env = TestEnv::new().await;
        let owner = migrated(&env).await;
        let (role, api_url) = api_role(&env, &owner, ApiRoleKind::Tenants, &key(1)).await;
        let (_, operator_url) = api_role(&env, &owner, ApiRoleKind::Operators, &key(1)).await;
        let archive = Self { env, owner, role, api_url, operator_url };
        for tenant in ["acme", "globex"] {
            archive.fill(tenant).await;
        }
        archive
    }

    /// One row of this tenant in each table that has rows of tenants.
    async fn fill(&self, tenant: &str) {
        let sql = format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
             VALUES ('{tenant}', 'c', 's', now(), 1);
             INSERT INTO sessions VALUES ('{tenant}', 'c', 's', true, now());
             INSERT INTO session_events (tenant_id, conversation_id, id, action_type, session_id, created_at, received_at,
                                         effective_at, everywhere, content_hash)
             VALUES ('{tenant}', 'c', 'e', 'conversation.feedback', 's', now(), now(), now(), false, '');
             INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT number, now(), now(), 'm', 'user', 'of {tenant}', '' FROM conversations WHERE tenant_id = '{tenant}';
             INSERT INTO message_tokens SELECT number, 'm', 1 FROM conversations WHERE tenant_id = '{tenant}';
             INSERT INTO conversation_stats (tenant_id, conversation_id, message_count, user_messages, assistant_messages,
                                             total_tokens, duration_seconds, responses, computed_from, computed_at, day)
             VALUES ('{tenant}', 'c', 1, 1, 0, 1, 0, 0, now(), now(), '2026-01-01');
             INSERT INTO daily_stats (tenant_id, agent_id, model_name, day) VALUES ('{tenant}', 'a', 'm', '2026-01-01');
             INSERT INTO dead_letters (id, queue, reason, error, tenant_id, routing_key, exchange, body, properties, headers,
                                       attempts, replay_count, first_failed_at, last_failed_at)
             VALUES (gen_random_uuid(), 'q', 'schema', 'e', '{tenant}', 'r', '', '', '{{}}', '{{}}', 1, 0, now(), now())"
        );
        self.env.psql(&sql).await.unwrap();
    }

    fn api(&self, key: TenantKey) -> ApiDatabase {
        ApiDatabase::open(&settings(&self.api_url), key, Statements::Prepared).unwrap()
    }

    /// A connection of the role, as an injected statement would have it.
    async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.api_url).await.unwrap()
    }
}

fn key(byte: u8) -> TenantKey {
    TenantKey::new([byte; 32])
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// The setting with which `name` sees its rows, as the API binds it.
async fn signed(archive: &Archive, name: &str) -> String {
    let mut owner = PgConnection::connect(&archive.env.database_url).await.unwrap();
    sqlx::query_scalar(
        "SELECT encode(sha256(outer_block || sha256(inner_block || convert_to($1, 'UTF8'))), 'hex') || ':' || $1
         FROM api_tenant_keys",
    )
    .bind(name)
    .fetch_one(&mut owner)
    .await
    .unwrap()
}

const TABLES: [&str; 7] = [
    "conversations",
    "sessions",
    "session_events",
    "message_rows",
    "message_tokens",
    "conversation_stats",
    "daily_stats",
];

#[tokio::test]
async fn statements_without_a_condition_see_the_rows_of_the_signed_tenant_alone() {
    let archive = Archive::new().await;
    let mut connection = archive.connection().await;
    for name in ["acme", "globex", "initech", "acme"] {
        let setting = signed(&archive, name).await;
        let mut transaction = connection.begin().await.unwrap();
        sqlx::query("SELECT set_config('verbatim.tenant', $1, true)")
            .bind(&setting)
            .execute(&mut *transaction)
            .await
            .unwrap();
        for table in TABLES {
            let active = format!("SELECT row_security_active('{table}')");
            let active: bool = sqlx::query_scalar(AssertSqlSafe(active))
                .fetch_one(&mut *transaction)
                .await
                .unwrap();
            assert!(active, "{table}");
            let count = format!("SELECT count(*) FROM {table}");
            let count: i64 = sqlx::query_scalar(AssertSqlSafe(count))
                .fetch_one(&mut *transaction)
                .await
                .unwrap();
            assert_eq!(count, i64::from(name != "initech"), "{name}: {table}");
        }
        let said = "SELECT coalesce(max(content), '') FROM message_rows";
        let said: String = sqlx::query_scalar(said).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(said, if name == "initech" { String::new() } else { format!("of {name}") });
        transaction.commit().await.unwrap();
    }
}

#[tokio::test]
async fn without_a_signed_tenant_every_statement_is_an_error() {
    let archive = Archive::new().await;
    let mut connection = archive.connection().await;
    let of_acme = signed(&archive, "acme").await;
    let (signature, _) = of_acme.split_once(':').unwrap();
    // A transaction before, as on a connection of a pool: after it the setting is empty, and no longer absent.
    let mut before = connection.begin().await.unwrap();
    let set = "SELECT set_config('verbatim.tenant', $1, true)";
    sqlx::query(set).bind(&of_acme).execute(&mut *before).await.unwrap();
    before.commit().await.unwrap();
    let other_tenant = format!("{signature}:globex");
    let other_key = format!("{}:globex", "0".repeat(64));
    for setting in ["", "globex", ":globex", &other_tenant, &other_key, &format!("{signature}acme")]
    {
        for table in TABLES {
            let mut transaction = connection.begin().await.unwrap();
            sqlx::query(set).bind(setting).execute(&mut *transaction).await.unwrap();
            let query = format!("SELECT * FROM {table}");
            let error =
                sqlx::raw_sql(AssertSqlSafe(query)).fetch_all(&mut *transaction).await.unwrap_err();
            assert!(
                error.to_string().contains("row-level security"),
                "{setting:?}: {table}: {error}"
            );
            transaction.rollback().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_injected_statement_reads_no_other_tenant_and_no_key() {
    let archive = Archive::new().await;
    let api = archive.api(key(1));
    let of_acme = signed(&archive, "acme").await;
    let mut connection = archive.connection().await;
    for injected in [
        "SELECT content FROM messages",
        "SELECT * FROM api_tenant_keys",
        "SELECT secret_hash FROM api_keys",
        "SELECT * FROM audit_log",
        "SELECT * FROM dead_letters",
        "INSERT INTO audit_log (actor, action, tenant_id) VALUES ('somebody', 'conversation.read', 'acme')",
        "SELECT verbatim_audit(current_setting('verbatim.tenant'), '{somebody}', '{conversation.read}',
                               ARRAY[current_setting('verbatim.tenant')], '{c}', '{null}')",
        "SELECT verbatim_audit(NULL, '{somebody}', '{conversation.read}', ARRAY[current_setting('verbatim.tenant')], '{c}',
                               '{null}')",
        "SELECT verbatim_signed_tenant(repeat('0', 64) || ':globex')",
        "SELECT verbatim_hmac('', '')",
        "SELECT * FROM api_nonces",
        "SELECT * FROM api_nonce_history",
        "DELETE FROM api_nonces",
        "UPDATE audit_chains SET n = 0",
        "DELETE FROM audit_log",
        "SET row_security = off; SELECT content FROM message_rows",
        "SET ROLE postgres; SELECT content FROM message_rows",
        "ALTER TABLE message_rows DISABLE ROW LEVEL SECURITY",
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation) VALUES ('acme', 'x', 's', now(), 1)",
        "UPDATE dead_letters SET tenant_id = 'acme'",
        "DELETE FROM conversations",
        "CREATE TABLE api_tenant_keys_2 (a int)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TEMP TABLE api_tenant_keys (inner_block bytea, outer_block bytea);
         INSERT INTO api_tenant_keys VALUES (decode(repeat('00', 64), 'hex'), decode(repeat('00', 64), 'hex'));
         SELECT set_config('verbatim.tenant',
                           encode(sha256(outer_block || sha256(inner_block || 'globex')), 'hex') || ':globex', true)
         FROM pg_temp.api_tenant_keys;
         SELECT content FROM message_rows",
    ] {
        let mut transaction = connection.begin().await.unwrap();
        let set = "SELECT set_config('verbatim.tenant', $1, true)";
        sqlx::query(set).bind(&of_acme).execute(&mut *transaction).await.unwrap();
        let rows = sqlx::raw_sql(AssertSqlSafe(injected)).fetch_all(&mut *transaction).await;
        let said = format!("{rows:?}");
        assert!(!said.contains("of globex"), "{injected}: {said}");
        assert!(rows.is_err(), "{injected}: {said}");
        transaction.rollback().await.unwrap();
    }
    // The tenant counts that was set when the statement read it first: these see their own rows.
    for injected in [
        "SELECT content, set_config('verbatim.tenant', 'globex', true) FROM message_rows",
        "SELECT content, s.set_config FROM message_rows,
                (SELECT set_config('verbatim.tenant', repeat('0', 64) || ':globex', true)) AS s",
    ] {
        let mut transaction = connection.begin().await.unwrap();
        let set = "SELECT set_config('verbatim.tenant', $1, true)";
        sqlx::query(set).bind(&of_acme).execute(&mut *transaction).await.unwrap();
        let seen: Vec<(String, String)> =
            sqlx::query_as(injected).fetch_all(&mut *transaction).await.unwrap();
        assert_eq!(seen.len(), 1, "{injected}");
        assert_eq!(seen[0].0, "of acme", "{injected}");
        transaction.rollback().await.unwrap();
    }
    // What other sessions of the role run is visible to it, but not with which setting.
    let reading = api.of(&tenant("globex"));
    let globex = ConversationKey::parse("globex", "c").unwrap();
    assert!(reading.conversation(&globex).await.unwrap().is_some());
    let queries: Vec<String> =
        sqlx::query_scalar("SELECT query FROM pg_stat_activity WHERE usename = current_user")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    let secret = signed(&archive, "globex").await;
    assert!(queries.len() >= 2, "{queries:?}");
    assert!(!queries.join("\n").contains(&secret[..64]), "{queries:?}");
}

#[tokio::test]
async fn the_role_for_operators_changes_what_the_signed_tenant_has_and_nothing_else() {
    let archive = Archive::new().await;
    archive
        .env
        .psql(
            "INSERT INTO dead_letters (id, queue, reason, error, routing_key, exchange, body, properties, headers, attempts,
                                       replay_count, first_failed_at, last_failed_at)
             VALUES (gen_random_uuid(), 'q', 'malformed', 'e', 'r', '', '', '{}', '{}', 1, 0, now(), now())",
        )
        .await
        .unwrap();
    OperatorDatabase::open(&settings(&archive.operator_url), key(1), Statements::Prepared)
        .unwrap()
        .verify()
        .await
        .unwrap();
    let wrong =
        OperatorDatabase::open(&settings(&archive.operator_url), key(9), Statements::Prepared)
            .unwrap();
    assert!(matches!(wrong.verify().await.unwrap_err(), SchemaError::TenantKey));
    // Neither role stands for the other.
    let swapped = OperatorDatabase::open(&settings(&archive.api_url), key(1), Statements::Prepared)
        .unwrap()
        .verify()
        .await;
    let swapped = swapped.unwrap_err().to_string();
    assert!(swapped.contains("API_OPERATOR_DATABASE_URL"), "{swapped}");
    let mut connection = PgConnection::connect(&archive.operator_url).await.unwrap();
    let audit = |tenant: &str| {
        format!(
            "INSERT INTO audit_log (actor, action, tenant_id) VALUES ('o', 'dead_letter.replay', {tenant})"
        )
    };
    // The empty name is every tenant. A count of rows, or an error.
    for (name, statement, expected) in [
        (
            "acme",
            "UPDATE dead_letters SET status = 'discarded', status_changed_at = now()".to_owned(),
            Some(1),
        ),
        (
            "",
            "UPDATE dead_letters SET status = 'discarded', status_changed_at = now()".to_owned(),
            Some(3),
        ),
        (
            "initech",
            "UPDATE dead_letters SET status = 'discarded', status_changed_at = now()".to_owned(),
            Some(0),
        ),
        ("acme", "SELECT FROM dead_letters FOR UPDATE".to_owned(), Some(1)),
        ("acme", "UPDATE dead_letters SET tenant_id = 'globex'".to_owned(), None),
        ("acme", "UPDATE dead_letters SET tenant_id = NULL".to_owned(), None),
        ("acme", "SELECT FROM message_rows".to_owned(), Some(1)),
        ("", "SELECT FROM message_rows".to_owned(), Some(0)),
        ("", "SELECT FROM conversations".to_owned(), Some(0)),
        ("acme", audit("'acme'"), Some(1)),
        ("acme", audit("'globex'"), None),
        ("acme", audit("NULL"), None),
        ("", audit("NULL"), Some(1)),
        ("", audit("'globex'"), Some(1)),
        // What arrived stays, and so does what the audit log says of itself.
        ("acme", "UPDATE dead_letters SET body = 'other'".to_owned(), None),
        ("acme", "UPDATE dead_letters SET edited_body = 'other'".to_owned(), None),
        ("acme", "UPDATE dead_letters SET routing_key = 'other'".to_owned(), None),
        (
            "acme",
            "INSERT INTO audit_log (id, actor, action, tenant_id) OVERRIDING SYSTEM VALUE
             VALUES (9223372036854775807, 'o', 'a', 'acme')"
                .to_owned(),
            None,
        ),
        (
            "acme",
            "INSERT INTO audit_log (actor, action, tenant_id, chain) VALUES ('o', 'a', 'acme', gen_random_uuid())"
                .to_owned(),
            None,
        ),
        ("acme", "SELECT FROM audit_log".to_owned(), None),
        ("acme", "DELETE FROM dead_letters".to_owned(), None),
        ("acme", "SELECT FROM sessions".to_owned(), None),
        ("acme", "SELECT FROM api_keys".to_owned(), None),
    ] {
        let setting = signed(&archive, name).await;
        let mut transaction = connection.begin().await.unwrap();
        sqlx::query("SELECT set_config('verbatim.tenant', $1, true)")
            .bind(&setting)
            .execute(&mut *transaction)
            .await
            .unwrap();
        let done = sqlx::query(AssertSqlSafe(statement.as_str())).execute(&mut *transaction).await;
        let done = done.map(|done| done.rows_affected());
        assert_eq!(done.as_ref().ok(), expected.as_ref(), "{name:?}: {statement}: {done:?}");
        transaction.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn an_entry_of_one_session_keeps_the_entries_of_no_other_process_waiting() {
    let archive = Archive::new().await;
    let api = archive.api(key(1));
    let read = NewAuditEntry {
        actor: "k1".to_owned(),
        action: "conversation.read",
        tenant: Some(tenant("acme")),
        subject: Some("c".to_owned()),
        detail: serde_json::json!({}),
    };
    api.audit(std::slice::from_ref(&read)).await.unwrap();
    let chain = archive.env.psql("SELECT chain FROM audit_chains WHERE n = 1").await.unwrap();
    // An injected statement of the other role names the chain of the API, and is not ended.
    let mut connection = PgConnection::connect(&archive.operator_url).await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    for (name, value) in [
        ("verbatim.tenant", signed(&archive, "acme").await),
        ("verbatim.audit_chain", chain.clone()),
    ] {
        let set = sqlx::query("SELECT set_config($1, $2, true)").bind(name).bind(value);
        set.execute(&mut *transaction).await.unwrap();
    }
    let insert = "INSERT INTO audit_log (actor, action, tenant_id) VALUES ('o', 'a', 'acme')";
    sqlx::query(insert).execute(&mut *transaction).await.unwrap();
    api.audit(&[read]).await.unwrap();
    transaction.commit().await.unwrap();
    let chains = "SELECT string_agg(n || CASE chain WHEN '{}' THEN ' API' ELSE ' other' END, ', ' ORDER BY n DESC)
                  FROM audit_chains"
        .replace("{}", &chain);
    assert_eq!(archive.env.psql(&chains).await.unwrap(), "2 API, 1 other");
    assert_eq!(archive.owner.verify_audit(&[], |_| {}).await.unwrap().found, 0);
}

#[tokio::test]
async fn the_api_reads_its_tenant_and_finds_nothing_under_ids_of_another() {
    let archive = Archive::new().await;
    let api = archive.api(key(1));
    api.verify().await.unwrap();
    for (own, other) in [("acme", "globex"), ("globex", "acme")] {
        let database = api.of(&tenant(own));
        let of = |tenant| ConversationKey::parse(tenant, "c").unwrap();
        assert_eq!(database.conversation(&of(own)).await.unwrap().unwrap().message_count, 1);
        assert_eq!(database.conversation(&of(other)).await.unwrap(), None);
        assert!(database.numbers(&of(other)).await.unwrap().conversation.is_none());
        let page = database::Page { newest: 10, max_bytes: usize::MAX, before: None };
        assert_eq!(database.read(&of(own), &page).await.unwrap().messages.len(), 1);
        assert_eq!(database.read(&of(other), &page).await.unwrap().messages.len(), 0);
    }
}

#[tokio::test]
async fn setup_sets_what_differs_and_else_changes_nothing() {
    let archive = Archive::new().await;
    let role = &archive.role;
    let again = async |keys: &[TenantKey]| archive.owner.set_up_api_role(role, keys).await.unwrap();
    assert_eq!(again(&[key(1)]).await, ApiRoleChange::AlreadyThere);
    for differs in [
        format!("GRANT SELECT ON audit_log TO {}", role.name),
        format!("GRANT UPDATE (open) ON sessions TO {}", role.name),
        format!("REVOKE SELECT ON conversations FROM {}", role.name),
        format!("ALTER ROLE {} IN DATABASE {} SET row_security = off", role.name, archive.env.name),
    ] {
        archive.env.psql(&differs).await.unwrap();
        assert_eq!(again(&[key(1)]).await, ApiRoleChange::Updated, "{differs}");
        archive.api(key(1)).verify().await.unwrap();
    }
    // While the secret is rotated, the old one and the new one are valid.
    assert_eq!(again(&[key(2), key(1)]).await, ApiRoleChange::Updated);
    for byte in [1, 2] {
        archive.api(key(byte)).verify().await.unwrap();
    }
    assert_eq!(again(&[key(2)]).await, ApiRoleChange::Updated);
    let refused = archive.api(key(1)).verify().await.unwrap_err();
    assert!(matches!(refused, SchemaError::TenantKey), "{refused}");
    archive.api(key(2)).verify().await.unwrap();
}

#[tokio::test]
async fn a_role_that_may_touch_anything_else_is_refused_with_what_that_is() {
    let archive = Archive::new().await;
    let name = &archive.role.name;
    for (change, undo, fault) in [
        (
            format!("GRANT SELECT ON audit_log TO {name}"),
            format!("REVOKE SELECT ON audit_log FROM {name}"),
            "SELECT on audit_log",
        ),
        (
            "GRANT SELECT ON messages TO PUBLIC".into(),
            "REVOKE SELECT ON messages FROM PUBLIC".into(),
            "SELECT on messages",
        ),
        (
            "ALTER TABLE sessions DISABLE ROW LEVEL SECURITY".into(),
            "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY".into(),
            "row-level security of sessions",
        ),
        (
            format!("ALTER ROLE {name} BYPASSRLS"),
            format!("ALTER ROLE {name} NOBYPASSRLS"),
            "BYPASSRLS",
        ),
        (
            format!("ALTER ROLE {name} SUPERUSER"),
            format!("ALTER ROLE {name} NOSUPERUSER"),
            "SUPERUSER",
        ),
        (
            format!("GRANT pg_read_all_data TO {name}"),
            format!("REVOKE pg_read_all_data FROM {name}"),
            "member of pg_read_all_data",
        ),
        (
            format!("REVOKE SELECT ON conversations FROM {name}"),
            format!("GRANT SELECT ON conversations TO {name}"),
            "SELECT on conversations",
        ),
        (
            format!("GRANT UPDATE (open) ON sessions TO {name}"),
            format!("REVOKE UPDATE (open) ON sessions FROM {name}"),
            "UPDATE on sessions.open",
        ),
        (
            format!("GRANT SELECT (detail) ON audit_log TO {name}"),
            format!("REVOKE SELECT (detail) ON audit_log FROM {name}"),
            "SELECT on audit_log.detail",
        ),
    ] {
        archive.env.psql(&change).await.unwrap();
        let refused = archive.api(key(1)).verify().await.unwrap_err();
        assert!(matches!(refused, SchemaError::ApiRole { .. }), "{change}: {refused}");
        assert!(refused.to_string().contains(fault), "{change}: {refused}");
        archive.env.psql(&undo).await.unwrap();
        archive.api(key(1)).verify().await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_with_a_role_that_row_level_security_restricts_does_not_start() {
    let archive = Archive::new().await;
    let worker = Database::open(&settings(&archive.api_url)).unwrap();
    let refused = worker.verify_schema().await.unwrap_err();
    assert!(matches!(refused, SchemaError::RowSecurity(_)), "{refused}");
    archive.owner.verify_schema().await.unwrap();
}

#[tokio::test]
async fn a_database_user_that_may_create_no_roles_gets_an_error_that_says_so() {
    let archive = Archive::new().await;
    let name = format!("{}_owner", archive.env.name);
    let sql = format!("CREATE ROLE {name} LOGIN PASSWORD 's3cret'");
    archive.env.psql(&sql).await.unwrap();
    let (_, address) = archive.env.database_url.rsplit_once('@').unwrap();
    let poor = Database::open(&settings(&format!("postgres://{name}:s3cret@{address}"))).unwrap();
    let role = ApiRole { kind: ApiRoleKind::Tenants, name: format!("{name}_api"), password: None };
    let refused = poor.set_up_api_role(&role, &[key(1)]).await.unwrap_err();
    assert!(matches!(refused, SchemaError::NotPermitted { .. }), "{refused}");
    assert!(refused.to_string().contains("CREATEROLE"), "{refused}");
    archive.env.psql(&format!("DROP ROLE {name}")).await.unwrap();
}

fn new_key(id: &str) -> NewApiKey {
    NewApiKey {
        id: id.to_owned(),
        tenant: "acme".to_owned(),
        name: "CRM".to_owned(),
        scopes: vec!["read".to_owned()],
        networks: vec!["10.0.0.0/8".to_owned()],
        secret_hash: secret_hash("first"),
        expires_at: None,
    }
}

#[tokio::test]
async fn a_key_is_found_by_its_secret_until_it_is_rotated_or_revoked() {
    let archive = Archive::new().await;
    let (owner, api) = (&archive.owner, archive.api(key(1)));
    let actor = Actor { name: "operator".to_owned(), run: Uuid::new_v4(), tenant: None };
    owner.create_api_key(&new_key("k1"), &actor).await.unwrap();
    let again = owner.create_api_key(&new_key("k1"), &actor).await.unwrap_err();
    assert_eq!(again.class(), FailureClass::Transient, "{again}");
    let presented = async |secret: &str| api.api_key("k1", &secret_hash(secret)).await.unwrap();
    let first = presented("first").await.unwrap();
    assert_eq!((first.tenant_id.as_str(), first.version, first.accepted_until), ("acme", 1, None));
    assert_eq!(presented("other").await, None);
    assert_eq!(api.api_key("k2", &secret_hash("first")).await.unwrap(), None);

    let until = chrono::DateTime::from_timestamp(4_000_000_000, 0).unwrap();
    let rotated = owner.rotate_api_key("k1", secret_hash("second"), until, &actor).await.unwrap();
    assert_eq!(rotated.unwrap().previous_until, Some(until));
    assert_eq!(presented("first").await.unwrap().accepted_until, Some(until));
    assert_eq!(presented("second").await.unwrap().accepted_until, None);
    assert_eq!(api.api_key_versions(&["k1", "k2"]).await.unwrap(), [("k1".to_owned(), 2)]);

    let used = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    api.api_keys_used(&[("k1", used), ("gone", used)]).await.unwrap();
    api.api_keys_used(&[("k1", used - Duration::from_secs(5))]).await.unwrap();
    // What is no time, as an injected statement may say.
    let infinite = "SELECT verbatim_api_keys_used(ARRAY['k1'], ARRAY['infinity'::timestamptz])";
    let mut connection = archive.connection().await;
    sqlx::query(infinite).execute(&mut connection).await.unwrap();
    assert_eq!(owner.api_keys(Some("acme")).await.unwrap()[0].last_used_at, Some(used));
    assert_eq!(owner.api_keys(Some("globex")).await.unwrap(), []);

    assert!(owner.revoke_api_key("k1", Some("leaked"), &actor).await.unwrap().is_some());
    assert_eq!(owner.revoke_api_key("k1", None, &actor).await.unwrap(), None);
    assert_eq!(
        owner.rotate_api_key("k1", secret_hash("third"), until, &actor).await.unwrap(),
        None
    );
    assert!(presented("second").await.unwrap().revoked_at.is_some());
    assert_eq!(api.api_key_versions(&["k1"]).await.unwrap(), []);
    let log = archive.env.psql("SELECT string_agg(action, ' ' ORDER BY id) FROM audit_log").await;
    assert_eq!(log.unwrap(), "key.create key.rotate key.revoke");
}

#[tokio::test]
async fn the_last_use_of_a_key_is_stored_while_the_row_of_another_one_is_locked() {
    let archive = Archive::new().await;
    let (owner, api) = (&archive.owner, archive.api(key(1)));
    let actor = Actor { name: "operator".to_owned(), run: Uuid::new_v4(), tenant: None };
    for id in ["k1", "k2", "k3"] {
        owner.create_api_key(&new_key(id), &actor).await.unwrap();
    }
    let mut connection = PgConnection::connect(&archive.env.database_url).await.unwrap();
    let mut locking = connection.begin().await.unwrap();
    sqlx::query("SELECT FROM api_keys WHERE id = 'k1' FOR UPDATE")
        .execute(&mut *locking)
        .await
        .unwrap();
    let used = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    let last_used = async || {
        let keys = owner.api_keys(None).await.unwrap();
        keys.into_iter().map(|key| key.last_used_at).collect::<Vec<_>>()
    };
    api.api_keys_used(&["k1", "k2", "k3"].map(|id| (id, used))).await.unwrap();
    assert_eq!(last_used().await, [None, Some(used), Some(used)]);
    locking.rollback().await.unwrap();
    api.api_keys_used(&[("k1", used)]).await.unwrap();
    assert_eq!(last_used().await, [Some(used); 3]);
}
