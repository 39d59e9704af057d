//! Statistics: always recomputed from the rows, never incremented. Tokens are those that the close counted.
//!
//! A conversation is dirty while `finalised_at` differs from `stats_from`. A day is dirty when a
//! conversation of it changed. Both are stored, so after a lost event the next sweep still finds the work.
//! A day's row is locked before it is computed: a transaction that changes one of its conversations
//! meanwhile waits for that row and marks it dirty again.

use std::sync::LazyLock;

use chrono::{DateTime, NaiveDate, Utc};
use domain::ids::ConversationKey;
use sqlx::AssertSqlSafe;

use crate::rows::from_row;
use crate::{Database, Result};

/// The most messages that one transaction reads, unless a single conversation has more. It takes some
/// milliseconds, during which a save that reopens one of the conversations waits.
const MESSAGES: i64 = 1_000;

/// The statistics of one conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ConversationStats {
    /// The agent of the newest message that names one.
    pub agent_id: Option<String>,
    /// How many messages it has.
    pub message_count: i64,
    /// Those of role `user`.
    pub user_messages: i64,
    /// Those of role `assistant`.
    pub assistant_messages: i64,
    /// Tokens of all messages.
    pub total_tokens: i64,
    /// From the first message to the last, in seconds.
    pub duration_seconds: f64,
    /// Average time from a user message to the assistant message that directly follows it, in seconds.
    pub avg_response_seconds: Option<f64>,
    /// The user's satisfaction, 1 to 5.
    pub satisfaction: Option<i16>,
    /// The conversation's `finalised_at` when they were computed.
    pub computed_from: DateTime<Utc>,
    /// When they were computed.
    pub computed_at: DateTime<Utc>,
}

from_row! { ConversationStats:
    agent_id, message_count, user_messages, assistant_messages, total_tokens, duration_seconds,
    avg_response_seconds, satisfaction, computed_from, computed_at
}

impl Database {
    /// Recomputes the statistics of up to `limit` dirty conversations; returns how many there were.
    /// Several replicas may run it at once.
    pub async fn refresh_conversations(&self, limit: u32) -> Result<usize> {
        self.in_transaction(async |connection| {
            // Chosen first and locked after: the message counts decide how many conversations are taken.
            let dirty: Vec<(String, String)> = sqlx::query_as(
                "SELECT c.tenant_id, c.id
                 FROM (SELECT tenant_id, id, row_number() OVER by_close AS place,
                              sum(message_count) OVER by_close AS messages
                       FROM (SELECT tenant_id, id, finalised_at, message_count FROM conversations
                             WHERE status = 'archived' AND finalised_at IS DISTINCT FROM stats_from
                             ORDER BY finalised_at LIMIT $1) AS listed
                       WINDOW by_close AS (ORDER BY finalised_at, tenant_id, id)) AS k
                 JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                 WHERE (k.place = 1 OR k.messages <= $2)
                   AND c.status = 'archived' AND c.finalised_at IS DISTINCT FROM c.stats_from
                 ORDER BY c.tenant_id, c.id
                 FOR NO KEY UPDATE OF c SKIP LOCKED",
            )
            .bind(i64::from(limit))
            .bind(MESSAGES)
            .fetch_all(&mut *connection)
            .await?;
            if dirty.is_empty() {
                return Ok(0);
            }
            // A separate statement, so that its snapshot is taken after the locks.
            sqlx::query(AssertSqlSafe(COMPUTE.as_str()))
                .bind(dirty.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>())
                .bind(dirty.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>())
                .execute(&mut *connection)
                .await?;
            Ok(dirty.len())
        })
        .await
    }

    /// Recomputes up to `limit` dirty days; returns how many there were.
    pub async fn refresh_days(&self, limit: u32) -> Result<usize> {
        self.in_transaction(async |connection| {
            let dirty: Vec<(String, String, NaiveDate)> = sqlx::query_as(
                "SELECT tenant_id, agent_id, day FROM daily_stats WHERE dirty
                 ORDER BY tenant_id, agent_id, day LIMIT $1
                 FOR UPDATE SKIP LOCKED",
            )
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
            if dirty.is_empty() {
                return Ok(0);
            }
            // A separate statement, so that its snapshot is taken after the locks.
            sqlx::query(AssertSqlSafe(COMPUTE_DAYS.as_str()))
                .bind(dirty.iter().map(|(tenant, _, _)| tenant.as_str()).collect::<Vec<_>>())
                .bind(dirty.iter().map(|(_, agent, _)| agent.as_str()).collect::<Vec<_>>())
                .bind(dirty.iter().map(|(_, _, day)| *day).collect::<Vec<_>>())
                .execute(&mut *connection)
                .await?;
            Ok(dirty.len())
        })
        .await
    }

