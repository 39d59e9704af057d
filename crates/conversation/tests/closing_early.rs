//! What session events and feedback promise where they overtake messages or each other, come late or are delivered
//! again, and where messages follow a close: nothing that they said is lost, and each takes effect once.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use conversation::Swept;
use domain::action::Action;
use fixtures::{
    Replica, action, action_received, applied, at_once, closer, default_criteria, refresh, sql,
    stores, sweep, to_save,
};
use serde_json::{Value, json};
use testkit::TestEnv;

/// The close of the session `s` at this time of the day.
fn closed(time: &str, extra: &Value) -> Action {
    event("conversation.session_closed", time, extra)
}

fn event(action_type: &str, time: &str, extra: &Value) -> Action {
    let mut body = json!({
        "action_type": action_type, "tenant_id": "acme", "session_id": "s",
        "timestamp": format!("2026-11-20T{time}Z"),
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    action(&body)
}

async fn record(replica: &Replica, events: &[Action]) {
    assert_eq!(replica.sessions.record(events).await.unwrap(), vec![applied(); events.len()]);
}

async fn conversation(env: &TestEnv) -> String {
    let columns = "status, message_count, close_reason, satisfaction";
    sql(env, &format!("SELECT {columns} FROM conversations")).await
}

/// A sweep after the idle limit.
async fn idle_sweep(env: &TestEnv, closer: &conversation::Closer) -> Swept {
    sql(env, "UPDATE conversations SET touched_at = touched_at - interval '2 h'").await;
    sweep(closer).await
}

#[tokio::test]
async fn a_close_that_overtakes_its_messages_applies_to_them() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    let opened = event("conversation.session_opened", "10:00:00", &json!({}));
    record(&replica, &[opened, closed("10:05:00", &json!({"reason": "done", "satisfaction": 5}))])
        .await;
    sweep(&closer).await;
    assert_eq!(conversation(&env).await, "archived|0|done|5");
    assert_eq!(sql(&env, "SELECT session_id, open FROM sessions").await, "s|f");

    replica.save(&[to_save("s", "m1", &json!({})), to_save("s", "m2", &json!({}))]).await;
    sweep(&closer).await;
    assert_eq!(conversation(&env).await, "archived|2|done|5");
    refresh(&replica.statistics).await;
    assert_eq!(
        sql(&env, "SELECT message_count, satisfaction FROM conversation_stats").await,
        "2|5"
    );
    assert_eq!(sql(&env, "SELECT conversations, avg_satisfaction FROM daily_stats").await, "1|5");
}

#[tokio::test]
async fn feedback_that_overtakes_its_messages_applies_to_them() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    record(&replica, &[event("conversation.feedback", "10:05:00", &json!({"satisfaction": 2}))])
        .await;
    idle_sweep(&env, &closer).await;
    assert_eq!(conversation(&env).await, "archived|0|idle|2");

    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    assert_eq!(conversation(&env).await, "active|0||2");
    idle_sweep(&env, &closer).await;
    assert_eq!(conversation(&env).await, "archived|1|idle|2");
}

#[tokio::test]
async fn a_close_after_an_idle_conversation_was_archived_gives_its_reason_to_late_messages() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    idle_sweep(&env, &closer).await;
    record(&replica, &[closed("10:05:00", &json!({"reason": "done", "satisfaction": 4}))]).await;
    assert_eq!(conversation(&env).await, "archived|1|idle|4");
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    sql(&env, "UPDATE conversations SET close_requested_at = close_requested_at - interval '1 h'")
        .await;
    sweep(&closer).await;
    assert_eq!(conversation(&env).await, "archived|2|done|4");
}

#[tokio::test]
async fn the_reason_idle_of_an_agent_is_kept_when_a_late_message_reopens_the_conversation() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("10:05:00", &json!({"reason": "idle"}))]).await;
    sweep(&closer).await;
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    sweep(&closer).await;
    assert_eq!(conversation(&env).await, "archived|2|idle|");
}

#[tokio::test]
async fn a_message_after_an_idle_close_does_not_close_a_session_that_is_open() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    record(&replica, &[event("conversation.session_opened", "10:00:00", &json!({}))]).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    idle_sweep(&env, &closer).await;
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    sweep(&closer).await;
    assert_eq!(conversation(&env).await, "active|1||");
    record(&replica, &[closed("10:05:00", &json!({"reason": "done"}))]).await;
    sweep(&closer).await;
    assert_eq!(conversation(&env).await, "archived|2|done|");
}

#[tokio::test]
async fn an_open_that_a_close_without_a_conversation_overtook_is_closed_with_its_reason() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    record(&replica, &[closed("10:05:00", &json!({"reason": "done", "satisfaction": 4}))]).await;
    sweep(&closer).await;
    let explicit = json!({"conversation_id": "c"});
    record(&replica, &[event("conversation.session_opened", "10:00:00", &explicit)]).await;
    replica.save(&[to_save("s", "m1", &explicit)]).await;
    sweep(&closer).await;
    let of_c = "SELECT status, message_count, close_reason, satisfaction FROM conversations WHERE id = 'c'";
    assert_eq!(sql(&env, of_c).await, "archived|1|done|4");
}

