//! The role of the conversation-api behind PgBouncer in transaction mode: many clients share few connections of PostgreSQL.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate};
use database::{
    Actor, ApiDatabase, ApiRoleKind, CONVERSATION_READ, Database, DeadLetterPageFilter,
    DeadLetterStatus, Decision, NewAuditEntry, OperatorDatabase, PageFilter, ReadingOrder,
    ReplayOutcome, SchemaError, Selection, Settings, SignedRequest, Statements, TenantKey,
    TotalsRequest, TranscriptRequest,
};
use domain::ids::{ConversationId, ConversationKey, TenantId};
use domain::message::Content;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use support::{api_role, migrated};
use testkit::TestEnv;
use testkit::environment::deep;
use testkit::servers::PgBouncer;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use uuid::Uuid;

const TENANTS: [&str; 2] = ["acme", "globex"];

/// A database with conversations of two tenants, and a PgBouncer before it.
struct Pooled {
    env: TestEnv,
    /// The role, without the pooler.
    direct_url: String,
    pooler: PgBouncer,
}

impl Pooled {
    async fn new(server_connections: u32) -> Self {
        let env = TestEnv::new().await;
        let owner = migrated(&env).await;
        let (_, direct_url) = api_role(&env, &owner, ApiRoleKind::Tenants, &key()).await;
        for tenant in TENANTS {
            let sql = format!(
                "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, agent_id)
                 SELECT '{tenant}', '{tenant}-' || n, 's', timestamptz '2026-01-01' + n * interval '1 s', n, 'ada'
                 FROM generate_series(1, 10) AS n;
                 INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
                 SELECT number, created_at, now(), 'm', 'user', 'of {tenant}', ''
                 FROM conversations WHERE tenant_id = '{tenant}'"
            );
            env.psql(&sql).await.unwrap();
        }
        let pooler = PgBouncer::before(&direct_url, &[], server_connections).await.unwrap();
        Self { env, direct_url, pooler }
    }

    /// A client of the pooler with so many connections to it.
    fn client(&self, statements: Statements, connections: u32) -> ApiDatabase {
        ApiDatabase::open(&settings(self.pooler.url(), connections), key(), statements).unwrap()
    }

    /// Another client of the pooler. As the API it sends no start-up parameter that PgBouncer refuses.
    async fn connection(&self) -> PgConnection {
        let options: PgConnectOptions = self.pooler.url().parse().unwrap();
        PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap()
    }

    /// How many connections PostgreSQL has with the role.
    async fn server_connections(&self) -> u32 {
        let name = self.env.api_role();
        let query = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{name}'");
        self.env.psql(&query).await.unwrap().parse().unwrap()
    }
}

fn settings(url: &str, connections: u32) -> Settings {
    Settings { connections, ..support::settings(url) }
}

