//! What only a Redis Cluster does: several masters, and slots that move between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::*;
use domain::message::Message;
use hot_store::{Error, HotStore, Loaded, Miss};
use testkit::servers::{Node, Replicas};
use testkit::wait::eventually;

/// A replica becomes the master, whatever the others say.
const TAKEOVER: [&str; 3] = ["CLUSTER", "FAILOVER", "TAKEOVER"];

/// Enough conversations for every master to have some.
const MANY: usize = 60;

async fn world() -> World {
    World::cluster(Replicas::None).await
}

fn conversations() -> Vec<String> {
    (0..MANY).map(|i| format!("c-{i}")).collect()
}

/// The conversations that each node has a key of.
async fn on_nodes(world: &World) -> Vec<BTreeSet<String>> {
    let keys = world.raw_each::<BTreeSet<String>>(&["KEYS", "*"]).await;
    let of = |keys: BTreeSet<String>| {
        conversations().into_iter().filter(|it| keys.contains(&name(it))).collect()
    };
    keys.into_iter().map(of).collect()
}

async fn append_to_all(store: &HotStore, row: &Message) -> Vec<String> {
    let names = conversations();
    let batch: Vec<_> = names.iter().map(|it| (key(it), vec![row])).collect();
    match store.append(&batch).await {
        Ok(()) => Vec::new(),
        Err(error) => {
            error.conversations.iter().map(|key| key.conversation.as_str().to_owned()).collect()
        }
    }
}

async fn up_again(store: &HotStore) {
    eventually("the cluster to serve again", SOON, async || {
        store.probe().await.map_err(|error| error.to_string())
    })
    .await;
}

async fn slot(world: &World, conversation: &str) -> String {
    let slots = world.raw_each::<u16>(&["CLUSTER", "KEYSLOT", &name(conversation)]).await;
    slots[0].to_string()
}

async fn id(node: &Node) -> String {
    raw_on(node, &["CLUSTER", "MYID"]).await
}

fn password(node: &Node) -> String {
    node.url().split([':', '@']).nth(2).unwrap().to_owned()
}

/// Which node has a conversation's key, or would have it.
async fn owner<'a>(world: &'a World, conversation: &str) -> &'a Node {
    let slot: i64 = slot(world, conversation).await.parse().unwrap();
    // As the cluster begins: a third of the slots each.
    &world.nodes()[usize::try_from((slot * 3) / 16_384).unwrap()]
}

/// A slot on its way from one master to another.
struct Move<'a> {
    slot: String,
    from: &'a Node,
    to: &'a Node,
}

impl<'a> Move<'a> {
    /// Opens the slot of a conversation for its way to the next master.
    async fn begin(world: &'a World, conversation: &str) -> Self {
        let from = owner(world, conversation).await;
        let to = world.nodes().iter().find(|node| node.port() != from.port()).unwrap();
        let slot = slot(world, conversation).await;
        let (from_id, to_id) = (id(from).await, id(to).await);
        raw_on::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
        raw_on::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
        Self { slot, from, to }
    }

    /// Moves a conversation's key, or copies it there.
    async fn migrate(&self, conversation: &str, options: &[&str]) {
        let (port, password) = (self.to.port().to_string(), password(self.to));
        let key = name(conversation);
        let command = ["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"];
        let command = [&command[..], options, &["AUTH", &password]].concat();
        assert_eq!(raw_on::<String>(self.from, &command).await, "OK");
    }

    /// The slot has arrived, and every node knows.
    async fn finish(self, world: &World) {
        let to_id = id(self.to).await;
        for node in [self.to, self.from] {
            raw_on::<()>(node, &["CLUSTER", "SETSLOT", &self.slot, "NODE", &to_id]).await;
        }
        for node in world.nodes() {
            raw_on::<()>(node, &["CLUSTER", "SETSLOT", &self.slot, "NODE", &to_id]).await;
        }
    }
}

