//! The plans of every statement that the conversation-api runs, as its role has them: each reads a bounded number of rows.
//! Also those of the statements that write words, as the owner has them: they read by keys.
//!
//! The statements are prepared and explained with generic plans, as the API runs them, on tables with enough rows that a
//! wrong index costs more. A plan may not scan a whole table, and may sort or hash only what a limit or a whole key
//! bounds: else a request would cost as much as its tenant has rows.

mod without_predicates;

use domain::failure::DeadLetterReason;
use domain::ids::TenantId;
use domain::status::ConversationStatus;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Execute as _, PgConnection};
use testkit::TestEnv;

use crate::conversation_pages::{PageFilter, PagePosition, page};
use crate::dead_letters::pages;
use crate::totals::{TotalsRequest, sums};
use crate::transcript_pages::{
    ReadingOrder, beyond, conversation_statement, messages_statement, statistics_statement,
};
use crate::{
    ApiRole, ApiRoleKind, Database, DeadLetterPageFilter, DeadLetterPosition, DeadLetterStatus,
    Settings, TenantKey,
};
use crate::{verify, words};

fn settings(url: &str) -> Settings {
    Settings {
        url: url.to_owned(),
        application: "test".to_owned(),
        connections: 2,
        time_out: std::time::Duration::from_secs(30),
        lock_time_out: std::time::Duration::from_secs(1),
    }
}

/// Every statement, by name.
fn statements() -> Vec<(String, String)> {
    let tenant = TenantId::new("acme").unwrap();
    let mut all = Vec::new();
    let text = |text: &str| Some(text.to_owned());
    let at = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let position = PagePosition { created_at: at, id: "c".to_owned() };
    // Each combination of what chooses the index, with and without a cursor, times and other filters.
    for (agent, user) in
        [(None, None), (text("a"), None), (None, text("u")), (text("a"), text("u"))]
    {
        for (bits, status) in (0..8).flat_map(|bits| ConversationStatus::ALL.map(|it| (bits, it))) {
            let filter = PageFilter {
                agent: agent.clone(),
                user: user.clone(),
                status: (bits & 1 > 0).then_some(status),
                model: (bits & 1 > 0).then(|| "m".to_owned()),
                from: (bits & 2 > 0).then_some(at),
                to: (bits & 2 > 0).then_some(at),
            };
            let after = (bits & 4 > 0).then_some(&position);
            let sql = page(&tenant, &filter, after, 50).build().sql().as_str().to_owned();
            all.push((format!("page of {filter:?} after {}", after.is_some()), sql));
        }
    }
    for order in [ReadingOrder::OldestFirst, ReadingOrder::NewestFirst] {
        all.push((format!("messages {order:?}"), messages_statement(order)));
        all.push((format!("beyond {order:?}"), beyond(order)));
    }
    all.push(("conversation".to_owned(), conversation_statement()));
    all.push(("statistics".to_owned(), statistics_statement().to_owned()));
    for (agent, model) in
        [(None, None), (text("a"), None), (None, text("m")), (text("a"), text("m"))]
    {
        let day = at.date_naive();
        let request = TotalsRequest { from: day, to: day, agent, model };
        let sql = sums(&tenant, &request).build().sql().as_str().to_owned();
        all.push((format!("totals of {request:?}"), sql));
    }
    for (bits, tenant) in (0..8).map(|bits| (bits, (bits & 4 > 0).then_some(&tenant))) {
        let filter = DeadLetterPageFilter {
            status: (bits & 1 > 0).then_some(DeadLetterStatus::Open),
            queue: (bits & 1 > 0).then(|| "q".to_owned()),
            reason: (bits & 1 > 0).then_some(DeadLetterReason::Schema),
            action_type: (bits & 1 > 0).then(|| "a".to_owned()),
        };
        let position = DeadLetterPosition { stored_at: at, id: uuid::Uuid::nil() };
        let after = (bits & 2 > 0).then_some(position);
        let sql = pages::page(tenant, &filter, after, 50).build().sql().as_str().to_owned();
        all.push((format!("dead letters {tenant:?} {filter:?} after {}", after.is_some()), sql));
    }
    all.push(("dead letter".to_owned(), "SELECT * FROM dead_letters WHERE id = $1".to_owned()));
    all.push(("active".to_owned(), crate::totals::ACTIVE.to_owned()));
    all.push(("search".to_owned(), crate::word_search::statement()));
    all
}

/// A connection of each role of the API.
struct Connections {
    tenants: PgConnection,
    operators: PgConnection,
}

