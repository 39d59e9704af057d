//! What closing promises about a conversation that is slow by itself, or whose row is locked: no other waits for it,
//! and it is closed when that is possible.

use std::time::Duration;

use broker::Publisher;
use conversation::{ClaimCriteria, Closer, Swept};
use fixtures::{
    LIMIT, Replica, applied, at_once, closer, declared, endpoints, sql, stores, to_save,
    unthrottled,
};
use metrics::{Counter, SlowOutcome, SlowWork};
use serde_json::json;
use testkit::TestEnv;
use testkit::proxy::Proxy;

use crate::slowness::{Background, Gate, hasty, lock, until_sql};

/// A conversation with messages whose close is due.
pub(crate) async fn due(replica: &Replica, id: &str, messages: usize) {
    let content = json!({"content": "hello world"});
    let all: Vec<_> = (0..messages).map(|n| to_save(id, &format!("m{n}"), &content)).collect();
    for part in all.chunks(500) {
        assert_eq!(replica.save(part).await, vec![applied(); part.len()]);
    }
    let close = json!({
        "action_type": "conversation.session_closed", "tenant_id": "acme", "session_id": id,
        "timestamp": "2026-11-20T10:05:00Z",
    });
    let recorded = replica.sessions.record(&[fixtures::action(&close)]).await.unwrap();
    assert_eq!(recorded, [applied()]);
}

pub(crate) async fn archived(env: &TestEnv) -> String {
    let ids = "SELECT coalesce(string_agg(session_id, ' ' ORDER BY session_id), '')
               FROM conversations WHERE status = 'archived'";
    sql(env, ids).await
}

async fn until_archived(env: &TestEnv, expected: &str) {
    let ids = "SELECT coalesce(string_agg(session_id, ' ' ORDER BY session_id), '')
               FROM conversations WHERE status = 'archived'";
    until_sql(env, ids, expected).await;
}

fn outcomes(replica: &Replica, outcome: SlowOutcome) -> u64 {
    replica.metrics.count(Counter::SlowWork { work: SlowWork::Close, outcome })
}