#[tokio::test]
async fn conversations_are_spread_over_the_masters_and_served_by_each() {
    let world = world().await;
    let store = world.store();
    for conversation in conversations() {
        load(&store, &conversation, &[message(&conversation, 5)]).await;
    }
    assert_eq!(append_to_all(&store, &message("later", 6)).await, [""; 0]);
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
    assert_eq!(world.reigns(), 1, "one reign, whoever looks");
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
async fn any_named_node_leads_to_all_of_them() {
    let world = world().await;
    let urls: Vec<_> = world.nodes().iter().map(Node::url).collect();
    let gone = format!("redis://:{}@127.0.0.1:1/0", password(&world.nodes()[0]));
    for seeds in [
        [urls[2].clone(), urls[2].clone()].join(","),
        [gone, urls[1].clone()].join(","),
        [urls[0].clone(), urls[1].clone()].join(","),
    ] {
        let store = world.store_with(settings(&seeds));
        assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
    }
    assert!(on_nodes(&world).await.iter().all(|on_node| on_node.len() >= 10));
    assert_eq!(world.reigns(), 1);
}

#[tokio::test]
async fn nodes_that_tell_their_addresses_are_reached_there() {
    let world = world().await;
    world.configure("cluster-preferred-endpoint-type", "ip").await;
    let store = world.store();
    assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
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
        "no connection to Redis: 127.0.0.1:{port}/0: it is a node of a Redis Cluster: name several \
         nodes, with commas between their URLs (or this one twice)"
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!((single.asked(), cluster.asked()), (0, 0), "nobody was admitted");
}

#[tokio::test]
async fn a_cluster_with_a_slot_that_nobody_owns_is_not_used_until_somebody_does() {
    let world = world().await;
    let store = world.store();
    assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
    for node in world.nodes() {
        raw_on::<()>(node, &["CLUSTER", "DELSLOTS", "0"]).await;
    }
    eventually("the connection to be lost", SOON, async || {
        match append_to_all(&store, &message("m", 1)).await {
            refused if refused.len() == MANY => Ok(()),
            refused => Err(format!("{refused:?}")),
        }
    })
    .await;
    let error = eventually("the fault", SOON, async || {
        store.probe().await.err().ok_or_else(|| "it serves".to_owned())
    })
    .await;
    let fault = error.to_string();
    assert!(fault.contains("slot 0 of the cluster has no owner"), "{fault}");
    let owner = &world.nodes()[0];
    raw_on::<()>(owner, &["CLUSTER", "ADDSLOTS", "0"]).await;
    up_again(&store).await;
    assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
}

#[tokio::test]
async fn one_master_that_restarts_empty_is_a_new_reign_and_names_its_conversations_alone() {
    let world = world().await;
    let store = world.store();
    let conversations = conversations();
    for conversation in &conversations {
        load(&store, conversation, &messages(2)).await;
    }
    let lost = on_nodes(&world).await.swap_remove(1);
    let node = &world.nodes()[1];
    node.kill().await.unwrap();
    let row = message("later", 9_000);
    let named: BTreeSet<_> = append_to_all(&store, &row).await.into_iter().collect();
    assert_eq!(named, lost, "the other masters took what is theirs");
    assert!(store.is_known_down());
    assert_eq!(append_to_all(&store, &row).await.len(), MANY, "all or nothing");
    let error = eventually("the fault", SOON, async || match store.probe().await {
        Err(error) if error.to_string().contains(&node.port().to_string()) => Ok(error),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(matches!(error, Error::NotConnected(_)), "{error:?}");

    node.start_empty().await.unwrap();
    up_again(&store).await;
    assert_eq!(world.reigns(), 2, "copies on the other masters are void as well");
    for conversation in &conversations {
        let copy = store.read(&key(conversation), &newest(10)).await.unwrap();
        let expected = if lost.contains(conversation) { 0 } else { 3 };
        assert_eq!(copy.messages.len(), expected, "{conversation}");
    }
}

#[tokio::test]
async fn a_master_that_falls_silent_ends_the_connection_and_is_the_same_reign_when_it_speaks() {
    let world = world().await;
    let mut settings = world.settings();
    settings.response_timeout = std::time::Duration::from_millis(200);
    settings.connect_timeout = std::time::Duration::from_millis(200);
    let store = world.store_with(settings);
    assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
    let silent = on_nodes(&world).await.swap_remove(2);
    world.nodes()[2].freeze().unwrap();
    let named: BTreeSet<_> =
        append_to_all(&store, &message("later", 2)).await.into_iter().collect();
    assert_eq!(named, silent);
    assert!(store.is_known_down());
    world.nodes()[2].thaw().unwrap();
    up_again(&store).await;
    assert_eq!(world.reigns(), 1);
}

#[tokio::test]
async fn slots_that_move_while_savers_append_cost_the_moved_conversations_and_lose_no_other() {
    let world = world().await;
    let stores = [world.store(), world.store()];
    let done = AtomicBool::new(false);
    // What was appended and not named since: it must be in the copy.
    let saver = async |store: &HotStore, saver: usize| {
        let mut kept: BTreeMap<String, Vec<String>> =
            conversations().into_iter().map(|it| (it, Vec::new())).collect();
        let (mut round, mut after) = (0, 0);
        while after < 5 {
            let row = message(&format!("m-{saver}-{round:05}"), 1_000 + round);
            let named = append_to_all(store, &row).await;
            for (conversation, rows) in &mut kept {
                if named.contains(conversation) {
                    // A new generation would void whatever was there.
                    rows.clear();
                } else {
                    rows.push(row.id.to_string());
                }
            }
            round += 1;
            after += usize::from(done.load(Ordering::SeqCst) && named.is_empty());
            tokio::task::yield_now().await;
        }
        kept
    };
    let moves = async {
        for conversation in ["c-1", "c-2", "c-3", "c-4"] {
            let slot = Move::begin(&world, conversation).await;
            slot.migrate(conversation, &[]).await;
            slot.finish(&world).await;
            eventually("both savers to have found the new owner", SOON, async || {
                for store in &stores {
                    store.read(&key(conversation), &newest(1)).await.map_err(|e| e.to_string())?;
                }
                Ok(())
            })
            .await;
        }
        done.store(true, Ordering::SeqCst);
    };
    // The first append makes the keys that are going to be moved.
    for store in &stores {
        assert_eq!(append_to_all(store, &message("first", 1)).await, [""; 0]);
    }
    let (one, two, ()) = tokio::join!(saver(&stores[0], 0), saver(&stores[1], 1), moves);
    assert!(world.reigns() >= 5, "each move is another reign: {}", world.reigns());
    for kept in [one, two] {
        for (conversation, rows) in kept {
            assert!(rows.len() >= 5, "{conversation}: {rows:?}");
            let copy = stores[0].read(&key(&conversation), &newest(100_000)).await.unwrap();
            let there: BTreeSet<_> = copy.messages.iter().map(|row| row.id.to_string()).collect();
            let lacks: Vec<_> = rows.iter().filter(|row| !there.contains(*row)).collect();
            assert!(lacks.is_empty(), "{conversation} lacks {lacks:?}");
        }
    }
}

#[tokio::test]
async fn while_a_slot_is_handed_over_only_its_missing_keys_are_refused() {
    let world = world().await;
    let store = world.store();
    load(&store, "c-1", &messages(2)).await;
    let slot = Move::begin(&world, "c-1").await;
    assert_eq!(
        append_to_all(&store, &message("here", 9_000)).await,
        [""; 0],
        "it has not moved yet"
    );
    slot.migrate("c-1", &[]).await;

    assert_eq!(append_to_all(&store, &message("there", 9_001)).await, ["c-1"]);
    let error = store.read(&key("c-1"), &newest(10)).await.unwrap_err();
    assert!(matches!(error, Error::Refusing(_)), "{error:?}");
    assert!(matches!(store.begin_load(&key("c-1")).await, Err(Error::Refusing(_))));
    let keys: Vec<_> = conversations().iter().map(|it| key(it)).collect();
    let error = store.drop_copies(&keys).await.unwrap_err();
    assert!(matches!(error, Error::Refusing(_)), "{error:?}");
    assert_eq!(world.keys().await, 1, "its neighbours are dropped all the same");
    assert!(store.is_up(), "the connection is not at fault");
    assert_eq!(world.reigns(), 1);

    slot.finish(&world).await;
    let error = store.read(&key("c-1"), &newest(10)).await.unwrap_err();
    assert!(matches!(error, Error::NotServing(_)), "{error:?}");
    up_again(&store).await;
    assert_eq!(world.reigns(), 2);
    let copy = store.read(&key("c-1"), &newest(10)).await.unwrap();
    assert_eq!(ids(&copy.messages), ["m-000000", "m-000001", "here"]);
}

#[tokio::test]
async fn a_copy_that_a_broken_off_move_left_behind_is_under_another_reign() {
    let world = world().await;
    let store = world.store();
    load(&store, "c-1", &messages(2)).await;
    let slot = Move::begin(&world, "c-1").await;
    // The new master has the copy and its mark, but the old one never heard so and goes on.
    slot.migrate("c-1", &["COPY"]).await;
    append(&store, "c-1", &[message("acknowledged", 9_000)]).await;
    world.raw::<()>(&["UNLINK", &name("c-1")]).await;
    slot.finish(&world).await;
    store.read(&key("c-1"), &newest(10)).await.unwrap_err();
    up_again(&store).await;
    let copy = store.read(&key("c-1"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(messages(2)), "with a mark, and without a row");
    assert_eq!(world.reigns(), 2, "so the numbers of that mark no longer hold");
}

#[tokio::test]
async fn a_load_that_a_slot_leaves_behind_is_superseded() {
    let world = world().await;
    let store = world.store();
    let intent = store.begin_load(&key("c-1")).await.unwrap();
    let slot = Move::begin(&world, "c-1").await;
    slot.migrate("c-1", &[]).await;
    slot.finish(&world).await;
    store.read(&key("c-1"), &newest(1)).await.unwrap_err();
    up_again(&store).await;
    let loaded = store.finish_load(intent, &whole(), &messages(2)).await.unwrap();
    assert_eq!(loaded, Loaded::Superseded);
    let copy = store.read(&key("c-1"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMark));
}

#[tokio::test]
async fn a_failover_is_a_new_reign_and_so_is_the_way_back() {
    let world = World::cluster(Replicas::OfTheFirst).await;
    let [first, .., replica] = world.nodes() else { panic!("four nodes") };
    let store = world.store();
    assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
    // The others vote again only half a minute after the first failover; a takeover needs no votes.
    let turns: [(_, _, &[&str]); 2] =
        [(replica, first, &["CLUSTER", "FAILOVER"]), (first, replica, &TAKEOVER)];
    for (round, (candidate, deposed, command)) in turns.into_iter().enumerate() {
        eventually("a replica that can take over", SOON, async || {
            match raw_on::<String>(candidate, &["INFO", "replication"]).await {
                info if info.contains("master_link_status:up") => Ok(()),
                info => Err(info),
            }
        })
        .await;
        raw_on::<()>(candidate, command).await;
        eventually("the failover", SOON, async || {
            match raw_on::<String>(deposed, &["INFO", "replication"]).await {
                info if info.contains("role:slave") => Ok(()),
                info => Err(info),
            }
        })
        .await;
        // The deposed master is alive and answers; nothing is taken from it or given to it.
        let named = append_to_all(&store, &message("m", 1)).await;
        assert!(!named.is_empty());
        up_again(&store).await;
        assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
        assert_eq!(world.reigns(), round + 2);
    }
    for conversation in conversations() {
        let copy = store.read(&key(&conversation), &newest(10)).await.unwrap();
        assert_eq!(ids(&copy.messages), ["m"], "{conversation}");
    }
}

#[tokio::test]
async fn a_lagging_replica_that_is_promoted_is_a_new_reign() {
    let world = World::cluster(Replicas::OfTheFirst).await;
    let [first, .., replica] = world.nodes() else { panic!("four nodes") };
    let store = world.store();
    assert_eq!(append_to_all(&store, &message("m", 1)).await, [""; 0]);
    eventually("a replica with the keys", SOON, async || {
        match raw_on::<usize>(replica, &["DBSIZE"]).await {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    // The replica can no longer follow.
    raw_on::<()>(replica, &["CONFIG", "SET", "masterauth", "wrong"]).await;
    raw_on::<()>(first, &["CLIENT", "KILL", "TYPE", "replica"]).await;
    assert_eq!(append_to_all(&store, &message("late", 2)).await, [""; 0]);
    let late = on_nodes(&world).await.swap_remove(0);
    first.kill().await.unwrap();
    raw_on::<()>(replica, &TAKEOVER).await;
    eventually("the connection to be lost", SOON, async || {
        match append_to_all(&store, &message("m", 1)).await {
            named if named.is_empty() => Err("appended".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    up_again(&store).await;
    assert_eq!(world.reigns(), 2);
    for conversation in conversations() {
        let copy = store.read(&key(&conversation), &newest(10)).await.unwrap();
        let expected = if late.contains(&conversation) { &["m"][..] } else { &["m", "late"] };
        assert_eq!(ids(&copy.messages), expected, "{conversation}");
    }
}