impl Connections {
    /// Creates the schema and the roles, which accept tenants that are signed with this key.
    async fn new(env: &TestEnv, key: &TenantKey) -> Self {
        let owner = Database::open(&settings(&env.database_url)).unwrap();
        owner.migrate(|| {}).await.unwrap();
        let connect = async |kind, name: String| {
            let (_, address) = env.database_url.rsplit_once('@').unwrap();
            let url = format!("postgres://{name}:s3cret@{address}");
            let role = ApiRole { kind, name, password: Some("s3cret".to_owned()) };
            owner.set_up_api_role(&role, std::slice::from_ref(key)).await.unwrap();
            PgConnection::connect(&url).await.unwrap()
        };
        Self {
            tenants: connect(ApiRoleKind::Tenants, env.api_role()).await,
            operators: connect(ApiRoleKind::Operators, env.operator_role()).await,
        }
    }

    /// That of the role which runs the statement with this name.
    fn of(&mut self, statement: &str) -> &mut PgConnection {
        match statement.starts_with("dead letter") {
            true => &mut self.operators,
            false => &mut self.tenants,
        }
    }
}

/// Names the tenant of a transaction.
async fn name_tenant(transaction: &mut PgConnection, key: &TenantKey, tenant: &str) {
    sqlx::query("SELECT set_config('verbatim.tenant', $1, true)")
        .bind(key.signed(&TenantId::new(tenant).unwrap()))
        .execute(transaction)
        .await
        .unwrap();
}

