//! What reading promises: never an incomplete copy taken for a complete one, never "empty" for
//! "unavailable".

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use conversation::{HotCopyError, Source, read_hot_copy, record_server};
use domain::failure::{Dependency, FailureClass};
use fixtures::{LIMIT, Replica, applied, ids, key, sql, stores, to_save};
use hot_store::{Health, Window};
use metrics::{Counter, EpochCause, HotLoad, HotRead};
use serde_json::json;
use testkit::proxy::Proxy;
use testkit::wait::eventually;
use tokio_util::sync::CancellationToken;

fn newest(newest: usize) -> Window {
    Window { newest, before: None }
}

#[tokio::test]
async fn a_conversation_that_does_not_exist_is_not_empty() {
    let (_env, replica) = stores().await;
    assert!(replica.reader.read(&key("missing"), &newest(10)).await.unwrap().is_none());
}

#[tokio::test]
async fn the_first_read_loads_the_copy_and_the_next_ones_use_it() {
    let (_env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({})), to_save("s", "m2", &json!({}))]).await;
    assert_eq!(replica.read(&key("s"), 10).await.source, Source::Database);
    assert_eq!(replica.read(&key("s"), 10).await.source, Source::HotCopy);
    replica.save(&[to_save("s", "m3", &json!({}))]).await;
    let read = replica.read(&key("s"), 2).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::HotCopy, vec!["m2", "m3"]));
    assert_eq!(replica.metrics.count(Counter::HotReads { result: HotRead::Hit }), 2);
}

#[tokio::test]
async fn a_conversation_of_10_000_messages_whose_copy_was_evicted_reads_whole_and_in_order() {
    let (_env, replica) = stores().await;
    let batch: Vec<_> = (0..10_000)
        .map(|i| {
            let time = format!("2026-11-20T10:{:02}:{:02}.{:03}Z", i / 60 % 60, i % 60, i / 3600);
            to_save("s", &format!("m{i:05}"), &json!({"timestamp": time}))
        })
        .collect();
    for part in batch.chunks(500) {
        assert_eq!(replica.save(part).await, vec![applied(); part.len()]);
    }
    let mut expected: Vec<_> = batch.iter().map(|save| save.message.clone()).collect();
    expected.sort_by_key(domain::message::Message::position);

    assert_eq!(replica.read_both(&key("s"), 100).await, expected[9_900..]);
    evict(&replica).await;
    let read = replica.read(&key("s"), 100).await;
    assert_eq!((read.source, &read.messages[..]), (Source::Database, &expected[9_900..]));
    assert_eq!(replica.read_both(&key("s"), 1_000).await, expected[9_000..]);

    // Messages older than the copy's `complete_from` come from PostgreSQL, page by page, without a gap.
    let mut pages = Vec::new();
    let mut before = None;
    loop {
        let window = Window { newest: 777, before };
        let page = replica.reader.read(&key("s"), &window).await.unwrap().unwrap();
        let Some(oldest) = page.messages.first() else { break };
        before = Some(oldest.position());
        pages.splice(0..0, page.messages);
    }
    assert_eq!(pages, expected);
}

#[tokio::test]
async fn a_copy_cut_short_by_large_bodies_serves_what_it_holds_and_is_not_loaded_again() {
    let (_env, replica) = stores().await;
    let large = "x".repeat(700_000);
    let batch: Vec<_> =
        (0..8).map(|i| to_save("s", &format!("m{i}"), &json!({"content": large}))).collect();
    replica.save(&batch).await;
    let all = replica.read(&key("s"), 8).await;
    assert_eq!((all.source, all.messages.len()), (Source::Database, 8));
    let loaded = Counter::HotLoads { result: HotLoad::Loaded };
    assert_eq!(replica.metrics.count(loaded), 1);
    let newest = replica.read(&key("s"), 3).await;
    assert_eq!((newest.source, ids(&newest.messages)), (Source::HotCopy, vec!["m5", "m6", "m7"]));
    let again = replica.read(&key("s"), 8).await;
    assert_eq!((again.source, again.messages.len()), (Source::Database, 8));
    assert_eq!(replica.metrics.count(loaded), 1);
}

