//! What a search for words reads: a bounded number of rows, whatever its words and its tenant.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use database::{
    ApiDatabase, ApiRoleKind, ConversationPage, PageFilter, PagePosition, Statements, TenantKey,
    WordSearch,
};
use domain::ids::TenantId;
use domain::words::SearchWords;
use sqlx::{Connection as _, PgConnection};
use support::{api_role, migrated, settings};
use testkit::TestEnv;

/// The blocks of `acme` in one month: more than a look-up of a month may have.
const BLOCKS: i64 = 12_000;

struct Archive {
    env: TestEnv,
    api: ApiDatabase,
}

impl Archive {
    /// `acme` has a conversation every minute since November 2025, and one in 2020; `globex` has as many.
    async fn new() -> Self {
        let env = TestEnv::new().await;
        let owner = migrated(&env).await;
        let key = TenantKey::new([7; 32]);
        let (_, url) = api_role(&env, &owner, ApiRoleKind::Tenants, &key).await;
        env.psql(&format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, agent_id, user_id, model_name,
                                        status, finalised_at)
             SELECT t, 'c' || n, 's', CASE n WHEN 0 THEN timestamptz '2020-02-01'
                                             ELSE timestamptz '2025-11-01' + n * interval '1 minute' END,
                    n, 'a' || n % 4, 'u' || n % 100, 'm', 'archived', now()
             FROM unnest(ARRAY['acme', 'globex']) AS t, generate_series(0, {BLOCKS}) AS n;
             INSERT INTO conversation_words
             SELECT tenant_id, id, block, created_at, finalised_at,
                    ARRAY['common', 'word' || hot_generation]
                    || ARRAY(SELECT verbatim_word_mark(unit, tenant_id, created_at)
                             FROM unnest(ARRAY['month', 'day', 'hour', 'minute']) AS unit)
                    || CASE WHEN tenant_id = 'globex' THEN ARRAY['theirs'] END
             -- Some have several blocks.
             FROM conversations, generate_series(0, CASE hot_generation % 50 WHEN 0 THEN 2 ELSE 0 END) AS block"
        ))
        .await
        .unwrap();
        env.psql("VACUUM ANALYZE").await.unwrap();
        let api = ApiDatabase::open(&settings(&url), key, Statements::Prepared).unwrap();
        api.verify().await.unwrap();
        Self { env, api }
    }

    async fn page(
        &self,
        text: &str,
        filter: &PageFilter,
        after: Option<&PagePosition>,
        time: Duration,
    ) -> ConversationPage {
        let tenant = TenantId::new("acme").unwrap();
        let words = SearchWords::parse(text).unwrap();
        let search = WordSearch { words: &words, filter, after, limit: 50, time };
        self.api.of(&tenant).search_words(&tenant, &search).await.unwrap()
    }

    /// All that is found, and how many pages that took.
    async fn walk(&self, text: &str, filter: &PageFilter, time: Duration) -> (Vec<String>, usize) {
        let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = self.page(text, filter, after.as_ref(), time).await;
            found.extend(page.conversations.into_iter().map(|it| it.id));
            pages += 1;
            match page.next {
                Some(next) => after = Some(next),
                None => return (found, pages),
            }
        }
    }

    /// A connection as the owner with the tenant `acme`.
    async fn owner(&self) -> PgConnection {
        let mut connection = PgConnection::connect(&self.env.database_url).await.unwrap();
        sqlx::query(
            "SELECT set_config('verbatim.tenant', encode(sha256(outer_block || sha256(inner_block || 'acme')), 'hex') || ':acme',
                               false) FROM api_tenant_keys",
        )
        .execute(&mut connection)
        .await
        .unwrap();
        connection
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn frequent_and_rare_words_are_found_once_each_in_pages_that_end_in_time() {
    let archive = Archive::new().await;
    let none = PageFilter::default();
    let (found, pages) = archive.walk("common", &none, LONG).await;
    assert_eq!(found.len() as i64, BLOCKS + 1);
    assert_eq!(pages as i64, BLOCKS / 50 + 1);
    let expected = (1..=BLOCKS).rev().chain([0]).map(|n| format!("c{n}"));
    assert!(found.iter().eq(expected.collect::<Vec<_>>().iter()), "newest first, each once");
    assert_eq!(archive.walk("word0 common", &none, LONG).await, (vec!["c0".to_owned()], 1));
    assert_eq!(archive.walk("theirs", &none, LONG).await, (vec![], 1));
    // No time at all: every page searches one hour of this large month, and then one month.
    let (found, pages) = archive.walk("word0", &none, Duration::ZERO).await;
    assert_eq!((found, pages as i64), (vec!["c0".to_owned()], BLOCKS / 60 + 2));

    // What is stored about the number of blocks changes the look-ups, and never what they find.
    for counts in [
        "UPDATE conversation_word_days SET blocks = 1000000 * blocks",
        "DELETE FROM conversation_word_days WHERE extract(day FROM day) > 4",
        "DELETE FROM conversation_word_days",
    ] {
        archive.env.psql(counts).await.unwrap();
        assert_eq!(
            archive.walk("common", &none, LONG).await.0.len() as i64,
            BLOCKS + 1,
            "{counts}"
        );
        assert_eq!(archive.walk("word0", &none, LONG).await.0, ["c0"], "{counts}");
    }

    let of_user = PageFilter { user: Some("u7".to_owned()), ..PageFilter::default() };
    let (found, _) = archive.walk("common", &of_user, LONG).await;
    assert_eq!(found.len(), 120);
    let at = |n: i64| chrono::DateTime::from_timestamp(1_761_955_200 + n * 60, 0);
    let between = PageFilter {
        agent: Some("a1".to_owned()),
        model: Some("m".to_owned()),
        from: at(101),
        to: at(201),
        ..PageFilter::default()
    };
    let (found, _) = archive.walk("common", &between, LONG).await;
    assert_eq!((found.len(), found[0].as_str(), found[24].as_str()), (25, "c197", "c101"));
    let other = PageFilter { model: Some("n".to_owned()), ..PageFilter::default() };
    assert_eq!(archive.walk("common", &other, LONG).await.0.len(), 0);
    for hides in
        ["status = 'active'", "finalised_at = now() + interval '1 hour'", "status = 'closing'"]
    {
        archive
            .env
            .psql(&format!("UPDATE conversations SET {hides} WHERE id = 'c5'"))
            .await
            .unwrap();
        assert_eq!(archive.walk("word5", &none, LONG).await.0.len(), 0, "{hides}");
    }
}

