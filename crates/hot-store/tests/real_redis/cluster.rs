//! Redis Cluster: several masters, which fail and fail over one by one.

use std::collections::BTreeSet;

use crate::support::*;
use domain::message::Message;
use fixtures::{ids, stored};
use hot_store::{Error, HotStore};
use testkit::servers::{Node, Replicas};
use testkit::wait::eventually;

/// Makes a replica the master without the votes of the other masters.
const TAKEOVER: [&str; 3] = ["CLUSTER", "FAILOVER", "TAKEOVER"];

/// Enough conversations for every master to have some.
pub(crate) const MANY: usize = 60;

pub(crate) async fn world() -> World {
    World::cluster(Replicas::None).await
}

pub(crate) fn conversations() -> Vec<String> {
    (0..MANY).map(|i| format!("c-{i}")).collect()
}

/// The conversations of the keys on each node.
async fn on_nodes(world: &World) -> Vec<BTreeSet<String>> {
    let keys = world.raw_each::<BTreeSet<String>>(&["KEYS", "*"]).await;
    let of = |keys: BTreeSet<String>| {
        conversations().into_iter().filter(|it| keys.contains(&name(it))).collect()
    };
    keys.into_iter().map(of).collect()
}

/// Appends a row to every conversation. Returns the conversations that may lack it.
pub(crate) async fn append_to_all(store: &HotStore, row: &Message) -> Vec<String> {
    let names = conversations();
    let batch: Vec<_> = names.iter().map(|it| (key(it), vec![row])).collect();
    match store.append_renewing(&batch, |_| true).await {
        Ok(()) => Vec::new(),
        Err(error) => {
            error.conversations.iter().map(|key| key.conversation.as_str().to_owned()).collect()
        }
    }
}

pub(crate) async fn until_available(store: &HotStore) {
    eventually("the cluster to be available again", SOON, async || {
        store.probe().await.map_err(|error| error.to_string())
    })
    .await;
}

pub(crate) fn password(node: &Node) -> String {
    node.url().split([':', '@']).nth(2).unwrap().to_owned()
}

#[tokio::test]
async fn conversations_are_spread_over_the_masters_and_served_by_each() {
    let world = world().await;
    let store = world.store();
    for conversation in conversations() {
        load(&store, &conversation, &[stored(&conversation, 5)]).await;
    }
    assert_eq!(append_to_all(&store, &stored("later", 6)).await, [""; 0]);
    let spread = on_nodes(&world).await;
    assert!(spread.iter().all(|on_node| on_node.len() >= 10), "{spread:?}");
    let (one, other) = (store.clone(), world.store());
    for conversation in conversations() {
        for store in [&one, &other] {
            let copy = store.read(&key(&conversation), &newest(10)).await.unwrap();
            assert_eq!(ids(&copy.usable(NUMBERS).unwrap()), [&conversation, "later"]);
        }
    }
    let keys: Vec<_> = conversations().iter().map(|it| key(it)).collect();
    store.drop_copies(&keys).await.unwrap();
    assert_eq!(world.keys().await, 0);
    assert_eq!(world.server_identities(), 1, "every store sees the same server identity");
}