#[tokio::test]
async fn every_statement_of_the_api_reads_a_bounded_number_of_rows() {
    let env = TestEnv::new().await;
    let key = TenantKey::new([7; 32]);
    let mut connections = Connections::new(&env, &key).await;
    env.psql(
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, agent_id, user_id, model_name, status)
         SELECT 't' || n % 3, 'c' || n, 's', timestamptz '2026-01-01' + n * interval '1 second', n, 'a' || n % 5, 'u' || n % 50,
                'm', CASE n % 20 WHEN 0 THEN 'active' ELSE 'archived' END
         FROM generate_series(1, 20000) AS n;
         INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
         SELECT number, created_at + m * interval '1 second', now(), 'm' || m, 'user', 'c', ''
         FROM conversations, generate_series(1, 3) AS m;
         INSERT INTO daily_stats (tenant_id, agent_id, model_name, day, conversations)
         SELECT 't' || n % 3, 'a' || n % 5, 'm', date '2026-01-01' + n, 1 FROM generate_series(1, 2000) AS n;
         INSERT INTO dead_letters (id, queue, reason, error, tenant_id, routing_key, exchange, body, properties, headers,
                                   attempts, replay_count, first_failed_at, last_failed_at)
         SELECT gen_random_uuid(), 'q', 'schema', 'e', 't' || n % 3, 'r', '', '', '{}', '{}', 1, 0, now(), now()
         FROM generate_series(1, 5000) AS n;
         ANALYZE",
    )
    .await
    .unwrap();
    let mut faults = Vec::new();
    for (name, sql) in statements() {
        let plan = explained(connections.of(&name), &key, &sql).await;
        let mut found = Vec::new();
        examine(&plan, &name, &mut found);
        if !found.is_empty() {
            faults.push(format!("{name}:\n  {}\n{plan:#}", found.join("\n  ")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
    // And such a statement is found.
    for unbounded in [
        "SELECT id FROM conversations WHERE tenant_id = $1 ORDER BY status, id LIMIT 5",
        "SELECT DISTINCT ON (model_name) id FROM conversations WHERE tenant_id = $1 ORDER BY model_name LIMIT 5",
        "SELECT id FROM message_rows WHERE role = $1 LIMIT 5",
        "SELECT id FROM message_rows WHERE conversation = $1 AND created_at > coalesce($2, '-infinity'::timestamptz) LIMIT 5",
    ] {
        let plan = explained(&mut connections.tenants, &key, unbounded).await;
        let mut found = Vec::new();
        examine(&plan, "unbounded", &mut found);
        assert!(!found.is_empty(), "{unbounded}: {plan:#}");
    }
}

#[tokio::test]
async fn words_are_claimed_read_and_written_by_keys() {
    let env = TestEnv::new().await;
    let settings = settings(&env.database_url);
    let owner = Database::open(&settings).unwrap();
    owner.migrate(|| {}).await.unwrap();
    env.psql(
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, status, finalised_at)
         SELECT 't' || n % 3, 'c' || n, 's', now(), n, 'archived', now() FROM generate_series(1, 20000) AS n;
         INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
         SELECT number, created_at + m * interval '1 second', now(), 'm' || m, 'user', 'c', ''
         FROM conversations, generate_series(1, 3) AS m;
         INSERT INTO conversation_words SELECT tenant_id, id, 0, created_at, finalised_at, '{a,b}' FROM conversations;
         INSERT INTO words_due SELECT finalised_at, tenant_id, id FROM conversations;
         ANALYZE",
    )
    .await
    .unwrap();
    let options = crate::connection_settings::options(&settings).unwrap();
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    let key = TenantKey::new([7; 32]);
    for (name, sql) in [
        ("claim", words::CLAIM),
        ("texts", words::TEXTS),
        ("write", words::WRITE),
        ("verify", verify::WORDS_DIFFERING),
        ("lag", words::LAG),
    ] {
        let plan = explained(&mut connection, &key, sql).await;
        let mut found = Vec::new();
        whole_indexes(&plan, false, &mut found);
        assert!(found.is_empty(), "{name}: {found:?}: {plan:#}");
    }
}

/// Notes indexes that are read from their beginning, unless a limit ends that.
fn whole_indexes(plan: &Value, is_limited: bool, found: &mut Vec<String>) {
    let node = plan["Node Type"].as_str().unwrap();
    let is_index = ["Index Scan", "Index Only Scan", "Bitmap Index Scan"].contains(&node);
    if node == "Seq Scan" || is_index && plan["Index Cond"].is_null() && !is_limited {
        found.push(format!("{node} of {}", plan["Relation Name"]));
    }
    // What keeps the order lets the limit end the scan.
    let is_limited = node == "Limit" || is_limited && node == "LockRows";
    for child in plan["Plans"].as_array().into_iter().flatten() {
        whole_indexes(child, is_limited, found);
    }
}

/// The generic plan of a statement, as the API's role has it for a tenant.
async fn explained(connection: &mut PgConnection, key: &TenantKey, sql: &str) -> Value {
    let mut transaction = connection.begin().await.unwrap();
    name_tenant(&mut transaction, key, "t1").await;
    let prepare = format!("PREPARE explained AS {sql}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *transaction).await.unwrap();
    let parameters: i32 = sqlx::query_scalar(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'explained'",
    )
    .fetch_one(&mut *transaction)
    .await
    .unwrap();
    let nulls = match usize::try_from(parameters).unwrap() {
        0 => String::new(),
        many => format!("({})", vec!["NULL"; many].join(", ")),
    };
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE explained{nulls}");
    let row = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *transaction).await.unwrap();
    let plan: Value = sqlx::Row::get(&row, 0);
    sqlx::raw_sql("DEALLOCATE explained").execute(&mut *transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    plan[0]["Plan"].clone()
}

/// Notes what reads more than a bounded number of rows.
fn examine(plan: &Value, statement: &str, faults: &mut Vec<String>) {
    let node = plan["Node Type"].as_str().unwrap();
    let relation = plan["Relation Name"].as_str().unwrap_or_default();
    match node {
        // Only the table with one row.
        "Seq Scan" if relation != "hot_epoch" => faults.push(format!("Seq Scan of {relation}")),
        "Hash" | "Sort" | "Incremental Sort" | "Hash Join" | "Merge Join" => {
            // Sums of days read the rows of the days that were asked for.
            let is_sum_of_days = statement.starts_with("totals");
            if !is_sum_of_days && !plan["Plans"].as_array().unwrap().iter().all(is_bounded) {
                faults.push(format!("{node} of what no limit bounds"));
            }
        }
        // Under row-level security an index is entered with leakproof comparisons of columns and parameters alone. With
        // `coalesce` a page in the middle of a conversation read all messages before it.
        "Index Scan" | "Index Only Scan"
            if plan["Filter"].as_str().is_some_and(|it| it.contains("COALESCE(")) =>
        {
            faults.push(format!("{node} that filters with COALESCE: {}", plan["Filter"]));
        }
        // An index must be entered by a condition, not read from its beginning.
        "Index Scan" | "Index Only Scan" | "Bitmap Index Scan" if plan["Index Cond"].is_null() => {
            faults.push(format!("{node} of all of {}", plan["Index Name"]));
        }
        _ => {}
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        examine(child, statement, faults);
    }
}

/// Whether a limit bounds the rows of a plan.
fn is_bounded(plan: &Value) -> bool {
    let plans = plan["Plans"].as_array().into_iter().flatten();
    let mut inputs = plans
        .filter(|it| {
            ["Outer", "Inner", "Subquery"].iter().any(|of| it["Parent Relationship"] == *of)
        })
        .peekable();
    match plan["Node Type"].as_str().unwrap() {
        "Limit" => true,
        // Of no table: one row.
        "Result" if inputs.peek().is_none() => true,
        _ => inputs.peek().is_some() && inputs.all(is_bounded),
    }
}
