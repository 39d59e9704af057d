//! The epoch and the identities of the servers under which it is valid.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use database::{Database, EpochChange, Recorded, Settings};
use domain::failure::FailureClass;
use domain::ids::ConversationKey;
use testkit::TestEnv;

fn open(url: &str) -> Database {
    Database::open(&Settings {
        url: url.to_owned(),
        application: "test".to_owned(),
        connections: 2,
        time_out: Duration::from_secs(10),
        lock_time_out: Duration::from_secs(2),
    })
    .unwrap()
}

async fn migrated() -> (TestEnv, Database) {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    database.migrate(|| {}).await.unwrap();
    (env, database)
}

async fn epoch(database: &Database) -> Option<i64> {
    database.numbers(&key()).await.unwrap().hot_epoch
}

fn key() -> ConversationKey {
    ConversationKey::parse("acme", "c").unwrap()
}

async fn sql(env: &TestEnv, statement: &str) -> String {
    env.psql(statement).await.unwrap()
}

#[tokio::test]
async fn when_two_replicas_record_a_new_server_identity_one_changes_the_epoch() {
    let (_env, database) = migrated().await;
    assert_eq!(epoch(&database).await, None, "no servers are recorded yet");
    assert_eq!(database.record_server_identity("a:1", 10).await.unwrap(), EpochChange::First);
    assert_eq!(database.record_server_identity("a:1", 11).await.unwrap(), EpochChange::Same);
    assert_eq!(epoch(&database).await, Some(10));
    let (one, two) = tokio::join!(
        database.record_server_identity("b:1", 20),
        database.record_server_identity("b:1", 21)
    );
    let changes = [one.unwrap(), two.unwrap()];
    let redis = EpochChange::Changed { redis: true, postgresql: None };
    assert_eq!(changes.iter().filter(|change| **change == redis).count(), 1, "{changes:?}");
    let epoch = epoch(&database).await;
    assert!([Some(20), Some(21)].contains(&epoch), "{epoch:?}");
}

#[tokio::test]
async fn an_epoch_whose_table_was_filled_again_is_not_valid_until_it_is_recorded() {
    let (env, database) = migrated().await;
    database.record_server_identity("a:1", 10).await.unwrap();
    sql(&env, "BEGIN; CREATE TABLE kept AS TABLE hot_epoch; TRUNCATE hot_epoch; INSERT INTO hot_epoch TABLE kept; COMMIT").await;
    assert_eq!(sql(&env, "SELECT epoch FROM hot_epoch").await, "10");
    assert_eq!(epoch(&database).await, None);
    // Tools that only read change nothing.
    assert_eq!(database.recorded("b:1").await.unwrap(), Recorded::NotRedis);
    assert_eq!(database.recorded("a:1").await.unwrap(), Recorded::NotPostgreSql);
    assert_eq!(sql(&env, "SELECT epoch FROM hot_epoch").await, "10");
    let changed = database.record_server_identity("a:1", 20).await.unwrap();
    let EpochChange::Changed { redis: false, postgresql: Some(differences) } = &changed else {
        panic!("{changed:?}")
    };
    assert!(differences.starts_with("relfilenode of hot_epoch "), "{differences}");
    assert_eq!(database.recorded("a:1").await.unwrap(), Recorded::Both);
    assert_eq!(epoch(&database).await, Some(20));
}

#[tokio::test]
async fn an_ordinary_role_reads_the_epoch_and_an_error_names_a_revoked_function() {
    let (env, owner) = migrated().await;
    let role = format!("{}_role", env.name);
    let grant = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'secret' BYPASSRLS;
         GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"
    );
    env.psql(&grant).await.unwrap();
    let (_, address) = env.database_url.rsplit_once('@').unwrap();
    let database = open(&format!("postgres://{role}:secret@{address}"));
    assert_eq!(database.record_server_identity("a:1", 10).await.unwrap(), EpochChange::First);
    assert_eq!(epoch(&database).await, Some(10));
    // In this database only.
    sql(&env, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await;
    let error = database.numbers(&key()).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable);
    assert!(
        error.to_string().contains("permission denied for function pg_control_system"),
        "{error}"
    );
    assert_eq!(epoch(&owner).await, Some(10));
    env.psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}
