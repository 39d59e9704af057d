//! Settings of a role that would lead statements elsewhere.

use fixtures::{Replica, applied, database, sql, to_save};
use serde_json::json;
use testkit::TestEnv;

#[tokio::test]
async fn a_role_that_searches_another_schema_first_saves_where_all_others_read() {
    let env = TestEnv::new().await;
    database(&env.database_url).migrate(|| {}).await.unwrap();
    // A schema with tables of the same names, and a function that hides one of PostgreSQL's.
    for statement in [
        "CREATE SCHEMA other",
        "CREATE TABLE other.conversations (LIKE conversations INCLUDING ALL)",
        "CREATE TABLE other.message_rows (LIKE message_rows INCLUDING ALL)",
        "CREATE FUNCTION other.clock_timestamp() RETURNS timestamptz LANGUAGE sql
             AS $$ SELECT '1999-01-01Z'::timestamptz $$",
        &format!(
            "ALTER ROLE CURRENT_USER IN DATABASE {} SET search_path = other, pg_catalog, public",
            env.name
        ),
    ] {
        env.psql(statement).await.unwrap();
    }
    let replica = Replica::on(database(&env.database_url), &env.redis_url);
    assert_eq!(replica.save(&[to_save("s", "m", &json!({}))]).await, [applied()]);
    let saved = "SELECT (SELECT count(*) FROM public.message_rows), (SELECT count(*) FROM other.message_rows),
                        (SELECT touched_at > '2000-01-01Z' FROM public.conversations)";
    assert_eq!(sql(&env, saved).await, "1|0|t");
}
