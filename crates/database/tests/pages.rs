//! Pages of conversations and of messages, as the role of the conversation-api reads them.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use chrono::{DateTime, Utc};
use database::{
    ApiDatabase, ApiRoleKind, Database, PageFilter, PagePosition, ReadingOrder, Statements,
    TenantKey, TotalsRequest, TranscriptRequest, WALK,
};
use domain::ids::{ConversationKey, TenantId};
use domain::status::ConversationStatus;
use support::{api_role, migrated, settings};
use testkit::TestEnv;

struct Archive {
    env: TestEnv,
    api: ApiDatabase,
}

impl Archive {
    async fn new() -> Self {
        let env = TestEnv::new().await;
        let owner = migrated(&env).await;
        let key = TenantKey::new([7; 32]);
        let (_, url) = api_role(&env, &owner, ApiRoleKind::Tenants, &key).await;
        Self { api: ApiDatabase::open(&settings(&url), key, Statements::Prepared).unwrap(), env }
    }

    async fn sql(&self, sql: &str) {
        self.env.psql(sql).await.unwrap();
    }

    /// Conversations 0 to `count` of a tenant; of ten, one is archived, with one agent or user for each remainder.
    async fn conversations(&self, tenant: &str, count: u32) {
        self.sql(&format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, agent_id, user_id, model_name,
                                        status, message_count)
             SELECT '{tenant}', 'c' || n, 's', timestamptz '2026-01-01' + (n / 3) * interval '1 second', n, 'a' || n % 7,
                    'u' || n % 11, 'm' || n % 5, CASE n % 10 WHEN 0 THEN 'archived' ELSE 'active' END, n
             FROM generate_series(0, {count} - 1) AS n"
        ))
        .await;
    }

    fn acme(&self) -> Database {
        self.api.of(&acme())
    }
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// All conversations that match, by pages of this size, as numbers.
async fn all(database: &Database, filter: &PageFilter, limit: u32) -> (Vec<u32>, usize) {
    let (mut found, mut pages, mut after): (Vec<u32>, _, Option<PagePosition>) = (vec![], 0, None);
    loop {
        let page =
            database.conversation_page(&acme(), filter, after.as_ref(), limit).await.unwrap();
        assert!(page.conversations.len() <= limit as usize);
        found.extend(page.conversations.iter().map(|it| it.id[1..].parse::<u32>().unwrap()));
        pages += 1;
        match page.next {
            None => return (found, pages),
            next => after = next,
        }
    }
}

#[tokio::test]
async fn pages_of_any_filter_have_each_conversation_once_newest_first() {
    let archive = Archive::new().await;
    archive.conversations("acme", 200).await;
    archive.conversations("globex", 50).await;
    let database = archive.acme();
    // As the list orders them: three began at each second.
    let mut order: Vec<u32> = (0..200).collect();
    order.sort_by_key(|n| (std::cmp::Reverse(n / 3), std::cmp::Reverse(format!("c{n}"))));
    let text = |prefix: &str, n: u32| Some(format!("{prefix}{n}"));
    let filters: [(PageFilter, &dyn Fn(u32) -> bool); 8] = [
        (PageFilter::default(), &|_| true),
        (PageFilter { agent: text("a", 3), ..PageFilter::default() }, &|n| n % 7 == 3),
        (PageFilter { user: text("u", 3), ..PageFilter::default() }, &|n| n % 11 == 3),
        (PageFilter { model: text("m", 3), ..PageFilter::default() }, &|n| n % 5 == 3),
        (
            PageFilter { status: Some(ConversationStatus::Archived), ..PageFilter::default() },
            &|n| n % 10 == 0,
        ),
        (PageFilter { agent: text("a", 1), user: text("u", 1), ..PageFilter::default() }, &|n| {
            n % 77 == 1
        }),
        (PageFilter { status: Some(ConversationStatus::Active), ..PageFilter::default() }, &|n| {
            n % 10 != 0
        }),
        (
            PageFilter {
                from: Some(at("2026-01-01T00:00:10Z")),
                to: Some(at("2026-01-01T00:00:20Z")),
                ..PageFilter::default()
            },
            &|n| (10..20).contains(&(n / 3)),
        ),
    ];
    for (filter, matches) in filters {
        let expected: Vec<u32> = order.iter().copied().filter(|n| matches(*n)).collect();
        for limit in [1, 2, 7, 200, 500] {
            let (found, _) = all(&database, &filter, limit).await;
            assert_eq!(found, expected, "{filter:?} by {limit}");
        }
    }
}