#[tokio::test]
async fn a_search_reads_rows_of_its_tenant_by_indexes_and_few_of_them() {
    let archive = Archive::new().await;
    for (words, found, conversations, blocks) in [
        // A page of a frequent word: the blocks of the newest hour, which has one, and of its day.
        ("common", 51, 51, 600),
        // Words that nobody has, or another tenant: no block.
        ("never", 0, 0, 0),
        ("theirs", 0, 0, 0),
        ("/2025-11/globex", 0, 0, 0),
        ("word0", 1, 1, 3),
    ] {
        // A connection has the counts of its transactions before, too.
        let mut connection = archive.owner().await;
        let mut transaction = connection.begin().await.unwrap();
        let rows = sqlx::query(
            "SELECT found_id FROM verbatim_conversations_with_words(ARRAY[$1], null, null, null, null, null, null, null, 51,
                                                                    20000) WHERE is_match",
        )
        .bind(words)
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
        assert_eq!(rows.len(), found, "{words}");
        let read: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT relname::text, coalesce(seq_tup_read, 0), coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables
             WHERE relname IN ('conversations', 'conversation_words') ORDER BY relname",
        )
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
        let [(_, words_scanned, words_fetched), (_, scanned, fetched)] = &read[..] else {
            panic!("{read:?}")
        };
        assert_eq!((*words_scanned, *scanned), (0, 0), "{words}: {read:?}");
        assert!(*fetched <= conversations && *words_fetched <= blocks, "{words}: {read:?}");
        // How large a month or a day is, is not counted: the first hour is, and each look-up begins with one entry.
        let by_date =
            "SELECT pg_stat_get_xact_tuples_returned('conversation_words_by_date'::regclass)";
        let by_date: i64 = sqlx::query_scalar(by_date).fetch_one(&mut *transaction).await.unwrap();
        assert!(by_date <= 100, "{words}: {by_date} entries of the index by date");
        transaction.commit().await.unwrap();
    }
}

#[tokio::test]
async fn an_injected_call_finds_conversations_of_its_tenant_alone() {
    let archive = Archive::new().await;
    let mut connection = archive.owner().await;
    let of_all = "SELECT count(*), count(*) FILTER (WHERE c.id IS NULL) FROM verbatim_conversations_with_words(
                      $1, null, null, null, null, null, null, null, 100000, 20000) AS f
                  LEFT JOIN conversations c ON c.tenant_id = 'acme' AND c.id = f.found_id AND c.created_at = f.found_at";
    for (words, expected) in [
        (vec![], BLOCKS + 1),
        (vec!["common"], BLOCKS + 1),
        (vec!["/2025-11/acme"], BLOCKS),
        (vec!["/2025-11/globex"], 0),
        (vec!["theirs"], 0),
        (vec!["' OR true --"], 0),
    ] {
        let found: (i64, i64) =
            sqlx::query_as(of_all).bind(&words).fetch_one(&mut connection).await.unwrap();
        assert_eq!(found, (expected, 0), "{words:?}");
    }
    sqlx::query("SELECT set_config('verbatim.tenant', repeat('0', 64) || ':globex', false)")
        .execute(&mut connection)
        .await
        .unwrap();
    let unsigned = sqlx::query(of_all).bind(vec!["common"]).fetch_one(&mut connection).await;
    assert!(unsigned.unwrap_err().to_string().contains("row-level security"));
}
