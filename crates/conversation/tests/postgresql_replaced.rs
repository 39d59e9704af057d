//! A PostgreSQL that lost a new generation (by a failover to a lagging standby, a point-in-time recovery, a
//! restored dump) misleads no reader.
//!
//! In each test a saver cannot write its message to Redis. So it gives the conversation a new generation,
//! which invalidates the hot copy, and may acknowledge. Then PostgreSQL goes back to a state that has the
//! message and not the new generation: the numbers of the incomplete copy are current again.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use conversation::Source;
use database::Recorded;
use fixtures::{LIMIT, Replica, applied, ids, key, to_save};
use metrics::{Counter, EpochCause};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use testkit::TestEnv;
use testkit::environment::redis;
use testkit::proxy::Proxy;
use testkit::servers::{BaseBackup, Kind, Server, Servers};
use testkit::wait::eventually;
use tokio_util::sync::CancellationToken;

const COMMITTED: &str = "SELECT count(*) FROM messages WHERE id = 'm2'";

/// Two replicas that save and read through one address of PostgreSQL. The connection of one of them to
/// Redis can be cut.
struct Replicas {
    reader: Replica,
    writer: Replica,
    redis_of_writer: Proxy,
}

impl Replicas {
    async fn at(database_url: &str, redis_url: &str) -> Self {
        let redis_of_writer = Proxy::before(redis_url).await.unwrap();
        let writer = Replica::at(database_url, redis_of_writer.url());
        let reader = Replica::at(database_url, redis_url);
        reader.database.migrate(|| {}).await.unwrap();
        writer.save(&[to_save("s", "m1", &json!({}))]).await;
        assert_eq!(ids(&reader.read_both(&key("s"), 10).await), ["m1"]);
        Self { reader, writer, redis_of_writer }
    }

