//! Slots of a Redis Cluster that move from one master to another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{append_to_all, conversations, password, until_available, world};
use crate::support::*;
use fixtures::{ids, stored};
use hot_store::{Error, Health, HotStore, Loaded, Miss};
use testkit::servers::Node;
use testkit::wait::eventually;

/// A slot that migrates from one master to another.
struct Move<'a> {
    slot: String,
    from: &'a Node,
    to: &'a Node,
}

impl<'a> Move<'a> {
    /// Starts the migration of the slot of a conversation to another master.
    async fn begin(world: &'a World, conversation: &str) -> Self {
        let from = owner(world, conversation).await;
        let to = world.nodes().iter().find(|node| node.port() != from.port()).unwrap();
        let slot = slot(world, conversation).await;
        let (from_id, to_id) = (id(from).await, id(to).await);
        raw_on::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
        raw_on::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
        Self { slot, from, to }
    }

    /// Moves a conversation's key to the new master, or copies it.
    async fn migrate(&self, conversation: &str, options: &[&str]) {
        let (port, password) = (self.to.port().to_string(), password(self.to));
        let key = name(conversation);
        let command = ["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"];
        let command = [&command[..], options, &["AUTH", &password]].concat();
        assert_eq!(raw_on::<String>(self.from, &command).await, "OK");
    }

    /// Completes the migration on every node.
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

/// The node of a conversation's key at the start of the test.
async fn owner<'a>(world: &'a World, conversation: &str) -> &'a Node {
    let slot: i64 = slot(world, conversation).await.parse().unwrap();
    // At the start each master has a third of the slots.
    &world.nodes()[usize::try_from((slot * 3) / 16_384).unwrap()]
}

async fn slot(world: &World, conversation: &str) -> String {
    let slots = world.raw_each::<u16>(&["CLUSTER", "KEYSLOT", &name(conversation)]).await;
    slots[0].to_string()
}

async fn id(node: &Node) -> String {
    raw_on(node, &["CLUSTER", "MYID"]).await
}

#[tokio::test]
async fn slots_that_move_while_savers_append_lose_no_row_of_a_conversation_that_is_not_reported() {
    let world = world().await;
    let stores = [world.store(), world.store()];
    let done = AtomicBool::new(false);
    // The rows that were appended since the conversation was last named: they must be in the copy.
    let saver = async |store: &HotStore, saver: usize| {
        let mut expected: BTreeMap<String, Vec<String>> =
            conversations().into_iter().map(|it| (it, Vec::new())).collect();
        let (mut round, mut after) = (0, 0);
        while after < 5 {
            let row = stored(&format!("m-{saver}-{round:05}"), 1_000 + round);
            let named = append_to_all(store, &row).await;
            for (conversation, rows) in &mut expected {
                if named.contains(conversation) {
                    // A new generation would invalidate the copy.
                    rows.clear();
                } else {
                    rows.push(row.id.to_string());
                }
            }
            round += 1;
            after += usize::from(done.load(Ordering::SeqCst) && named.is_empty());
            tokio::task::yield_now().await;
        }
        expected
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
    // The first append creates the keys that are moved later.
    for store in &stores {
        assert_eq!(append_to_all(store, &stored("first", 1)).await, [""; 0]);
    }
    let (one, two, ()) = tokio::join!(saver(&stores[0], 0), saver(&stores[1], 1), moves);
    assert!(
        world.server_identities() >= 5,
        "each move is another server identity: {}",
        world.server_identities()
    );
    for expected in [one, two] {
        for (conversation, rows) in expected {
            assert!(rows.len() >= 5, "{conversation}: {rows:?}");
            let copy = stores[0].read(&key(&conversation), &newest(100_000)).await.unwrap();
            let there: BTreeSet<_> = copy.messages.iter().map(|row| row.id.to_string()).collect();
            let lacks: Vec<_> = rows.iter().filter(|row| !there.contains(*row)).collect();
            assert!(lacks.is_empty(), "{conversation} lacks {lacks:?}");
        }
    }
}

#[tokio::test]
async fn while_a_slot_migrates_only_its_moved_keys_are_refused() {
    let world = world().await;
    let store = world.store();
    load(&store, "c-1", &messages(2)).await;
    let slot = Move::begin(&world, "c-1").await;
    assert_eq!(
        append_to_all(&store, &stored("here", 9_000)).await,
        [""; 0],
        "it has not moved yet"
    );
    slot.migrate("c-1", &[]).await;

    assert_eq!(append_to_all(&store, &stored("there", 9_001)).await, ["c-1"]);
    let error = store.read(&key("c-1"), &newest(10)).await.unwrap_err();
    assert!(matches!(error, Error::Refusing(_)), "{error:?}");
    assert!(matches!(store.begin_load(&key("c-1")).await, Err(Error::Refusing(_))));
    let keys: Vec<_> = conversations().iter().map(|it| key(it)).collect();
    let error = store.drop_copies(&keys).await.unwrap_err();
    assert!(matches!(error, Error::Refusing(_)), "{error:?}");
    assert_eq!(world.keys().await, 1, "the other copies are dropped");
    assert_eq!(*store.subscribe().borrow(), Health::Up, "the connection is not at fault");
    assert_eq!(world.server_identities(), 1);

    slot.finish(&world).await;
    let error = store.read(&key("c-1"), &newest(10)).await.unwrap_err();
    assert!(matches!(error, Error::NotServing(_)), "{error:?}");
    until_available(&store).await;
    assert_eq!(world.server_identities(), 2);
    let copy = store.read(&key("c-1"), &newest(10)).await.unwrap();
    assert_eq!(ids(&copy.messages), ["m-000000", "m-000001", "here"]);
}

#[tokio::test]
async fn a_copy_that_an_aborted_migration_left_behind_is_under_another_server_identity() {
    let world = world().await;
    let store = world.store();
    load(&store, "c-1", &messages(2)).await;
    let slot = Move::begin(&world, "c-1").await;
    // The new master has the copy and its marker, while the old one is still the owner of the slot.
    slot.migrate("c-1", &["COPY"]).await;
    append(&store, "c-1", &[stored("acknowledged", 9_000)]).await;
    world.raw::<()>(&["UNLINK", &name("c-1")]).await;
    slot.finish(&world).await;
    store.read(&key("c-1"), &newest(10)).await.unwrap_err();
    until_available(&store).await;
    let copy = store.read(&key("c-1"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(messages(2)), "with a marker, and without a row");
    assert_eq!(world.server_identities(), 2, "so the epoch of that marker is no longer current");
}

#[tokio::test]
async fn a_load_whose_slot_migrates_is_superseded() {
    let world = world().await;
    let store = world.store();
    let load_token = store.begin_load(&key("c-1")).await.unwrap();
    let slot = Move::begin(&world, "c-1").await;
    slot.migrate("c-1", &[]).await;
    slot.finish(&world).await;
    store.read(&key("c-1"), &newest(1)).await.unwrap_err();
    until_available(&store).await;
    let loaded = store.finish_load(load_token, &whole(), &messages(2)).await.unwrap();
    assert_eq!(loaded, Loaded::Superseded);
    let copy = store.read(&key("c-1"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMarker));
}
