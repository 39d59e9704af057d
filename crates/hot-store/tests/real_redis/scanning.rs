//! Walking over all copies, on however many servers.

use std::collections::BTreeSet;

use crate::support::*;
use domain::ids::{ConversationKey, TenantId};
use hot_store::{Error, HotStore, ScanPage};

/// All that a walk tells, step by step to its end.
async fn scan(
    store: &HotStore,
    tenant: Option<&TenantId>,
) -> (BTreeSet<ConversationKey>, Vec<String>) {
    let (mut keys, mut unknown_keys, mut place) = (BTreeSet::new(), Vec::new(), None);
    loop {
        let ScanPage { keys: some, unknown_keys: others, next } =
            store.scan(tenant, place).await.unwrap();
        keys.extend(some);
        unknown_keys.extend(others);
        match next {
            None => return (keys, unknown_keys),
            next => place = next,
        }
    }
}

#[tokio::test]
async fn every_copy_is_told_and_strangers_are_told_apart() {
    let world = World::new().await;
    let store = world.store();
    assert_eq!(scan(&store, None).await, (BTreeSet::new(), vec![]));
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

    let (of_one, unknown_keys) = scan(&store, Some(&key("c").tenant)).await;
    assert_eq!((of_one.len(), &unknown_keys[..]), (expected.len(), &[][..]));
    assert_eq!(of_one, expected);
    let () = world.raw(&["SET", "messages:{a}", "1"]).await;
    expected.insert(other);
    assert_eq!(scan(&store, None).await, (expected, vec!["messages:{a}".to_owned()]));
}

#[tokio::test]
async fn a_walk_does_not_go_on_over_another_connection() {
    let world = World::new().await;
    let store = world.store();
    for n in 0..1_500 {
        append(&store, &format!("c{n}"), &messages(1)).await;
    }
    let place = store.scan(None, None).await.unwrap().next.unwrap();
    world.server().stop().await.unwrap();
    world.server().start().await.unwrap();
    testkit::wait::eventually("a connection to Redis", SOON, async || {
        store.probe().await.map_err(|error| error.to_string())
    })
    .await;
    let error = store.scan(None, Some(place)).await.unwrap_err();
    assert!(matches!(error, Error::NotServing(_)), "{error}");
}
