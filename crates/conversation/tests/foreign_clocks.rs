//! Senders whose clocks are years ahead or behind: what they sent is stored with their times, and harms no one else.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use conversation::Swept;
use domain::action::Action;
use fixtures::{
    Replica, action, applied, at_once, closer, default_criteria, refresh, sql, stores, sweep,
    to_save,
};
use serde_json::{Value, json};
use testkit::TestEnv;

const AHEAD: &str = "2199-01-01T00:00:00Z";
const BEHIND: &str = "1970-01-01T00:00:00Z";

fn event(kind: &str, tenant: &str, timestamp: &str, extra: &Value) -> Action {
    let mut body = json!({
        "action_type": format!("conversation.{kind}"), "tenant_id": tenant, "session_id": "s",
        "action_id": format!("{kind} {timestamp}"), "timestamp": timestamp,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    action(&body)
}

async fn record(replica: &Replica, events: &[Action]) {
    assert_eq!(replica.sessions.record(events).await.unwrap(), vec![applied(); events.len()]);
}

/// PostgreSQL's time, so many seconds ago.
async fn ago(env: &TestEnv, seconds: u32) -> String {
    let form = r#"YYYY-MM-DD"T"HH24:MI:SS.US"Z""#;
    let past = format!("clock_timestamp() - interval '{seconds} s'");
    sql(env, &format!("SELECT to_char(({past}) AT TIME ZONE 'UTC', '{form}')")).await
}

/// As if all events had been stored two minutes earlier.
async fn two_minutes_pass(env: &TestEnv) {
    sql(env, "UPDATE session_events SET effective_at = effective_at - interval '2 min'").await;
    sql(env, "UPDATE sessions SET last_event_at = last_event_at - interval '2 min'").await;
    sql(env, "UPDATE conversations SET satisfaction_at = satisfaction_at - interval '2 min'").await;
}

async fn state(env: &TestEnv, tenant: &str) -> String {
    let state = "SELECT c.id = 'c', s.open, s.close_reason, c.satisfaction, c.close_requested_at IS NOT NULL
                 FROM conversations c
                 JOIN sessions s ON s.tenant_id = c.tenant_id AND s.conversation_id = c.id";
    sql(env, &format!("{state} WHERE c.tenant_id = '{tenant}' ORDER BY 1")).await
}

fn in_c(more: &Value) -> Value {
    let mut fields = json!({"conversation_id": "c"});
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fields
}

#[tokio::test]
async fn events_of_a_clock_far_ahead_give_way_to_later_ones_after_a_minute() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    let ahead = in_c(&json!({"reason": "ahead", "satisfaction": 1}));
    record(&replica, &[event("session_closed", "t", AHEAD, &ahead)]).await;
    let limited = "SELECT e.created_at = '2199-01-01T00:00:00Z', s.last_event_at <= now() + interval '1 min',
                          c.satisfaction_at <= now() + interval '1 min', e.effective_at = s.last_event_at
                   FROM session_events e, sessions s, conversations c";
    assert_eq!(sql(&env, limited).await, "t|t|t|t");
    // Delivered again: it neither counts again nor at a later time.
    two_minutes_pass(&env).await;
    record(&replica, &[event("session_closed", "t", AHEAD, &ahead)]).await;

    let none = in_c(&json!({}));
    record(&replica, &[event("session_opened", "t", &ago(&env, 3).await, &none)]).await;
    assert_eq!(state(&env, "t").await, "t|t||1|f");
    let rated = in_c(&json!({"satisfaction": 5}));
    record(&replica, &[event("feedback", "t", &ago(&env, 2).await, &rated)]).await;
    let done = in_c(&json!({"reason": "done"}));
    record(&replica, &[event("session_closed", "t", &ago(&env, 1).await, &done)]).await;
    assert_eq!(state(&env, "t").await, "t|f|done|5|t");
    replica.save(&[to_save("s", "m", &json!({"tenant_id": "t", "conversation_id": "c"}))]).await;
    assert_eq!(sweep(&closer).await.archived, 1);
    assert_eq!(sql(&env, "SELECT close_reason FROM conversations").await, "done");
}

#[tokio::test]
async fn the_order_in_which_events_arrive_does_not_matter_where_one_clock_is_far_ahead() {
    let (env, replica) = stores().await;
    let events = [
        ("session_opened", ago(&env, 9).await, json!({})),
        ("session_closed", ago(&env, 8).await, json!({"reason": "done", "satisfaction": 4})),
        ("feedback", ago(&env, 7).await, json!({"satisfaction": 5})),
        ("session_closed", AHEAD.to_owned(), json!({"reason": "ahead"})),
    ];
    for (n, order) in permutations(events.len()).into_iter().enumerate() {
        for batch in [1, events.len()] {
            let tenant = format!("t{n}-{batch}");
            let of = |at: &usize| {
                let (kind, timestamp, extra) = &events[*at];
                event(kind, &tenant, timestamp, &in_c(extra))
            };
            for part in order.chunks(batch) {
                record(&replica, &part.iter().map(of).collect::<Vec<_>>()).await;
            }
            assert_eq!(state(&env, &tenant).await, "t|f|ahead|5|t", "{order:?} by {batch}");
        }
    }
}

#[tokio::test]
async fn events_of_one_clock_that_is_ahead_count_in_their_order() {
    let (env, replica) = stores().await;
    let at = |seconds: u32| format!("2199-01-01T00:00:{seconds:02}Z");
    let none = in_c(&json!({}));
    let history = |tenant: &str| {
        [
            event("session_opened", tenant, &at(0), &none),
            event("session_closed", tenant, &at(5), &none),
            event("session_opened", tenant, &at(7), &none),
            event("session_closed", tenant, &at(9), &in_c(&json!({"reason": "end"}))),
        ]
    };
    for (tenant, batch) in [("singly", 1), ("in-one-batch", 4)] {
        let mut events = history(tenant);
        if batch > 1 {
            events.reverse();
        }
        for part in events.chunks(batch) {
            record(&replica, part).await;
        }
        assert_eq!(state(&env, tenant).await, "t|f|end||t", "{tenant}");
    }
}

#[tokio::test]
async fn a_close_without_a_conversation_counts_at_one_time_in_all_that_it_concerns() {
    let (env, replica) = stores().await;
    let opens = async |conversation: &str, seconds: u32| {
        let at = ago(&env, seconds).await;
        event("session_opened", "t", &at, &json!({"conversation_id": conversation}))
    };
    record(&replica, &[opens("a", 20).await]).await;
    record(&replica, &[event("session_closed", "t", AHEAD, &json!({"reason": "ahead"}))]).await;
    two_minutes_pass(&env).await;
    // Opened before the close, and handled after it: the stored close concerns this conversation, too.
    record(&replica, &[opens("b", 200).await]).await;
    let closes = "SELECT count(*), count(DISTINCT effective_at), bool_and(effective_at < now()),
                         bool_and(created_at = '2199-01-01T00:00:00Z')
                  FROM session_events WHERE reason = 'ahead'";
    assert_eq!(sql(&env, closes).await, "2|1|t|t");
    let sessions = "SELECT conversation_id, open, close_reason FROM sessions ORDER BY 1";
    assert_eq!(sql(&env, sessions).await, "a|f|ahead\nb|f|ahead");
    // Opened after it.
    record(&replica, &[opens("b", 10).await]).await;
    assert_eq!(sql(&env, sessions).await, "a|f|ahead\nb|t|");
}

#[tokio::test]
async fn messages_of_clocks_far_ahead_and_behind_neither_keep_a_conversation_open_nor_break_its_close()
 {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    let of = |id: &str, timestamp: &str| to_save("s", id, &json!({"timestamp": timestamp}));
    let now = ago(&env, 0).await;
    let messages = [of("ahead", AHEAD), of("now", &now), of("behind", BEHIND)];
    replica.save(&messages).await;
    assert_eq!(sweep(&closer).await, Swept::default(), "it is not idle yet");
    sql(&env, "UPDATE conversations SET touched_at = touched_at - interval '31 min'").await;
    assert_eq!(sweep(&closer).await.archived, 1);
    assert_eq!(refresh(&replica.statistics).await, (1, 1));
    let order = "SELECT string_agg(id, ' ' ORDER BY created_at, id) FROM messages";
    assert_eq!(sql(&env, order).await, "behind now ahead");
    let counted =
        "SELECT s.message_count, d.messages, d.day FROM conversation_stats s, daily_stats d";
    assert_eq!(sql(&env, counted).await, "3|3|1970-01-01");

    // A later one makes it active, and it closes again.
    replica.save(&[of("again", AHEAD)]).await;
    sql(
        &env,
        "UPDATE conversations SET close_requested_at = now() - interval '31 s',
               touched_at = touched_at - interval '31 min'",
    )
    .await;
    assert_eq!(sweep(&closer).await.archived, 1);
    let archived = "SELECT status, message_count FROM conversations";
    assert_eq!(sql(&env, archived).await, "archived|4");
}

#[tokio::test]
async fn a_session_whose_clock_is_far_behind_ends_with_the_close_of_another_clock_or_by_idleness() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    let none = in_c(&json!({}));
    record(&replica, &[event("session_opened", "t", BEHIND, &none)]).await;
    assert_eq!(sweep(&closer).await, Swept::default(), "it opened now");
    record(&replica, &[event("session_closed", "t", &ago(&env, 1).await, &none)]).await;
    assert_eq!(state(&env, "t").await, "t|f|||t");
    // A close that is older than the open does not count.
    record(&replica, &[event("session_opened", "t", &ago(&env, 0).await, &none)]).await;
    let behind = in_c(&json!({"reason": "behind"}));
    record(&replica, &[event("session_closed", "t", BEHIND, &behind)]).await;
    assert_eq!(state(&env, "t").await, "t|t|||f");
    sql(&env, "UPDATE conversations SET touched_at = touched_at - interval '31 min'").await;
    assert_eq!(sweep(&closer).await.archived_empty, 1);
    assert_eq!(sql(&env, "SELECT status, close_reason FROM conversations").await, "archived|idle");
}

/// Every order of the numbers below `n`.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    let Some(last) = n.checked_sub(1) else { return vec![vec![]] };
    let shorter = permutations(last);
    let with_last = |order: &Vec<usize>| {
        let order = order.clone();
        (0..n).map(move |at| {
            let mut order = order.clone();
            order.insert(at, last);
            order
        })
    };
    shorter.iter().flat_map(with_last).collect()
}
