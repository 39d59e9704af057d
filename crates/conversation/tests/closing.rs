//! What closing promises: after the grace period, never too early, never lost, never twice.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use conversation::{ClaimCriteria, Swept};
use domain::failure::{DeadLetterReason, Dependency, Done, Failure};
use domain::message::{Details, Json};
use fixtures::{
    Replica, action, applied, at_once, closer, default_criteria, duplicate, ids, key, refresh, sql,
    stores, sweep, to_save,
};
use metrics::{Counter, TransactionRetry};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

fn event(action_type: &str, session: &str, time: &str, extra: &Value) -> domain::action::Action {
    let mut body = json!({
        "action_type": action_type, "tenant_id": "acme", "session_id": session,
        "timestamp": format!("2026-11-20T{time}Z"),
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    action(&body)
}

fn opened(session: &str, time: &str) -> domain::action::Action {
    event("conversation.session_opened", session, time, &json!({}))
}

fn closed(session: &str, time: &str) -> domain::action::Action {
    event("conversation.session_closed", session, time, &json!({}))
}

async fn record(replica: &Replica, events: &[domain::action::Action]) {
    assert_eq!(replica.sessions.record(events).await.unwrap(), vec![applied(); events.len()]);
}

async fn status(env: &testkit::TestEnv, session: &str) -> String {
    let id = key(session).conversation;
    sql(env, &format!("SELECT status FROM conversations WHERE id = '{id}'")).await
}

async fn requested(env: &testkit::TestEnv, session: &str) -> bool {
    let id = key(session).conversation;
    let sql_text =
        format!("SELECT close_requested_at IS NOT NULL FROM conversations WHERE id = '{id}'");
    sql(env, &sql_text).await == "t"
}

#[tokio::test]
async fn a_closed_conversation_is_archived_with_its_totals_and_statistics() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    let at = |id: &str, role: &str, time: &str, content: &str| {
        to_save(
            "s",
            id,
            &json!({
                "role": role, "timestamp": format!("2026-11-20T10:{time}Z"), "content": content,
                "agent_id": "agent_xyz", "model_name": "gpt-4o",
            }),
        )
    };
    replica
        .save(&[
            at("1", "user", "00:00", "hello world"),
            at("2", "assistant", "00:04", "hello world"),
            at("3", "user", "01:00", "hello world"),
            at("4", "assistant", "01:02", "hello world"),
            at("5", "assistant", "01:30", "hello world"),
        ])
        .await;
    replica.read_both(&key("s"), 10).await;
    let reason = json!({"reason": "user left", "satisfaction": 4});
    record(&replica, &[event("conversation.session_closed", "s", "10:02:00", &reason)]).await;
    let swept = sweep(&closer).await;
    assert_eq!(swept, Swept { archived: 1, ..Swept::default() });
    assert_eq!(
        sql(
            &env,
            "SELECT status, message_count, total_tokens, close_reason, agent_id,
                          finalised_at >= closed_at, close_token IS NULL FROM conversations"
        )
        .await,
        "archived|5|10|user left|agent_xyz|t|t"
    );
    assert_eq!(sql(&env, "SELECT DISTINCT tokens FROM messages").await, "2");

    assert_eq!(refresh(&replica.statistics).await, (1, 1));
    assert_eq!(
        sql(
            &env,
            "SELECT agent_id, message_count, user_messages, assistant_messages, total_tokens,
                          duration_seconds, avg_response_seconds, satisfaction
                   FROM conversation_stats"
        )
        .await,
        "agent_xyz|5|2|3|10|90|3|4"
    );
    assert_eq!(
        sql(
            &env,
            "SELECT agent_id, day, conversations, messages, tokens, avg_duration_seconds,
                          avg_satisfaction FROM daily_stats"
        )
        .await,
        "agent_xyz|2026-11-20|1|5|10|90|4"
    );
    // The copy was dropped, and readers get the same messages.
    assert_eq!(ids(&replica.read(&key("s"), 10).await.messages), ["1", "2", "3", "4", "5"]);
    // Another sweep and another refresh find nothing to do.
    assert_eq!(sweep(&closer).await, Swept::default());
    assert_eq!(refresh(&replica.statistics).await, (0, 0));
}

#[tokio::test]
async fn the_tokens_that_providers_reported_are_in_the_statistics_and_what_is_no_number_is_not() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    let huge = "999999999999999";
    let usages = [
        r#"{"input_tokens": 812, "output_tokens": 45, "cache_read_tokens": 512, "other_tokens": 1}"#,
        r#"{"input_tokens": 8.0, "output_tokens": "45", "cache_read_tokens": -3, "reasoning_tokens": 0}"#,
        r#"{"input_tokens": 1e999999, "output_tokens": 1e400, "cache_read_tokens": 0.5}"#,
        r#"{"input_tokens": null, "output_tokens": {"a": 1}, "cache_read_tokens": [7]}"#,
        r#"{}"#,
        &format!(r#"{{"reasoning_tokens": 5.{}}}"#, "0".repeat(20_000)),
    ];
    for (session, usages) in
        [("s", &usages[..]), ("t", &[r#"{"cache_write_tokens": 1000000000000000}"#])]
    {
        for (n, usage) in usages.iter().enumerate() {
            let usage = Json::parse((*usage).to_owned()).unwrap();
            let mut save = to_save(session, &format!("m{n}"), &json!({"agent_id": "a"}));
            save.message.details = Details { usage: Some(usage), ..Details::default() }.boxed();
            assert_eq!(replica.save(&[save]).await, [applied()]);
        }
    }
    let largest: Vec<_> = (0..10_000)
        .map(|n| {
            let mut save = to_save("u", &format!("m{n}"), &json!({}));
            let usage = Json::parse(format!("{{\"output_tokens\": {huge}}}")).unwrap();
            save.message.details = Details { usage: Some(usage), ..Details::default() }.boxed();
            save
        })
        .collect();
    for batch in largest.chunks(500) {
        replica.save(batch).await;
    }
    sql(&env, "UPDATE conversations SET close_requested_at = now()").await;
    while sweep(&closer).await.archived > 0 {}
    assert_eq!(refresh(&replica.statistics).await, (3, 2));

    let columns =
        "input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens";
    let of = |session: &str| {
        let id = key(session).conversation;
        format!("SELECT {columns} FROM conversation_stats WHERE conversation_id = '{id}'")
    };
    assert_eq!(sql(&env, &of("s")).await, "820|45|512||5");
    assert_eq!(sql(&env, &of("t")).await, "||||");
    assert_eq!(sql(&env, &of("u")).await, "|9223372036854775807|||");
    let of_a = format!("SELECT {columns} FROM daily_stats WHERE agent_id = 'a'");
    assert_eq!(sql(&env, &of_a).await, "820|45|512||5");
}

#[tokio::test]
async fn a_close_waits_for_the_grace_period() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    assert_eq!(sweep(&closer).await, Swept::default());
    sql(&env, "UPDATE conversations SET close_requested_at = close_requested_at - interval '29 s'")
        .await;
    assert_eq!(sweep(&closer).await, Swept::default());
    sql(&env, "UPDATE conversations SET close_requested_at = close_requested_at - interval '1 s'")
        .await;
    assert_eq!(sweep(&closer).await.archived, 1);
}

#[tokio::test]
async fn a_reconnection_within_the_grace_period_withdraws_the_close() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[opened("s", "10:00:00"), closed("s", "10:01:00")]).await;
    assert!(requested(&env, "s").await);
    record(&replica, &[opened("s", "10:01:10")]).await;
    assert!(!requested(&env, "s").await);
    assert_eq!(sweep(&closer).await, Swept::default());
    // An old close that arrives late overrules nothing.
    record(&replica, &[closed("s", "10:01:05")]).await;
    assert!(!requested(&env, "s").await);
    record(&replica, &[closed("s", "10:02:00")]).await;
    assert_eq!(sweep(&closer).await.archived, 1);
}

#[tokio::test]
async fn a_conversation_stays_open_until_its_last_session_closes() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    let explicit = json!({"conversation_id": "c1"});
    replica.save(&[to_save("phone", "m1", &explicit)]).await;
    let on =
        |action_type: &str, session: &str, time: &str| event(action_type, session, time, &explicit);
    record(
        &replica,
        &[
            on("conversation.session_opened", "phone", "10:00:00"),
            on("conversation.session_opened", "web", "10:00:01"),
            on("conversation.session_closed", "phone", "10:01:00"),
        ],
    )
    .await;
    assert_eq!(sweep(&closer).await, Swept::default());
    // A close that names no conversation closes its session wherever it is open.
    record(&replica, &[closed("web", "10:02:00")]).await;
    let swept = sweep(&closer).await;
    assert_eq!(swept.archived, 1, "{swept:?}");
    // It creates no other conversation.
    assert_eq!(sql(&env, "SELECT id, status FROM conversations").await, "c1|archived");
}

