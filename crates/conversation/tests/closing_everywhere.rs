//! Closes that name no conversation: which conversations they concern follows from the times of the events, in
//! whatever order and batches these arrive.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;

use domain::action::Action;
use fixtures::{Replica, action, applied, sql, stores};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use testkit::TestEnv;

const CONVERSATIONS: [&str; 2] = ["a", "b"];
/// Histories, each recorded in four ways.
const HISTORIES: usize = 30;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    Opens(&'static str),
    Closes(&'static str),
    ClosesEverywhere,
}

/// An event of the session `s`, and the minute at which it happened.
type Event = (u32, Change);

fn body(tenant: &str, (minute, change): Event) -> Action {
    let mut body = json!({
        "action_type": "conversation.session_closed", "tenant_id": tenant, "session_id": "s",
        "action_id": format!("e{minute}"), "timestamp": format!("2026-11-20T10:{minute:02}:00Z"),
    });
    let more = match change {
        Change::Opens(conversation) => {
            json!({"action_type": "conversation.session_opened", "conversation_id": conversation})
        }
        Change::Closes(conversation) => said(minute, &json!({"conversation_id": conversation})),
        Change::ClosesEverywhere => said(minute, &json!({})),
    };
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    action(&body)
}

/// What a close says. Some say nothing of the user's satisfaction.
fn said(minute: u32, more: &Value) -> Value {
    let mut said = more.clone();
    said["reason"] = json!(format!("r{minute}"));
    if !minute.is_multiple_of(3) {
        said["satisfaction"] = json!(minute % 5 + 1);
    }
    said
}

/// Of each conversation whether the session is open, why it closed, and how the user rated it: by the contract, event
/// by event in the order of their times.
fn expected(history: &[Event]) -> String {
    let mut history = history.to_vec();
    history.sort_by_key(|event| event.0);
    let mut states: BTreeMap<&str, (bool, String, String)> = BTreeMap::new();
    for (minute, change) in history {
        let close = said(minute, &json!({}));
        let closes = |state: &mut (bool, String, String)| {
            (state.0, state.1) = (false, close["reason"].as_str().unwrap().to_owned());
            if let Some(rating) = close["satisfaction"].as_u64() {
                state.2 = rating.to_string();
            }
        };
        match change {
            Change::Opens(conversation) => {
                let state = states.entry(conversation).or_default();
                (state.0, state.1) = (true, String::new());
            }
            Change::Closes(conversation) => closes(states.entry(conversation).or_default()),
            Change::ClosesEverywhere => states.values_mut().filter(|it| it.0).for_each(closes),
        }
    }
    let line = |(id, (open, reason, rating)): (&str, (bool, String, String))| {
        format!("{id}|{}|{reason}|{rating}", if open { "t" } else { "f" })
    };
    states.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

async fn stored(env: &TestEnv, tenant: &str) -> String {
    let states = format!(
        "SELECT c.id, s.open, s.close_reason, c.satisfaction FROM conversations c
         JOIN sessions s ON s.tenant_id = c.tenant_id AND s.conversation_id = c.id
         WHERE c.tenant_id = '{tenant}' AND c.id IN ('a', 'b') ORDER BY 1"
    );
    sql(env, &states).await
}

/// Which events each conversation has.
async fn events(env: &TestEnv, tenant: &str) -> String {
    let events = format!(
        "SELECT conversation_id, string_agg(id, ' ' ORDER BY created_at) FROM session_events
         WHERE tenant_id = '{tenant}' AND conversation_id IN ('a', 'b') GROUP BY 1 ORDER BY 1"
    );
    sql(env, &events).await
}

async fn record(replica: &Replica, events: &[Action]) {
    assert_eq!(replica.sessions.record(events).await.unwrap(), vec![applied(); events.len()]);
}

/// A history of up to nine events at different minutes, in the order of their times, and another order.
fn histories() -> impl Strategy<Value = (Vec<Event>, Vec<Event>)> {
    let conversation = || prop::sample::select(CONVERSATIONS.to_vec());
    let change = prop_oneof![
        conversation().prop_map(Change::Opens),
        conversation().prop_map(Change::Closes),
        Just(Change::ClosesEverywhere),
    ];
    prop::collection::vec(change, 2..9).prop_flat_map(|changes| {
        let history: Vec<Event> = (1..).zip(changes).collect();
        (Just(history.clone()), Just(history).prop_shuffle())
    })
}

#[tokio::test]
async fn a_close_without_a_conversation_concerns_what_was_open_then_in_any_order_and_batch() {
    let (env, replica) = stores().await;
    let mut runner = TestRunner::deterministic();
    for n in 0..HISTORIES {
        let (in_order, shuffled) = histories().new_tree(&mut runner).unwrap().current();
        let ways: [(&str, &[Event], usize); 4] = [
            ("in order", &in_order, 1),
            ("in-one-batch", &shuffled, 9),
            ("shuffled", &shuffled, 1),
            ("in-batches-of-3", &shuffled, 3),
        ];
        let mut in_turn = None;
        for (way, history, batch) in ways {
            let tenant = format!("{way} {n}").replace(' ', "-");
            for part in history.chunks(batch) {
                let part: Vec<Action> = part.iter().map(|event| body(&tenant, *event)).collect();
                record(&replica, &part).await;
            }
            let seen = stored(&env, &tenant).await;
            assert_eq!(seen, expected(&in_order), "{way}: {history:?}");
            let events = events(&env, &tenant).await;
            assert_eq!(*in_turn.get_or_insert(events.clone()), events, "{way}: {history:?}");
        }
    }
}

#[tokio::test]
async fn whether_a_close_concerns_the_derived_conversation_is_decided_when_it_is_handled() {
    let (env, replica) = stores().await;
    let event = |action_type: &str, minute: u32, more: &Value| {
        let mut body = json!({
            "action_type": action_type, "tenant_id": "t", "session_id": "s", "satisfaction": 5,
            "timestamp": format!("2026-11-20T10:{minute:02}:00Z"),
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        action(&body)
    };
    let open = |conversation: &str, minute: u32| {
        event("conversation.session_opened", minute, &json!({"conversation_id": conversation}))
    };
    let close = |minute: u32| {
        event("conversation.session_closed", minute, &json!({"reason": format!("r{minute}")}))
    };
    let closes = "SELECT string_agg(concat_ws(' ', coalesce(nullif(conversation_id, c.own), 'own'), reason), ', '
                         ORDER BY created_at, conversation_id IN ('a', 'b') DESC, conversation_id)
                  FROM session_events, (SELECT max(id) AS own FROM conversations WHERE id NOT IN ('a', 'b')) AS c
                  WHERE reason IS NOT NULL";
    // Feedback in the batch of the close creates the derived conversation.
    let feedback = event("conversation.feedback", 2, &json!({}));
    record(&replica, &[open("a", 1), feedback, close(3)]).await;
    assert_eq!(sql(&env, closes).await, "a r3, own r3");

    // Feedback that comes later does not make earlier closes concern it, not even when their history changes.
    sql(&env, "TRUNCATE conversations, conversation_words, words_due, sessions, session_events")
        .await;
    for event in
        [open("a", 1), close(3), event("conversation.feedback", 4, &json!({})), open("b", 2)]
    {
        record(&replica, &[event]).await;
    }
    assert_eq!(sql(&env, closes).await, "a r3, b r3");
    record(&replica, &[close(5)]).await;
    assert_eq!(sql(&env, closes).await, "a r3, b r3, own r5");
}
