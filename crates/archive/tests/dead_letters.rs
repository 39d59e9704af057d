//! Dead letters in PostgreSQL: stored once, taken by one run, and never met twice on a walk.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use archive::{
    Archive, By, DeadLetter, DeadLetterStatus, Decision, ReplayOutcome, Selection, Settings, Walk,
};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use serde_json::json;
use testkit::TestEnv;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(60);

async fn migrated() -> (TestEnv, Archive) {
    let env = TestEnv::new().await;
    let archive = Archive::open(&Settings {
        url: env.database_url.clone(),
        application: "test".to_owned(),
        connections: 5,
        time_out: Duration::from_secs(10),
        lock_time_out: Duration::from_millis(200),
    })
    .unwrap();
    archive.migrate().await.unwrap();
    (env, archive)
}

fn letter(n: u128) -> DeadLetter {
    let at = Timestamp::parse("2026-11-20T10:00:00Z").unwrap();
    DeadLetter {
        id: Uuid::from_u128(n),
        queue: "conversation.save_message".to_owned(),
        reason: DeadLetterReason::Schema,
        field: Some("role".to_owned()),
        error: "`role` must be a role".to_owned(),
        tenant_id: Some("acme".to_owned()),
        conversation_id: None,
        session_id: None,
        message_id: None,
        action_type: None,
        routing_key: "conversation.save_message".to_owned(),
        exchange: "domain.actions".to_owned(),
        body: b"{\"role\":\"bot\"}".to_vec(),
        properties: json!({"message_id": "m"}),
        headers: json!({"b": 1, "a": "\u{0}"}),
        attempts: 1,
        replay_count: 0,
        replay_of: None,
        first_failed_at: at,
        last_failed_at: at,
    }
}

fn by() -> By {
    By { actor: "ops".to_owned(), run: Uuid::new_v4() }
}

async fn walk(archive: &Archive) -> Walk {
    archive.walk_dead_letters(Selection::All).await.unwrap()
}