#[tokio::test]
async fn a_close_without_a_conversation_ends_what_opened_before_it_in_any_order_and_batch() {
    let (env, replica) = stores().await;
    let open = |id: &str| {
        event(
            "conversation.session_opened",
            id,
            "10:00:00",
            &json!({"conversation_id": format!("of {id}")}),
        )
    };
    // In one batch; in one batch the other way round; one batch each, both ways.
    record(&replica, &[open("a"), closed("a", "10:01:00")]).await;
    record(&replica, &[closed("b", "10:01:00"), open("b")]).await;
    record(&replica, &[open("c")]).await;
    record(&replica, &[closed("c", "10:01:00")]).await;
    record(&replica, &[closed("d", "10:01:00")]).await;
    record(&replica, &[open("d")]).await;
    for id in ["a", "b", "c", "d"] {
        let found = sql(
            &env,
            &format!(
                "SELECT close_requested_at IS NOT NULL FROM conversations WHERE id = 'of {id}'"
            ),
        )
        .await;
        assert_eq!(found, "t", "{id}");
        let open =
            sql(&env, &format!("SELECT count(*) FROM sessions WHERE session_id = '{id}' AND open"))
                .await;
        assert_eq!(open, "0", "{id}");
    }
    // A session that opens again afterwards is open.
    let again =
        event("conversation.session_opened", "d", "10:02:00", &json!({"conversation_id": "of d"}));
    record(&replica, &[again]).await;
    assert_eq!(
        sql(&env, "SELECT close_requested_at IS NULL FROM conversations WHERE id = 'of d'").await,
        "t"
    );
}

