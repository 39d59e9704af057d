//! What statistics promise about a conversation or a day that is slow by itself, or locked: no other waits for it,
//! and it is refreshed when that is possible.

use std::time::Duration;

use conversation::Statistics;
use fixtures::{Replica, applied, at_once, closer, refresh, sql, stores, sweep, to_save};
use metrics::{Counter, SlowOutcome, SlowWork};
use serde_json::json;
use testkit::TestEnv;

use crate::slowness::{Background, Gate, hasty, lock, until_sql};

/// Archived conversations whose statistics are not computed yet, each of an agent of its own name.
pub(crate) async fn archived(env: &TestEnv, replica: &Replica, ids: &[&str]) {
    let closer = closer(env, replica, at_once()).await;
    for id in ids {
        let agent = json!({"agent_id": id});
        assert_eq!(replica.save(&[to_save(id, "m", &agent)]).await, [applied()]);
        let close = json!({
            "action_type": "conversation.session_closed", "tenant_id": "acme", "session_id": id,
            "timestamp": "2026-11-20T10:05:00Z",
        });
        replica.sessions.record(&[fixtures::action(&close)]).await.unwrap();
        assert_eq!(sweep(&closer).await.archived, 1);
    }
}

pub(crate) const DAYS: &str =
    "SELECT coalesce(string_agg(agent_id, ' ' ORDER BY agent_id), '') FROM daily_stats
                    WHERE NOT dirty";

fn outcomes(replica: &Replica, work: SlowWork, outcome: SlowOutcome) -> u64 {
    replica.metrics.count(Counter::SlowWork { work, outcome })
}

/// Refreshes, also apart, as a statistics-worker does.
fn keep_refreshing(statistics: &Statistics) -> Background {
    let (together, apart) = (statistics.clone(), statistics.clone());
    Background::new([
        tokio::spawn(async move {
            loop {
                while together.refresh_conversations().await.is_ok_and(|n| n > 0) {}
                while together.refresh_days().await.is_ok_and(|n| n > 0) {}
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }),
        tokio::spawn(async move {
            loop {
                apart.refresh_apart(apart.next_apart().await).await;
            }
        }),
    ])
}

#[tokio::test]
async fn statistics_of_a_conversation_that_are_too_slow_delay_no_other() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["slow", "a", "z"]).await;
    let gate = Gate::on_reads_of(&env, "slow").await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let _refreshing = keep_refreshing(&hasty.statistics);
    until_sql(&env, DAYS, "a z").await;
    gate.until_waited_at().await;
    archived(&env, &replica, &["later"]).await;
    until_sql(&env, DAYS, "a later z").await;
    gate.open().await;
    until_sql(&env, DAYS, "a later slow z").await;
    assert_eq!(outcomes(&hasty, SlowWork::ConversationStatistics, SlowOutcome::Done), 1);
}

#[tokio::test]
async fn a_save_does_not_wait_while_the_statistics_of_its_conversation_are_computed() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["slow"]).await;
    let gate = Gate::on_reads_of(&env, "slow").await;
    let _refreshing = keep_refreshing(&replica.statistics);
    gate.until_waited_at().await;
    assert_eq!(replica.save(&[to_save("slow", "late", &json!({}))]).await, [applied()]);
    assert_eq!(sql(&env, "SELECT status FROM conversations").await, "active");
    gate.open().await;
    // What was computed is out of date, and is computed again after the next close.
    assert_eq!(sweep(&closer(&env, &replica, at_once()).await).await.archived, 1);
    until_sql(&env, "SELECT message_count FROM conversation_stats", "2").await;
}

#[tokio::test]
async fn a_long_conversation_whose_row_is_locked_delays_no_statistics() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["locked", "a", "z"]).await;
    let long = "UPDATE conversations SET message_count = 5000 WHERE session_id = 'locked'";
    sql(&env, long).await;
    let row = lock(&env, "SELECT FROM conversations WHERE session_id = 'locked' FOR UPDATE").await;
    refresh(&replica.statistics).await;
    assert_eq!(sql(&env, DAYS).await, "a z");
    let _refreshing = keep_refreshing(&replica.statistics);
    row.release().await;
    until_sql(&env, DAYS, "a locked z").await;
}

