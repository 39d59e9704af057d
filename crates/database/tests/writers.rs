//! Which process a stored message names.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use database::{Database, HotWrites, SaveRow, Saved, Settings, Wanted};
use domain::ids::{ConversationKey, SessionId};
use fixtures::{received_at, stored};
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

async fn save(database: &Database, id: &str) {
    let key = ConversationKey::parse("acme", "c").unwrap();
    let session = SessionId::new("s").unwrap();
    let message = stored(id, received_at().micros());
    let row = SaveRow::new(&key, &session, &message);
    let saved = database.save(&[row], HotWrites::Follow, &|| 7, Wanted::Each).await.unwrap();
    assert_eq!(saved.rows, [Saved::New]);
}

#[tokio::test]
async fn a_message_never_names_a_process_that_did_not_save_it() {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    database.migrate(|| {}).await.unwrap();
    let one = database.clone().saving_as("saver", "host-1".to_owned());
    let other = database.clone().saving_as("saver", "host-2".to_owned());
    save(&one, "a1").await;
    // A failover or a restore to before the first process: its row is gone, and its id is free again.
    let lost =
        "DELETE FROM writers; DELETE FROM message_rows; ALTER TABLE writers ALTER id RESTART";
    env.psql(lost).await.unwrap();
    save(&other, "b1").await;
    // The second of each pair changes no conversation, and is saved by the smaller statement.
    for id in ["a2", "a3"] {
        save(&one, id).await;
    }
    save(&other, "b2").await;
    env.psql("DELETE FROM writers WHERE instance = 'host-1'").await.unwrap();
    for id in ["a4", "a5"] {
        save(&one, id).await;
    }
    let named = "SELECT string_agg(m.id || ' ' || coalesce(w.instance, '-'), ', ' ORDER BY m.id)
                 FROM message_rows m JOIN writers w ON w.id = m.saved_by";
    let expected = "a4 host-1, a5 host-1, b1 host-2, b2 host-2";
    assert_eq!(env.psql(named).await.unwrap(), expected);
    let rows = "SELECT string_agg(instance, ', ' ORDER BY instance) FROM writers";
    assert_eq!(env.psql(rows).await.unwrap(), "host-1, host-2");
}