#[tokio::test]
async fn events_of_the_same_moment_leave_the_session_open_however_they_are_batched() {
    let (env, replica) = stores().await;
    let moment = "10:00:00";
    record(&replica, &[opened("a", moment), closed("a", moment)]).await;
    record(&replica, &[closed("b", moment), opened("b", moment)]).await;
    record(&replica, &[opened("c", moment)]).await;
    record(&replica, &[closed("c", moment)]).await;
    record(&replica, &[closed("d", moment)]).await;
    record(&replica, &[opened("d", moment)]).await;
    assert_eq!(sql(&env, "SELECT count(*) FROM sessions WHERE open").await, "4");
    assert_eq!(
        sql(&env, "SELECT count(*) FROM conversations WHERE close_requested_at IS NOT NULL").await,
        "0"
    );
}

#[tokio::test]
async fn repeating_an_event_after_an_idle_close_revives_nothing() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    let on = |action_type: &str, session: &str, time: &str| {
        event(action_type, session, time, &json!({"conversation_id": "c"}))
    };
    let openings = [
        on("conversation.session_opened", "phone", "10:00:00"),
        on("conversation.session_opened", "web", "10:00:01"),
    ];
    record(&replica, &openings).await;
    replica.save(&[to_save("phone", "m1", &json!({"conversation_id": "c"}))]).await;
    sql(&env, "UPDATE conversations SET touched_at = touched_at - interval '1 h'").await;
    assert_eq!(sweep(&closer).await.archived, 1);
    record(&replica, &openings).await;
    record(&replica, &[on("conversation.session_closed", "phone", "10:05:00")]).await;
    assert_eq!(sql(&env, "SELECT status, reopened FROM conversations").await, "archived|f");
    assert_eq!(sweep(&closer).await, Swept::default());
}