#[tokio::test]
async fn many_reads_and_appends_at_once_share_one_connection_to_each_master() {
    let world = world().await;
    let proxy = testkit::proxy::Proxy::before(&world.server().url()).await.unwrap();
    let store = world.store_with(settings(proxy.url()));
    let tasks: Vec<_> = conversations()
        .into_iter()
        .map(|conversation| {
            let store = store.clone();
            tokio::spawn(async move {
                for row in messages(5) {
                    append(&store, &conversation, &[row]).await;
                }
                let copy = store.read(&key(&conversation), &newest(10)).await.unwrap();
                assert_eq!(copy.messages, messages(5));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(proxy.count().accepted, 3);
}

#[tokio::test]
async fn the_cluster_is_discovered_through_any_named_node() {
    let world = world().await;
    let urls: Vec<_> = world.nodes().iter().map(Node::url).collect();
    let unreachable = format!("redis://:{}@127.0.0.1:1/0", password(&world.nodes()[0]));
    for seeds in [
        [urls[2].clone(), urls[2].clone()].join(","),
        [unreachable, urls[1].clone()].join(","),
        [urls[0].clone(), urls[1].clone()].join(","),
    ] {
        let store = world.store_with(settings(&seeds));
        assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
    }
    assert!(on_nodes(&world).await.iter().all(|on_node| on_node.len() >= 10));
    assert_eq!(world.server_identities(), 1);
}

#[tokio::test]
async fn nodes_are_reached_at_the_addresses_that_they_announce() {
    let world = world().await;
    world.configure("cluster-preferred-endpoint-type", "ip").await;
    let store = world.store();
    assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
    assert_eq!(world.keys().await, MANY);
}

#[tokio::test]
async fn several_urls_of_a_single_server_and_one_url_of_a_cluster_are_refused_with_the_fault() {
    let (single, cluster) = tokio::join!(World::single(), world());
    let url = single.server().url();
    let error = single.store_with(settings(&format!("{url},{url}"))).probe().await.unwrap_err();
    let fault = error.to_string();
    assert!(fault.contains("cluster support disabled"), "{fault}");
    assert!(fault.contains("several Redis URLs mean Redis Cluster"), "{fault}");

    let node = &cluster.nodes()[0];
    let error = cluster.store_with(settings(&node.url())).probe().await.unwrap_err();
    let port = node.port();
    let expected = format!(
        "no connection to Redis: 127.0.0.1:{port}/0: it is a node of a Redis Cluster; set the URLs \
         of several nodes, separated by commas (or this URL twice)"
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!((single.checks(), cluster.checks()), (0, 0), "no server identity was checked");
}

#[tokio::test]
async fn a_cluster_with_a_slot_without_owner_is_not_used_until_it_has_one() {
    let world = world().await;
    let store = world.store();
    assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
    for node in world.nodes() {
        raw_on::<()>(node, &["CLUSTER", "DELSLOTS", "0"]).await;
    }
    eventually("the connection to be lost", SOON, async || {
        match append_to_all(&store, &stored("m", 1)).await {
            refused if refused.len() == MANY => Ok(()),
            refused => Err(format!("{refused:?}")),
        }
    })
    .await;
    let error = eventually("the fault", SOON, async || {
        store.probe().await.err().ok_or_else(|| "it is available".to_owned())
    })
    .await;
    let fault = error.to_string();
    assert!(fault.contains("slot 0 of the cluster has no owner"), "{fault}");
    let owner = &world.nodes()[0];
    raw_on::<()>(owner, &["CLUSTER", "ADDSLOTS", "0"]).await;
    until_available(&store).await;
    assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
}

#[tokio::test]
async fn a_master_that_restarts_empty_is_a_new_server_identity_and_only_its_conversations_are_reported()
 {
    let world = world().await;
    let store = world.store();
    let conversations = conversations();
    for conversation in &conversations {
        load(&store, conversation, &messages(2)).await;
    }
    let lost = on_nodes(&world).await.swap_remove(1);
    let node = &world.nodes()[1];
    node.kill().await.unwrap();
    let row = stored("later", 9_000);
    let named: BTreeSet<_> = append_to_all(&store, &row).await.into_iter().collect();
    assert_eq!(named, lost, "the other masters appended their rows");
    assert!(store.is_known_down());
    assert_eq!(
        append_to_all(&store, &row).await.len(),
        MANY,
        "no row is appended without a connection to every master"
    );
    let error = eventually("the fault", SOON, async || match store.probe().await {
        Err(error) if error.to_string().contains(&node.port().to_string()) => Ok(error),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(matches!(error, Error::NotConnected(_)), "{error:?}");

    node.start_empty().await.unwrap();
    until_available(&store).await;
    assert_eq!(world.server_identities(), 2, "copies on the other masters are invalidated too");
    for conversation in &conversations {
        let copy = store.read(&key(conversation), &newest(10)).await.unwrap();
        let expected = if lost.contains(conversation) { 0 } else { 3 };
        assert_eq!(copy.messages.len(), expected, "{conversation}");
    }
}

#[tokio::test]
async fn a_suspended_master_ends_the_connection_and_has_the_same_server_identity_when_it_resumes() {
    let world = world().await;
    let mut settings = world.settings();
    settings.response_timeout = std::time::Duration::from_millis(200);
    settings.connect_timeout = std::time::Duration::from_millis(200);
    let store = world.store_with(settings);
    assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
    let suspended = on_nodes(&world).await.swap_remove(2);
    world.nodes()[2].freeze().unwrap();
    let named: BTreeSet<_> = append_to_all(&store, &stored("later", 2)).await.into_iter().collect();
    assert_eq!(named, suspended);
    assert!(store.is_known_down());
    world.nodes()[2].thaw().unwrap();
    until_available(&store).await;
    assert_eq!(world.server_identities(), 1);
}

#[tokio::test]
async fn a_failover_is_a_new_server_identity_and_so_is_a_failback() {
    let world = World::cluster(Replicas::OfTheFirst).await;
    let [first, .., replica] = world.nodes() else { panic!("four nodes") };
    let store = world.store();
    assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
    // The others vote again only half a minute after the first failover; a takeover needs no votes.
    let turns: [(_, _, &[&str]); 2] =
        [(replica, first, &["CLUSTER", "FAILOVER"]), (first, replica, &TAKEOVER)];
    for (round, (candidate, former, command)) in turns.into_iter().enumerate() {
        eventually("a replica that can take over", SOON, async || {
            match raw_on::<String>(candidate, &["INFO", "replication"]).await {
                info if info.contains("master_link_status:up") => Ok(()),
                info => Err(info),
            }
        })
        .await;
        raw_on::<()>(candidate, command).await;
        eventually("the failover", SOON, async || {
            match raw_on::<String>(former, &["INFO", "replication"]).await {
                info if info.contains("role:slave") => Ok(()),
                info => Err(info),
            }
        })
        .await;
        // The former master is running and replies; it must be neither read nor written.
        let named = append_to_all(&store, &stored("m", 1)).await;
        assert!(!named.is_empty());
        until_available(&store).await;
        assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
        assert_eq!(world.server_identities(), round + 2);
    }
    for conversation in conversations() {
        let copy = store.read(&key(&conversation), &newest(10)).await.unwrap();
        assert_eq!(ids(&copy.messages), ["m"], "{conversation}");
    }
}

#[tokio::test]
async fn a_lagging_replica_that_is_promoted_is_a_new_server_identity() {
    let world = World::cluster(Replicas::OfTheFirst).await;
    let [first, .., replica] = world.nodes() else { panic!("four nodes") };
    let store = world.store();
    assert_eq!(append_to_all(&store, &stored("m", 1)).await, [""; 0]);
    eventually("a replica with the keys", SOON, async || {
        match raw_on::<usize>(replica, &["DBSIZE"]).await {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    // The replica can no longer synchronise.
    raw_on::<()>(replica, &["CONFIG", "SET", "masterauth", "wrong"]).await;
    raw_on::<()>(first, &["CLIENT", "KILL", "TYPE", "replica"]).await;
    assert_eq!(append_to_all(&store, &stored("late", 2)).await, [""; 0]);
    let late = on_nodes(&world).await.swap_remove(0);
    first.kill().await.unwrap();
    raw_on::<()>(replica, &TAKEOVER).await;
    eventually("the connection to be lost", SOON, async || {
        match append_to_all(&store, &stored("m", 1)).await {
            named if named.is_empty() => Err("appended".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    until_available(&store).await;
    assert_eq!(world.server_identities(), 2);
    for conversation in conversations() {
        let copy = store.read(&key(&conversation), &newest(10)).await.unwrap();
        let expected = if late.contains(&conversation) { &["m"][..] } else { &["m", "late"] };
        assert_eq!(ids(&copy.messages), expected, "{conversation}");
    }
}
