//! Dead letters in PostgreSQL: stored once, taken by one run at a time, and read once by a cursor.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use database::{
    Actor, CollectedDeadLetter, Database, DeadLetter, DeadLetterCursor, DeadLetterStatus, Decision,
    FailedMessage, ReplayOutcome, Selection, Settings,
};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use serde_json::json;
use testkit::TestEnv;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(60);

async fn migrated() -> (TestEnv, Database) {
    let env = TestEnv::new().await;
    let database = Database::open(&Settings {
        url: env.database_url.clone(),
        application: "test".to_owned(),
        connections: 5,
        time_out: Duration::from_secs(10),
        lock_time_out: Duration::from_millis(200),
    })
    .unwrap();
    database.migrate(|| {}).await.unwrap();
    (env, database)
}

fn dead_letter(n: u128) -> CollectedDeadLetter {
    let at = Timestamp::parse("2026-11-20T10:00:00Z").unwrap();
    let dead_letter = DeadLetter {
        id: Uuid::from_u128(n),
        queue: "conversation.save_message".to_owned(),
        reason: DeadLetterReason::Schema.to_string(),
        field: Some("role".to_owned()),
        error: "`role` must be a role".to_owned(),
        tenant_id: Some("acme".to_owned()),
        conversation_id: None,
        session_id: None,
        message_id: None,
        action_type: None,
        routing_key: "conversation.save_message".to_owned(),
        exchange: "domain.actions".to_owned(),
        attempts: 1,
        replay_count: 0,
        replay_of: None,
        first_failed_at: at.into(),
        last_failed_at: at.into(),
    };
    let message = FailedMessage {
        body: "{\"role\":\"bot\"}".into(),
        properties: json!({"message_id": "m"}),
        headers: json!({"b": 1, "a": "\u{0}"}),
        left_out: Some(json!({"headers": 1, "names": ["c"]})),
        delivery: json!({"exchange": "domain.actions"}),
    };
    CollectedDeadLetter { dead_letter, message }
}

fn actor() -> Actor {
    Actor { name: "ops".to_owned(), run: Uuid::new_v4(), tenant: None }
}

async fn cursor(database: &Database) -> DeadLetterCursor {
    database.dead_letter_cursor(Selection::All).await.unwrap()
}

