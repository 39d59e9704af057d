//! The private servers start, can be broken and restarted, and leave nothing behind.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use testkit::servers::{Durability, Kind, Node, Replicas, Server, Servers};
use testkit::wait::eventually;

const SOON: Duration = Duration::from_secs(10);

/// Every process that has `text` among its arguments or in its environment.
fn processes_naming(text: &str) -> BTreeSet<String> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let dir = entry.ok()?.path();
            let arguments = fs::read(dir.join("cmdline")).unwrap_or_default();
            let environment = fs::read(dir.join("environ")).unwrap_or_default();
            let all = [arguments.as_slice(), &environment].concat();
            let all = String::from_utf8_lossy(&all);
            all.contains(text).then(|| format!("{}: {}", dir.display(), all.replace('\0', " ")))
        })
        .collect()
}

/// The raw reply of Redis to one command.
async fn redis(server: &Server, command: &str) -> Result<String, String> {
    redis_node(&server.nodes()[0], command).await
}

async fn redis_node(node: &Node, command: &str) -> Result<String, String> {
    let words: Vec<_> = command.split(' ').collect();
    tokio::time::timeout(Duration::from_millis(500), node.redis(&words))
        .await
        .map_err(|_| "no reply".to_owned())?
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn all_three_start_and_leave_no_process_and_no_file_behind() {
    let began = Instant::now();
    let servers = Servers::start(&Kind::ALL).await.unwrap();
    println!("ready after {:?}", began.elapsed());

    let pids: Vec<_> = Kind::ALL.map(|kind| servers.get(kind).pid().unwrap()).into();
    let mark = fs::read_to_string(format!("/proc/{}/environ", pids[0])).unwrap();
    let mark = mark.split('\0').find(|it| it.starts_with("VERBATIM_GUARD=")).unwrap().to_owned();
    let dir = fs::read_link(format!("/proc/{}/cwd", pids[0])).unwrap().parent().unwrap().to_owned();
    assert!(
        processes_naming(&mark).len() >= 4,
        "the three and epmd: {:#?}",
        processes_naming(&mark)
    );
    assert_eq!(
        servers.get(Kind::PostgreSql).psql("postgres", "SELECT 40 + 2").await.unwrap(),
        "42"
    );
    assert_eq!(redis(servers.get(Kind::Redis), "PING").await.unwrap(), "+PONG");

    let management = servers.get(Kind::RabbitMq).management();
    let began = Instant::now();
    management.create_virtual_host("made").await.unwrap();
    println!("a virtual host took {:?}", began.elapsed());
    let hosts = management.get("/api/vhosts").await.unwrap();
    assert!(hosts.as_array().unwrap().iter().any(|host| host["name"] == "made"), "{hosts}");
    management.delete_virtual_host("made").await.unwrap();

    let began = Instant::now();
    drop(servers);
    println!("gone after {:?}", began.elapsed());

    assert_eq!(processes_naming(&mark), BTreeSet::new());
    assert_eq!(processes_naming(dir.to_str().unwrap()), BTreeSet::new());
    assert!(!dir.exists(), "{} is still there", dir.display());
}

#[tokio::test]
async fn redis_restarts_with_its_data_or_empty_at_the_same_address() {
    let servers = Servers::start_with(&[Kind::Redis], Durability::Durable).await.unwrap();
    let server = servers.get(Kind::Redis);
    assert_eq!(redis(server, "SET word kept").await.unwrap(), "+OK");
    server.stop().await.unwrap();
    assert!(redis(server, "GET word").await.is_err());
    server.start().await.unwrap();
    assert_eq!(redis(server, "GET word").await.unwrap(), "$4\r\nkept");
    server.kill().await.unwrap();
    server.start_empty().await.unwrap();
    assert_eq!(redis(server, "GET word").await.unwrap(), "$-1");
}

/// A key of each of the three masters.
const KEYS: [&str; 3] = ["{b}", "{c}", "{a}"];

#[tokio::test]
async fn a_redis_cluster_has_three_masters_that_keep_their_data_or_start_empty() {
    let servers = Servers::start_with(&[Kind::RedisCluster], Durability::Durable).await.unwrap();
    let cluster = servers.redis();
    assert_eq!((cluster.nodes().len(), cluster.url().split(',').count()), (3, 3));
    for (node, key) in cluster.nodes().iter().zip(KEYS) {
        assert_eq!(redis_node(node, &format!("SET {key} kept")).await.unwrap(), "+OK");
    }
    let moved = redis_node(&cluster.nodes()[1], &format!("GET {}", KEYS[0])).await.unwrap();
    assert!(moved.starts_with("-MOVED"), "{moved}");
    let get = async |n: usize| {
        redis_node(&cluster.nodes()[n], &format!("GET {}", KEYS[n])).await.unwrap()
    };

    cluster.stop().await.unwrap();
    assert!(redis(cluster, "PING").await.is_err());
    cluster.start().await.unwrap();
    assert_eq!(get(0).await, "$4\r\nkept");
    let one = &cluster.nodes()[2];
    one.kill().await.unwrap();
    one.start_empty().await.unwrap();
    assert_eq!((get(0).await.as_str(), get(2).await.as_str()), ("$4\r\nkept", "$-1"));
    cluster.kill().await.unwrap();
    cluster.start_empty().await.unwrap();
    assert_eq!(get(0).await, "$-1");
}

#[tokio::test]
async fn a_replica_follows_the_first_master_of_a_redis_cluster() {
    let servers = Servers::start_redis_cluster(Replicas::OfTheFirst).await.unwrap();
    let [master, _, _, replica] = servers.redis().nodes() else { panic!("four nodes") };
    redis_node(master, &format!("SET {} word", KEYS[0])).await.unwrap();
    eventually("a replica with the key", SOON, async || {
        let seen = redis_node(replica, "INFO keyspace").await?;
        if seen.contains("keys=1") { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test]
async fn a_frozen_redis_does_not_reply_until_it_is_thawed() {
    let servers = Servers::start(&[Kind::Redis]).await.unwrap();
    let server = servers.get(Kind::Redis);
    server.freeze().unwrap();
    assert_eq!(redis(server, "PING").await.unwrap_err(), "no reply");
    server.thaw().unwrap();
    eventually("a reply", SOON, async || redis(server, "PING").await).await;
}

#[tokio::test]
async fn a_killed_postgresql_keeps_committed_data() {
    let servers = Servers::start_with(&[Kind::PostgreSql], Durability::Durable).await.unwrap();
    let server = servers.get(Kind::PostgreSql);
    let sql = "CREATE TABLE words (word text); INSERT INTO words VALUES ('kept')";
    server.psql("postgres", sql).await.unwrap();
    server.freeze().unwrap();
    server.kill().await.unwrap();
    assert!(server.psql("postgres", "SELECT 1").await.is_err());
    server.start().await.unwrap();
    assert_eq!(server.psql("postgres", "SELECT word FROM words").await.unwrap(), "kept");
    server.stop().await.unwrap();
    server.start_empty().await.unwrap();
    let gone = server.psql("postgres", "SELECT word FROM words").await.unwrap_err();
    assert!(gone.to_string().contains("does not exist"), "{gone}");
}

#[tokio::test]
async fn a_killed_rabbitmq_keeps_its_virtual_hosts_and_an_emptied_one_does_not() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    let server = servers.get(Kind::RabbitMq);
    server.management().create_virtual_host("kept").await.unwrap();
    server.kill().await.unwrap();
    server.start().await.unwrap();
    server.management().get("/api/vhosts/kept").await.unwrap();
    assert!(server.rabbitmqctl(&["list_vhosts"]).await.unwrap().contains("kept"));
    server.kill().await.unwrap();
    server.start_empty().await.unwrap();
    server.management().get("/api/vhosts/kept").await.unwrap_err();
}

#[tokio::test]
async fn an_own_disk_can_be_filled_and_freed() {
    let servers = Servers::start_postgresql_on_a_disk_of(96).await.unwrap();
    let server = servers.get(Kind::PostgreSql);
    let node = &server.nodes()[0];
    let fill = "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 100)";
    server.psql("postgres", "CREATE TABLE t (words text)").await.unwrap();
    server.psql("postgres", fill).await.unwrap();
    node.fill_disk().unwrap();
    let error = server.psql("postgres", fill).await.unwrap_err().to_string();
    assert!(error.contains("No space left on device"), "{error}");
    node.free_disk().unwrap();
    server.psql("postgres", fill).await.unwrap();
    // The disk outlives the server.
    server.stop().await.unwrap();
    server.start().await.unwrap();
    assert_eq!(server.psql("postgres", "SELECT count(*) FROM t").await.unwrap(), "200");
}

#[tokio::test]
async fn three_nodes_of_rabbitmq_form_a_cluster_and_two_continue_without_the_third() {
    let servers = Servers::start(&[Kind::RabbitMqCluster]).await.unwrap();
    let server = servers.get(Kind::RabbitMqCluster);
    assert_eq!(server.url().split(',').count(), 3);
    let management = server.management();
    let declare = r#"{"durable": true, "arguments": {"x-queue-type": "quorum"}}"#;
    management.request("PUT", "/api/queues/%2f/q", declare).await.unwrap();
    let queue = management.get("/api/queues/%2f/q").await.unwrap();
    assert_eq!(queue["members"].as_array().map(Vec::len), Some(3), "{queue}");
    server.nodes()[1].kill().await.unwrap();
    let message =
        r#"{"properties": {}, "routing_key": "q", "payload": "x", "payload_encoding": "string"}"#;
    let path = "/api/exchanges/%2f/amq.default/publish";
    assert_eq!(management.request("POST", path, message).await.unwrap(), r#"{"routed":true}"#);
    server.nodes()[1].start().await.unwrap();
}
