//! Readers get from a hot copy exactly what PostgreSQL would return, or a miss.

use crate::support::*;
use domain::message::Message;
use fixtures::stored;
use hot_store::{CompleteFrom, CompletenessMarker, DecodeError, Extent, Miss, Numbers, Window};

#[tokio::test]
async fn a_copy_that_was_only_appended_to_is_never_complete() {
    let world = World::new().await;
    let store = world.store();
    append(&store, "c", &messages(3)).await;
    let copy = store.read(&key("c"), &newest(2)).await.unwrap();
    assert_eq!(copy.messages.len(), 2);
    assert_eq!(copy.complete_from(NUMBERS), None);
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMarker));
}

#[tokio::test]
async fn a_conversation_without_a_copy_is_a_miss_and_not_an_empty_one() {
    let world = World::new().await;
    let copy = world.store().read(&key("c"), &newest(2)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::NoMarker));
}

#[tokio::test]
async fn a_marker_with_other_numbers_is_not_accepted() {
    let world = World::new().await;
    let store = world.store();
    load(&store, "c", &messages(3)).await;
    for numbers in [Numbers { epoch: 0, ..NUMBERS }, Numbers { generation: 0, ..NUMBERS }] {
        let copy = store.read(&key("c"), &newest(2)).await.unwrap();
        assert_eq!(copy.usable(numbers), Err(Miss::Outdated));
    }
    let copy = store.read(&key("c"), &newest(2)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS).map(|all| all.len()), Ok(2));
}

#[tokio::test]
async fn every_window_of_a_loaded_copy_has_exactly_its_rows() {
    let world = World::new().await;
    let store = world.store();
    // Five times with six ids each, so that windows end between messages of the same time.
    let mut rows: Vec<Message> = (0..30)
        .map(|i| stored(["a", "ab", "b", "é", "z", "😀"][i % 6], 0))
        .zip(0..)
        .map(|(row, i)| {
            let id = format!("{}-{i}", row.id);
            stored(&id, 1_000 + i / 6)
        })
        .collect();
    rows.sort_by_key(Message::position);
    load(&store, "c", &rows).await;
    let mut ends: Vec<_> = rows.iter().map(Message::position).map(Some).collect();
    ends.push(Some(position("zz", 999)));
    ends.push(Some(position("zz", 2_000)));
    ends.push(None);
    for before in ends {
        let older = |row: &&Message| before.as_ref().is_none_or(|end| row.position() < *end);
        let older: Vec<_> = rows.iter().filter(older).cloned().collect();
        for newest in [0, 1, 2, 5, 6, 7, 29, 30, 31, 1_000] {
            let window = Window { newest, before: before.clone() };
            let copy = store.read(&key("c"), &window).await.unwrap();
            let expected = older[older.len().saturating_sub(newest)..].to_vec();
            assert_eq!(copy.usable(NUMBERS), Ok(expected), "{window:?}");
        }
    }
}

#[tokio::test]
async fn nothing_before_complete_from_is_used() {
    let world = World::new().await;
    let store = world.store();
    let rows = messages(10);
    let marker = CompletenessMarker {
        numbers: NUMBERS,
        complete_from: CompleteFrom::At(rows[5].position()),
    };
    let load_token = store.begin_load(&key("c")).await.unwrap();
    store.finish_load(load_token, &marker, &rows[5..]).await.unwrap();
    // A late row far before it: the rows around it are missing.
    append(&store, "c", &rows[..1]).await;
    let read = async |count| store.read(&key("c"), &newest(count)).await.unwrap().usable(NUMBERS);
    assert_eq!(read(5).await, Ok(rows[5..].to_vec()));
    assert_eq!(read(6).await, Err(Miss::BeforeCompleteFrom));
    assert_eq!(read(100).await, Err(Miss::BeforeCompleteFrom));
}

#[tokio::test]
async fn a_read_of_the_newest_hundred_of_ten_thousand_does_not_read_the_rest() {
    let world = World::new().await;
    let store = world.store();
    let rows = messages(10_000);
    load(&store, "c", &rows).await;
    let sent = async || {
        let infos: Vec<String> = world.raw_each(&["INFO", "stats"]).await;
        let bytes = infos.iter().map(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
            line.unwrap().trim().parse::<usize>().unwrap()
        });
        bytes.sum::<usize>()
    };
    for before in [None, Some(rows[5_000].position())] {
        let window = Window { newest: 100, before };
        let idle = sent().await;
        let started = sent().await;
        let read = store.read(&key("c"), &window).await.unwrap().usable(NUMBERS).unwrap();
        let bytes = sent().await - started - (started - idle);
        assert_eq!(read.len(), 100);
        assert!(bytes < 100 * 200, "{bytes} bytes for 100 messages of some 100 bytes");
    }
}

#[tokio::test]
async fn too_many_messages_of_one_time_are_a_miss() {
    let world = World::new().await;
    let store = world.store();
    let rows: Vec<_> = (0..300).map(|i| stored(&format!("m-{i:03}"), 1_000)).collect();
    load(&store, "c", &rows).await;
    let window = Window { newest: 10, before: Some(rows[299].position()) };
    let copy = store.read(&key("c"), &window).await.unwrap();
    assert_eq!(copy.extent, Extent::CutShort);
    assert_eq!(copy.usable(NUMBERS), Err(Miss::CutShort));
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(rows[290..].to_vec()), "the newest window needs no id");
}

#[tokio::test]
async fn a_damaged_member_makes_the_copy_unusable_until_it_is_loaded_again() {
    let world = World::new().await;
    let store = world.store();
    let rows = messages(2);
    for damage in [&b"rubbish"[..], b"m-000000\0\xff{}", b"m-000000\0\x01{\"r\":\"user\"}"] {
        load(&store, "c", &rows).await;
        world.raw_bytes::<()>(&[b"ZADD", name("c").as_bytes(), b"5000", damage]).await;
        let copy = store.read(&key("c"), &newest(10)).await.unwrap();
        assert!(matches!(copy.usable(NUMBERS), Err(Miss::Damaged(_))), "{damage:?}");
    }
    load(&store, "c", &rows).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(rows));
}

#[tokio::test]
async fn two_different_messages_of_one_id_make_the_copy_unusable() {
    let world = World::new().await;
    let store = world.store();
    load(&store, "c", &messages(2)).await;
    append(&store, "c", &[stored("m-000000", 77)]).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::Damaged(DecodeError::TwoOfOneId)));
}

#[tokio::test]
async fn a_key_of_another_type_is_a_miss_and_a_load_replaces_it() {
    let world = World::new().await;
    let store = world.store();
    world.raw::<()>(&["SET", &name("c"), "not a sorted set"]).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Err(Miss::Damaged(DecodeError::NotASortedSet)));
    load(&store, "c", &messages(1)).await;
    let copy = store.read(&key("c"), &newest(10)).await.unwrap();
    assert_eq!(copy.usable(NUMBERS), Ok(messages(1)));
}
