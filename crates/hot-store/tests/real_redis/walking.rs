//! Walking over all copies, on however many servers.

use std::collections::BTreeSet;

use crate::support::*;
use domain::ids::{ConversationKey, TenantId};
use hot_store::{Error, HotStore, Walked};

/// All that a walk tells, step by step to its end.
async fn walk(
    store: &HotStore,
    tenant: Option<&TenantId>,
) -> (BTreeSet<ConversationKey>, Vec<String>) {
    let (mut keys, mut strangers, mut place) = (BTreeSet::new(), Vec::new(), None);
    loop {
        let Walked { keys: some, strangers: others, next } =
            store.walk(tenant, place).await.unwrap();
        keys.extend(some);
        strangers.extend(others);
        match next {
            None => return (keys, strangers),
            next => place = next,
        }
    }
}

#[tokio::test]
async fn every_copy_is_told_and_strangers_are_told_apart() {
    let world = World::new().await;
    let store = world.store();
    assert_eq!(walk(&store, None).await, (BTreeSet::new(), vec![]));
    let mut expected = BTreeSet::new();
    for n in 0..1_500 {
        let id = format!("c {n}/größe");
        append(&store, &id, &messages(1)).await;
        expected.insert(key(&id));
    }
    let other = ConversationKey::parse("tenant:1/{x}/c", "1").unwrap();
    let rows = messages(1);
    store.append(&[(other.clone(), rows.iter().collect())]).await.unwrap();
    let () = world.raw(&["SET", "elsewhere", "1"]).await;

    let (of_one, strangers) = walk(&store, Some(&key("c").tenant)).await;
    assert_eq!((of_one.len(), &strangers[..]), (expected.len(), &[][..]));
    assert_eq!(of_one, expected);
    let () = world.raw(&["SET", "messages:{a}", "1"]).await;
    expected.insert(other);
    assert_eq!(walk(&store, None).await, (expected, vec!["messages:{a}".to_owned()]));
}

#[tokio::test]
async fn a_walk_does_not_go_on_over_another_connection() {
    let world = World::new().await;
    let store = world.store();
    for n in 0..1_500 {
        append(&store, &format!("c{n}"), &messages(1)).await;
    }
    let place = store.walk(None, None).await.unwrap().next.unwrap();
    world.server().stop().await.unwrap();
    world.server().start().await.unwrap();
    testkit::wait::eventually("a connection to Redis", SOON, async || {
        store.probe().await.map_err(|error| error.to_string())
    })
    .await;
    let error = store.walk(None, Some(place)).await.unwrap_err();
    assert!(matches!(error, Error::NotServing(_)), "{error}");
}
