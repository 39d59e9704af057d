//! A load is accepted only if nothing interfered between its beginning and its end.

use crate::support::*;
use fixtures::{ids, stored};
use hot_store::{Error, Loaded, Miss};
use std::time::Duration;

#[tokio::test]
async fn a_load_replaces_the_copy() {
    let world = World::new().await;
    let store = world.store();
    append(&store, "c", &[stored("stale", 1)]).await;
    load(&store, "c", &messages(2)).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.markers, [whole()]);
    assert_eq!(copy.usable(NUMBERS), Ok(messages(2)));
    assert_eq!(world.raw::<usize>(&["ZCARD", &name("c")]).await, 3, "the load token was removed");
    assert!(world.raw::<i64>(&["TTL", &name("c")]).await > 80_000);
}

#[tokio::test]
async fn a_row_that_is_appended_during_a_load_is_in_the_copy() {
    let world = World::new().await;
    let store = world.store();
    let rows = messages(3);
    let load_token = store.begin_load(&key("c")).await.unwrap();
    append(&store, "c", &rows[2..]).await;
    assert_eq!(
        store.finish_load(load_token, &whole(), &rows[..2]).await.unwrap(),
        Loaded::Accepted
    );
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(rows));
}

#[tokio::test]
async fn a_copy_that_is_being_loaded_is_a_miss() {
    let world = World::new().await;
    let store = world.store();
    load(&store, "c", &messages(2)).await;
    let load_token = store.begin_load(&key("c")).await.unwrap();
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMarker));
    assert!(
        world.raw::<i64>(&["TTL", &name("c")]).await > 80_000,
        "an abandoned load token expires"
    );
    drop(load_token);
}

#[tokio::test]
async fn a_key_that_is_removed_during_a_load_gets_no_marker() {
    let world = World::new().await;
    let store = world.store();
    let load_token = store.begin_load(&key("c")).await.unwrap();
    world.raw::<()>(&["DEL", &name("c")]).await;
    let loaded = store.finish_load(load_token, &whole(), &messages(2)).await.unwrap();
    assert_eq!(loaded, Loaded::Superseded);
    assert_eq!(world.raw::<usize>(&["EXISTS", &name("c")]).await, 0, "nothing was written");
}

#[tokio::test]
async fn a_key_that_is_removed_after_a_saver_appended_gets_no_marker() {
    let world = World::new().await;
    let store = world.store();
    let rows = messages(4);
    let load_token = store.begin_load(&key("c")).await.unwrap();
    // This row is committed after the snapshot of the load, so only the append could put it into
    // the copy.
    append(&store, "c", &rows[2..3]).await;
    world.raw::<()>(&["DEL", &name("c")]).await;
    append(&store, "c", &rows[3..]).await;
    let loaded = store.finish_load(load_token, &whole(), &rows[..2]).await.unwrap();
    assert_eq!(loaded, Loaded::Superseded);
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(ids(&copy.messages), ["m-000003"], "the load wrote nothing");
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMarker));
}

#[tokio::test]
async fn a_load_that_took_too_long_is_superseded_by_the_next() {
    let world = World::new().await;
    let mut without_wait = world.settings();
    without_wait.longest_load = Duration::ZERO;
    let (one, other) = (world.store(), world.store_with(without_wait));
    let first = one.begin_load(&key("c")).await.unwrap();
    let second = other.begin_load(&key("c")).await.unwrap();
    assert_eq!(one.finish_load(first, &whole(), &messages(1)).await.unwrap(), Loaded::Superseded);
    let copy = one.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMarker));
    assert_eq!(other.finish_load(second, &whole(), &messages(2)).await.unwrap(), Loaded::Accepted);
    let copy = one.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(messages(2)));
}

#[tokio::test]
async fn of_many_loads_at_once_one_begins_and_finishes() {
    let world = World::new().await;
    let stores = [world.store(), world.store(), world.store()];
    let mut begun = Vec::new();
    for store in &stores {
        match store.begin_load(&key("c")).await {
            Ok(load_token) => begun.push(load_token),
            Err(error) => assert!(matches!(error, Error::LoadUnderWay), "{error:?}"),
        }
    }
    assert_eq!(begun.len(), 1);
    let load_token = begun.pop().unwrap();
    let loaded = stores[0].finish_load(load_token, &whole(), &messages(2)).await.unwrap();
    assert_eq!(loaded, Loaded::Accepted);
    // The load has ended: the next one may begin.
    load(&stores[1], "c", &messages(3)).await;
}

#[tokio::test]
async fn a_load_token_of_a_crashed_reader_does_not_prevent_later_loads() {
    let world = World::new().await;
    // A load token of the year 2023, so that the test need not wait.
    let stored = include_bytes!("../../fixtures/load-token-v1.bin");
    world.raw_bytes::<()>(&[b"ZADD", name("c").as_bytes(), b"-inf", stored]).await;
    load(&world.store(), "c", &messages(2)).await;
    assert_eq!(
        world.raw::<usize>(&["ZCARD", &name("c")]).await,
        3,
        "the old load token was removed"
    );
}

#[tokio::test]
async fn a_load_token_has_the_stored_format() {
    let world = World::new().await;
    let load_token = world.store().begin_load(&key("c")).await.unwrap();
    let members: Vec<Vec<u8>> = world.raw(&["ZRANGE", &name("c"), "0", "-1"]).await;
    let stored = include_bytes!("../../fixtures/load-token-v1.bin");
    assert_eq!(members.len(), 1);
    assert_eq!((members[0][0], members[0].len()), (stored[0], stored.len()));
    let milliseconds = std::str::from_utf8(&members[0][17..]).unwrap();
    assert!(milliseconds.parse::<u64>().unwrap() > 1_700_000_000_000);
    drop(load_token);
}

#[tokio::test]
async fn an_evicted_copy_has_no_marker_afterwards() {
    let world = World::new().await;
    let store = world.store();
    load(&store, "c", &messages(10)).await;
    world.configure("maxmemory-policy", "allkeys-lru").await;
    world.configure("maxmemory", "1").await;
    testkit::wait::eventually("the eviction of the copy", SOON, async || {
        match world.keys().await {
            0 => Ok(()),
            keys => Err(format!("{keys} keys")),
        }
    })
    .await;
    world.configure("maxmemory", "0").await;
    append(&store, "c", &messages(1)).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMarker));
}

#[tokio::test]
async fn a_load_of_ten_thousand_rows_is_accepted() {
    let world = World::new().await;
    let store = world.store();
    let rows = messages(10_000);
    load(&store, "c", &rows).await;
    let copy = store.read(&key("c"), &newest(20_000)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(rows));
}

#[tokio::test]
async fn a_load_without_rows_is_an_empty_conversation() {
    let world = World::new().await;
    let store = world.store();
    load(&store, "c", &[]).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(vec![]));
}

#[tokio::test]
async fn a_server_without_the_script_gets_it_again() {
    let world = World::new().await;
    let store = world.store();
    for _ in 0..2 {
        load(&store, "c", &messages(2)).await;
        world.raw_each::<()>(&["SCRIPT", "FLUSH"]).await;
    }
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(messages(2)));
}