fn sent(n: u128, fault: Option<&str>) -> ReplayOutcome {
    ReplayOutcome {
        dead_letter: Uuid::from_u128(n),
        queue: "conversation.save_message".to_owned(),
        fault: fault.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_dead_letter_that_arrives_again_counts_as_a_copy_within_a_batch_and_across_batches() {
    let (env, database) = migrated().await;
    // More than one statement inserts, unordered, and some of them twice.
    let mut dead_letters: Vec<_> = (0..600).rev().map(dead_letter).collect();
    dead_letters.extend((0..10).map(dead_letter));
    dead_letters[0].message.body = vec![0xff; 3 << 20].into();
    database.store_dead_letters(&dead_letters, &[]).await.unwrap();
    database.store_dead_letters(&[&dead_letters[0], &dead_letters[1]], &[]).await.unwrap();
    let counts =
        "SELECT concat_ws('|', count(*), sum(copies), max(octet_length(body))) FROM dead_letters";
    assert_eq!(env.psql(counts).await.unwrap(), "600|612|3145728");
    let stored = database.dead_letter(Uuid::from_u128(5)).await.unwrap().unwrap();
    assert_eq!((stored.message, stored.state.copies), (dead_letter(5).message, 2));
}

#[tokio::test]
async fn a_large_body_is_stored_whole_also_when_it_arrives_again() {
    let (env, database) = migrated().await;
    // No two of its parts are equal, and the last one is shorter.
    let body: Vec<u8> = (0..(9_u32 << 18) + 1).flat_map(u32::to_be_bytes).collect();
    let mut dead_letters = [dead_letter(1), dead_letter(2), dead_letter(3)];
    dead_letters[1].message.body = body.into();
    for copies in 1..=2 {
        database.store_dead_letters(&dead_letters, &[]).await.unwrap();
        for sent in &dead_letters {
            let stored = database.dead_letter(sent.dead_letter.id).await.unwrap().unwrap();
            assert!(stored.message == sent.message);
            assert_eq!(stored.state.copies, copies);
        }
    }
    assert_eq!(env.psql("SELECT count(*) FROM dead_letter_parts").await.unwrap(), "0");
}

#[tokio::test]
async fn a_dead_letter_taken_by_one_run_is_not_taken_by_another_until_the_lease_ends() {
    let (env, database) = migrated().await;
    database.store_dead_letters(&[dead_letter(1), dead_letter(2)], &[]).await.unwrap();
    let (one, other, cursor) = (actor(), actor(), cursor(&database).await);
    let taken = database.take_dead_letters(&cursor, &one, LEASE, 1).await.unwrap();
    assert_eq!(taken.dead_letters.len(), 1);
    let left = database.take_dead_letters(&cursor, &other, LEASE, 10).await.unwrap();
    assert_eq!(left.dead_letters.len(), 1);
    assert_ne!(left.dead_letters[0].dead_letter.id, taken.dead_letters[0].dead_letter.id);
    // No decision or edit applies to it during the lease.
    let discard = Decision::Discard { why: "no" };
    let open = [DeadLetterStatus::Open];
    let discarded =
        database.decide_dead_letters(&cursor, &open, discard, &other, 10).await.unwrap();
    assert!(discarded.dead_letters.is_empty());
    assert!(
        !database.edit_dead_letter(&taken.dead_letters[0], Some(b"{}"), &[], &other).await.unwrap()
    );

    env.psql("UPDATE dead_letters SET replay_lease_until = clock_timestamp()").await.unwrap();
    let late = database.take_dead_letters(&cursor, &other, LEASE, 10).await.unwrap();
    assert_eq!(late.dead_letters.len(), 2);
    // The first run records an outcome after its lease ended: the dead letters belong to the other run.
    let lost = sent(taken.dead_letters[0].dead_letter.id.as_u128(), None);
    assert_eq!(database.note_replayed(&[lost], &one).await.unwrap(), 0);
    let noted = [sent(1, None), sent(2, Some("no queue"))];
    assert_eq!(database.note_replayed(&noted, &other).await.unwrap(), 2);
    let states = "SELECT string_agg(concat_ws(' ', status, replay_fault, replay_lease_until), ',' ORDER BY id)
                  FROM dead_letters";
    assert_eq!(env.psql(states).await.unwrap(), "replayed,open no queue");
    let audit = "SELECT string_agg(action || ' ' || actor, ',' ORDER BY action) FROM audit_log";
    let expected = "dead_letter.replay ops,dead_letter.replay_failed ops";
    assert_eq!(env.psql(audit).await.unwrap(), expected);
    assert_eq!(
        database.note_replayed(&noted, &other).await.unwrap(),
        1,
        "the run may record the open one again"
    );
}

#[tokio::test]
async fn a_run_holds_what_it_took_only_while_it_is_open_and_its_lease_lasts() {
    let (env, database) = migrated().await;
    database.store_dead_letters(&[dead_letter(1), dead_letter(2)], &[]).await.unwrap();
    let (one, other, cursor) = (actor(), actor(), cursor(&database).await);
    let ids = [1, 2].map(Uuid::from_u128);
    let held = async |run| {
        let mut held = database.hold_dead_letters(&ids, run, LEASE).await.unwrap();
        held.sort();
        held
    };
    let _taken = database.take_dead_letters(&cursor, &one, LEASE, 1).await.unwrap();
    assert_eq!((held(&one).await, held(&other).await), (vec![ids[0]], Vec::new()));
    let left = async |run| database.count_held_by_others(&cursor, run).await.unwrap();
    assert_eq!((left(&one).await, left(&other).await), (1, 2));
    // Each time the lease is renewed.
    let nearly = "UPDATE dead_letters SET replay_lease_until = clock_timestamp() + interval '10 s'
                  WHERE replay_run IS NOT NULL";
    env.psql(nearly).await.unwrap();
    assert_eq!(held(&one).await, [ids[0]]);
    let renewed = "SELECT max(replay_lease_until) > clock_timestamp() + interval '30 s'
                   FROM dead_letters";
    assert_eq!(env.psql(renewed).await.unwrap(), "t");

    env.psql("UPDATE dead_letters SET replay_lease_until = clock_timestamp()").await.unwrap();
    assert!(held(&one).await.is_empty(), "its lease has ended, although nobody took it");
    let _taken = database.take_dead_letters(&cursor, &other, LEASE, 2).await.unwrap();
    assert_eq!((held(&one).await, held(&other).await), (Vec::new(), ids.to_vec()));
    env.psql("UPDATE dead_letters SET status = 'discarded'").await.unwrap();
    assert!(held(&other).await.is_empty());
    assert_eq!(left(&one).await, 0);
}

#[tokio::test]
async fn a_cursor_reads_each_dead_letter_stored_before_it_once() {
    let (_env, database) = migrated().await;
    let dead_letters: Vec<_> = (0..25).map(dead_letter).collect();
    database.store_dead_letters(&dead_letters, &[]).await.unwrap();
    let start = cursor(&database).await;
    database.store_dead_letters(&[dead_letter(100)], &[]).await.unwrap();
    assert_eq!(database.count_ahead(&start, &[]).await.unwrap(), 25);
    let (mut read, mut rest) = (Vec::new(), Some(start));
    while let Some(cursor) = rest {
        let page = database.next_dead_letters(&cursor, &[], 10).await.unwrap();
        read.extend(page.dead_letters.iter().map(|it| it.dead_letter.id));
        rest = page.rest;
    }
    read.sort_unstable();
    assert_eq!(read, dead_letters.iter().map(|it| it.dead_letter.id).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_dead_letter_that_fails_after_a_decision_is_opened_again_and_an_earlier_failure_changes_nothing()
 {
    let (env, database) = migrated().await;
    database
        .store_dead_letters(&[dead_letter(1), dead_letter(2), dead_letter(3)], &[])
        .await
        .unwrap();
    let (actor, start) = (actor(), cursor(&database).await);
    let taken = database.take_dead_letters(&start, &actor, LEASE, 1).await.unwrap();
    let replayed = sent(taken.dead_letters[0].dead_letter.id.as_u128(), None);
    assert_eq!(database.note_replayed(&[replayed], &actor).await.unwrap(), 1);
    let (open, discard) = ([DeadLetterStatus::Open], Decision::Discard { why: "no" });
    database.decide_dead_letters(&start, &open, discard, &actor, 1).await.unwrap();
    let states = "SELECT string_agg(concat_ws(' ', status, status_reason, copies), ', '
                                    ORDER BY stored_at, id) FROM dead_letters";
    assert_eq!(env.psql(states).await.unwrap(), "replayed 1, discarded no 1, open 1");

    // The dead-letter collector crashed before it acknowledged them.
    database
        .store_dead_letters(&[dead_letter(1), dead_letter(2), dead_letter(3)], &[])
        .await
        .unwrap();
    assert_eq!(env.psql(states).await.unwrap(), "replayed 2, discarded no 2, open 2");

    let later = cursor(&database).await;
    let now =
        r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
    let now = Timestamp::parse(&env.psql(now).await.unwrap()).unwrap();
    let again = |n| {
        let mut again = dead_letter(n);
        again.dead_letter.last_failed_at = now.into();
        again
    };
    database
        .store_dead_letters(&[again(1), again(2), again(3), dead_letter(2)], &[])
        .await
        .unwrap();
    assert_eq!(env.psql(states).await.unwrap(), "open 3, open 4, open 3");
    // A cursor that was created before leaves out dead letters that were opened again since.
    let read = database.take_dead_letters(&later, &actor, LEASE, 10).await.unwrap();
    assert_eq!(read.dead_letters.len(), 1);
    let read =
        database.take_dead_letters(&cursor(&database).await, &actor, LEASE, 10).await.unwrap();
    assert_eq!(read.dead_letters.len(), 2);
}

#[tokio::test]
async fn the_clock_of_a_worker_counts_for_a_minute_more_than_that_of_postgresql_at_most() {
    let (env, database) = migrated().await;
    let foreign = Timestamp::parse("2199-01-01T00:00:00Z").unwrap();
    let mut dead_letter = dead_letter(1);
    dead_letter.dead_letter.first_failed_at = foreign.into();
    dead_letter.dead_letter.last_failed_at = foreign.into();
    database.store_dead_letters(&[dead_letter.clone(), dead_letter], &[]).await.unwrap();
    let ahead =
        "SELECT greatest(first_failed_at, last_failed_at) <= clock_timestamp() + interval '1 min'
                 FROM dead_letters";
    assert_eq!(env.psql(ahead).await.unwrap(), "t");
}

#[tokio::test]
async fn a_dead_letter_that_fails_again_is_reported_to_the_run_that_replayed_it() {
    let (_env, database) = migrated().await;
    let mut failed_copy = dead_letter(2);
    failed_copy.dead_letter.replay_of = Some(dead_letter(1).dead_letter.id);
    failed_copy.dead_letter.replay_count = 1;
    database.store_dead_letters(&[dead_letter(1), failed_copy.clone()], &[]).await.unwrap();
    let (actor, cursor) = (actor(), cursor(&database).await);
    let _taken = database.take_dead_letters(&cursor, &actor, LEASE, 1).await.unwrap();
    assert_eq!(database.note_replayed(&[sent(1, None)], &actor).await.unwrap(), 1);
    assert_eq!(database.failed_again_in(actor.run, &cursor).await.unwrap(), []);
    database.store_dead_letters(&[failed_copy], &[]).await.unwrap();
    let failed_again = database.failed_again_in(actor.run, &cursor).await.unwrap();
    let failed_again: Vec<_> = failed_again.iter().map(|it| (it.id, it.replay_of)).collect();
    assert_eq!(failed_again, [(Uuid::from_u128(2), Uuid::from_u128(1))]);
}

#[tokio::test]
async fn a_run_that_published_the_body_before_an_edit_does_not_mark_the_edited_dead_letter_as_replayed()
 {
    let (env, database) = migrated().await;
    database.store_dead_letters(&[dead_letter(1)], &[]).await.unwrap();
    let (frozen, other) = (actor(), actor());
    let taken =
        database.take_dead_letters(&cursor(&database).await, &frozen, LEASE, 1).await.unwrap();
    env.psql("UPDATE dead_letters SET replay_lease_until = clock_timestamp()").await.unwrap();
    assert!(
        database.edit_dead_letter(&taken.dead_letters[0], Some(b"{}"), &[], &other).await.unwrap()
    );
    assert_eq!(database.note_replayed(&[sent(1, None)], &frozen).await.unwrap(), 0);
    assert_eq!(env.psql("SELECT status FROM dead_letters").await.unwrap(), "open");
}

#[tokio::test]
async fn large_dead_letters_are_read_in_small_pages_and_all_of_them() {
    let (_env, database) = migrated().await;
    let large = |n| {
        let mut large = dead_letter(n);
        large.message.body = vec![b'x'; 9 << 20].into();
        large
    };
    database.store_dead_letters(&[large(1), large(2), large(3)], &[]).await.unwrap();
    let (actor, start) = (actor(), cursor(&database).await);
    let (mut read, mut rest) = (Vec::new(), Some(start.clone()));
    while let Some(cursor) = rest {
        let page = database.next_dead_letters(&cursor, &[], 10).await.unwrap();
        read.push(page.dead_letters.len());
        rest = page.rest;
    }
    let (mut taken, mut rest) = (Vec::new(), Some(start));
    while let Some(cursor) = rest {
        let page = database.take_dead_letters(&cursor, &actor, LEASE, 10).await.unwrap();
        taken.push(page.dead_letters.len());
        rest = page.rest;
    }
    assert_eq!((read, taken), (vec![2, 1], vec![2, 1]));
}

#[tokio::test]
async fn a_list_before_a_dead_letter_that_is_not_stored_is_no_empty_list() {
    let (_env, database) = migrated().await;
    database.store_dead_letters(&[dead_letter(1), dead_letter(2)], &[]).await.unwrap();
    let listed = async |before: u128| {
        let filter = database::DeadLetterFilter::default();
        let before = Some(Uuid::from_u128(before));
        let page = database.dead_letters(&filter, None, before, 10).await;
        page.map(|page| page.iter().map(|it| it.dead_letter.id.as_u128()).collect::<Vec<_>>())
    };
    assert_eq!(listed(2).await.unwrap(), [1]);
    assert_eq!(listed(1).await.unwrap(), []);
    let unknown = listed(3).await.unwrap_err();
    assert!(unknown.to_string().contains(&Uuid::from_u128(3).to_string()), "{unknown}");
}