#[tokio::test]
async fn a_redelivered_event_without_a_timestamp_keeps_the_time_of_its_first_receipt() {
    let (env, replica) = stores().await;
    let received = |action_type: &str, id: &str, time: &str, extra: &Value| {
        let mut body = json!({
            "action_type": format!("conversation.{action_type}"), "tenant_id": "acme", "session_id": "s",
            "action_id": id,
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        action_received(&body, &format!("2026-11-20T{time}Z"))
    };
    let all = |hour: u32| {
        let one = json!({"conversation_id": "c1"});
        let two = json!({"conversation_id": "c2"});
        let rated =
            |satisfaction: u8| json!({"conversation_id": "c1", "satisfaction": satisfaction});
        [
            received("session_opened", "o1", &format!("{hour}:00:00"), &one),
            received("session_closed", "x", &format!("{hour}:01:00"), &json!({"reason": "left"})),
            received("session_opened", "o2", &format!("{hour}:02:00"), &two),
            received("feedback", "f1", &format!("{hour}:03:00"), &rated(2)),
            received("feedback", "f2", &format!("{hour}:04:00"), &rated(5)),
        ]
    };
    let state = async || {
        let sessions =
            "SELECT conversation_id, open, last_event_at, close_reason FROM sessions ORDER BY 1";
        let conversations =
            "SELECT id, satisfaction, satisfaction_at, close_requested_at IS NOT NULL
                             FROM conversations ORDER BY 1";
        let events = "SELECT conversation_id, id, created_at FROM session_events ORDER BY 1, 2";
        [sql(&env, sessions).await, sql(&env, conversations).await, sql(&env, events).await]
    };
    let original = all(10);
    for event in &original {
        record(&replica, std::slice::from_ref(event)).await;
    }
    let once = state().await;
    for again in all(11) {
        let id = again.common().resolved_id.clone();
        record(&replica, &[again]).await;
        assert_eq!(state().await, once, "{id} was redelivered");
    }

    // In one batch with the originals.
    sql(&env, "TRUNCATE conversations, conversation_words, words_due, sessions, session_events")
        .await;
    record(&replica, &[original, all(12)].concat()).await;
    assert_eq!(state().await, once);
}

#[tokio::test]
async fn events_that_differ_only_in_their_times_are_two_events_and_both_are_stored() {
    let (env, replica) = stores().await;
    let again = |time: &str| closed(time, &json!({"action_id": "end", "reason": "left"}));
    record(&replica, &[again("10:05:00")]).await;
    record(&replica, &[again("10:20:00"), again("10:30:00")]).await;
    record(&replica, &[again("10:20:00")]).await;
    let times =
        "SELECT to_char(created_at AT TIME ZONE 'UTC', 'HH24:MI') FROM session_events ORDER BY 1";
    assert_eq!(sql(&env, times).await, "10:05\n10:20\n10:30");

    // A page that reloads within a second: the second open has the id of the first.
    let page = |time: &str| {
        let same = json!({"action_id": "page", "conversation_id": "page", "session_id": "page"});
        event("conversation.session_opened", time, &same)
    };
    let left = closed("10:00:00.2", &json!({"session_id": "page", "conversation_id": "page"}));
    record(&replica, &[page("10:00:00.1"), left, page("10:00:00.3")]).await;
    let session = "SELECT open FROM sessions WHERE conversation_id = 'page'";
    assert_eq!(sql(&env, session).await, "t");

    // The last of them is later than this open, which arrives late.
    let late = json!({"conversation_id": "late"});
    record(&replica, &[event("conversation.session_opened", "10:25:00", &late)]).await;
    let session = "SELECT open, close_reason FROM sessions WHERE conversation_id = 'late'";
    assert_eq!(sql(&env, session).await, "f|left");
}

#[tokio::test]
async fn a_late_close_without_a_conversation_concerns_what_opened_before_it_alone() {
    let (env, replica) = stores().await;
    let open = |conversation: &str, time: &str| {
        let named = json!({"conversation_id": conversation});
        event("conversation.session_opened", time, &named)
    };
    let rated = json!({"reason": "left", "satisfaction": 1});
    record(&replica, &[open("before", "10:00:00")]).await;
    record(&replica, &[open("after", "10:10:00")]).await;
    record(&replica, &[closed("10:05:00", &rated)]).await;
    // The session opens again where it was closed; then an open from before the close arrives.
    record(&replica, &[open("before", "10:20:00")]).await;
    record(&replica, &[open("late", "10:04:00")]).await;
    let sessions = "SELECT conversation_id, open, close_reason FROM sessions ORDER BY 1";
    assert_eq!(sql(&env, sessions).await, "after|t|\nbefore|t|\nlate|f|left");
    let ratings = "SELECT id, satisfaction FROM conversations ORDER BY 1";
    assert_eq!(sql(&env, ratings).await, "after|\nbefore|1\nlate|1");
}
