//! Statistics: always recomputed from the rows, never incremented. Tokens are those that the close counted.
//!
//! A conversation is dirty while `finalised_at` differs from `stats_from`. A day is dirty when a
//! conversation of it changed. Both are stored, so after a lost event the next sweep still finds the work.
//!
//! No row is locked while it is computed: a long conversation takes seconds, and a save that reopens it would wait. Its
//! version (`xmin`, which each update changes) is read before, and compared under the lock with which the result is
//! written. What changed meanwhile stays dirty.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row as _};

use crate::day_key::{BindDays as _, DayKey};
use crate::rows::{BindKeys, from_row, key_of};
use crate::{Database, Result};

/// The most messages of the conversations that are chosen together, unless a single one has more. Reading them takes
/// some milliseconds.
const MESSAGES: i64 = 1_000;

/// A conversation whose statistics are out of date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleConversation {
    /// The conversation.
    pub key: ConversationKey,
    version: String,
}

/// A day whose statistics are out of date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleDay {
    /// The day.
    pub key: DayKey,
    version: String,
}

/// What became of the recomputation of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DayRefresh {
    /// It is up to date.
    Current,
    /// It is written, and out of date again: its row changed while it was computed.
    Changed,
    /// Its row is locked; nothing is written.
    Locked,
}

/// The statistics of one conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ConversationStats {
    /// The agent of the newest message that names one; else that of the session event that began the conversation.
    pub agent_id: Option<String>,
    /// The model, by the same rule; at most its first 256 characters.
    pub model_name: Option<String>,
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
    /// Average time from a user message to the assistant message that directly follows it, in seconds; without pairs whose
    /// times are estimated.
    pub avg_response_seconds: Option<f64>,
    /// How many such pairs there are.
    pub responses: i64,
    /// The user's satisfaction, 1 to 5.
    pub satisfaction: Option<i16>,
    /// Tokens of the prompts, as the providers counted them; `None` if no message says so.
    pub input_tokens: Option<i64>,
    /// Tokens of the answers, as the providers counted them.
    pub output_tokens: Option<i64>,
    /// Tokens of the prompts that were read from the providers' caches.
    pub cache_read_tokens: Option<i64>,
    /// Tokens of the prompts that were written to the providers' caches.
    pub cache_write_tokens: Option<i64>,
    /// Tokens of the models' reasoning.
    pub reasoning_tokens: Option<i64>,
    /// The conversation's `finalised_at` when they were computed.
    pub computed_from: DateTime<Utc>,
    /// When they were computed.
    pub computed_at: DateTime<Utc>,
}

from_row! { ConversationStats:
    agent_id, model_name, message_count, user_messages, assistant_messages, total_tokens,
    duration_seconds, avg_response_seconds, responses, satisfaction, input_tokens, output_tokens, cache_read_tokens,
    cache_write_tokens, reasoning_tokens, computed_from, computed_at
}

impl Database {
    /// Conversations whose statistics are out of date, without those in `except`: those that closed first, at most
    /// `limit`, and together of 1 000 messages at most, but at least one if there is one.
    pub async fn stale_conversations(
        &self,
        limit: u32,
        except: &[ConversationKey],
    ) -> Result<Vec<StaleConversation>> {
        let query = sqlx::query(
            "SELECT tenant_id, id, version
             FROM (SELECT tenant_id, id, version, row_number() OVER by_close AS place,
                          sum(message_count) OVER by_close AS messages
                   FROM (SELECT tenant_id, id, xmin::text AS version, finalised_at, message_count
                         FROM conversations
                         WHERE status = 'archived' AND finalised_at IS DISTINCT FROM stats_from
                           AND (tenant_id, id) NOT IN (SELECT * FROM unnest($1::text[], $2::text[]))
                         ORDER BY finalised_at LIMIT $3) AS listed
                   WINDOW by_close AS (ORDER BY finalised_at, tenant_id, id)) AS k
             WHERE place = 1 OR messages <= $4
             ORDER BY place",
        )
        .bind_keys(except.iter())
        .bind(i64::from(limit))
        .bind(MESSAGES);
        self.rows(query).await?.iter().map(stale_conversation).collect()
    }