    /// The statistics of a conversation; `None` if there are none yet.
    pub async fn conversation_stats(
        &self,
        key: &ConversationKey,
    ) -> Result<Option<ConversationStats>> {
        let query = sqlx::query_as(
            "SELECT * FROM conversation_stats WHERE tenant_id = $1 AND conversation_id = $2",
        )
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str());
        Ok(self.values(query).await?.pop())
    }
}

/// The statistics of the conversations in `chosen`, from their messages. Conversations without messages have
/// none.
pub(crate) const COMPUTED: &str = "
    SELECT c.tenant_id, c.id AS conversation_id, c.agent_id, m.messages AS message_count,
           m.of_users AS user_messages, m.of_assistants AS assistant_messages,
           coalesce(c.total_tokens, 0) AS total_tokens,
           extract(epoch FROM m.last - m.first)::float8 AS duration_seconds,
           m.response_seconds AS avg_response_seconds, c.satisfaction,
           c.finalised_at AS computed_from, (m.first AT TIME ZONE 'UTC')::date AS day
    FROM chosen c
    CROSS JOIN LATERAL (
        SELECT count(*) AS messages, min(created_at) AS first, max(created_at) AS last,
               count(*) FILTER (WHERE role = 'user') AS of_users,
               count(*) FILTER (WHERE role = 'assistant') AS of_assistants,
               avg(extract(epoch FROM created_at - previous_at)::float8)
                   FILTER (WHERE role = 'assistant' AND previous_role = 'user') AS response_seconds
        FROM (SELECT role, created_at, lag(role) OVER in_order AS previous_role,
                     lag(created_at) OVER in_order AS previous_at
              FROM message_rows
              WHERE conversation = c.number
              WINDOW in_order AS (ORDER BY created_at, id)) AS listed
        HAVING count(*) > 0) AS m";

/// The days in `chosen`, from the statistics of their conversations.
pub(crate) const COMPUTED_DAYS: &str = "
    SELECT k.tenant_id, k.agent_id, k.day, count(s.conversation_id) AS conversations,
           coalesce(sum(s.message_count), 0)::bigint AS messages,
           coalesce(sum(s.total_tokens), 0)::bigint AS tokens,
           avg(s.duration_seconds) AS avg_duration_seconds,
           avg(s.satisfaction)::float8 AS avg_satisfaction
    FROM chosen k
    LEFT JOIN conversation_stats s
           ON s.tenant_id = k.tenant_id AND s.day = k.day AND coalesce(s.agent_id, '') = k.agent_id
    GROUP BY k.tenant_id, k.agent_id, k.day";

/// Computes the statistics of locked conversations. Marks as dirty the days that they counted towards before
/// and those that they count towards now.
static COMPUTE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH chosen AS (
             SELECT c.* FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id),
         computed AS (
             INSERT INTO conversation_stats (tenant_id, conversation_id, agent_id, message_count,
                 user_messages, assistant_messages, total_tokens, duration_seconds,
                 avg_response_seconds, satisfaction, computed_from, day, computed_at)
             SELECT n.*, clock_timestamp() FROM ({COMPUTED}) AS n
             ON CONFLICT (tenant_id, conversation_id) DO UPDATE SET
                 agent_id = excluded.agent_id, message_count = excluded.message_count,
                 user_messages = excluded.user_messages,
                 assistant_messages = excluded.assistant_messages,
                 total_tokens = excluded.total_tokens, duration_seconds = excluded.duration_seconds,
                 avg_response_seconds = excluded.avg_response_seconds,
                 satisfaction = excluded.satisfaction, computed_from = excluded.computed_from,
                 computed_at = excluded.computed_at, day = excluded.day
             RETURNING tenant_id, agent_id, day),
         dirty_days AS (
             INSERT INTO daily_stats (tenant_id, agent_id, day)
             SELECT tenant_id, coalesce(agent_id, ''), day FROM computed
             UNION
             SELECT s.tenant_id, coalesce(s.agent_id, ''), s.day FROM chosen c
             JOIN conversation_stats s ON s.tenant_id = c.tenant_id AND s.conversation_id = c.id
             ORDER BY 1, 2, 3
             ON CONFLICT (tenant_id, agent_id, day) DO UPDATE SET dirty = true)
         UPDATE conversations c SET stats_from = c.finalised_at
         FROM chosen WHERE c.tenant_id = chosen.tenant_id AND c.id = chosen.id"
    )
});

/// Computes the statistics of locked days.
static COMPUTE_DAYS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH chosen AS (
             SELECT * FROM unnest($1::text[], $2::text[], $3::date[]) AS k (tenant_id, agent_id, day))
         UPDATE daily_stats d SET
             conversations = t.conversations, messages = t.messages, tokens = t.tokens,
             avg_duration_seconds = t.avg_duration_seconds, avg_satisfaction = t.avg_satisfaction,
             dirty = false
         FROM ({COMPUTED_DAYS}) AS t
         WHERE d.tenant_id = t.tenant_id AND d.agent_id = t.agent_id AND d.day = t.day"
    )
});