#[tokio::test]
async fn a_conversation_that_a_session_opened_learns_its_agent_from_its_messages() {
    let (env, replica) = stores().await;
    record(&replica, &[opened("s", "10:00:00")]).await;
    let named = json!({"agent_id": "agent_xyz", "user_id": "u1", "model_name": "gpt-4o"});
    replica.save(&[to_save("s", "m1", &json!({})), to_save("s", "m2", &named)]).await;
    assert_eq!(
        sql(&env, "SELECT agent_id, user_id, model_name FROM conversations").await,
        "agent_xyz|u1|gpt-4o"
    );
}

#[tokio::test]
async fn repeating_a_close_neither_postpones_nor_repeats_it() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    let first = sql(&env, "SELECT close_requested_at FROM conversations").await;
    record(&replica, &[closed("s", "10:01:00"), closed("s", "10:01:30")]).await;
    assert_eq!(sql(&env, "SELECT close_requested_at FROM conversations").await, first);
    assert_eq!(sweep(&closer).await.archived, 1);
    let archived = sql(&env, "SELECT finalised_at FROM conversations").await;
    record(&replica, &[closed("s", "10:01:00"), closed("s", "10:05:00")]).await;
    assert_eq!(sweep(&closer).await, Swept::default());
    assert_eq!(sql(&env, "SELECT finalised_at FROM conversations").await, archived);
}

#[tokio::test]
async fn a_message_after_archiving_reopens_and_the_same_close_follows() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    assert_eq!(sweep(&closer).await.archived, 1);
    refresh(&replica.statistics).await;

    // A redelivery of what is stored changes nothing.
    assert_eq!(replica.save(&[to_save("s", "m1", &json!({}))]).await, [duplicate()]);
    assert_eq!(status(&env, "s").await, "archived");

    assert_eq!(replica.save(&[to_save("s", "m2", &json!({}))]).await, [applied()]);
    assert_eq!(status(&env, "s").await, "active");
    assert_eq!(replica.metrics.count(Counter::ConversationsReopened), 1);
    let swept = sweep(&closer).await;
    assert_eq!(swept, Swept { archived: 1, reopened: 1, ..Swept::default() });
    assert_eq!(refresh(&replica.statistics).await, (1, 1));
    assert_eq!(sql(&env, "SELECT message_count FROM conversations").await, "2");
    assert_eq!(sql(&env, "SELECT message_count FROM conversation_stats").await, "2");
    assert_eq!(sql(&env, "SELECT conversations, messages FROM daily_stats").await, "1|2");
}

#[tokio::test]
async fn a_message_during_the_grace_period_restarts_it() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    sql(&env, "UPDATE conversations SET close_requested_at = close_requested_at - interval '1 h'")
        .await;
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    assert!(requested(&env, "s").await, "a message never cancels a close");
    assert_eq!(sweep(&closer).await, Swept::default());
}

#[tokio::test]
async fn a_session_that_is_never_closed_ends_by_idleness() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, default_criteria()).await;
    record(&replica, &[opened("s", "10:00:00")]).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    sql(&env, "UPDATE conversations SET touched_at = touched_at - interval '30 min 59 s'").await;
    assert_eq!(sweep(&closer).await, Swept::default());
    sql(&env, "UPDATE conversations SET touched_at = touched_at - interval '1 s'").await;
    assert_eq!(sweep(&closer).await.archived, 1);
    assert_eq!(sql(&env, "SELECT status, close_reason FROM conversations").await, "archived|idle");
}

#[tokio::test]
async fn a_message_between_the_claim_and_the_last_write_cancels_the_claim() {
    let (env, replica) = stores().await;
    let settings = at_once();
    let closer = closer(&env, &replica, settings).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    let claims = replica.database.claim(&due(settings), 20).await.unwrap();
    assert_eq!(claims.len(), 1);
    let counted = replica.database.totals(&claims).await.unwrap();
    assert_eq!(counted.len(), 1);
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    assert!(replica.database.archive_closed(&counted).await.unwrap().is_empty());
    assert!(replica.database.totals(&claims).await.unwrap().is_empty());
    assert_eq!(status(&env, "s").await, "active");
    assert_eq!(sweep(&closer).await.archived, 1);
    assert_eq!(sql(&env, "SELECT message_count FROM conversations").await, "2");
}