#[tokio::test]
async fn a_filter_that_matches_hardly_anything_ends_its_pages_after_a_bounded_walk() {
    let archive = Archive::new().await;
    let count = u32::try_from(WALK).unwrap() * 2 + 5_000;
    archive.conversations("acme", count).await;
    archive.sql("UPDATE conversations SET model_name = 'rare' WHERE id IN ('c7', 'c15007')").await;
    let filter = PageFilter { model: Some("rare".to_owned()), ..PageFilter::default() };
    let (found, pages) = all(&archive.acme(), &filter, 50).await;
    assert_eq!((found, pages), (vec![15_007, 7], 3));
    // A page that ends exactly where the walk does loses nothing and repeats nothing.
    archive.sql("UPDATE conversations SET model_name = 'rare' WHERE id LIKE 'c1500%'").await;
    for limit in [1, 3, 11] {
        let (found, _) = all(&archive.acme(), &filter, limit).await;
        assert_eq!(found.len(), 12, "{limit}: {found:?}");
    }
}

#[tokio::test]
async fn counts_of_a_conversation_that_is_not_archived_are_absent() {
    let archive = Archive::new().await;
    archive.conversations("acme", 10).await;
    let page = archive.acme().conversation_page(&acme(), &PageFilter::default(), None, 20).await;
    for conversation in page.unwrap().conversations {
        let is_archived = conversation.status == ConversationStatus::Archived;
        assert_eq!(conversation.message_count.is_some(), is_archived, "{conversation:?}");
    }
}

async fn read_all(
    database: &Database,
    key: &ConversationKey,
    request: &TranscriptRequest,
) -> Vec<u32> {
    let (mut found, mut request) = (vec![], request.clone());
    loop {
        let page = database.transcript_page(key, &request).await.unwrap().unwrap();
        let ids =
            page.messages.iter().map(|it| it.message.id.as_str()[1..].parse::<u32>().unwrap());
        found.extend(ids);
        if !page.has_more {
            return found;
        }
        request.after = page.messages.last().map(|it| it.message.position());
    }
}

#[tokio::test]
async fn pages_of_a_transcript_have_each_message_once_from_either_end() {
    let archive = Archive::new().await;
    archive.conversations("acme", 1).await;
    // Three messages at each time, one deleted, and one before the erasure.
    archive
        .sql(
            "INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT number, timestamptz '2026-01-01' + (n / 3) * interval '1 second', now(), 'm' || n, 'user',
                    repeat('x', n * 10), ''
             FROM generate_series(0, 99) AS n, conversations;
             UPDATE message_rows SET created_at = NULL WHERE id = 'm50';
             UPDATE conversations SET erased_at = timestamptz '2026-01-01';
             INSERT INTO message_tokens SELECT number, 'm99', 42 FROM conversations",
        )
        .await;
    let key = ConversationKey::parse("acme", "c0").unwrap();
    let database = archive.acme();
    let mut expected: Vec<u32> = (3..100).filter(|n| *n != 50).collect();
    expected.sort_by_key(|n| (n / 3, format!("m{n}")));
    for order in [ReadingOrder::OldestFirst, ReadingOrder::NewestFirst] {
        for (limit, max_bytes) in
            [(1, usize::MAX), (7, usize::MAX), (96, usize::MAX), (200, 2_000), (200, 0)]
        {
            let request = TranscriptRequest { order, after: None, limit, max_bytes };
            let found = read_all(&database, &key, &request).await;
            assert_eq!(found, expected, "{request:?}");
        }
        expected.reverse();
    }
    let request =
        TranscriptRequest { order: ReadingOrder::NewestFirst, after: None, limit: 1, max_bytes: 0 };
    let page = database.transcript_page(&key, &request).await.unwrap().unwrap();
    assert_eq!(page.messages[0].tokens, Some(42));
    let unknown = ConversationKey::parse("acme", "c1").unwrap();
    assert!(database.transcript_page(&unknown, &request).await.unwrap().is_none());
    let foreign = ConversationKey::parse("globex", "c0").unwrap();
    assert!(database.transcript_page(&foreign, &request).await.unwrap().is_none());
}

