//! Conversations that another transaction has locked: those beside them do not wait for each of them.

use domain::failure::{Failure, Outcome};
use fixtures::{Replica, applied, stores, to_save};
use metrics::{Counter, TransactionRetry};
use serde_json::json;

use crate::slowness::lock;

const CONVERSATIONS: usize = 300;

/// Every third one.
const LOCKED: &str = "SELECT FROM conversations WHERE right(session_id, 3)::int % 3 = 0 FOR UPDATE";

fn session(n: usize) -> String {
    format!("s{n:03}")
}

fn is_locked(outcome: &Outcome) -> bool {
    matches!(outcome, Err(Failure::Locked(_)))
}

fn only_every_third_is_locked(outcomes: &[Outcome]) {
    for (n, outcome) in outcomes.iter().enumerate() {
        assert!(if n % 3 == 0 { is_locked(outcome) } else { outcome.is_ok() }, "{n}: {outcome:?}");
    }
}

/// Halving down to every third one would be hundreds of splits. One or two are of a busy machine.
fn not_halved(replica: &Replica) {
    let splits = Counter::TransactionRetries { class: TransactionRetry::Split };
    let splits = replica.metrics.count(splits);
    assert!(splits <= 2, "{splits} splits");
}

#[tokio::test]
async fn of_a_batch_with_many_locked_conversations_the_others_are_saved_without_halving_it() {
    let (env, replica) = stores().await;
    let batch = |id: &str| -> Vec<_> {
        (0..CONVERSATIONS).map(|n| to_save(&session(n), id, &json!({}))).collect()
    };
    assert_eq!(replica.save(&batch("m1")).await, vec![applied(); CONVERSATIONS]);
    let rows = lock(&env, LOCKED).await;
    only_every_third_is_locked(&replica.saver.save(&batch("m2")).await.unwrap());
    not_halved(&replica);
    // The next batch does not wait for them.
    let mut later = batch("m3");
    later.truncate(30);
    only_every_third_is_locked(&replica.saver.save(&later).await.unwrap());
    rows.release().await;
}

#[tokio::test]
async fn of_many_session_events_of_locked_conversations_the_others_are_recorded_without_halving() {
    let (env, replica) = stores().await;
    let events = |kind: &str| -> Vec<_> {
        let event = |n| {
            fixtures::action(&json!({
                "action_type": format!("conversation.{kind}"), "tenant_id": "acme",
                "session_id": session(n), "timestamp": "2026-11-20T10:05:00Z",
            }))
        };
        (0..CONVERSATIONS / 6).map(event).collect()
    };
    let opened = replica.sessions.record(&events("session_opened")).await.unwrap();
    assert!(opened.iter().all(Result::is_ok));
    let rows = lock(&env, LOCKED).await;
    let closed = replica.sessions.record(&events("session_closed")).await.unwrap();
    only_every_third_is_locked(&closed);
    not_halved(&replica);
    rows.release().await;
}