#[tokio::test]
async fn the_close_of_a_closer_that_crashed_after_any_step_is_finished_by_another() {
    let (env, replica) = stores().await;
    let settings = at_once();
    let closer = closer(&env, &replica, settings).await;
    for (step, session) in ["claimed", "counted", "dropped"].iter().enumerate() {
        replica.save(&[to_save(session, "m1", &json!({"content": "hello world"}))]).await;
        record(&replica, &[closed(session, "10:01:00")]).await;
        let claims = replica.database.claim(&due(settings), 20).await.unwrap();
        assert_eq!(claims.len(), 1, "{session}");
        if step >= 1 {
            let (page, _) = replica.database.uncounted(&claims, None, 10, 1 << 20).await.unwrap();
            replica.database.store_tokens(&[(&page[0], 2)]).await.unwrap();
        }
        if step >= 2 {
            replica.hot.drop_copies(&[key(session)]).await.unwrap();
        }
        let closed_at =
            format!("SELECT closed_at FROM conversations WHERE session_id = '{session}'");
        let began = sql(&env, &closed_at).await;
        // It crashed. While its lease lasts no other closer takes the claim; then the sweep takes it over.
        assert_eq!(sweep(&closer).await, Swept::default(), "{session}");
        sql(&env, "UPDATE conversations SET close_lease_until = now() WHERE status = 'closing'")
            .await;
        assert_eq!(sweep(&closer).await.archived, 1, "{session}");
        assert_eq!(sql(&env, &closed_at).await, began, "it is the same close");
        let id = key(session).conversation;
        assert_eq!(
            sql(&env, &format!("SELECT status, message_count, total_tokens FROM conversations WHERE id = '{id}'")).await,
            "archived|1|2"
        );
    }
}

#[tokio::test]
async fn a_change_by_an_event_between_the_count_and_the_last_write_stays() {
    let (env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    let claims = replica.database.claim(&due(at_once()), 20).await.unwrap();
    let counted = replica.database.totals(&claims).await.unwrap();
    assert_eq!((counted.len(), &counted[0].event.as_ref().unwrap().agent_id), (1, &None));
    let named = json!({"agent_id": "agent_xyz"});
    record(&replica, &[event("conversation.session_closed", "s", "10:01:01", &named)]).await;
    assert_eq!(replica.database.archive_closed(&counted).await.unwrap(), [key("s")]);
    assert_eq!(sql(&env, "SELECT status, agent_id FROM conversations").await, "archived|agent_xyz");
}

#[tokio::test]
async fn a_lease_is_renewed_while_tokens_are_counted() {
    let (env, replica) = stores().await;
    sql(
        &env,
        "CREATE TABLE leases (until timestamptz);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO leases VALUES (NEW.close_lease_until); RETURN NULL;
         END $$;
         CREATE TRIGGER note AFTER UPDATE ON conversations FOR EACH ROW
             WHEN (NEW.close_lease_until IS NOT NULL) EXECUTE FUNCTION note()",
    )
    .await;
    // Three pages of counts. A lease of zero is due for renewal after each of them, a lease of an hour never.
    let content = json!({"content": "hello world"});
    for (session, lease, taken) in
        [("short", Duration::ZERO, "5"), ("long", Duration::from_secs(3_600), "1")]
    {
        let batch: Vec<_> =
            (0..250).map(|i| to_save(session, &format!("m{i}"), &content)).collect();
        replica.save(&batch).await;
        record(&replica, &[closed(session, "10:01:00")]).await;
        sql(&env, "TRUNCATE leases").await;
        let closer = closer(&env, &replica, ClaimCriteria { lease, ..at_once() }).await;
        assert_eq!(sweep(&closer).await.archived, 1, "{session}");
        assert_eq!(sql(&env, "SELECT count(*) FROM leases").await, taken, "{session}");
        let id = key(session).conversation;
        let totals =
            format!("SELECT message_count, total_tokens FROM conversations WHERE id = '{id}'");
        assert_eq!(sql(&env, &totals).await, "250|500", "{session}");
    }
}

#[tokio::test]
async fn two_closers_at_once_close_each_conversation_once() {
    let (env, replica) = stores().await;
    let batch: Vec<_> = (0..60).map(|i| to_save(&format!("s{i}"), "m1", &json!({}))).collect();
    replica.save(&batch).await;
    let closes: Vec<_> = (0..60).map(|i| closed(&format!("s{i}"), "10:01:00")).collect();
    record(&replica, &closes).await;
    let settings = at_once();
    let closers = [
        closer(&env, &replica, settings).await,
        closer(&env, &Replica::of(&env), settings).await,
        closer(&env, &Replica::of(&env), settings).await,
    ];
    let swept = fixtures::at_the_same_time(3, |n| {
        let closer = closers[n].clone();
        async move {
            let mut archived = 0;
            loop {
                let swept = sweep(&closer).await;
                archived += swept.archived;
                if swept == Swept::default() {
                    return archived;
                }
            }
        }
    })
    .await;
    assert_eq!(swept.iter().sum::<usize>(), 60, "{swept:?}");
    assert_eq!(sql(&env, "SELECT DISTINCT status FROM conversations").await, "archived");
}

#[tokio::test]
async fn satisfaction_after_archiving_reaches_the_statistics_and_the_newest_wins() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    sweep(&closer).await;
    refresh(&replica.statistics).await;
    let feedback = |time: &str, satisfaction: u8| {
        event("conversation.feedback", "s", time, &json!({"satisfaction": satisfaction}))
    };
    record(&replica, &[feedback("10:05:00", 2)]).await;
    record(&replica, &[feedback("10:04:00", 5), feedback("10:03:00", 1)]).await;
    assert_eq!(refresh(&replica.statistics).await, (1, 1));
    assert_eq!(sql(&env, "SELECT satisfaction FROM conversation_stats").await, "2");
    assert_eq!(sql(&env, "SELECT avg_satisfaction FROM daily_stats").await, "2");
    assert_eq!(status(&env, "s").await, "archived");
}

