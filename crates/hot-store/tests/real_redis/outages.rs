//! Redis becomes unavailable, becomes available again, and may be another server.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::*;
use domain::failure::FailureClass;
use domain::message::Message;
use fixtures::{ids, stored};
use hot_store::{Error, Health, HotStore, Loaded};
use testkit::proxy::Proxy;
use testkit::servers::Node;
use testkit::wait::eventually;
use tokio_util::sync::CancellationToken;

/// The duration of a call that fails without waiting for the network, on two busy cores.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn becomes(store: &HotStore, health: Health) {
    let mut seen = store.subscribe();
    let wait = tokio::time::timeout(SOON, seen.wait_for(|now| *now == health));
    assert!(
        wait.await.is_ok(),
        "waited for {health:?}, last seen: {:?}",
        *store.subscribe().borrow()
    );
}

fn watched(store: &HotStore) -> tokio_util::sync::DropGuard {
    let shutdown = CancellationToken::new();
    tokio::spawn(store.clone().watch(shutdown.clone()));
    shutdown.drop_guard()
}

async fn until_available(store: &HotStore) {
    eventually("Redis to be available again", SOON, async || {
        store.probe().await.map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_stopped_redis_is_unavailable_and_connected_to_once_it_runs() {
    let world = World::new().await;
    let store = world.store();
    assert_eq!(*store.subscribe().borrow(), Health::Untried);
    assert!(!store.is_known_down(), "no attempt has been made");
    world.server().kill().await.unwrap();
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable);
    assert!(store.is_known_down());
    let guard = watched(&store);
    world.server().start().await.unwrap();
    becomes(&store, Health::Up).await;
    store.probe().await.unwrap();
    drop(guard);
}

#[tokio::test]
async fn a_redis_that_restarts_empty_has_a_new_server_identity_and_the_old_connection_is_dropped() {
    let world = World::new().await;
    let store = world.store();
    load(&store, "c", &messages(2)).await;
    let load_token = store.begin_load(&key("c")).await.unwrap();
    assert_eq!(world.server_identities(), 1);

    world.server().kill().await.unwrap();
    world.server().start_empty().await.unwrap();
    let row = stored("m", 1);
    let error = store.append_renewing(&[(key("c"), vec![&row])], |_| true).await.unwrap_err();
    assert_eq!(error.conversations, [key("c")], "the client does not reconnect by itself");
    until_available(&store).await;
    assert_eq!(
        world.server_identities(),
        2,
        "the new server was checked with its own server identity"
    );
    assert_eq!(
        store.finish_load(load_token, &whole(), &messages(2)).await.unwrap(),
        Loaded::Superseded
    );
}

#[tokio::test]
async fn after_a_connection_is_lost_within_a_pipeline_every_conversation_is_reported() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.server().url()).await.unwrap();
    let mut settings = settings(proxy.url());
    settings.response_timeout = SOON;
    let store = world.store_with(settings);
    store.probe().await.unwrap();
    // 16 KiB every 20 ms: some of the 2 MiB have arrived long before the rest.
    proxy.slow(Duration::from_millis(20));
    let appending = tokio::spawn({
        let store = store.clone();
        async move {
            let rows: Vec<Message> =
                (0..20).map(|i| large_message("m", 1_000 + i, 100 * 1024)).collect();
            let batch: Vec<_> =
                rows.iter().zip(0..).map(|(row, i)| (key(&format!("c-{i}")), vec![row])).collect();
            store.append_renewing(&batch, |_| true).await
        }
    });
    eventually("some conversation to arrive", SOON, async || match world.keys().await {
        0 => Err("no key".to_owned()),
        _ => Ok(()),
    })
    .await;
    proxy.cut().await.unwrap();
    let error = appending.await.unwrap().unwrap_err();
    let mut all: Vec<_> = (0..20).map(|i| key(&format!("c-{i}"))).collect();
    let mut named = error.conversations;
    all.sort();
    named.sort();
    assert_eq!(named, all);
    assert!(matches!(error.cause, Error::Broken(_)), "{:?}", error.cause);
    assert!(store.is_known_down());
}