#[tokio::test]
async fn totals_of_several_days_weight_each_average_by_what_it_counts() {
    let archive = Archive::new().await;
    archive.conversations("acme", 10).await;
    archive
        .sql(
            "INSERT INTO daily_stats (tenant_id, agent_id, model_name, day, conversations, messages, tokens,
                                      avg_duration_seconds, avg_response_seconds, responses, avg_satisfaction, ratings,
                                      input_tokens)
             VALUES ('acme', 'a', 'm', '2026-01-01', 1, 10, 100, 10, 1, 3, 5, 1, 7),
                    ('acme', 'a', 'n', '2026-01-02', 3, 20, 200, 20, 5, 1, NULL, 0, NULL),
                    ('acme', '', 'm', '2026-01-02', 1, 1, 1, 0, NULL, 0, 2, 1, NULL),
                    ('acme', 'a', 'm', '2026-02-01', 100, 1, 1, 0, 0, 1, 1, 1, NULL),
                    ('acme', 'gone', 'm', '2026-01-01', 0, 0, 0, NULL, NULL, 0, NULL, 0, NULL),
                    ('globex', 'a', 'm', '2026-01-01', 100, 1, 1, 0, 0, 1, 1, 1, NULL)",
        )
        .await;
    let day = |text: &str| text.parse().unwrap();
    let request =
        TotalsRequest { from: day("2026-01-01"), to: day("2026-01-31"), agent: None, model: None };
    let grouped = archive.acme().totals_of_days(&acme(), &request).await.unwrap();
    assert_eq!((grouped.all.conversations, grouped.all.messages, grouped.all.tokens), (5, 31, 301));
    assert_eq!(grouped.all.avg_duration_seconds, Some(14.0));
    assert_eq!(grouped.all.avg_response_seconds, Some(2.0));
    assert_eq!(grouped.all.avg_satisfaction, Some(3.5));
    assert_eq!((grouped.all.input_tokens, grouped.all.output_tokens), (Some(7), None));
    let names = |groups: &[(String, database::Totals)]| -> Vec<(String, i64)> {
        groups.iter().map(|(name, totals)| (name.clone(), totals.conversations)).collect()
    };
    assert_eq!(names(&grouped.agents), [("a".to_owned(), 4), (String::new(), 1)]);
    assert_eq!(names(&grouped.models), [("n".to_owned(), 3), ("m".to_owned(), 2)]);
    let days: Vec<i64> = grouped.days.iter().map(|(_, totals)| totals.conversations).collect();
    assert_eq!(days, [1, 4]);
    let of_agent =
        TotalsRequest { agent: Some("a".to_owned()), model: Some("m".to_owned()), ..request };
    let grouped = archive.acme().totals_of_days(&acme(), &of_agent).await.unwrap();
    assert_eq!(grouped.all.conversations, 1);
    assert_eq!(archive.acme().active_conversations(&acme()).await.unwrap(), 9);
    let nobody = TenantId::new("nobody").unwrap();
    let none = archive.api.of(&nobody).totals_of_days(&nobody, &of_agent).await.unwrap();
    assert_eq!(none, database::GroupedTotals::default());
}