#[tokio::test]
async fn locked_statistics_of_a_conversation_delay_no_other() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["locked", "a", "z"]).await;
    refresh(&replica.statistics).await;
    let row =
        lock(&env, "SELECT FROM conversation_stats WHERE agent_id = 'locked' FOR UPDATE").await;
    sql(&env, "UPDATE conversations SET stats_from = NULL").await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let _refreshing = keep_refreshing(&hasty.statistics);
    let computed = "SELECT coalesce(string_agg(session_id, ' ' ORDER BY session_id), '')
                    FROM conversations WHERE stats_from IS NOT NULL";
    until_sql(&env, computed, "a z").await;
    row.release().await;
    until_sql(&env, computed, "a locked z").await;
}

#[tokio::test]
async fn a_day_that_is_too_slow_delays_no_other_day() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["a", "b", "c"]).await;
    let slow = "NEW.agent_id = 'a' AND NOT NEW.dirty";
    let gate = Gate::on_writes(&env, "BEFORE UPDATE ON daily_stats", slow).await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let _refreshing = keep_refreshing(&hasty.statistics);
    until_sql(&env, DAYS, "b c").await;
    gate.open().await;
    until_sql(&env, DAYS, "a b c").await;
    assert_eq!(outcomes(&hasty, SlowWork::DailyStatistics, SlowOutcome::Done), 1);
}

#[tokio::test]
async fn a_day_whose_row_is_locked_delays_no_other_day() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["a", "b", "c"]).await;
    while replica.statistics.refresh_conversations().await.unwrap() > 0 {}
    let row = lock(&env, "SELECT FROM daily_stats WHERE agent_id = 'a' FOR UPDATE").await;
    refresh(&replica.statistics).await;
    assert_eq!(sql(&env, DAYS).await, "b c");
    row.release().await;
    let _refreshing = keep_refreshing(&replica.statistics);
    until_sql(&env, DAYS, "a b c").await;
}

#[tokio::test]
async fn a_day_that_changes_while_it_is_computed_is_computed_again() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["a"]).await;
    while replica.statistics.refresh_conversations().await.unwrap() > 0 {}
    let stale = replica.database.stale_days(1, &[]).await.unwrap().pop().unwrap();
    sql(&env, "UPDATE daily_stats SET dirty = true").await;
    let refreshed = replica.database.refresh_day(&stale).await.unwrap();
    assert_eq!(refreshed, database::DayRefresh::Changed);
    assert_eq!(sql(&env, "SELECT dirty, conversations FROM daily_stats").await, "t|1");
    assert_eq!(refresh(&replica.statistics).await, (0, 1));
    assert_eq!(sql(&env, "SELECT dirty, conversations FROM daily_stats").await, "f|1");
}

#[tokio::test]
async fn statistics_too_slow_for_every_limit_are_reported_and_tried_again() {
    let (env, replica) = stores().await;
    archived(&env, &replica, &["slow"]).await;
    let gate = Gate::on_reads_of(&env, "slow").await;
    let hasty = hasty(&env, Duration::from_secs(5));
    let limits = [Duration::from_secs(1), Duration::from_secs(2)];
    let statistics = hasty.statistics.clone().with_slow_limits(limits);
    assert_eq!(statistics.refresh_conversations().await.unwrap(), 1);
    let taken = statistics.next_apart().await;
    statistics.refresh_apart(taken).await;
    let of = SlowWork::ConversationStatistics;
    assert_eq!(outcomes(&hasty, of, SlowOutcome::TooSlow), 1);
    assert_eq!(statistics.refresh_conversations().await.unwrap(), 0, "it is not chosen again");
    gate.open().await;
    let _refreshing = keep_refreshing(&statistics);
    until_sql(&env, DAYS, "slow").await;
}