/// Sweeps, and closes apart, as a persistence-migration-worker does.
fn keep_closing(closer: &Closer) -> Background {
    let (sweeping, apart) = (closer.clone(), closer.clone());
    Background::new([
        tokio::spawn(async move {
            let mut limit = 20;
            loop {
                limit = if sweeping.sweep(limit).await.is_ok() { 20 } else { 1 };
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }),
        tokio::spawn(async move {
            loop {
                apart.close_apart(apart.next_apart().await).await;
            }
        }),
    ])
}

#[tokio::test]
async fn a_conversation_too_slow_to_close_delays_no_other() {
    let (env, replica) = stores().await;
    for id in ["a", "slow", "z"] {
        due(&replica, id, 3).await;
    }
    let gate = Gate::on_reads_of(&env, "slow").await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let _closing = keep_closing(&closer(&env, &hasty, at_once()).await);
    until_archived(&env, "a z").await;
    // It is being closed apart. Meanwhile others close.
    gate.until_waited_at().await;
    due(&replica, "later", 3).await;
    until_archived(&env, "a later z").await;
    gate.open().await;
    until_archived(&env, "a later slow z").await;
    assert_eq!(outcomes(&hasty, SlowOutcome::Done), 1);
    let totals = "SELECT message_count, total_tokens FROM conversations WHERE session_id = 'slow'";
    assert_eq!(sql(&env, totals).await, "3|6");
}

#[tokio::test]
async fn a_last_write_that_is_too_slow_delays_no_other() {
    let (env, replica) = stores().await;
    for id in ["a", "slow", "z"] {
        due(&replica, id, 1).await;
    }
    let gate = Gate::on_writes(
        &env,
        "BEFORE UPDATE ON conversations",
        "NEW.status = 'archived' AND NEW.session_id = 'slow'",
    )
    .await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let _closing = keep_closing(&closer(&env, &hasty, at_once()).await);
    until_archived(&env, "a z").await;
    gate.open().await;
    until_archived(&env, "a slow z").await;
}

#[tokio::test]
async fn the_claim_of_a_slow_close_is_renewed_and_no_other_closer_takes_it() {
    let (env, replica) = stores().await;
    due(&replica, "slow", 1).await;
    let gate = Gate::on_reads_of(&env, "slow").await;
    let short = ClaimCriteria { lease: Duration::from_secs(3), ..at_once() };
    let hasty = hasty(&env, Duration::from_secs(5));
    let _closing = keep_closing(&closer(&env, &hasty, short).await);
    gate.until_waited_at().await;
    until_sql(&env, "SELECT close_token IS NOT NULL FROM conversations", "t").await;
    let token = sql(&env, "SELECT close_token FROM conversations").await;
    let claimed = sql(&env, "SELECT close_lease_until FROM conversations").await;
    // Another closer sweeps while the first lease ends and is renewed, twice its length.
    let other = Replica::of(&env);
    let sweeping = closer(&env, &other, short).await;
    let renewed = format!(
        "SELECT close_lease_until > '{claimed}'::timestamptz + interval '6 s' FROM conversations"
    );
    testkit::wait::eventually("two leases", LIMIT, async || {
        assert_eq!(sweeping.sweep(20).await.unwrap(), Swept::default());
        match sql(&env, &renewed).await.as_str() {
            "t" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert_eq!(sql(&env, "SELECT close_token FROM conversations").await, token);
    assert_eq!(other.metrics.count(Counter::CloseTakeovers), 0);
    gate.open().await;
    until_archived(&env, "slow").await;
}

#[tokio::test]
async fn a_conversation_whose_row_is_locked_delays_no_other_close_and_is_closed_when_the_lock_is_released()
 {
    let (env, replica) = stores().await;
    for id in ["a", "locked", "z"] {
        due(&replica, id, 1).await;
    }
    // The closer has claimed them and cannot publish, so that the row can be locked.
    declared(&env.amqp_url).await;
    let proxy = Proxy::before(&env.amqp_url).await.unwrap();
    proxy.cut().await.unwrap();
    let closer = Closer::new(
        &replica.database,
        replica.hot.clone(),
        Publisher::new(endpoints(proxy.url()), replica.metrics.clone()),
        replica.metrics.clone(),
        unthrottled(),
        at_once(),
    );
    let sweeping = closer.clone();
    let sweep = tokio::spawn(async move { sweeping.sweep(20).await });
    until_sql(&env, "SELECT count(*) FROM conversations WHERE status = 'closing'", "3").await;
    let row = lock(&env, "SELECT FROM conversations WHERE session_id = 'locked' FOR UPDATE").await;
    proxy.restore().await.unwrap();
    let swept = sweep.await.unwrap().unwrap();
    assert_eq!(swept, Swept { archived: 2, ..Swept::default() });
    assert_eq!(archived(&env).await, "a z");

    // Apart it waits for its lock for some seconds, and not for ever.
    let taken = closer.next_apart().await;
    closer.close_apart(taken).await;
    assert_eq!(outcomes(&replica, SlowOutcome::Locked), 1);
    let _closing = keep_closing(&closer);
    due(&replica, "later", 1).await;
    until_archived(&env, "a later z").await;
    row.release().await;
    sql(&env, "UPDATE conversations SET close_lease_until = now() WHERE status = 'closing'").await;
    until_archived(&env, "a later locked z").await;
}

#[tokio::test]
async fn a_reopened_conversation_whose_row_is_locked_delays_no_close() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    due(&replica, "locked", 1).await;
    assert_eq!(closer.sweep(20).await.unwrap().archived, 1);
    replica.save(&[to_save("locked", "late", &json!({}))]).await;
    let row = lock(&env, "SELECT FROM conversations WHERE session_id = 'locked' FOR UPDATE").await;
    due(&replica, "a", 1).await;
    let swept = closer.sweep(20).await.unwrap();
    assert_eq!(swept, Swept { archived: 1, ..Swept::default() });
    row.release().await;
    let swept = closer.sweep(20).await.unwrap();
    assert_eq!(swept, Swept { archived: 1, reopened: 1, ..Swept::default() });
}

#[tokio::test]
async fn a_long_conversation_is_counted_apart_and_the_others_are_closed_at_once() {
    let (env, replica) = stores().await;
    for (id, messages) in [("a", 1), ("long", 3_000), ("z", 1)] {
        due(&replica, id, messages).await;
    }
    sql(
        &env,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;
         CREATE TRIGGER dawdle AFTER INSERT ON message_tokens FOR EACH STATEMENT EXECUTE FUNCTION dawdle()",
    )
    .await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let closer = closer(&env, &hasty, at_once()).await;
    let swept = closer.sweep(20).await.unwrap();
    assert_eq!(swept, Swept { archived: 2, ..Swept::default() });
    assert_eq!(archived(&env).await, "a z");
    let counted = "SELECT count(*) > 0 AND count(*) < 3000 FROM message_tokens
                   WHERE conversation = (SELECT number FROM conversations WHERE session_id = 'long')";
    assert_eq!(sql(&env, counted).await, "t", "what is counted is stored");
    sql(&env, "DROP TRIGGER dawdle ON message_tokens").await;
    let taken = closer.next_apart().await;
    closer.close_apart(taken).await;
    let totals =
        "SELECT status, message_count, total_tokens FROM conversations WHERE session_id = 'long'";
    assert_eq!(sql(&env, totals).await, "archived|3000|6000");
}

#[tokio::test]
async fn a_conversation_too_slow_for_every_limit_is_reported_and_closed_when_it_is_faster() {
    let (env, replica) = stores().await;
    due(&replica, "slow", 1).await;
    let gate = Gate::on_reads_of(&env, "slow").await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let limits = [Duration::from_secs(1), Duration::from_secs(2)];
    let closer = closer(&env, &hasty, at_once()).await.with_slow_limits(limits);
    assert_eq!(closer.sweep(20).await.unwrap(), Swept::default());
    let taken = closer.next_apart().await;
    closer.close_apart(taken).await;
    assert_eq!(outcomes(&hasty, SlowOutcome::TooSlow), 1);

    // When its lease has ended, it does not delay others once more: it is closed apart at once.
    sql(&env, "UPDATE conversations SET close_lease_until = now() WHERE status = 'closing'").await;
    due(&replica, "a", 1).await;
    let splits = Counter::TransactionRetries { class: metrics::TransactionRetry::Split };
    let before = hasty.metrics.count(splits);
    assert_eq!(closer.sweep(20).await.unwrap().archived, 1);
    assert_eq!(hasty.metrics.count(splits), before);
    let taken = closer.next_apart().await;
    gate.open().await;
    closer.close_apart(taken).await;
    assert_eq!(archived(&env).await, "a slow");
    assert_eq!(outcomes(&hasty, SlowOutcome::Done), 1);
}

#[tokio::test]
async fn a_message_cancels_a_slow_close() {
    let (env, replica) = stores().await;
    due(&replica, "slow", 1).await;
    let gate = Gate::on_reads_of(&env, "slow").await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let short = ClaimCriteria { lease: Duration::from_secs(3), ..at_once() };
    let closer = closer(&env, &hasty, short).await;
    assert_eq!(closer.sweep(20).await.unwrap(), Swept::default());
    let taken = closer.next_apart().await;
    let apart = tokio::spawn(async move { closer.close_apart(taken).await });
    gate.until_waited_at().await;
    replica.save(&[to_save("slow", "late", &json!({}))]).await;
    apart.await.unwrap();
    assert_eq!(outcomes(&hasty, SlowOutcome::Cancelled), 1);
    assert_eq!(sql(&env, "SELECT status FROM conversations").await, "active");
}
