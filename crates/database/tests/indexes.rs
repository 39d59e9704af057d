//! Every value that an action may have fits into every index.
//!
//! An entry of a B-tree has at most 2704 bytes (a third of a page, PostgreSQL's manual, 67.4), so an unbounded text in
//! an index would refuse its row. For `json`, `bytea` and text outside of indexes the limit is 1 GB.

use std::time::Duration;

use database::{Database, Settings};
use domain::ids::MAX_ID_BYTES;
use testkit::TestEnv;

/// The largest entry of a B-tree, in bytes.
const MAX_ENTRY_BYTES: usize = 2704;

/// The longest text of each indexed column, in bytes.
fn longest(table: &str, column: &str) -> usize {
    match (table, column) {
        // Names of queues and reasons, which the fleet defines.
        ("dead_letters", "queue" | "reason") => 64,
        ("tombstones", "kind") => 12,
        (_, "id") if table != "writers" => MAX_ID_BYTES,
        (
            _,
            "tenant_id" | "conversation_id" | "session_id" | "message_id" | "agent_id" | "subject"
            | "profile" | "user_id",
        ) => MAX_ID_BYTES,
        // Statistics have the first 256 characters of it.
        ("conversation_stats" | "daily_stats", "model_name") => 256 * 4,
        // Only a nonce of a key that exists is stored (`access::ApiKey`, `access::RequestSignature`).
        ("api_nonces", "key_id") => 8,
        ("api_nonces", "nonce") => 64,
        // This version writes no bot state.
        ("bot_states", "key") => MAX_ID_BYTES,
        _ => panic!("how long may {table}.{column} be? an index needs a limit"),
    }
}

#[tokio::test]
async fn the_longest_ids_fit_into_every_index() {
    let env = TestEnv::new().await;
    let settings = Settings {
        url: env.database_url.clone(),
        application: "test".to_owned(),
        connections: 1,
        time_out: Duration::from_secs(10),
        lock_time_out: Duration::from_secs(2),
    };
    Database::open(&settings).unwrap().migrate(|| {}).await.unwrap();
    let columns = "SELECT coalesce(string_agg(concat_ws(' ', i.indexrelid::regclass, c.relname,
                       (SELECT string_agg(a.attname, ' ') FROM pg_attribute a
                        WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey) AND a.atttypid = 'text'::regtype)
                   ), E'\\n'), '')
                   FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
                   WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT LIKE '\\_sqlx%'";
    let indexes = env.psql(columns).await.unwrap();
    let mut texts = 0;
    for index in indexes.lines() {
        let mut words = index.split_whitespace();
        let (name, table) = (words.next().unwrap(), words.next().unwrap());
        let bytes: usize = words.map(|column| longest(table, column)).sum();
        texts += usize::from(bytes > 0);
        // Other columns of an entry are short: times, numbers, a hash of 32 bytes.
        assert!(bytes + 100 < MAX_ENTRY_BYTES, "{name} of {table} may need {bytes} bytes");
    }
    assert!(texts > 20, "only {texts} indexes with texts:\n{indexes}");
}