#[tokio::test]
async fn a_copy_that_vanished_under_a_saver_is_not_taken_for_complete() {
    let (_env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    replica.read_both(&key("s"), 10).await;
    evict(&replica).await;
    // The saver appends to a key that has no marker now.
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    let read = replica.read(&key("s"), 10).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::Database, vec!["m1", "m2"]));
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m2"]);
}

#[tokio::test]
async fn a_key_that_vanishes_between_a_load_and_its_marker_gets_no_marker() {
    let (_env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    let late = begin_load(&replica).await;
    // The key is evicted, and a message is saved and appended that the snapshot does not have.
    evict(&replica).await;
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    let loaded =
        replica.hot.finish_load(late.load_token, &late.marker, &late.messages).await.unwrap();
    assert_eq!(loaded, hot_store::Loaded::Superseded);
    let read = replica.read(&key("s"), 10).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::Database, vec!["m1", "m2"]));
}

#[tokio::test]
async fn a_marker_that_arrives_late_does_not_cover_changes_made_meanwhile() {
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    // With a second dispatcher, tracing-core (0.1) asks both when another test reaches a call site first. With
    // one it asks that of the other test's thread, which has none, and disables the call site for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    // On this thread, which runs the whole test.
    let _subscriber = tracing::subscriber::set_default(lines.finish());
    let (env, replica) = stores().await;
    let proxy = Proxy::before(&env.redis_url).await.unwrap();
    let cut_off = Replica::at(&env.database_url, proxy.url());
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    cut_off.save(&[to_save("s", "m1", &json!({}))]).await;
    proxy.cut().await.unwrap();
    let finds = async |source: Source, expected: &[&str]| {
        let read = replica.read(&key("s"), 10).await;
        assert_eq!((read.source, ids(&read.messages)), (source, expected.to_vec()));
    };

    // A message is saved between the snapshot and the marker: the message is in the copy as well.
    let late = begin_load(&replica).await;
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    late.finish(&replica).await;
    finds(Source::HotCopy, &["m1", "m2"]).await;

    // A saver without a connection to Redis saves: a new generation.
    let late = begin_load(&replica).await;
    assert_eq!(cut_off.save(&[to_save("s", "m3", &json!({}))]).await, [applied()]);
    late.finish(&replica).await;
    finds(Source::Database, &["m1", "m2", "m3"]).await;
    finds(Source::HotCopy, &["m1", "m2", "m3"]).await;

    // The Redis server changed: a new epoch.
    let late = begin_load(&replica).await;
    replica.database.record_server_identity("another server", 4711).await.unwrap();
    late.finish(&replica).await;
    finds(Source::Database, &["m1", "m2", "m3"]).await;
    assert_eq!(replica.metrics.count(Counter::HotReads { result: HotRead::Stale }), 2);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let logged =
        log.lines().filter(|line| line.contains("outdated hot copy; reading from PostgreSQL"));
    assert_eq!(logged.filter(|line| line.contains(&key("s").to_string())).count(), 2, "{log}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A load that has taken its snapshot.
struct Late {
    load_token: hot_store::LoadToken,
    marker: hot_store::CompletenessMarker,
    messages: Vec<domain::message::Message>,
}

async fn begin_load(replica: &Replica) -> Late {
    let load_token = replica.hot.begin_load(&key("s")).await.unwrap();
    let page = database::Page { newest: 10, max_bytes: usize::MAX, before: None };
    let snapshot = replica.database.read(&key("s"), &page).await.unwrap();
    let numbers = hot_store::Numbers {
        epoch: snapshot.numbers.hot_epoch.unwrap(),
        generation: snapshot.numbers.conversation.unwrap().hot_generation,
    };
    let marker = hot_store::CompletenessMarker {
        numbers,
        complete_from: hot_store::CompleteFrom::Beginning,
    };
    Late { load_token, marker, messages: snapshot.messages }
}

impl Late {
    async fn finish(self, replica: &Replica) {
        let loaded = replica.hot.finish_load(self.load_token, &self.marker, &self.messages).await;
        assert_eq!(loaded.unwrap(), hot_store::Loaded::Accepted);
    }
}

#[tokio::test]
async fn a_writer_that_cannot_reach_redis_invalidates_the_copy_that_others_read() {
    let (env, reader) = stores().await;
    let proxy = Proxy::before(&env.redis_url).await.unwrap();
    let writer = Replica::at(&env.database_url, proxy.url());
    writer.save(&[to_save("s", "m1", &json!({}))]).await;
    assert_eq!(ids(&reader.read_both(&key("s"), 10).await), ["m1"]);

    proxy.cut().await.unwrap();
    assert_eq!(writer.save(&[to_save("s", "m2", &json!({}))]).await, [applied()]);
    let read = reader.read(&key("s"), 10).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::Database, vec!["m1", "m2"]));

    // Known to be down now: the save itself invalidates the copy.
    assert!(writer.hot.is_known_down());
    reader.read_both(&key("s"), 10).await;
    assert_eq!(writer.save(&[to_save("s", "m3", &json!({}))]).await, [applied()]);
    let read = reader.read(&key("s"), 10).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::Database, vec!["m1", "m2", "m3"]));

    proxy.restore().await.unwrap();
    eventually("the writer to find Redis again", LIMIT, async || {
        writer.hot.probe().await.map_err(|error| error.to_string())
    })
    .await;
    writer.save(&[to_save("s", "m4", &json!({}))]).await;
    assert_eq!(ids(&reader.read_both(&key("s"), 10).await), ["m1", "m2", "m3", "m4"]);
}