#[tokio::test]
async fn a_frozen_redis_times_out_and_the_connection_is_not_used_again() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.server().url()).await.unwrap();
    let mut settings = settings(proxy.url());
    settings.response_timeout = Duration::from_millis(200);
    settings.connect_timeout = Duration::from_millis(200);
    let store = world.store_with(settings);
    store.probe().await.unwrap();
    assert_eq!(proxy.count().accepted, world.nodes().len());
    proxy.freeze();
    let row = stored("m", 1);
    let error = store.append_renewing(&[(key("c"), vec![&row])], |_| true).await.unwrap_err();
    assert_eq!(error.conversations, [key("c")]);
    assert_eq!(error.cause.class(), FailureClass::Unavailable);
    assert!(store.is_known_down());
    store.read(&key("c"), &newest(1)).await.unwrap_err();
    proxy.restore().await.unwrap();
    until_available(&store).await;
    assert!(proxy.count().accepted > world.nodes().len(), "a new connection was made");
}

#[tokio::test]
async fn many_first_calls_make_one_connection() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.server().url()).await.unwrap();
    let store = world.store_with(settings(proxy.url()));
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.probe().await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(proxy.count().accepted, world.nodes().len(), "one to each server");
    assert_eq!(world.checks(), 1);
}

#[tokio::test]
async fn while_redis_is_known_to_be_down_calls_fail_at_once() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.server().url()).await.unwrap();
    let mut settings = settings(proxy.url());
    settings.connect_timeout = SOON * 10;
    settings.response_timeout = SOON * 10;
    let store = world.store_with(settings);
    proxy.cut().await.unwrap();
    store.probe().await.unwrap_err();
    // From here on connections are accepted without a reply: an attempt hangs for minutes.
    proxy.restore().await.unwrap();
    proxy.freeze();
    let hanging = tokio::spawn({
        let store = store.clone();
        async move {
            // During the pause after the failure calls fail at once; then one call starts the
            // attempt.
            loop {
                if store.probe().await.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    eventually("the attempt to hang", SOON, async || match proxy.count().open {
        0 => Err("no connection".to_owned()),
        _ => Ok(()),
    })
    .await;
    for _ in 0..100 {
        let row = stored("m", 1);
        let batch = [(key("c"), vec![&row])];
        let call = tokio::time::timeout(AT_ONCE, store.append_renewing(&batch, |_| true));
        assert!(call.await.expect("the call fails without waiting").is_err());
    }
    assert_eq!(proxy.count().accepted, 1, "one attempt at a time");
    proxy.restore().await.unwrap();
    tokio::time::timeout(SOON, hanging).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_whose_check_fails_is_not_used() {
    let world = World::new().await;
    let store = world.store();
    world.record.refuses.store(true, Ordering::SeqCst);
    let row = stored("m", 1);
    let error = store.append_renewing(&[(key("c"), vec![&row])], |_| true).await.unwrap_err();
    assert!(matches!(error.cause, Error::ServerRejected(_)), "{:?}", error.cause);
    assert_eq!(error.cause.class(), FailureClass::Unavailable);
    assert!(store.read(&key("c"), &newest(1)).await.is_err());
    assert_eq!(world.keys().await, 0);
    world.record.refuses.store(false, Ordering::SeqCst);
    until_available(&store).await;
}

#[tokio::test]
async fn a_write_after_a_late_watcher_checks_first_and_a_read_does_not() {
    let world = World::new().await;
    let mut settings = world.settings();
    // A check is valid for writes for twice this; no watcher runs.
    settings.watch_every = Duration::from_millis(5);
    let store = world.store_with(settings);
    let row = stored("m", 1);
    let batch = [(key("c"), vec![&row])];
    store.append_renewing(&batch, |_| true).await.unwrap();
    world.record.refuses.store(true, Ordering::SeqCst);
    let error = eventually("the check to be too old", SOON, async || {
        store.append_renewing(&batch, |_| true).await.err().ok_or_else(|| "appended".to_owned())
    })
    .await;
    assert_eq!(error.conversations, [key("c")]);
    assert!(matches!(error.cause, Error::ServerRejected(_)), "{:?}", error.cause);
    let copy = store.read(&key("c"), &newest(1)).await.unwrap();
    assert_eq!(ids(&copy.messages), ["m"], "the copy can still be read");
    assert_eq!(*store.subscribe().borrow(), Health::Up);
    world.record.refuses.store(false, Ordering::SeqCst);
    store.append_renewing(&batch, |_| true).await.unwrap();
}

#[tokio::test]
async fn the_watcher_checks_at_every_interval() {
    let world = World::new().await;
    let mut settings = world.settings();
    settings.watch_every = Duration::from_millis(10);
    let store = world.store_with(settings);
    let guard = watched(&store);
    eventually("ten checks", SOON, async || match world.checks() {
        checks @ ..10 => Err(format!("{checks}")),
        _ => Ok(()),
    })
    .await;
    assert_eq!(world.server_identities(), 1);
    drop(guard);
}

#[tokio::test]
async fn the_watcher_ends_at_shutdown() {
    let world = World::new().await;
    let shutdown = CancellationToken::new();
    let watching = tokio::spawn(world.store().watch(shutdown.clone()));
    shutdown.cancel();
    tokio::time::timeout(SOON, watching).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_changed_server_identity_drops_the_connection_and_is_checked_on_a_new_one() {
    let world = World::single().await;
    let mut settings = world.settings();
    // A check is valid for writes for twice this; no watcher runs.
    settings.watch_every = Duration::from_millis(1);
    let store = world.store_with(settings);
    store.probe().await.unwrap();
    // A demotion and a promotion between two checks: the same process with another replication id.
    world.raw::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    world.raw::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    let row = stored("m", 1);
    let batch = [(key("c"), vec![&row])];
    let error = eventually("a check", SOON, async || {
        store.append_renewing(&batch, |_| true).await.err().ok_or_else(|| "appended".to_owned())
    })
    .await;
    assert_eq!(
        error.cause.to_string(),
        "Redis cannot be used: its server identity changed; reconnecting"
    );
    assert!(store.is_known_down());
    assert_eq!(world.server_identities(), 1, "not checked on the old connection");
    store.append_renewing(&batch, |_| true).await.unwrap();
    assert_eq!(world.server_identities(), 2);
}

#[tokio::test]
async fn the_watcher_detects_a_demotion_without_any_call() {
    let world = World::single().await;
    let mut settings = world.settings();
    settings.watch_every = Duration::from_millis(10);
    let store = world.store_with(settings);
    let guard = watched(&store);
    becomes(&store, Health::Up).await;
    world.raw::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    becomes(&store, Health::Down).await;
    world.raw::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    becomes(&store, Health::Up).await;
    assert_eq!(world.server_identities(), 2);
    drop(guard);
}

#[tokio::test]
async fn a_demoted_master_is_refused_until_it_is_the_master_again() {
    let world = World::single().await;
    let store = world.store();
    append(&store, "c", &messages(1)).await;
    world.raw::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let row = stored("m", 1);
    let batch = [(key("c"), vec![&row])];
    let error = store.append_renewing(&batch, |_| true).await.unwrap_err();
    assert!(matches!(error.cause, Error::NotMaster(_)), "{:?}", error.cause);
    assert!(store.is_known_down());
    let error = store.probe().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the Redis server is a replica, not a master; the Redis URL must lead to a master"
    );
    assert_eq!(error.class(), FailureClass::Unavailable);
    world.raw::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    until_available(&store).await;
    assert_eq!(world.server_identities(), 2);
    store.append_renewing(&batch, |_| true).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_unavailable_and_not_printed() {
    let world = World::new().await;
    let wrong = |node: &Node| format!("redis://:s3cret@127.0.0.1:{}/0", node.port());
    let urls: Vec<_> = world.nodes().iter().map(wrong).collect();
    let store = world.store_with(settings(&urls.join(",")));
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable);
    let printed = format!("{error} {error:?}");
    assert!(!printed.contains("s3cret"), "{printed}");
    for node in world.nodes() {
        assert!(printed.contains(&format!("127.0.0.1:{}", node.port())), "{printed}");
    }
}

#[tokio::test]
async fn tls_to_a_server_without_tls_is_unavailable() {
    let world = World::new().await;
    let tls = |node: &Node| format!("rediss://127.0.0.1:{}", node.port());
    let urls: Vec<_> = world.nodes().iter().map(tls).collect();
    let store = world.store_with(settings(&urls.join(",")));
    let error = store.probe().await.unwrap_err();
    assert!(matches!(error, Error::NotConnected(_)), "{error:?}");
}

#[tokio::test]
async fn a_check_that_panics_does_not_block_the_next() {
    let world = World::new().await;
    let panics = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let store = HotStore::open(world.settings(), {
        let panics = panics.clone();
        move |_| {
            assert!(!panics.load(Ordering::SeqCst), "on purpose");
            std::future::ready(Ok::<_, std::io::Error>(()))
        }
    });
    assert!(matches!(store.probe().await, Err(Error::NotConnected(_))));
    panics.store(false, Ordering::SeqCst);
    until_available(&store).await;
}
