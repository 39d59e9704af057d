//! Messages that belong together: those of `conversation.save_messages`.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use conversation::ToSave;
use domain::action::SaveMessage;
use domain::failure::{DeadLetterReason, Done, Failure, Outcome};
use domain::message::Message;
use fixtures::{Replica, sql, stores, to_save};
use serde_json::json;
use testkit::TestEnv;

/// Message `n` of a unit.
fn message(unit: usize, n: usize, content: &str) -> SaveMessage {
    let extra =
        json!({"content": content, "timestamp": format!("2026-11-20T10:{unit:02}:{n:02}Z")});
    to_save("s", &format!("{n}-{unit}"), &extra)
}

/// Units of ten messages, with these contents instead.
fn units(count: usize, contents: &[(usize, usize, &str)]) -> Vec<(usize, SaveMessage)> {
    let content = |unit, n| {
        let other = contents.iter().find(|(of, at, _)| (*of, *at) == (unit, n));
        other.map_or("hi", |(_, _, content)| content)
    };
    let messages = (0..count).flat_map(|unit| (0..10).map(move |n| (unit, n)));
    messages.map(|(unit, n)| (unit, message(unit, n, content(unit, n)))).collect()
}

fn in_unit(unit: usize, message: &SaveMessage, atomic: bool) -> ToSave<'_> {
    ToSave { atomic, ..ToSave::alone(unit, message) }
}

async fn save(replica: &Replica, units: &[(usize, SaveMessage)], atomic: bool) -> Vec<Outcome> {
    let each = |(unit, message): &'_ (usize, SaveMessage)| (*unit, message.clone());
    let owned: Vec<_> = units.iter().map(each).collect();
    let to_save: Vec<ToSave<'_>> =
        owned.iter().map(|(unit, message)| in_unit(*unit, message, atomic)).collect();
    replica.saver.save_units(&to_save).await.unwrap()
}

/// Of each unit the numbers of its messages and of the transactions that stored them.
const TRANSACTIONS: &str = "
    SELECT string_agg(concat_ws('|', unit, messages, transactions), ' ' ORDER BY unit)
    FROM (SELECT split_part(id, '-', 2)::int AS unit, count(*) AS messages,
                 count(DISTINCT xmin::text) AS transactions
          FROM message_rows GROUP BY 1) AS units";

async fn refuse_poison(env: &TestEnv) {
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                  BEGIN RAISE EXCEPTION 'refused by the test' USING ERRCODE = '22023'; END $$;
                  CREATE TRIGGER refuse BEFORE INSERT ON message_rows
                      FOR EACH ROW WHEN (NEW.content = 'poison') EXECUTE FUNCTION refuse()";
    sql(env, refuse).await;
}

#[tokio::test]
async fn a_unit_is_saved_in_one_transaction_although_another_one_has_a_bad_message() {
    let (env, replica) = stores().await;
    refuse_poison(&env).await;
    let outcomes = save(&replica, &units(5, &[(2, 3, "poison")]), false).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Err(Failure::DeadLetter(refusal)) => {
                assert_eq!((n, refusal.reason), (23, DeadLetterReason::Schema));
            }
            other => assert_eq!(*other, Ok(Done::Applied), "{n}"),
        }
    }
    let stored = sql(&env, TRANSACTIONS).await;
    let whole: Vec<_> = stored.split(' ').filter(|unit| !unit.starts_with("2|")).collect();
    assert_eq!(whole, ["0|10|1", "1|10|1", "3|10|1", "4|10|1"], "{stored}");
    assert!(stored.contains(" 2|9|"), "{stored}");
    assert!(replica.read_both(&fixtures::key("s"), 100).await.is_sorted_by_key(Message::position));
}

#[tokio::test]
async fn equal_and_different_messages_of_one_id_in_several_units_have_the_outcomes_of_single_ones()
{
    let (_env, replica) = stores().await;
    let of = |unit: usize, content: &str| (unit, message(0, 0, content));
    let new = |unit: usize| (unit, message(unit, 1, "hi"));
    let all = [of(0, "a"), new(0), of(1, "b"), new(1), of(2, "a"), of(2, "b"), of(2, "a"), new(2)];
    let outcomes = save(&replica, &all, false).await;
    let is = |n: usize| match &outcomes[n] {
        Ok(done) => format!("{done:?}"),
        Err(Failure::DeadLetter(refusal)) => refusal.reason.to_string(),
        Err(other) => other.to_string(),
    };
    let found: Vec<String> = (0..all.len()).map(is).collect();
    assert_eq!(
        found,
        [
            "Applied",
            "Applied",
            "conflict",
            "Applied",
            "Duplicate",
            "conflict",
            "Duplicate",
            "Applied"
        ]
    );
}