fn sent(n: u128, fault: Option<&str>) -> ReplayOutcome {
    ReplayOutcome {
        letter: Uuid::from_u128(n),
        queue: "conversation.save_message".to_owned(),
        fault: fault.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_letter_that_comes_again_gains_a_copy_within_a_batch_and_across_batches() {
    let (env, archive) = migrated().await;
    // More than one statement takes, in any order, and some of them twice.
    let mut letters: Vec<_> = (0..600).rev().map(letter).collect();
    letters.extend((0..10).map(letter));
    letters[0].body = vec![0xff; 3 << 20];
    archive.store_dead_letters(&letters).await.unwrap();
    archive.store_dead_letters(&[&letters[0], &letters[1]]).await.unwrap();
    let counts =
        "SELECT concat_ws('|', count(*), sum(copies), max(octet_length(body))) FROM dead_letters";
    assert_eq!(env.psql(counts).await.unwrap(), "600|612|3145728");
    let stored = archive.dead_letter(Uuid::from_u128(5)).await.unwrap().unwrap();
    assert_eq!((stored.headers, stored.copies), (letter(5).headers, 2));
}

#[tokio::test]
async fn what_one_run_has_no_other_gets_until_its_lease_has_ended() {
    let (env, archive) = migrated().await;
    archive.store_dead_letters(&[letter(1), letter(2)]).await.unwrap();
    let (one, other, walk) = (by(), by(), walk(&archive).await);
    let taken = archive.take_dead_letters(&walk, &one, LEASE, 1).await.unwrap();
    assert_eq!(taken.letters.len(), 1);
    let left = archive.take_dead_letters(&walk, &other, LEASE, 10).await.unwrap();
    assert_eq!(left.letters.len(), 1);
    assert_ne!(left.letters[0].id, taken.letters[0].id);
    // Nor does anybody decide about it meanwhile.
    let discard = Decision::Discard { why: "no" };
    let open = [DeadLetterStatus::Open];
    let discarded = archive.decide_dead_letters(&walk, &open, discard, &other, 10).await.unwrap();
    assert!(discarded.letters.is_empty());
    assert!(!archive.edit_dead_letter(&taken.letters[0], Some(b"{}"), &[], &other).await.unwrap());

    env.psql("UPDATE dead_letters SET replay_lease_until = clock_timestamp()").await.unwrap();
    let late = archive.take_dead_letters(&walk, &other, LEASE, 10).await.unwrap();
    assert_eq!(late.letters.len(), 2);
    // The first run comes back from wherever it was: its letters are not its any more.
    let lost = sent(taken.letters[0].id.as_u128(), None);
    assert_eq!(archive.note_replayed(&[lost], &one).await.unwrap(), 0);
    let noted = [sent(1, None), sent(2, Some("no queue"))];
    assert_eq!(archive.note_replayed(&noted, &other).await.unwrap(), 2);
    let states = "SELECT string_agg(concat_ws(' ', status, replay_fault, replay_lease_until), ',' ORDER BY id)
                  FROM dead_letters";
    assert_eq!(env.psql(states).await.unwrap(), "replayed,open no queue");
    let audit = "SELECT string_agg(action || ' ' || actor, ',' ORDER BY action) FROM audit_log";
    let expected = "dead_letter.replay ops,dead_letter.replay_failed ops";
    assert_eq!(env.psql(audit).await.unwrap(), expected);
    assert_eq!(
        archive.note_replayed(&noted, &other).await.unwrap(),
        1,
        "what is open it may note again"
    );
}

#[tokio::test]
async fn a_walk_meets_what_was_there_when_it_began_and_each_letter_once() {
    let (_env, archive) = migrated().await;
    let letters: Vec<_> = (0..25).map(letter).collect();
    archive.store_dead_letters(&letters).await.unwrap();
    let beginning = walk(&archive).await;
    archive.store_dead_letters(&[letter(100)]).await.unwrap();
    assert_eq!(archive.count_ahead(&beginning, &[]).await.unwrap(), 25);
    let (mut met, mut rest) = (Vec::new(), Some(beginning));
    while let Some(walk) = rest {
        let stretch = archive.next_dead_letters(&walk, &[], 10).await.unwrap();
        met.extend(stretch.letters.iter().map(|letter| letter.id));
        rest = stretch.rest;
    }
    met.sort_unstable();
    assert_eq!(met, letters.iter().map(|letter| letter.id).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_letter_that_dies_after_it_was_decided_about_is_open_again_and_an_old_death_changes_nothing()
 {
    let (env, archive) = migrated().await;
    archive.store_dead_letters(&[letter(1), letter(2), letter(3)]).await.unwrap();
    let (by, beginning) = (by(), walk(&archive).await);
    let taken = archive.take_dead_letters(&beginning, &by, LEASE, 1).await.unwrap();
    let replayed = sent(taken.letters[0].id.as_u128(), None);
    assert_eq!(archive.note_replayed(&[replayed], &by).await.unwrap(), 1);
    let (open, discard) = ([DeadLetterStatus::Open], Decision::Discard { why: "no" });
    archive.decide_dead_letters(&beginning, &open, discard, &by, 1).await.unwrap();
    let states = "SELECT string_agg(concat_ws(' ', status, status_reason, copies), ', '
                                    ORDER BY stored_at, id) FROM dead_letters";
    assert_eq!(env.psql(states).await.unwrap(), "replayed 1, discarded no 1, open 1");

    // The keeper died before it acknowledged them.
    archive.store_dead_letters(&[letter(1), letter(2), letter(3)]).await.unwrap();
    assert_eq!(env.psql(states).await.unwrap(), "replayed 2, discarded no 2, open 2");

    let later = walk(&archive).await;
    let now =
        r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
    let now = Timestamp::parse(&env.psql(now).await.unwrap()).unwrap();
    let again = |n| DeadLetter { last_failed_at: now, ..letter(n) };
    archive.store_dead_letters(&[again(1), again(2), again(3), letter(2)]).await.unwrap();
    assert_eq!(env.psql(states).await.unwrap(), "open 3, open 4, open 3");
    // Whoever walks just now came for what was there before.
    let met = archive.take_dead_letters(&later, &by, LEASE, 10).await.unwrap();
    assert_eq!(met.letters.len(), 1);
    let met = archive.take_dead_letters(&walk(&archive).await, &by, LEASE, 10).await.unwrap();
    assert_eq!(met.letters.len(), 2);
}

#[tokio::test]
async fn what_comes_back_once_more_is_seen_by_the_run_that_sent_it() {
    let (_env, archive) = migrated().await;
    let back = DeadLetter { replay_of: Some(letter(1).id), replay_count: 1, ..letter(2) };
    archive.store_dead_letters(&[letter(1), back.clone()]).await.unwrap();
    let (by, walk) = (by(), walk(&archive).await);
    let _taken = archive.take_dead_letters(&walk, &by, LEASE, 1).await.unwrap();
    assert_eq!(archive.note_replayed(&[sent(1, None)], &by).await.unwrap(), 1);
    assert_eq!(archive.returned_letters(by.run, &walk).await.unwrap(), []);
    archive.store_dead_letters(&[back]).await.unwrap();
    let returned = archive.returned_letters(by.run, &walk).await.unwrap();
    let returned: Vec<_> = returned.iter().map(|it| (it.id, it.replay_of)).collect();
    assert_eq!(returned, [(letter(2).id, letter(1).id)]);
}

#[tokio::test]
async fn a_run_that_sent_what_was_there_before_an_edit_does_not_mark_the_edited_letter() {
    let (env, archive) = migrated().await;
    archive.store_dead_letters(&[letter(1)]).await.unwrap();
    let (frozen, other) = (by(), by());
    let taken = archive.take_dead_letters(&walk(&archive).await, &frozen, LEASE, 1).await.unwrap();
    env.psql("UPDATE dead_letters SET replay_lease_until = clock_timestamp()").await.unwrap();
    assert!(archive.edit_dead_letter(&taken.letters[0], Some(b"{}"), &[], &other).await.unwrap());
    assert_eq!(archive.note_replayed(&[sent(1, None)], &frozen).await.unwrap(), 0);
    assert_eq!(env.psql("SELECT status FROM dead_letters").await.unwrap(), "open");
}

#[tokio::test]
async fn large_letters_are_met_a_few_at_a_time_and_all_of_them() {
    let (_env, archive) = migrated().await;
    let large = |n| DeadLetter { body: vec![b'x'; 9 << 20], ..letter(n) };
    archive.store_dead_letters(&[large(1), large(2), large(3)]).await.unwrap();
    let (by, beginning) = (by(), walk(&archive).await);
    let (mut met, mut rest) = (Vec::new(), Some(beginning.clone()));
    while let Some(walk) = rest {
        let stretch = archive.next_dead_letters(&walk, &[], 10).await.unwrap();
        met.push(stretch.letters.len());
        rest = stretch.rest;
    }
    let (mut taken, mut rest) = (Vec::new(), Some(beginning));
    while let Some(walk) = rest {
        let stretch = archive.take_dead_letters(&walk, &by, LEASE, 10).await.unwrap();
        taken.push(stretch.letters.len());
        rest = stretch.rest;
    }
    assert_eq!((met, taken), (vec![2, 1], vec![2, 1]));
}