    /// Saves `m2` without Redis. `committed` runs after its commit and before that of the new generation.
    async fn save_without_redis(&self, database_url: &str, committed: impl AsyncFnOnce()) {
        self.redis_of_writer.cut().await.unwrap();
        let mut blocker = PgConnection::connect(database_url).await.unwrap();
        let lock = "BEGIN; SELECT FROM conversations FOR NO KEY UPDATE";
        sqlx::raw_sql(lock).execute(&mut blocker).await.unwrap();
        let saver = self.writer.saver.clone();
        let saving =
            tokio::spawn(async move { saver.save(&[to_save("s", "m2", &json!({}))]).await });
        eventually("the commit of m2", LIMIT, async || {
            let committed: i64 =
                sqlx::query_scalar(COMMITTED).fetch_one(&mut blocker).await.unwrap();
            if committed == 1 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        committed().await;
        blocker.close().await.unwrap();
        assert_eq!(saving.await.unwrap().unwrap(), [applied()], "acknowledged");
        self.redis_of_writer.restore().await.unwrap();
    }

    /// Expects that reads have both messages, before and after the change of PostgreSQL is recorded, and that
    /// one new epoch is set, under which hot copies are loaded and used again.
    async fn read_every_message(&self) {
        let found = eventually("PostgreSQL to answer", LIMIT, async || {
            self.reader.database.numbers(&key("s")).await.map_err(|error| error.to_string())
        })
        .await;
        assert!(found.conversation.is_some(), "{found:?}");
        for _ in 0..3 {
            let read = self.reader.read(&key("s"), 10).await;
            assert_eq!((read.source, ids(&read.messages)), (Source::Database, vec!["m1", "m2"]));
        }
        let stop = CancellationToken::new();
        let both = [&self.reader, &self.writer];
        let watches = both.map(|replica| tokio::spawn(replica.hot.clone().watch(stop.clone())));
        eventually("a hot copy", LIMIT, async || {
            let read = self.reader.read(&key("s"), 10).await;
            assert_eq!(ids(&read.messages), ["m1", "m2"]);
            if read.source == Source::HotCopy { Ok(()) } else { Err(format!("{read:?}")) }
        })
        .await;
        assert_eq!(self.writer.save(&[to_save("s", "m3", &json!({}))]).await, [applied()]);
        assert_eq!(ids(&self.reader.read_both(&key("s"), 10).await), ["m1", "m2", "m3"]);
        let cause = EpochCause::PostgreSql;
        let changes = both.map(|it| it.metrics.count(Counter::HotEpochChanges { cause }));
        assert_eq!(changes.iter().sum::<u64>(), 1, "{changes:?}");
        stop.cancel();
        for watch in watches {
            watch.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_promoted_standby_that_lacks_a_generation_misleads_no_reader() {
    let servers = Servers::start(&[Kind::PostgreSql, redis()]).await.unwrap();
    let primary = servers.get(Kind::PostgreSql);
    let standby = primary.base_backup("standby", BaseBackup::Standby).await.unwrap();
    standby.start().await.unwrap();
    let address = Proxy::before(&primary.url()).await.unwrap();
    let replicas = Replicas::at(address.url(), &servers.redis().url()).await;
    let replicated = async || {
        reaches(&standby, COMMITTED, "1").await;
        let disconnect = "ALTER SYSTEM SET primary_conninfo = ''";
        standby.psql("postgres", disconnect).await.unwrap();
        standby.psql("postgres", "SELECT pg_reload_conf()").await.unwrap();
        reaches(&standby, "SELECT count(*) FROM pg_stat_wal_receiver", "0").await;
    };
    replicas.save_without_redis(&primary.url(), replicated).await;
    primary.kill().await.unwrap();
    assert_eq!(standby.psql("postgres", "SELECT pg_promote()").await.unwrap(), "t");
    address.lead_to(&standby.url()).await.unwrap();
    replicas.read_every_message().await;
}

#[tokio::test]
async fn a_standby_returns_its_messages_and_makes_no_hot_copy_valid() {
    let servers = Servers::start(&[Kind::PostgreSql, redis()]).await.unwrap();
    let primary = servers.get(Kind::PostgreSql);
    let replicas = Replicas::at(&primary.url(), &servers.redis().url()).await;
    let standby = primary.base_backup("standby", BaseBackup::Standby).await.unwrap();
    standby.start().await.unwrap();
    let of_standby = Replica::at(&standby.url(), &servers.redis().url());
    let numbers = of_standby.database.numbers(&key("s")).await.unwrap();
    assert!(numbers.hot_epoch.is_none() && numbers.conversation.is_some(), "{numbers:?}");
    let read = of_standby.read(&key("s"), 10).await;
    assert_eq!((read.source, read.degraded), (Source::Database, false));
    assert_eq!(ids(&read.messages), ["m1"]);
    assert_eq!(of_standby.database.recorded("redis").await.unwrap(), Recorded::Standby);
    let error = of_standby.database.record_server_identity("redis", 7).await.unwrap_err();
    assert!(error.to_string().contains("a standby"), "{error}");
    assert_eq!(replicas.reader.read(&key("s"), 10).await.source, Source::HotCopy);
}

#[tokio::test]
async fn a_point_in_time_recovery_to_before_a_generation_misleads_no_reader() {
    let servers = Servers::start(&[Kind::PostgreSql, redis()]).await.unwrap();
    let original = servers.get(Kind::PostgreSql);
    let address = Proxy::before(&original.url()).await.unwrap();
    let replicas = Replicas::at(address.url(), &servers.redis().url()).await;
    let recovered =
        original.base_backup("recovered", BaseBackup::RecoveryTo("before")).await.unwrap();
    let committed = async || {
        let restore_point = "SELECT pg_create_restore_point('before')";
        original.psql("postgres", restore_point).await.unwrap();
    };
    replicas.save_without_redis(&original.url(), committed).await;
    original.stop().await.unwrap();
    recovered.start().await.unwrap();
    reaches(&recovered, "SELECT pg_is_in_recovery()", "f").await;
    address.lead_to(&recovered.url()).await.unwrap();
    replicas.read_every_message().await;
}

#[tokio::test]
async fn a_dump_restored_into_the_running_server_misleads_no_reader() {
    let env = TestEnv::new().await;
    let replicas = Replicas::at(&env.database_url, &env.redis_url).await;
    let dump = env.dir().join("dump");
    replicas.save_without_redis(&env.database_url, async || env.dump(&dump).await.unwrap()).await;
    env.restore(&dump).await.unwrap();
    replicas.read_every_message().await;
}

/// Waits until a server gives this answer.
async fn reaches(server: &Server, query: &str, expected: &str) {
    eventually(format!("{query} to be {expected}"), Duration::from_secs(20), async || match server
        .psql("postgres", query)
        .await
        .map_err(|error| format!("{error:#}"))?
    {
        answer if answer == expected => Ok(()),
        other => Err(other),
    })
    .await;
}
