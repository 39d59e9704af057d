//! Clusters that lose a node under load; the workers keep running.

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{
    Agent, AgentAction, AsAction, COLLECTOR, Counts, LIMIT, MIGRATION, PublishedActions, SAVER,
    Scenario, closed, message,
};
use testkit::fleet::Worker;
use testkit::servers::{Kind, Node, Replicas, Servers};
use testkit::wait::eventually;

use crate::{load, publish, until_stored};

/// Sessions that close while a node is dead: enough for each third of a Redis cluster's slots.
const CLOSING: usize = 12;

const ARCHIVED: &str = "SELECT count(*) FROM conversations WHERE status = 'archived'";

#[tokio::test]
async fn a_node_of_a_rabbitmq_cluster_killed_and_brought_back_under_load_loses_nothing() {
    let servers = Servers::start(&[Kind::RabbitMqCluster]).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let fleet = fleet(&scenario).await;
    let mut messages = load("nodes", 4_000, 20);
    messages.splice(..0, closing().iter().map(AsAction::as_action));
    let (before, rest) = messages.split_at(1_000);
    publish(&agent, &mut published, before).await;
    until_stored(&scenario, 500).await;
    // All clients are connected to this node, and it leads every queue: they were declared on it.
    let first = &scenario.server(Kind::RabbitMqCluster).nodes()[0];
    let (during, after) = rest.split_at(2_000);
    let kill = async {
        until_stored(&scenario, 1_200).await;
        first.kill().await.unwrap();
        agent.publish_until_confirmed(&closes()).await;
    };
    tokio::join!(publish_parts(&agent, during), kill);
    published.add_confirmed(during);
    until_stored(&scenario, published.len()).await;
    tokio::join!(publish_parts(&agent, after), async { first.start().await.unwrap() });
    published.add_confirmed(after);

    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.until_sql(ARCHIVED, &CLOSING.to_string()).await;
    for worker in &fleet {
        worker.ready(LIMIT).await.unwrap();
        let failed = [("cause", "error")];
        Counts::reach(worker, "verbatim_consumer_restarts_total", &failed, 1.0).await;
        assert!(worker.log().contains("consumer restarting"), "{}", worker.log_tail());
    }
    scenario.finish(fleet).await;
}

#[tokio::test]
async fn a_redis_cluster_master_that_dies_under_load_is_replaced_by_its_replica() {
    let servers = Servers::start_redis_cluster(Replicas::OfTheFirst).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let nodes = scenario.redis().nodes();
    for node in nodes {
        // 15 s by default; the replica is elected only after it.
        assert_eq!(command(node, &["CONFIG", "SET", "cluster-node-timeout", "2000"]).await, "+OK");
    }
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let fleet = fleet(&scenario).await;
    let mut messages = load("masters", 2_000, 20);
    messages.splice(..0, closing().iter().map(AsAction::as_action));
    publish(&agent, &mut published, &messages[..500]).await;
    published.reconcile(&scenario, &reader).await;
    let epoch = scenario.sql("SELECT epoch FROM hot_epoch").await;
    until_info(&nodes[3], "master_link_status:up").await;
    let kill = async {
        until_stored(&scenario, 600).await;
        nodes[0].kill().await.unwrap();
        agent.publish_all(&closes()).await;
    };
    tokio::join!(publish(&agent, &mut published, &messages[500..]), kill);
    until_info(&nodes[3], "role:master").await;
    published.reconcile(&scenario, &reader).await;
    assert_ne!(scenario.sql("SELECT epoch FROM hot_epoch").await, epoch);
    scenario.until_sql(ARCHIVED, &CLOSING.to_string()).await;
    for worker in &fleet {
        worker.ready(LIMIT).await.unwrap();
    }
    for saver in &fleet[..2] {
        assert!(saver.log().contains("Redis unavailable"), "{}", saver.log_tail());
    }
    // On a busy machine one of them may have had no message during the failover.
    let (one, two) = tokio::join!(Counts::of(&fleet[0]), Counts::of(&fleet[1]));
    let changes = "verbatim_hot_generation_changes_total";
    assert!(one.sum(changes, &[]) + two.sum(changes, &[]) >= 1.0, "{one:?} {two:?}");
    scenario.finish(fleet).await;
}

/// Two savers, a closer and a dead-letter collector.
async fn fleet(scenario: &Scenario) -> [Worker; 4] {
    let (one, two, migration, collector) = tokio::join!(
        scenario.start(SAVER),
        scenario.start(SAVER),
        scenario.start(MIGRATION),
        scenario.start(COLLECTOR),
    );
    [one, two, migration, collector]
}

/// Messages of the sessions that close while a node is dead.
fn closing() -> Vec<Value> {
    let one = |n| message("closing", &format!("s{n}"), &format!("closing{n}"), &json!({}));
    (0..CLOSING).map(one).collect()
}

fn closes() -> Vec<Value> {
    (0..CLOSING).map(|n| closed("closing", &format!("s{n}"), &json!({}))).collect()
}

/// Publishes in parts of 200, while the queues move to other nodes.
async fn publish_parts(agent: &Agent, messages: &[AgentAction]) {
    for part in messages.chunks(200) {
        agent.publish_until_confirmed(part).await;
    }
}

async fn command(node: &Node, words: &[&str]) -> String {
    node.redis(words).await.unwrap()
}

async fn until_info(node: &Node, wanted: &str) {
    eventually(format!("INFO replication to have {wanted}"), Duration::from_secs(30), async || {
        let info = command(node, &["INFO", "replication"]).await;
        if info.contains(wanted) { Ok(()) } else { Err(info) }
    })
    .await;
}