    /// This conversation, if its statistics are out of date.
    pub async fn stale_conversation(
        &self,
        key: &ConversationKey,
    ) -> Result<Option<StaleConversation>> {
        let query = sqlx::query(
            "SELECT tenant_id, id, xmin::text AS version FROM conversations
             WHERE tenant_id = $1 AND id = $2
               AND status = 'archived' AND finalised_at IS DISTINCT FROM stats_from",
        )
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str());
        self.rows(query).await?.first().map(stale_conversation).transpose()
    }

    /// Recomputes the statistics of these conversations. Returns those that it wrote. The others changed meanwhile, or
    /// their row is locked: they stay out of date. Several replicas may run it at once.
    pub async fn refresh_conversations(
        &self,
        stale: &[StaleConversation],
    ) -> Result<Vec<ConversationKey>> {
        let query = sqlx::query(AssertSqlSafe(COMPUTE.as_str()))
            .bind_keys(stale.iter().map(|it| &it.key))
            .bind(stale.iter().map(|it| it.version.as_str()).collect::<Vec<_>>());
        self.rows(query).await?.iter().map(key_of).collect()
    }

    /// Days whose statistics are out of date, without those in `except`, in key order; at most `limit`.
    pub async fn stale_days(&self, limit: u32, except: &[DayKey]) -> Result<Vec<StaleDay>> {
        let query = sqlx::query(
            "SELECT tenant_id, agent_id, model_name, day, xmin::text AS version FROM daily_stats
             WHERE dirty AND (tenant_id, agent_id, model_name, day)
                   NOT IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::date[]))
             ORDER BY tenant_id, agent_id, model_name, day LIMIT $5",
        )
        .bind_days(except)
        .bind(i64::from(limit));
        self.rows(query).await?.iter().map(stale_day).collect()
    }

    /// This day, if its statistics are out of date.
    pub async fn stale_day(&self, key: &DayKey) -> Result<Option<StaleDay>> {
        let query = sqlx::query(
            "SELECT tenant_id, agent_id, model_name, day, xmin::text AS version FROM daily_stats
             WHERE tenant_id = $1 AND agent_id = $2 AND model_name = $3 AND day = $4 AND dirty",
        )
        .bind_day(key);
        self.rows(query).await?.first().map(stale_day).transpose()
    }

    /// Recomputes a day.
    pub async fn refresh_day(&self, stale: &StaleDay) -> Result<DayRefresh> {
        let query = sqlx::query(AssertSqlSafe(COMPUTE_DAY.as_str()))
            .bind_day(&stale.key)
            .bind(&stale.version);
        let written = self.rows(query).await?;
        Ok(match written.first().map(|row| row.try_get("dirty")).transpose()? {
            None => DayRefresh::Locked,
            Some(true) => DayRefresh::Changed,
            Some(false) => DayRefresh::Current,
        })
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

/// A sum, at most the largest number of 64 bits; null if there is nothing to sum. PostgreSQL computes equal aggregates once.
macro_rules! limited_sum {
    ($($term:literal),+ => $name:literal) => {
        concat!(
            "CASE WHEN sum(", $($term),+, ") > 9223372036854775807 THEN 9223372036854775807
                  ELSE sum(", $($term),+, ")::bigint END AS ", $name
        )
    };
}

/// The sum of a number of tokens in the `usage` of messages. A sender may write any JSON there: what is no number of at
/// most 15 digits does not count. Nothing else is converted: a number in JSON may have more digits than a `numeric`.
macro_rules! reported {
    ($name:literal) => {
        limited_sum!(
            "CASE WHEN json_typeof(usage->'", $name, "') = 'number'
                       AND usage->>'", $name, "' ~ '^[0-9]{1,15}(\\.0+)?$'
                  THEN split_part(usage->>'", $name, "', '.', 1)::bigint END"
            => $name
        )
    };
}

/// The statistics of the conversations in `chosen`, from their messages. Conversations without messages have
/// none. Agent and model are those of the conversation's row: its close takes each from the newest message that names
/// one. The model is cut, so that the key of a day fits into an index, whatever a sender calls a model.
pub(crate) const COMPUTED: &str = concat!("
    SELECT c.tenant_id, c.id AS conversation_id, c.agent_id, left(c.model_name, 256) AS model_name, m.messages AS message_count,
           m.of_users AS user_messages, m.of_assistants AS assistant_messages,
           coalesce(c.total_tokens, 0) AS total_tokens,
           extract(epoch FROM m.last - m.first)::float8 AS duration_seconds,
           m.response_seconds AS avg_response_seconds, m.responses, c.satisfaction,
           c.finalised_at AS computed_from, (m.first AT TIME ZONE 'UTC')::date AS day,
           m.input_tokens, m.output_tokens, m.cache_read_tokens, m.cache_write_tokens, m.reasoning_tokens
    FROM chosen c
    CROSS JOIN LATERAL (
        SELECT count(*) AS messages, min(created_at) AS first, max(created_at) AS last,
               count(*) FILTER (WHERE role = 'user') AS of_users,
               count(*) FILTER (WHERE role = 'assistant') AS of_assistants,
               avg(response_seconds) AS response_seconds, count(response_seconds) AS responses,
               ", reported!("input_tokens"), ", ", reported!("output_tokens"), ", ",
               reported!("cache_read_tokens"), ", ", reported!("cache_write_tokens"), ", ",
               reported!("reasoning_tokens"), "
        FROM (SELECT role, created_at, usage,
                     CASE WHEN role = 'assistant' AND lag(role) OVER in_order = 'user'
                               AND time_estimated IS NULL AND lag(time_estimated) OVER in_order IS NULL
                          THEN extract(epoch FROM created_at - lag(created_at) OVER in_order)::float8
                     END AS response_seconds
              FROM message_rows
              WHERE conversation = c.number AND created_at IS NOT NULL
              WINDOW in_order AS (ORDER BY created_at, id)) AS listed
        HAVING count(*) > 0) AS m"
);

/// The sum of a column of `conversation_stats`.
macro_rules! summed {
    ($name:literal) => {
        limited_sum!("s.", $name => $name)
    };
}

/// The days in `chosen`, from the statistics of their conversations.
pub(crate) const COMPUTED_DAYS: &str = concat!(
    "
    SELECT k.tenant_id, k.agent_id, k.model_name, k.day, count(s.conversation_id) AS conversations,
           coalesce(sum(s.message_count), 0)::bigint AS messages,
           coalesce(sum(s.total_tokens), 0)::bigint AS tokens,
           avg(s.duration_seconds) AS avg_duration_seconds,
           sum(s.avg_response_seconds * s.responses) / nullif(sum(s.responses), 0)::float8
               AS avg_response_seconds,
           coalesce(sum(s.responses), 0)::bigint AS responses,
           avg(s.satisfaction)::float8 AS avg_satisfaction,
           count(s.satisfaction) AS ratings,
           ",
    summed!("input_tokens"),
    ", ",
    summed!("output_tokens"),
    ", ",
    summed!("cache_read_tokens"),
    ", ",
    summed!("cache_write_tokens"),
    ", ",
    summed!("reasoning_tokens"),
    "
    FROM chosen k
    LEFT JOIN conversation_stats s
           ON s.tenant_id = k.tenant_id AND s.day = k.day
              AND coalesce(s.agent_id, '') = k.agent_id AND coalesce(s.model_name, '') = k.model_name
    GROUP BY k.tenant_id, k.agent_id, k.model_name, k.day"
);

/// Computes the statistics of conversations, then locks those that did not change meanwhile and writes them. Marks as
/// dirty the days that they counted towards before and those that they count towards now.
static COMPUTE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH chosen AS MATERIALIZED (
             SELECT c.*, k.version
             FROM unnest($1::text[], $2::text[], $3::text[]) AS k (tenant_id, id, version)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id),
         computed AS MATERIALIZED ({COMPUTED}),
         mine AS MATERIALIZED (
             SELECT c.tenant_id, c.id, c.finalised_at, n.conversation_id
             FROM chosen k
             LEFT JOIN computed n ON n.tenant_id = k.tenant_id AND n.conversation_id = k.id
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             WHERE c.xmin::text = k.version AND c.status = 'archived'
             FOR NO KEY UPDATE OF c SKIP LOCKED),
         written AS (
             INSERT INTO conversation_stats (tenant_id, conversation_id, agent_id, model_name,
                 message_count, user_messages, assistant_messages, total_tokens, duration_seconds,
                 avg_response_seconds, responses, satisfaction, computed_from, day, input_tokens, output_tokens,
                 cache_read_tokens, cache_write_tokens, reasoning_tokens, computed_at)
             SELECT n.*, clock_timestamp()
             FROM computed n JOIN mine c ON c.tenant_id = n.tenant_id AND c.id = n.conversation_id
             ON CONFLICT (tenant_id, conversation_id) DO UPDATE SET
                 agent_id = excluded.agent_id, model_name = excluded.model_name,
                 message_count = excluded.message_count,
                 user_messages = excluded.user_messages,
                 assistant_messages = excluded.assistant_messages,
                 total_tokens = excluded.total_tokens, duration_seconds = excluded.duration_seconds,
                 avg_response_seconds = excluded.avg_response_seconds,
                 responses = excluded.responses,
                 satisfaction = excluded.satisfaction, computed_from = excluded.computed_from,
                 computed_at = excluded.computed_at, day = excluded.day,
                 input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
                 cache_read_tokens = excluded.cache_read_tokens,
                 cache_write_tokens = excluded.cache_write_tokens,
                 reasoning_tokens = excluded.reasoning_tokens
             RETURNING tenant_id, agent_id, model_name, day),
         -- A conversation whose last message was deleted has none.
         removed AS (
             DELETE FROM conversation_stats s USING mine c
             WHERE c.conversation_id IS NULL AND s.tenant_id = c.tenant_id AND s.conversation_id = c.id),
         dirty_days AS (
             INSERT INTO daily_stats (tenant_id, agent_id, model_name, day)
             SELECT tenant_id, coalesce(agent_id, ''), coalesce(model_name, ''), day FROM written
             UNION
             SELECT s.tenant_id, coalesce(s.agent_id, ''), coalesce(s.model_name, ''), s.day FROM mine c
             JOIN conversation_stats s ON s.tenant_id = c.tenant_id AND s.conversation_id = c.id
             ORDER BY 1, 2, 3, 4
             ON CONFLICT (tenant_id, agent_id, model_name, day) DO UPDATE SET dirty = true)
         UPDATE conversations c SET stats_from = c.finalised_at
         FROM mine WHERE c.tenant_id = mine.tenant_id AND c.id = mine.id
         RETURNING c.tenant_id, c.id"
    )
});