#[tokio::test]
async fn an_atomic_unit_is_saved_as_a_whole_or_not_at_all() {
    let (env, replica) = stores().await;
    refuse_poison(&env).await;
    assert_eq!(save(&replica, &units(1, &[]), true).await, vec![Ok(Done::Applied); 10]);
    // Again, with a unit whose message is refused, one whose id is taken, and one that says two things of one id.
    let mut all = units(4, &[(1, 3, "poison")]);
    all.push((2, message(0, 0, "other")));
    all.push((3, message(3, 0, "other")));
    let outcomes = save(&replica, &all, true).await;
    assert_eq!(outcomes[..10], vec![Ok(Done::Duplicate); 10]);
    assert!(
        outcomes[10..].iter().all(|it| matches!(it, Err(Failure::DeadLetter(_)))),
        "{outcomes:?}"
    );
    assert_eq!(sql(&env, TRANSACTIONS).await, "0|10|1");
}

/// The messages of an action that was received at this second: each a microsecond after the one before it.
fn received(second: usize) -> Vec<SaveMessage> {
    let message = |n: usize| {
        let timestamp = format!("2026-11-20T10:00:{second:02}.{n:06}Z");
        // The ids do not have the order of the messages.
        to_save("s", &format!("{}-m", 9 - n), &json!({"content": "hi", "timestamp": timestamp}))
    };
    (0..5).map(message).collect()
}

#[tokio::test]
async fn what_stands_before_a_stored_message_of_an_action_without_times_is_stored_before_it() {
    let (env, replica) = stores().await;
    let save = async |messages: &[SaveMessage], positions: &[usize]| {
        let to_save =
            |n: &usize| ToSave { after_receipt: Some(*n), ..in_unit(0, &messages[*n], false) };
        let to_save: Vec<_> = positions.iter().map(to_save).collect();
        replica.saver.save_units(&to_save).await.unwrap()
    };
    // A process ended when it had saved a part.
    save(&received(1), &[1, 3]).await;
    let outcomes = save(&received(7), &[0, 1, 2, 3, 4]).await;
    let (new, again) = (Ok(Done::Applied), Ok(Done::Duplicate));
    assert_eq!(outcomes, [new.clone(), again.clone(), new.clone(), again, new]);
    let copy = replica.read_both(&fixtures::key("s"), 100).await;
    assert_eq!(
        copy.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(),
        ["9-m", "8-m", "7-m", "6-m", "5-m"]
    );
    let second =
        "SELECT string_agg(to_char(created_at, 'SS.US'), ' ' ORDER BY created_at) FROM messages";
    let expected = "01.000000 01.000001 01.000002 01.000003 07.000004";
    assert_eq!(sql(&env, second).await, expected);
}

#[tokio::test]
async fn a_new_message_behind_repeated_ones_is_stored_at_its_own_time() {
    let (_env, replica) = stores().await;
    let save = async |messages: &[SaveMessage], positions: &[usize]| {
        let to_save = |(place, n): (usize, &usize)| ToSave {
            after_receipt: Some(place),
            ..in_unit(0, &messages[*n], false)
        };
        let to_save: Vec<_> = positions.iter().enumerate().map(to_save).collect();
        replica.saver.save_units(&to_save).await.unwrap()
    };
    save(&received(1), &[0]).await;
    save(&received(2), &[3]).await;
    // The newest messages again, as a sender of a window does, with one more.
    let outcomes = save(&received(3), &[0, 3, 1]).await;
    assert_eq!(outcomes, [Ok(Done::Duplicate), Ok(Done::Duplicate), Ok(Done::Applied)]);
    let copy = replica.read_both(&fixtures::key("s"), 100).await;
    assert_eq!(fixtures::ids(&copy), ["9-m", "6-m", "8-m"]);
}