fn key() -> TenantKey {
    TenantKey::new([7; 32])
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn conversation(tenant: &TenantId, id: &str) -> ConversationKey {
    let conversation = ConversationId::new(id).unwrap();
    ConversationKey { tenant: tenant.clone(), conversation }
}

fn transcript() -> TranscriptRequest {
    TranscriptRequest {
        order: ReadingOrder::OldestFirst,
        after: None,
        limit: 1,
        max_bytes: 1 << 20,
    }
}

/// Reads, as one tenant, a list or a transcript of this tenant and of the other one. Returns how many rows were foreign.
async fn read(api: &ApiDatabase, round: usize) -> usize {
    let (own, other) = (TENANTS[round % 2], TENANTS[(round + 1) % 2]);
    let (own, other) = (tenant(own), tenant(other));
    let database = api.of(&own);
    // Half of the reads ask for rows of the other tenant, which row-level security hides.
    let asked = if round % 4 < 2 { &own } else { &other };
    let is_own = asked == &own;
    if round.is_multiple_of(3) {
        let key = conversation(asked, &format!("{}-{}", asked.as_str(), 1 + round % 10));
        let page = database.transcript_page(&key, &transcript()).await.unwrap();
        assert_eq!(page.is_some(), is_own, "{key:?} as {own:?}");
        let texts = page.iter().flat_map(|page| &page.messages).map(|it| &it.message.content);
        let expected = Content::Text(format!("of {}", own.as_str()));
        return texts.filter(|text| **text != expected).count();
    }
    let filter = PageFilter::default();
    let page = database.conversation_page(asked, &filter, None, 10).await.unwrap();
    assert_eq!(page.conversations.len(), if is_own { 10 } else { 0 }, "as {own:?}");
    page.conversations.iter().filter(|it| !it.id.starts_with(own.as_str())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_of_two_tenants_on_eight_connections_read_no_foreign_row() {
    const CLIENTS: usize = 200;
    let reads = if deep() { 100_000 } else { 10_000 };
    let pooled = Pooled::new(8).await;
    let start = Arc::new(Barrier::new(CLIENTS));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let api = pooled.client(Statements::Unnamed, 1);
        let start = Arc::clone(&start);
        clients.spawn(async move {
            start.wait().await;
            let mut foreign = 0;
            // Each client reads for both tenants in turn.
            for round in 0..reads / CLIENTS {
                foreign += read(&api, client + round).await;
            }
            // Its connection to the pooler stays open until all have read.
            (api, foreign)
        });
    }
    let ended = clients.join_all().await;
    assert_eq!(ended.iter().map(|(_, foreign)| foreign).sum::<usize>(), 0);
    let connections = pooled.server_connections().await;
    assert!((2..=8).contains(&connections), "{connections}");
}

#[tokio::test]
async fn after_a_transaction_the_next_client_of_the_same_connection_has_no_tenant() {
    let pooled = Pooled::new(1).await;
    let api = pooled.client(Statements::Unnamed, 1);
    let acme = tenant("acme");
    let mut next = pooled.connection().await;
    for ended in ["committed", "read only", "failed", "lost"] {
        let database = api.of(&acme);
        match ended {
            "committed" => {
                let all = PageFilter::default();
                database.conversation_page(&acme, &all, None, 10).await.unwrap();
            }
            "read only" => {
                let key = conversation(&acme, "acme-1");
                database.transcript_page(&key, &transcript()).await.unwrap().unwrap();
            }
            "failed" => {
                let refused = PageFilter { agent: Some("\0".to_owned()), ..PageFilter::default() };
                database.conversation_page(&acme, &refused, None, 10).await.unwrap_err();
            }
            _ => {
                assert_eq!(pooled.server_connections().await, 1);
                let mut lost = pooled.connection().await;
                let set = "BEGIN; SELECT set_config('verbatim.tenant', 'x', true)";
                lost.execute(sqlx::raw_sql(set)).await.unwrap();
                // Closed within its transaction.
                drop(lost);
            }
        }
        let query = "SELECT coalesce(current_setting('verbatim.tenant', true), ''), current_setting('statement_timeout'), \
                     (SELECT count(*)::text FROM pg_prepared_statements)";
        let row = next.fetch_one(sqlx::raw_sql(query)).await.unwrap();
        let seen: [String; 3] = [0, 1, 2].map(|column| row.get(column));
        assert_eq!(seen, ["", "30s", "0"], "{ended}");
        let query = sqlx::raw_sql("SELECT count(*) FROM conversations");
        let refused = next.fetch_one(query).await.unwrap_err();
        assert!(refused.to_string().contains("verbatim.tenant is not set"), "{ended}: {refused}");
    }
}

#[tokio::test]
async fn whatever_the_api_asks_of_postgresql_works_in_transaction_mode() {
    let pooled = Pooled::new(2).await;
    let acme = tenant("acme");
    // Two clients with several connections each, so that transactions and connections are mixed.
    let clients = [1, 2].map(|_| pooled.client(Statements::Unnamed, 4));
    let mut tasks = JoinSet::new();
    for round in 0..40 {
        let (api, acme) = (clients[round % 2].clone(), acme.clone());
        tasks.spawn(async move {
            api.verify().await.unwrap();
            api.probe().await.unwrap();
            assert_eq!(api.api_key("abcdefgh", &[0; 32]).await.unwrap(), None);
            assert_eq!(api.api_key_versions(&["abcdefgh"]).await.unwrap(), []);
            api.api_keys_used(&[("abcdefgh", DateTime::UNIX_EPOCH)]).await.unwrap();
            let database = api.of(&acme);
            let day = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
            let request = TotalsRequest { from: day, to: day, agent: None, model: None };
            database.totals_of_days(&acme, &request).await.unwrap();
            assert_eq!(database.active_conversations(&acme).await.unwrap(), 10);
            let request = SignedRequest {
                key: "abcdefgh",
                nonce: "nonce",
                text: String::new(),
                signature: [0; 32],
                keep_nonce: Duration::from_secs(1),
            };
            assert!(api.signed_request(&request).await.unwrap().is_none());
            let entry = NewAuditEntry {
                actor: "test".to_owned(),
                action: CONVERSATION_READ,
                tenant: Some(acme.clone()),
                subject: None,
                detail: serde_json::Value::Null,
            };
            api.audit(&[entry.clone(), entry]).await.unwrap();
            assert_eq!(read(&api, round).await, 0);
        });
    }
    tasks.join_all().await;
    let owner = Database::open(&settings(&pooled.env.database_url, 1)).unwrap();
    let report = owner.verify_audit(&[], |_| {}).await.unwrap();
    assert_eq!((report.entries, report.chains, report.found), (80, 1, 0), "{report:?}");
}

#[tokio::test]
async fn what_operators_do_works_in_transaction_mode() {
    let pooled = Pooled::new(1).await;
    let owner = Database::open(&settings(&pooled.env.database_url, 1)).unwrap();
    let (_, url) = api_role(&pooled.env, &owner, ApiRoleKind::Operators, &key()).await;
    let id = Uuid::new_v4();
    let sql = format!(
        "INSERT INTO dead_letters (id, queue, reason, error, tenant_id, routing_key, exchange, body, properties, headers,
                                   attempts, replay_count, first_failed_at, last_failed_at)
         VALUES ('{id}', 'q', 'schema', 'e', 'acme', 'r', '', '', '{{}}', '{{}}', 1, 0, now(), now())"
    );
    pooled.env.psql(&sql).await.unwrap();
    let pooler = PgBouncer::before(&url, &[], 2).await.unwrap();
    let open =
        |statements| OperatorDatabase::open(&settings(pooler.url(), 2), key(), statements).unwrap();
    let refused = open(Statements::Prepared).verify().await.unwrap_err();
    assert!(matches!(refused, SchemaError::Pooler("API_OPERATOR_DATABASE_URL")), "{refused}");
    let operators = open(Statements::Unnamed);
    operators.verify().await.unwrap();
    let acme = tenant("acme");
    let database = operators.of(Some(&acme));
    let filter = DeadLetterPageFilter::default();
    let list = database.dead_letter_list(Some(&acme), &filter, None, 10).await.unwrap();
    assert_eq!(list.dead_letters.len(), 1);
    assert!(database.dead_letter(id).await.unwrap().is_some());
    let actor = Actor { name: "test".to_owned(), run: Uuid::new_v4(), tenant: Some(acme) };
    let cursor = database.dead_letter_cursor(Selection::Ids(vec![id])).await.unwrap();
    database.record_run(&actor, "dead_letters.replay", &serde_json::Value::Null).await.unwrap();
    let lease = Duration::from_secs(60);
    let taken = database.take_dead_letters(&cursor, &actor, lease, 1).await.unwrap();
    assert_eq!(taken.dead_letters.len(), 1);
    assert_eq!(database.hold_dead_letters(&[id], &actor, lease).await.unwrap(), [id]);
    let fault = Some("no queue takes it".to_owned());
    let outcome = ReplayOutcome { dead_letter: id, queue: "q".to_owned(), fault };
    assert_eq!(database.note_replayed(&[outcome], &actor).await.unwrap(), 1);
    let open = [DeadLetterStatus::Open];
    let discard = Decision::Discard { why: "test" };
    let done = database.decide_dead_letters(&cursor, &open, discard, &actor, 1).await.unwrap();
    assert_eq!(done.dead_letters, [id]);
}

#[tokio::test]
async fn prepared_statements_are_refused_behind_a_pooler_in_transaction_mode_alone() {
    let pooled = Pooled::new(4).await;
    let refused = pooled.client(Statements::Prepared, 2).verify().await.unwrap_err();
    assert!(matches!(refused, SchemaError::Pooler("API_DATABASE_URL")), "{refused}");
    let direct = settings(&pooled.direct_url, 2);
    for statements in [Statements::Prepared, Statements::Unnamed] {
        ApiDatabase::open(&direct, key(), statements).unwrap().verify().await.unwrap();
    }
}