/// Computes the statistics of a day, then locks and writes them. If the day's row changed meanwhile, it stays dirty.
static COMPUTE_DAY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH chosen AS (
             SELECT $1::text AS tenant_id, $2::text AS agent_id, $3::text AS model_name, $4::date AS day),
         computed AS MATERIALIZED ({COMPUTED_DAYS}),
         mine AS MATERIALIZED (
             SELECT t.*, d.xmin::text <> $5 AS changed
             FROM computed t
             JOIN daily_stats d ON d.tenant_id = t.tenant_id AND d.agent_id = t.agent_id
                                   AND d.model_name = t.model_name AND d.day = t.day
             FOR NO KEY UPDATE OF d SKIP LOCKED)
         UPDATE daily_stats d SET
             conversations = t.conversations, messages = t.messages, tokens = t.tokens,
             avg_duration_seconds = t.avg_duration_seconds,
             avg_response_seconds = t.avg_response_seconds, responses = t.responses,
             avg_satisfaction = t.avg_satisfaction, ratings = t.ratings,
             input_tokens = t.input_tokens, output_tokens = t.output_tokens,
             cache_read_tokens = t.cache_read_tokens, cache_write_tokens = t.cache_write_tokens,
             reasoning_tokens = t.reasoning_tokens,
             dirty = t.changed
         FROM mine t
         WHERE d.tenant_id = t.tenant_id AND d.agent_id = t.agent_id
           AND d.model_name = t.model_name AND d.day = t.day
         RETURNING d.dirty"
    )
});

fn stale_conversation(row: &PgRow) -> Result<StaleConversation> {
    Ok(StaleConversation { key: key_of(row)?, version: row.try_get("version")? })
}

fn stale_day(row: &PgRow) -> Result<StaleDay> {
    Ok(StaleDay { key: DayKey::from_row(row)?, version: row.try_get("version")? })
}
