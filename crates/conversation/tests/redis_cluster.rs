//! Failovers and moved slots of a Redis Cluster mislead no reader.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use conversation::Source;
use fixtures::{LIMIT, Replica, database, ids, key, to_save};
use serde_json::json;
use testkit::TestEnv;
use testkit::servers::{Node, Replicas, Servers};
use testkit::wait::eventually;

/// Runs one command; its reply must not be an error.
async fn run(node: &Node, command: &[&str]) -> String {
    let reply = node.redis(command).await.unwrap();
    assert!(!reply.starts_with('-'), "{command:?}: {reply}");
    reply.lines().last().unwrap_or_default().to_owned()
}

/// The Redis key of a session's conversation.
fn name(session: &str) -> String {
    format!("messages:{{{}}}", key(session))
}

/// A session whose conversation lies on the first master, and its slot.
async fn session_of_the_first(nodes: &[Node]) -> (String, String) {
    for session in (0..).map(|n| format!("s{n}")) {
        let slot = run(&nodes[0], &["CLUSTER", "KEYSLOT", &name(&session)]).await;
        let slot = slot.strip_prefix(':').unwrap().to_owned();
        if slot.parse::<u16>().unwrap() <= 5_460 {
            return (session, slot);
        }
    }
    unreachable!("a third of all keys lies there")
}

async fn stores(cluster: &Servers) -> (TestEnv, Replica) {
    let env = TestEnv::new().await;
    database(&env.database_url).migrate(|| {}).await.unwrap();
    let replica = Replica::at(&env.database_url, &cluster.redis().url());
    (env, replica)
}

async fn back_in_redis(replica: &Replica) {
    eventually("a connection to Redis", LIMIT, async || {
        replica.hot.probe().await.map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_lagging_replica_that_is_promoted_misleads_no_reader() {
    let cluster = Servers::start_redis_cluster(Replicas::OfTheFirst).await.unwrap();
    let nodes = cluster.redis().nodes();
    let (first, last) = (&nodes[0], &nodes[3]);
    let (_env, replica) = stores(&cluster).await;
    let (session, _) = session_of_the_first(nodes).await;
    replica.save(&[to_save(&session, "m1", &json!({}))]).await;
    assert_eq!(ids(&replica.read_both(&key(&session), 10).await), ["m1"]);
    eventually("the copy on the replica", LIMIT, async || {
        let keys = run(last, &["DBSIZE"]).await;
        if keys == ":1" { Ok(()) } else { Err(keys) }
    })
    .await;
    let copied = run(first, &["ZCARD", &name(&session)]).await;
    assert_eq!(
        copied, ":2",
        "a message, and a marker that stays valid until the epoch or generation changes"
    );

    // The replica can no longer replicate, and is promoted without the latest writes.
    run(last, &["CONFIG", "SET", "masterauth", "wrong"]).await;
    run(first, &["CLIENT", "KILL", "TYPE", "replica"]).await;
    replica.save(&[to_save(&session, "m2", &json!({}))]).await;
    assert_eq!(replica.read(&key(&session), 10).await.source, Source::HotCopy);
    first.kill().await.unwrap();
    run(last, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await;

    let read = replica.read(&key(&session), 10).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::Database, vec!["m1", "m2"]));
    back_in_redis(&replica).await;
    let read = replica.read(&key(&session), 10).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::Database, vec!["m1", "m2"]));
    assert_eq!(ids(&replica.read_both(&key(&session), 10).await), ["m1", "m2"]);
}

#[tokio::test]
async fn a_copy_that_an_aborted_slot_migration_left_behind_is_not_used() {
    let cluster = Servers::start_redis_cluster(Replicas::None).await.unwrap();
    let nodes = cluster.redis().nodes();
    let (from, to) = (&nodes[0], &nodes[1]);
    let (_env, replica) = stores(&cluster).await;
    let (session, slot) = session_of_the_first(nodes).await;
    replica.save(&[to_save(&session, "m1", &json!({}))]).await;
    assert_eq!(ids(&replica.read_both(&key(&session), 10).await), ["m1"]);

    // The copy is sent to the new master, while the old one still owns the slot and keeps using its own.
    let (from_id, to_id) =
        (run(from, &["CLUSTER", "MYID"]).await, run(to, &["CLUSTER", "MYID"]).await);
    run(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
    run(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
    let (port, url) = (to.port().to_string(), to.url());
    let password = url.split([':', '@']).nth(2).unwrap();
    let name = name(&session);
    run(from, &["MIGRATE", "127.0.0.1", &port, &name, "0", "5000", "COPY", "AUTH", password]).await;
    replica.save(&[to_save(&session, "m2", &json!({}))]).await;
    assert_eq!(replica.read(&key(&session), 10).await.source, Source::HotCopy);
    run(from, &["UNLINK", &name]).await;
    for node in [to, from, &nodes[2]] {
        run(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
    }

    back_in_redis(&replica).await;
    for _ in 0..2 {
        let read = replica.read(&key(&session), 10).await;
        assert_eq!(ids(&read.messages), ["m1", "m2"], "{:?}", read.source);
        back_in_redis(&replica).await;
    }
    assert_eq!(ids(&replica.read_both(&key(&session), 10).await), ["m1", "m2"]);
}