#[tokio::test]
async fn a_conversation_that_moves_to_another_agent_and_day_leaves_its_old_bucket() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    let actor = |id: &str, agent: &str, day: &str| {
        to_save(
            "s",
            id,
            &json!({"agent_id": agent, "timestamp": format!("2026-11-{day}T10:00:00Z")}),
        )
    };
    replica.save(&[actor("m2", "first", "20")]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    sweep(&closer).await;
    refresh(&replica.statistics).await;
    assert_eq!(
        sql(&env, "SELECT agent_id, day, conversations FROM daily_stats").await,
        "first|2026-11-20|1"
    );

    replica.save(&[actor("m1", "first", "19"), actor("m3", "second", "20")]).await;
    sweep(&closer).await;
    assert_eq!(refresh(&replica.statistics).await, (1, 2));
    assert_eq!(
        sql(&env, "SELECT agent_id, day, conversations FROM daily_stats ORDER BY day").await,
        "second|2026-11-19|1\nfirst|2026-11-20|0"
    );
}

#[tokio::test]
async fn an_action_of_another_queue_is_refused_by_name() {
    let (_env, replica) = stores().await;
    let stray = event("conversation.get_context", "s", "10:00:00", &json!({}));
    let outcomes = replica.sessions.record(&[closed("s", "10:00:00"), stray]).await.unwrap();
    assert_eq!(outcomes[0], applied());
    let Err(Failure::DeadLetter(refusal)) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!(refusal.reason, DeadLetterReason::UnknownAction);
    assert!(refusal.detail.contains("conversation.get_context"), "{refusal}");
}

