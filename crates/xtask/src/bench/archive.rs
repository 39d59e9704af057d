//! The archive of `bench api`: rows as the workers leave them, written with SQL.

use anyhow::Result;

use super::environment::Environment;
use crate::say;

/// The tenant with most conversations, and with the long one.
pub(crate) const LARGE: &str = "large";

/// A tenant with conversations of a usual length.
pub(crate) const SMALL: &str = "tenant-0";

/// The conversation with a tenth of all messages.
pub(crate) const LONG: &str = "long";

/// How many agents, users and models a tenant has.
pub(crate) const AGENTS: usize = 50;
pub(crate) const USERS: usize = 1_000;
pub(crate) const MODELS: usize = 5;

/// How many conversations of each tenant are read, which the smallest archive has.
pub(crate) const READ: usize = 5;

/// Messages of a usual conversation.
const USUAL: u64 = 35;

/// Makes an archive of `from` messages one of `to`.
pub(crate) async fn fill(environment: &Environment, from: u64, to: u64) -> Result<()> {
    say::note(&format!("filling the archive up to {to} messages"));
    // A fifth are alone in their conversations.
    let alone = |messages: u64| messages / 5;
    conversations(environment, "l", LARGE, alone(from)..alone(to), 1).await?;
    // Seven tenths are in usual conversations, of twenty tenants.
    let usual = |messages: u64| messages * 7 / 10 / USUAL;
    conversations(environment, "o", "tenant-' || n % 20 || '", usual(from)..usual(to), USUAL)
        .await?;
    let long = |messages: u64| messages / 10;
    environment
        .sql(&format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, last_message_at, hot_generation, agent_id,
                                        user_id, model_name, status, message_count, total_tokens, closed_at, finalised_at)
             VALUES ('{LARGE}', '{LONG}', 's', '2026-01-01', '2026-01-01', 1, 'a0', 'u0', 'm0', 'archived', 0, 0, now(), now())
             ON CONFLICT DO NOTHING;
             INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT c.number, c.created_at + n * interval '1 second', now(), 'm' || n,
                    CASE n % 2 WHEN 0 THEN 'user' ELSE 'assistant' END, {CONTENT}, ''
             FROM conversations c, generate_series({}, {} - 1) AS n
             WHERE c.tenant_id = '{LARGE}' AND c.id = '{LONG}';
             INSERT INTO daily_stats (tenant_id, agent_id, model_name, day, conversations, messages)
             SELECT '{LARGE}', 'a' || a, 'm' || m, date '2026-01-01' + d, 11, 110
             FROM generate_series(0, {AGENTS} - 1) AS a, generate_series(0, {MODELS} - 1) AS m, generate_series(0, 365) AS d
             ON CONFLICT DO NOTHING",
            long(from),
            long(to)
        ))
        .await?;
    // As the statistics-worker writes them; it would take minutes.
    environment
        .sql(
            "INSERT INTO conversation_words (tenant_id, conversation_id, block, created_at, finalised_at, words)
             SELECT tenant_id, id, 0, created_at, finalised_at,
                    ARRAY['said', 'was', 'what', 'rare' || number % 100000]
                    || ARRAY(SELECT 'word' || number * w % 20011 FROM generate_series(1, 30) AS w)
                    || verbatim_word_mark('month', tenant_id, created_at) || verbatim_word_mark('day', tenant_id, created_at)
                    || verbatim_word_mark('hour', tenant_id, created_at) || verbatim_word_mark('minute', tenant_id, created_at)
             FROM conversations WHERE status = 'archived' ON CONFLICT DO NOTHING",
        )
        .await?;
    environment.sql("VACUUM ANALYZE").await?;
    environment.settle().await
}

/// About 200 bytes; `n` is a number.
const CONTENT: &str = "repeat('what was said ', 12) || n";

/// Archived conversations with their messages, over the first thirty days of a year.
async fn conversations(
    environment: &Environment,
    prefix: &str,
    tenant: &str,
    numbers: std::ops::Range<u64>,
    messages: u64,
) -> Result<()> {
    let (start, end) = (numbers.start, numbers.end);
    environment
        .sql(&format!(
            "WITH added AS (
                 INSERT INTO conversations (tenant_id, id, session_id, created_at, last_message_at, hot_generation, agent_id,
                                            user_id, model_name, status, message_count, total_tokens, closed_at, finalised_at)
                 SELECT '{tenant}', '{prefix}' || n, 's', t, t, n, 'a' || n % {AGENTS}, 'u' || n % {USERS}, 'm' || n % {MODELS},
                        'archived', {messages}, 10 * {messages}, now(), now()
                 FROM (SELECT n, timestamptz '2026-01-01' + (n * 7919 % 2592000) * interval '1 second' AS t
                       FROM generate_series({start}, {end} - 1) AS n) AS numbered
                 RETURNING number, created_at)
             INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT number, created_at + n * interval '1 second', now(), 'm' || n,
                    CASE n % 2 WHEN 0 THEN 'user' ELSE 'assistant' END, {CONTENT}, ''
             FROM added, generate_series(0, {messages} - 1) AS n"
        ))
        .await
        .map(drop)
}
