//! Savers append committed rows without reading first.

use crate::support::*;
use domain::failure::FailureClass;
use fixtures::{ids, stored};
use hot_store::{Error, Health};

#[tokio::test]
async fn a_row_that_is_appended_again_is_one_member() {
    let world = World::new().await;
    let store = world.store();
    let rows = messages(3);
    load(&store, "c", &rows).await;
    append(&store, "c", &rows).await;
    append(&world.store(), "c", &rows[1..]).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(rows));
    assert_eq!(world.raw::<usize>(&["ZCARD", &name("c")]).await, 4, "three rows and a marker");
}

#[tokio::test]
async fn order_is_by_time_and_then_by_id_in_bytes() {
    let world = World::new().await;
    let store = world.store();
    let mut ids = ["b", "a", "ab", "a b", "a!", "aa", "A", "é", "zz", "a\u{10ffff}", "😀", "a:/{}"];
    let mut rows: Vec<_> = ids.iter().map(|id| stored(id, 2_000)).collect();
    rows.push(stored("zzz", 1_999));
    rows.push(stored("\u{20}", 2_001));
    load(&store, "c", &[]).await;
    for row in rows {
        append(&store, "c", &[row]).await;
    }
    let read = store.read(&key("c"), &newest(100)).await.unwrap().usable(NUMBERS).unwrap();
    ids.sort_unstable_by_key(|id| id.as_bytes());
    let mut expected = vec!["zzz"];
    expected.extend(ids);
    expected.push(" ");
    assert_eq!(fixtures::ids(&read), expected);
    // Redis itself has this order, on which the read of a limited window depends.
    let range: Vec<Vec<u8>> = world.raw(&["ZRANGE", &name("c"), "1", "-1"]).await;
    let stored: Vec<_> =
        range.iter().map(|member| member.split(|byte| *byte == 0).next().unwrap()).collect();
    assert_eq!(stored, expected.iter().map(|id| id.as_bytes()).collect::<Vec<_>>());
}

#[tokio::test]
async fn conversations_whose_ids_contain_separators_have_different_keys() {
    let world = World::new().await;
    let store = world.store();
    let conversations = ["a/b", "a:b", "{a}", "}{", "a%2Fb", "größe 😀"];
    for conversation in conversations {
        load(&store, conversation, &[stored(conversation, 5)]).await;
    }
    assert_eq!(world.keys().await, conversations.len());
    for conversation in conversations {
        let copy = store.read(&key(conversation), &newest(10)).await.unwrap();
        assert_eq!(ids(&copy.usable(NUMBERS).unwrap()), [conversation]);
    }
    assert_eq!(world.raw::<usize>(&["EXISTS", &name("a%2Fb")]).await, 1);
}

#[tokio::test]
async fn a_batch_of_many_conversations_and_several_writes_is_appended_completely() {
    let world = World::new().await;
    let store = world.store();
    // 5 MiB: one conversation of 3 MiB, one of 1 200 rows, and many small ones.
    let large: Vec<_> =
        (0..3).map(|i| large_message(&format!("l-{i}"), 1_000 + i, 1024 * 1024)).collect();
    let many = messages(1_200);
    let small = large_message("s", 1, 20_000);
    let mut batch =
        vec![(key("large"), large.iter().collect()), (key("many"), many.iter().collect())];
    let names: Vec<_> = (0..100).map(|i| format!("small-{i}")).collect();
    batch.extend(names.iter().map(|name| (key(name), vec![&small])));
    batch.push((key("empty"), vec![]));
    store.append_renewing(&batch, |_| true).await.unwrap();

    assert_eq!(world.raw::<usize>(&["ZCARD", &name("large")]).await, 3);
    assert_eq!(world.raw::<usize>(&["ZCARD", &name("many")]).await, 1_200);
    assert_eq!(world.keys().await, 102, "no key for the empty one");
    for conversation in names.iter().map(String::as_str).chain(["large", "many"]) {
        let ttl: i64 = world.raw(&["TTL", &name(conversation)]).await;
        assert!((86_000..=86_400).contains(&ttl), "{conversation}: {ttl}");
    }
}

#[tokio::test]
async fn every_append_renews_the_expiry() {
    let world = World::new().await;
    let store = world.store();
    append(&store, "c", &messages(1)).await;
    world.raw::<()>(&["EXPIRE", &name("c"), "10"]).await;
    append(&store, "c", &messages(1)).await;
    assert!(world.raw::<i64>(&["TTL", &name("c")]).await > 80_000);
}

#[tokio::test]
async fn the_expiry_is_a_setting() {
    let world = World::new().await;
    let mut settings = world.settings();
    settings.expiry = std::time::Duration::from_secs(120);
    let store = world.store_with(settings);
    append(&store, "a", &messages(1)).await;
    load(&store, "b", &messages(1)).await;
    for conversation in ["a", "b"] {
        let ttl: i64 = world.raw(&["TTL", &name(conversation)]).await;
        assert!((1..=120).contains(&ttl), "{conversation}: {ttl}");
    }
}

#[tokio::test]
async fn a_refused_conversation_is_named_and_the_others_are_appended() {
    let world = World::new().await;
    let store = world.store();
    world.raw::<()>(&["SET", &name("bad"), "not a sorted set"]).await;
    let rows = messages(500);
    let batch: Vec<_> =
        ["a", "bad", "c"].map(|name| (key(name), rows.iter().collect::<Vec<_>>())).into();
    let error = store.append_renewing(&batch, |_| true).await.unwrap_err();
    assert_eq!(error.conversations, [key("bad")]);
    assert_eq!(error.cause.class(), FailureClass::Retryable);
    for conversation in ["a", "c"] {
        assert_eq!(world.raw::<usize>(&["ZCARD", &name(conversation)]).await, 500);
    }
    assert_eq!(*store.subscribe().borrow(), Health::Up, "the connection is not at fault");
}

#[tokio::test]
async fn a_redis_without_free_memory_is_unavailable_but_stays_connected() {
    let world = World::new().await;
    let store = world.store();
    store.probe().await.unwrap();
    world.configure("maxmemory", "1").await;
    let rows = messages(1);
    let error = store.append_renewing(&[(key("c"), vec![&rows[0]])], |_| true).await.unwrap_err();
    assert_eq!(error.conversations, [key("c")]);
    assert!(matches!(error.cause, Error::Refusing(_)), "{:?}", error.cause);
    assert_eq!(error.cause.class(), FailureClass::Unavailable);
    assert_eq!(*store.subscribe().borrow(), Health::Up);
    world.configure("maxmemory", "0").await;
    append(&store, "c", &rows).await;
}

#[tokio::test]
async fn dropped_copies_are_removed_and_the_others_stay() {
    let world = World::new().await;
    let store = world.store();
    let names: Vec<_> = (0..450).map(|i| format!("c-{i}")).collect();
    let row = stored("m", 1);
    let batch: Vec<_> = names.iter().map(|name| (key(name), vec![&row])).collect();
    store.append_renewing(&batch, |_| true).await.unwrap();
    let mut dropped: Vec<_> = names[1..].iter().map(|name| key(name)).collect();
    dropped.push(key("without a copy"));
    store.drop_copies(&dropped).await.unwrap();
    let left = world.raw_each::<Vec<String>>(&["KEYS", "*"]).await.concat();
    assert_eq!(left, [name("c-0")]);
    store.drop_copies(&dropped).await.unwrap();
    store.drop_copies(&[]).await.unwrap();
}
