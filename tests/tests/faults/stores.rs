//! Stores that are full, demoted to a replica, or restored from an old state.

use conversation::Source;
use system_tests::{
    AgentAction, Counts, LIMIT, PublishedActions, SAVER, Scenario, TestReader, key_of,
};
use testkit::fleet::Worker;
use testkit::servers::{Kind, Node, Servers};
use testkit::wait::eventually;

use crate::{SAVES, load, proxy, publish, until_holding, until_stored, until_unready};

const EPOCH: &str = "SELECT epoch FROM hot_epoch";

#[tokio::test]
async fn a_full_disk_is_an_outage_of_postgresql_and_costs_no_attempt() {
    // A new PostgreSQL and its write-ahead log take 60 MiB.
    let servers = Servers::start_postgresql_on_a_disk_of(128).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let postgresql = &scenario.server(Kind::PostgreSql).nodes()[0];
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let saver = scenario.start(SAVER).await;
    let messages = load("disk", 4_000, 20);
    publish(&agent, &mut published, &messages[..500]).await;
    until_stored(&scenario, 500).await;
    postgresql.fill_disk().unwrap();
    publish(&agent, &mut published, &messages[500..]).await;
    until_holding(&saver).await;
    until_unready(&saver, &["holding: PostgreSQL unavailable"]).await;
    assert!(saver.log().contains("No space left on device"), "{}", saver.log_tail());
    postgresql.free_disk().unwrap();
    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    saver.ready(LIMIT).await.unwrap();
    let counts = Counts::of(&saver).await;
    assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_redis_that_is_full_demoted_or_restored_from_an_old_file_misleads_no_reader() {
    // A node of a cluster could not be demoted by REPLICAOF.
    let servers = Servers::start(&[Kind::Redis]).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let redis = &scenario.redis().nodes()[0];
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let saver = scenario.start(SAVER).await;
    let messages = load("redis", 1_000, 4);
    let mut parts = messages.chunks(200);
    let mut save = async |published: &mut PublishedActions| {
        publish(&agent, published, parts.next().unwrap()).await;
        until_settled(&saver, published.len()).await;
    };
    let failed = [("cause", "append_failed")];
    save(&mut published).await;
    published.reconcile(&scenario, &reader).await;

    // OOM.
    command(redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let before = Counts::of(&saver).await.sum("verbatim_hot_generation_changes_total", &failed);
    save(&mut published).await;
    let changes = "verbatim_hot_generation_changes_total";
    Counts::reach(&saver, changes, &failed, before + 1.0).await;
    assert!(saver.log().contains("OOM"), "{}", saver.log_tail());
    all_are_read(&reader, &messages[..4], 100).await;
    command(redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    published.reconcile(&scenario, &reader).await;

    // READONLY: a replica of a master that does not exist.
    let epoch = scenario.sql(EPOCH).await;
    command(redis, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let before = Counts::of(&saver).await.sum(changes, &[]);
    save(&mut published).await;
    Counts::reach(&saver, changes, &[], before + 1.0).await;
    until_unready(&saver, &["\"redis\":{\"ready\":false"]).await;
    assert!(saver.log().contains("is a replica, not a master"), "{}", saver.log_tail());
    all_are_read(&reader, &messages[..4], 150).await;
    command(redis, &["REPLICAOF", "NO", "ONE"]).await;
    published.reconcile(&scenario, &reader).await;
    let promoted = scenario.sql(EPOCH).await;
    assert_ne!(promoted, epoch, "a new epoch, because it may have lost data");

    // An RDB file with hot copies and completeness markers that were valid when it was written.
    command(redis, &["SAVE"]).await;
    save(&mut published).await;
    published.reconcile(&scenario, &reader).await;
    redis.kill().await.unwrap();
    redis.start().await.unwrap();
    all_are_read(&reader, &messages[..4], 200).await;
    save(&mut published).await;
    published.reconcile(&scenario, &reader).await;
    assert_ne!(scenario.sql(EPOCH).await, promoted);
    saver.ready(LIMIT).await.unwrap();
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_stale_replica_that_replaces_its_master_misleads_no_reader() {
    let one = || async { Servers::start(&[Kind::Redis]).await.unwrap() };
    let (servers, others) = tokio::join!(one(), one());
    let scenario = Scenario::with_own(servers).await;
    let (master, replica) = (&scenario.redis().nodes()[0], &others.redis().nodes()[0]);
    let password = password(master);
    command(replica, &["CONFIG", "SET", "masterauth", &password]).await;
    command(replica, &["REPLICAOF", "127.0.0.1", &master.port().to_string()]).await;
    let address = proxy(&scenario.redis_url).await;
    let (agent, mut published) = (scenario.agent(), PublishedActions::default());
    let reader = TestReader::of(&scenario.database_url, address.url());
    let saver = scenario.start_with(SAVER, &[("REDIS_URL", address.url())]).await;
    let messages = load("stale", 1_200, 4);
    publish(&agent, &mut published, &messages[..400]).await;
    until_settled(&saver, 400).await;
    published.reconcile(&scenario, &reader).await;
    let copied = command(master, &["DBSIZE"]).await;
    eventually("the replica to have all hot copies", LIMIT, async || {
        let keys = command(replica, &["DBSIZE"]).await;
        let link = command(replica, &["INFO", "replication"]).await;
        let behind =
            offset(master, "master_repl_offset").await - offset(replica, "slave_repl_offset").await;
        if keys == copied && behind == 0 { Ok(()) } else { Err(format!("{keys} keys; {link}")) }
    })
    .await;

    // The replica receives no more writes; its markers stay those of the hot copies on the master.
    command(replica, &["CONFIG", "SET", "masterauth", "wrong"]).await;
    command(master, &["CLIENT", "KILL", "TYPE", "replica"]).await;
    publish(&agent, &mut published, &messages[400..800]).await;
    until_settled(&saver, 800).await;
    published.reconcile(&scenario, &reader).await;
    let epoch = scenario.sql(EPOCH).await;
    command(replica, &["ACL", "SETUSER", "default", &format!(">{password}")]).await;
    command(replica, &["REPLICAOF", "NO", "ONE"]).await;
    let before = server_identities(&[&saver]).await;
    address.lead_to(&others.redis().url()).await.unwrap();
    until_one_meets_another_redis(&[&saver], before).await;
    for _ in 0..10 {
        all_are_read(&reader, &messages[..4], 200).await;
    }
    publish(&agent, &mut published, &messages[800..]).await;
    until_settled(&saver, 1_200).await;
    published.reconcile(&scenario, &reader).await;
    assert_ne!(scenario.sql(EPOCH).await, epoch, "hot copies of the former master are invalid");
    saver.ready(LIMIT).await.unwrap();
    assert!(saver.log().contains("Redis unavailable"), "{}", saver.log_tail());
    scenario.finish([saver]).await;
}

/// How often these workers found another Redis server.
pub(crate) async fn server_identities(workers: &[&Worker]) -> f64 {
    let mut sum = 0.0;
    for worker in workers {
        sum += Counts::of(worker).await.sum("verbatim_hot_epoch_changes_total", &[]);
    }
    sum
}

/// Waits until exactly one of these workers counts and logs another Redis server.
pub(crate) async fn until_one_meets_another_redis(workers: &[&Worker], before: f64) {
    let lines = ["first Redis server recorded", "Redis server changed"];
    eventually("one worker to count and log another Redis server", LIMIT, async || {
        let counted = server_identities(workers).await;
        // The workers count and log the first Redis server, too.
        let logged = |worker: &&Worker| {
            let log = worker.log();
            lines.iter().map(|line| log.matches(line).count()).sum::<usize>()
        };
        let logged: usize = workers.iter().map(logged).sum();
        let logged = f64::from(u32::try_from(logged).unwrap());
        let met = counted == before + 1.0 && logged == counted;
        if met {
            Ok(())
        } else {
            Err(format!("{before} before, {counted} counted, {logged} logged"))
        }
    })
    .await;
}

/// Waits until so many messages were acknowledged as saved.
#[expect(clippy::cast_precision_loss, reason = "some hundreds")]
async fn until_settled(saver: &Worker, messages: usize) {
    let applied = [("queue", SAVES), ("outcome", "applied")];
    Counts::reach(saver, "verbatim_deliveries_total", &applied, messages as f64).await;
}

/// Checks that a read of each message's conversation returns all acknowledged messages.
async fn all_are_read(reader: &TestReader, of: &[AgentAction], messages: usize) {
    for message in of {
        let read = reader.transcript(&key_of(&message.body)).await;
        let found = (read.messages.len(), read.degraded);
        assert_eq!(found, (messages, false), "from {:?}", read.source);
        assert!(matches!(read.source, Source::Database | Source::HotCopy));
    }
}

/// Sends a command; the reply must not be an error.
async fn command(node: &Node, words: &[&str]) -> String {
    let reply = node.redis(words).await.unwrap();
    assert!(!reply.starts_with('-'), "{words:?}: {reply}");
    reply
}

async fn offset(node: &Node, field: &str) -> i64 {
    let info = command(node, &["INFO", "replication"]).await;
    let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(-1)
}

fn password(node: &Node) -> String {
    node.url().split([':', '@']).nth(2).unwrap().to_owned()
}
