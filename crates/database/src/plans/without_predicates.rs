//! What the statements of the conversation-api read without any of their conditions: row-level security alone keeps the rows
//! of other tenants from them.

use regex::Regex;
use sqlx::{AssertSqlSafe, Connection as _};
use testkit::TestEnv;

use super::{Connections, name_tenant, statements};
use crate::TenantKey;

/// A statement without its conditions on parameters, that of the tenant among them, and without limits.
fn without_predicates(sql: &str) -> String {
    let mut sql = sql.to_owned();
    for (condition, becomes) in [
        (r#"\([a-z_., ]+\) < \(\$\d+, \$\d+( COLLATE "C")?\)"#, "true"),
        (r"[a-z_.]+ BETWEEN \$\d+ AND \$\d+", "true"),
        (r#"[a-z_.]+ (=|<|>|<=|>=) \$\d+( COLLATE "C")?"#, "true"),
        (r"FETCH FIRST \(\$\d+\) ROWS", "FETCH FIRST 1000 ROWS"),
        (r"\$\d+", "NULL"),
    ] {
        sql = Regex::new(condition).unwrap().replace_all(&sql, becomes).into_owned();
    }
    sql
}

/// All that the statements read for a tenant, each with its name.
async fn read(
    connections: &mut Connections,
    key: &TenantKey,
    tenant: &str,
) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, sql) in statements() {
        let mut transaction = connections.of(&name).begin().await.unwrap();
        name_tenant(&mut transaction, key, tenant).await;
        let sql = without_predicates(&sql);
        let whole = format!(
            "SELECT coalesce(string_agg(r::text, E'\\n' ORDER BY r::text), '') FROM ({sql}) AS r"
        );
        let rows = sqlx::query_scalar(AssertSqlSafe(whole)).fetch_one(&mut *transaction).await;
        all.push((name, rows.unwrap_or_else(|error| panic!("{sql}: {error}"))));
        transaction.rollback().await.unwrap();
    }
    all
}

#[tokio::test]
async fn no_statement_without_its_conditions_reads_a_row_of_another_tenant() {
    let env = TestEnv::new().await;
    let key = TenantKey::new([7; 32]);
    let mut connections = Connections::new(&env, &key).await;
    for tenant in ["acme", "globex"] {
        env.psql(&format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, agent_id, user_id, model_name)
             VALUES ('{tenant}', 'c', 's', now(), 1, 'agent of {tenant}', 'u', 'm');
             INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT number, now(), now(), 'm', 'user', 'of {tenant}', '' FROM conversations WHERE tenant_id = '{tenant}';
             INSERT INTO message_tokens SELECT number, 'm', 1 FROM conversations WHERE tenant_id = '{tenant}';
             INSERT INTO conversation_stats (tenant_id, conversation_id, message_count, user_messages, assistant_messages,
                                             total_tokens, duration_seconds, responses, computed_from, computed_at, day)
             VALUES ('{tenant}', 'c', 1, 1, 0, 1, 0, 0, now(), now(), '2026-01-01');
             INSERT INTO daily_stats (tenant_id, agent_id, model_name, day, conversations)
             VALUES ('{tenant}', 'agent of {tenant}', 'm', '2026-01-01', 1);
             INSERT INTO dead_letters (id, queue, reason, error, tenant_id, routing_key, exchange, body, properties, headers,
                                       attempts, replay_count, first_failed_at, last_failed_at)
             VALUES (gen_random_uuid(), 'q', 'schema', 'of {tenant}', '{tenant}', 'r', '', '', '{{}}', '{{}}', 1, 0, now(), now())"
        ))
        .await
        .unwrap();
    }
    let acme = read(&mut connections, &key, "acme").await;
    let initech = read(&mut connections, &key, "initech").await;
    // Each reads what is there of its own tenant, but the search, whose words are in its function.
    for (name, rows) in acme.iter().filter(|(name, _)| name != "search") {
        let has_texts = ["page", "messages", "totals", "dead letter"];
        let is_own = !has_texts.iter().any(|it| name.starts_with(it)) || rows.contains("of acme");
        assert!(!rows.is_empty() && is_own, "{name}: {rows:?}");
    }
    for (name, rows) in acme.iter().chain(&initech) {
        assert!(!rows.contains("globex"), "{name}: {rows}");
    }
    // What counts or sums shows nothing of others either: it reads the same without them.
    env.psql(
        "DELETE FROM message_rows WHERE conversation IN (SELECT number FROM conversations WHERE tenant_id = 'globex');
         DELETE FROM message_tokens WHERE conversation IN (SELECT number FROM conversations WHERE tenant_id = 'globex');
         DELETE FROM conversation_stats WHERE tenant_id = 'globex'; DELETE FROM daily_stats WHERE tenant_id = 'globex';
         DELETE FROM dead_letters WHERE tenant_id = 'globex'; DELETE FROM conversations WHERE tenant_id = 'globex'",
    )
    .await
    .unwrap();
    assert_eq!(read(&mut connections, &key, "acme").await, acme);
    env.psql(
        "TRUNCATE conversations, message_rows, message_tokens, conversation_stats, daily_stats, dead_letters CASCADE",
    )
    .await
    .unwrap();
    assert_eq!(read(&mut connections, &key, "initech").await, initech);
}
