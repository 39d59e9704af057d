//! Scans of all copies, on one server or several.

use std::collections::BTreeSet;

use crate::support::*;
use domain::ids::{ConversationKey, TenantId};
use hot_store::{Error, HotStore, ScanPage};

/// Everything that a scan returns, page by page to its end.
async fn scan(
    store: &HotStore,
    tenant: Option<&TenantId>,
) -> (BTreeSet<ConversationKey>, Vec<String>) {
    let (mut keys, mut unknown_keys, mut cursor) = (BTreeSet::new(), Vec::new(), None);
    loop {
        let ScanPage { keys: some, unknown_keys: others, next } =
            store.scan(tenant, cursor).await.unwrap();
        keys.extend(some);
        unknown_keys.extend(others);
        match next {
            None => return (keys, unknown_keys),
            next => cursor = next,
        }
    }
}

#[tokio::test]
async fn every_copy_is_returned_and_unknown_keys_are_separate() {
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
    store.append_renewing(&[(other.clone(), rows.iter().collect())], |_| true).await.unwrap();
    let () = world.raw(&["SET", "elsewhere", "1"]).await;

    let (of_one, unknown_keys) = scan(&store, Some(&key("c").tenant)).await;
    assert_eq!((of_one.len(), &unknown_keys[..]), (expected.len(), &[][..]));
    assert_eq!(of_one, expected);
    let () = world.raw(&["SET", "messages:{a}", "1"]).await;
    expected.insert(other);
    assert_eq!(scan(&store, None).await, (expected, vec!["messages:{a}".to_owned()]));
}

#[tokio::test]
async fn a_scan_does_not_continue_on_another_connection() {
    let world = World::new().await;
    let store = world.store();
    for n in 0..1_500 {
        append(&store, &format!("c{n}"), &messages(1)).await;
    }
    let cursor = store.scan(None, None).await.unwrap().next.unwrap();
    world.server().stop().await.unwrap();
    world.server().start().await.unwrap();
    testkit::wait::eventually("a connection to Redis", SOON, async || {
        store.probe().await.map_err(|error| error.to_string())
    })
    .await;
    let error = store.scan(None, Some(cursor)).await.unwrap_err();
    assert!(matches!(error, Error::NotServing(_)), "{error}");
}