#[tokio::test]
async fn events_that_are_too_slow_for_one_transaction_are_recorded_in_parts() {
    let (env, _) = stores().await;
    sql(
        &env,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_sleep(0.03); RETURN NEW; END $$;
         CREATE TRIGGER dawdle BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    .await;
    let hasty = on_database(&env, Duration::from_secs(1), Duration::from_secs(1));
    let events: Vec<_> = (0..50).map(|i| opened(&format!("s{i}"), "10:00:00")).collect();
    record(&hasty, &events).await;
    assert_eq!(sql(&env, "SELECT count(*) FROM sessions WHERE open").await, "50");
}

#[tokio::test]
async fn an_event_whose_conversation_stays_locked_fails_alone_and_those_beside_it_are_recorded() {
    let (env, replica) = stores().await;
    let (before, behind) = (opened("before", "10:00:00"), opened("zz behind", "10:00:00"));
    let locked = opened("locked", "10:00:00");
    record(&replica, std::slice::from_ref(&locked)).await;
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    sqlx::query("SELECT FROM conversations FOR UPDATE").execute(&mut *transaction).await.unwrap();

    let hasty = on_database(&env, Duration::from_secs(10), Duration::from_millis(200));
    let events = [before, closed("locked", "10:01:00"), behind];
    let outcomes = hasty.sessions.record(&events).await.unwrap();
    assert!(matches!(&outcomes[1], Err(Failure::Locked(_))), "{outcomes:?}");
    assert_eq!((&outcomes[0], &outcomes[2]), (&Ok(Done::Applied), &Ok(Done::Applied)));
    assert_eq!(status(&env, "before").await, "active");
    // Alone in its batch, too.
    let outcomes = hasty.sessions.record(&events[1..2]).await.unwrap();
    assert!(matches!(&outcomes[0], Err(Failure::Locked(_))), "{outcomes:?}");
    sqlx::query("LOCK TABLE sessions").execute(&mut *transaction).await.unwrap();
    let new = [opened("new", "10:00:00"), events[1].clone()];
    let held = hasty.sessions.record(&new).await.unwrap_err();
    assert_eq!(held.dependency, Dependency::PostgreSql, "a whole table is locked");

    transaction.rollback().await.unwrap();
    record(&replica, &events).await;
    assert!(requested(&env, "locked").await);
}

#[tokio::test]
async fn events_of_a_locked_conversation_delay_their_batch_once() {
    let (env, replica) = stores().await;
    record(&replica, &[opened("locked", "10:00:00")]).await;
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    sqlx::query("SELECT FROM conversations FOR UPDATE").execute(&mut *transaction).await.unwrap();
    let hasty = on_database(&env, Duration::from_secs(10), Duration::from_millis(200));
    // One in each transaction of 50 events.
    let event = |n: usize| match n % 50 {
        25 => closed("locked", &format!("10:{:02}:00", n / 50)),
        _ => opened(&format!("s{n}"), "10:00:00"),
    };
    let outcomes = hasty.sessions.record(&(0..200).map(event).collect::<Vec<_>>()).await.unwrap();
    let locked = outcomes.iter().filter(|it| matches!(it, Err(Failure::Locked(_))));
    assert_eq!(locked.count(), 4);
    let splits = Counter::TransactionRetries { class: TransactionRetry::Split };
    let splits = hasty.metrics.count(splits);
    assert!(splits <= 6, "{splits} splits: halving 50 events once takes up to 6");
}

#[tokio::test]
async fn a_conversation_that_was_idle_and_goes_on_does_not_close_as_idle_again() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    sql(&env, "UPDATE conversations SET touched_at = touched_at - interval '1 h'").await;
    assert_eq!(sweep(&closer).await.archived, 1);
    assert_eq!(sql(&env, "SELECT close_reason FROM conversations").await, "idle");

    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    record(&replica, &[closed("s", "10:01:00")]).await;
    let claims = replica.database.claim(&at_once(), 20).await.unwrap();
    let counted = replica.database.totals(&claims).await.unwrap();
    assert_eq!(counted[0].event.as_ref().unwrap().close_reason, None);
}

/// A replica with these time limits.
fn on_database(env: &testkit::TestEnv, time_out: Duration, lock_time_out: Duration) -> Replica {
    let settings = fixtures::database_settings(&env.database_url);
    let settings = database::Settings { time_out, lock_time_out, ..settings };
    Replica::on(database::Database::open(&settings).unwrap(), &env.redis_url)
}

fn due(criteria: ClaimCriteria) -> ClaimCriteria {
    ClaimCriteria { lease: criteria.lease.max(Duration::from_secs(30)), ..criteria }
}