#[tokio::test]
async fn without_redis_saving_and_reading_continue_in_postgresql() {
    let (env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    env.redis().kill().await.unwrap();
    assert_eq!(replica.save(&[to_save("s", "m2", &json!({}))]).await, [applied()]);
    let read = replica.read(&key("s"), 10).await;
    assert_eq!((read.source, read.degraded), (Source::Database, false));
    assert_eq!(ids(&read.messages), ["m1", "m2"]);
}

#[tokio::test]
async fn without_postgresql_a_copy_is_degraded_and_no_copy_is_an_error() {
    let (env, direct) = stores().await;
    let proxy = Proxy::before(&env.database_url).await.unwrap();
    let replica = Replica::at(proxy.url(), &env.redis_url);
    direct.save(&[to_save("s", "m1", &json!({}))]).await;
    replica.read_both(&key("s"), 10).await;

    proxy.cut().await.unwrap();
    let read = replica.read(&key("s"), 10).await;
    assert!(read.degraded && read.source == Source::HotCopy, "{read:?}");
    assert_eq!(ids(&read.messages), ["m1"]);
    let error = replica.reader.read(&key("other"), &newest(10)).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Unavailable);
    let error = replica.saver.save(&[to_save("s", "m2", &json!({}))]).await.unwrap_err();
    assert_eq!(error.dependency, Dependency::PostgreSql);

    proxy.restore().await.unwrap();
    eventually("PostgreSQL to answer again", LIMIT, async || {
        replica.database.probe().await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(replica.save(&[to_save("s", "m2", &json!({}))]).await, [applied()]);
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m2"]);
}

#[tokio::test]
async fn a_failure_of_postgresql_that_is_no_outage_is_an_error_although_there_is_a_copy() {
    let (env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    replica.read_both(&key("s"), 10).await;
    sql(&env, "ALTER TABLE conversations DROP CONSTRAINT IF EXISTS conversations_status_check")
        .await;
    sql(&env, "UPDATE conversations SET status = 'of a newer version'").await;
    let error = replica.reader.read(&key("s"), &newest(10)).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Retryable, "{error}");
}

#[tokio::test]
async fn a_hot_copy_on_a_server_that_is_connected_only_now_is_not_usable() {
    let (env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    replica.read_both(&key("s"), 10).await;
    // A worker has recorded another server since, so this connection changes the epoch.
    sql(&env, "UPDATE hot_epoch SET redis_identity = 'another server'").await;
    let late = Replica::of(&env);
    let read = read_hot_copy(&late.database, &late.hot, &key("s"), &newest(10)).await;
    assert!(matches!(read, Err(HotCopyError::Unusable(_))), "{read:?}");
}

#[tokio::test]
async fn redis_restarted_empty_under_load_makes_no_reader_miss_an_acknowledged_message() {
    let (env, replica) = stores().await;
    let reader = Replica::of(&env);
    let shutdown = CancellationToken::new();
    let watches = [&replica, &reader].map(|r| tokio::spawn(r.hot.clone().watch(shutdown.clone())));
    let restarted = Arc::new(AtomicBool::new(false));

    let saver = {
        let (saver, restarted) = (replica.saver.clone(), Arc::clone(&restarted));
        tokio::spawn(async move {
            let mut acknowledged: Vec<String> = Vec::new();
            let mut after = 0;
            while after < 50 {
                let id = format!("m{:05}", acknowledged.len());
                let time = format!("2026-11-20T10:00:00.{:06}Z", acknowledged.len());
                let save = to_save("s", &id, &json!({"timestamp": time}));
                let saved = saver.save(&[save]).await.unwrap();
                assert_eq!(saved, [Ok(domain::failure::Done::Applied)]);
                acknowledged.push(id);
                after += usize::from(restarted.load(Ordering::SeqCst));
            }
            acknowledged
        })
    };
    eventually("some messages", LIMIT, async || {
        match reader.reader.read(&key("s"), &newest(1)).await.unwrap() {
            Some(read) if read.messages[0].id.as_str() > "m00020" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let epoch = reader.database.numbers(&key("s")).await.unwrap().hot_epoch;
    env.redis().kill().await.unwrap();
    env.redis().start_empty().await.unwrap();
    restarted.store(true, Ordering::SeqCst);

    let acknowledged = saver.await.unwrap();
    let read = reader.read(&key("s"), 1_000).await;
    assert_eq!(ids(&read.messages), acknowledged[acknowledged.len().saturating_sub(1_000)..]);
    eventually("both replicas to be back in Redis", LIMIT, async || {
        let healths = [&replica, &reader].map(|it| *it.hot.subscribe().borrow());
        if healths == [Health::Up; 2] { Ok(()) } else { Err(format!("{healths:?}")) }
    })
    .await;
    assert_ne!(reader.database.numbers(&key("s")).await.unwrap().hot_epoch, epoch);
    reader.read_both(&key("s"), 100).await;
    shutdown.cancel();
    for watch in watches {
        watch.await.unwrap();
    }
}

#[tokio::test]
async fn replicas_that_meet_a_new_redis_at_once_make_one_new_epoch() {
    let (env, replica) = stores().await;
    let changes = metrics::Metrics::new();
    let record = record_server(
        replica.database.clone(),
        changes.clone(),
        conversation::RandomSource::random(),
    );
    let before = replica.database.numbers(&key("s")).await.unwrap().hot_epoch;
    // The first use of Redis records its identity: a new database has none.
    replica.hot.probe().await.unwrap();
    let recorded = replica.database.numbers(&key("s")).await.unwrap().hot_epoch;
    assert_ne!(recorded, before);
    for _ in 0..5 {
        Replica::of(&env).hot.probe().await.unwrap();
    }
    assert_eq!(replica.database.numbers(&key("s")).await.unwrap().hot_epoch, recorded);
    drop(record);
    let first = Counter::HotEpochChanges { cause: EpochCause::First };
    assert_eq!((changes.count(first), replica.metrics.count(first)), (0, 1));
}

/// Deletes the copy, as if Redis had evicted it.
async fn evict(replica: &Replica) {
    replica.hot.drop_copies(&[key("s")]).await.unwrap();
}
