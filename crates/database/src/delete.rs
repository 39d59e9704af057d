//! Deleting single messages.
//!
//! The row of a deleted message stays, without what was said: its primary key refuses each later save of the message, at no
//! cost for other saves. What answers a deleted tool call, or called for a deleted result, becomes a stub, so that no
//! reader gets half of a pair.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::ids::{ConversationKey, MessageId, SessionId};
use domain::json::Json;
use domain::message::tool_calls::{call_ids, without_call};
use domain::time::Timestamp;
use sqlx::postgres::PgBindIterExt as _;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::lock_or_insert::{Locked, ToLock, lock_or_insert};
use crate::rows::BindKeys as _;
use crate::{Database, Error, Result};

/// A message to delete.
#[derive(Debug, Clone, PartialEq)]
pub struct Deletion {
    /// Its conversation.
    pub key: ConversationKey,
    /// The session that deletes it.
    pub session: SessionId,
    /// The message.
    pub message: MessageId,
    /// The id of the action that deletes it.
    pub action: MessageId,
    /// When its sender deleted it.
    pub deleted_at: Timestamp,
    /// When the action was received first.
    pub received_at: Timestamp,
    /// The user whom the action names.
    pub user_id: Option<String>,
    /// The agent that it names.
    pub agent_id: Option<String>,
    /// The model that it names.
    pub model_name: Option<String>,
    /// The tenant's tier, if it names one.
    pub tenant_tier: Option<String>,
    /// Its metadata.
    pub metadata: Option<Json>,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It was carried out now. Also if no message was stored under the id: none will be.
    Now,
    /// The same action had deleted the message before.
    Before,
    /// Another action had deleted the message before.
    ByAnother,
}

/// How often a message is looked for at most: a save may store it in between.
const ROUNDS: usize = 5;

impl Database {
    /// Deletes messages in one transaction, and returns what became of each. Hot copies of their conversations are
    /// invalid then, and conversations that are closing or archived are closed again, which counts them again.
    ///
    /// `random` returns random numbers for generations.
    ///
    /// # Errors
    /// PostgreSQL refuses one of them or is unavailable: nothing is deleted.
    pub async fn delete_messages(
        &self,
        deletions: &[Deletion],
        random: &(dyn Fn() -> i64 + Sync),
    ) -> Result<Vec<Deleted>> {
        self.in_transaction(async |connection| {
            let numbers = locked(connection, deletions, random).await?;
            // Sorted, as saves are: two transactions cannot deadlock.
            let mut sorted: Vec<usize> = (0..deletions.len()).collect();
            sorted.sort_by_key(|n| (&deletions[*n].key, &deletions[*n].message));
            let mut outcomes = vec![Deleted::Now; deletions.len()];
            for n in sorted {
                let number = numbers.get(&deletions[n].key).ok_or_else(contended)?.number;
                outcomes[n] = delete(connection, number, &deletions[n]).await?;
            }
            let changed: BTreeMap<_, _> = deletions
                .iter()
                .zip(&outcomes)
                .filter(|(_, outcome)| **outcome == Deleted::Now)
                .map(|(deletion, _)| (&deletion.key, random()))
                .collect();
            change(connection, &changed).await?;
            Ok(outcomes)
        })
        .await
    }
}

impl Database {
    /// Whether one of these messages was deleted.
    pub async fn has_deleted(&self, key: &ConversationKey, ids: &[&str]) -> Result<bool> {
        let query = sqlx::query_as(
            "SELECT EXISTS (SELECT FROM conversations c
                            JOIN message_rows m ON m.conversation = c.number AND m.created_at IS NULL AND m.id = ANY($3)
                            WHERE c.tenant_id = $1 AND c.id = $2)",
        )
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str())
        .bind(ids);
        Ok(self.values(query).await?.pop().is_some_and(|(has,): (bool,)| has))
    }
}

fn contended() -> Error {
    Error::Contended(format!("a message changed during each of {ROUNDS} attempts"))
}

/// Locks the conversations of the deletions.
async fn locked<'a>(
    connection: &mut PgConnection,
    deletions: &'a [Deletion],
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<BTreeMap<&'a ConversationKey, Locked>> {
    let to_lock = |it: &'a Deletion| ToLock {
        session: it.session.as_str(),
        agent_id: it.agent_id.as_deref(),
        user_id: it.user_id.as_deref(),
        model_name: it.model_name.as_deref(),
        tenant_tier: it.tenant_tier.as_deref(),
        created_at: it.deleted_at,
    };
    let conversations = deletions.iter().map(|it| (&it.key, to_lock(it))).collect();
    lock_or_insert(connection, &conversations, random).await
}

/// Whether the row is a deleted message, the action that deleted it, and of another one its calls and the call that it
/// answers.
type Found = (bool, Option<String>, Option<String>, Option<String>);

async fn delete(
    connection: &mut PgConnection,
    conversation: i64,
    deletion: &Deletion,
) -> Result<Deleted> {
    for _ in 0..ROUNDS {
        let found: Option<Found> = sqlx::query_as(
            "SELECT created_at IS NULL, deleted_by, tool_calls::text, tool_call_id FROM message_rows
             WHERE conversation = $1 AND id = $2 FOR UPDATE",
        )
        .bind(conversation)
        .bind(deletion.message.as_str())
        .fetch_optional(&mut *connection)
        .await?;
        match found {
            Some((true, by, ..)) => {
                let is_same = by.as_deref() == Some(deletion.action.as_str());
                return Ok(if is_same { Deleted::Before } else { Deleted::ByAnother });
            }
            Some((false, _, calls, answers)) => {
                store(connection, conversation, deletion).await?;
                count_as_empty(connection, conversation, &[deletion.message.as_str()]).await?;
                if let Some(call) = answers {
                    stub_callers(connection, conversation, &call).await?;
                }
                if let Some(calls) = calls.and_then(|calls| Json::parse(calls).ok()) {
                    stub_results(connection, conversation, call_ids(&calls)).await?;
                }
                return Ok(Deleted::Now);
            }
            None if store(connection, conversation, deletion).await? => return Ok(Deleted::Now),
            // Stored meanwhile.
            None => {}
        }
    }
    Err(contended())
}

/// Stores that the message is deleted. Returns whether it did: a message that is stored meanwhile is not changed.
async fn store(
    connection: &mut PgConnection,
    conversation: i64,
    deletion: &Deletion,
) -> Result<bool> {
    sqlx::query(
        "DELETE FROM message_rows WHERE conversation = $1 AND id = $2 AND created_at IS NOT NULL",
    )
    .bind(conversation)
    .bind(deletion.message.as_str())
    .execute(&mut *connection)
    .await?;
    let stored = sqlx::query(
        "INSERT INTO message_rows (conversation, id, received_at, role, content, body_hash, user_id, agent_id, model_name,
                                   metadata, deleted_by, deleted_at)
         VALUES ($1, $2, $3, '', '', '', $4, $5, $6, $7::json, $8, $9)
         ON CONFLICT (conversation, id) DO NOTHING",
    )
    .bind(conversation)
    .bind(deletion.message.as_str())
    .bind(DateTime::<Utc>::from(deletion.received_at))
    .bind(&deletion.user_id)
    .bind(&deletion.agent_id)
    .bind(&deletion.model_name)
    .bind(deletion.metadata.as_ref().map(Json::as_str))
    .bind(deletion.action.as_str())
    .bind(DateTime::<Utc>::from(deletion.deleted_at))
    .execute(connection)
    .await?;
    Ok(stored.rows_affected() == 1)
}

/// The tokens of these messages are counted: none.
async fn count_as_empty(
    connection: &mut PgConnection,
    conversation: i64,
    ids: &[&str],
) -> Result<()> {
    sqlx::query(
        "INSERT INTO message_tokens (conversation, id, tokens) SELECT $1, id, 0 FROM unnest($2::text[]) AS k (id)
         ON CONFLICT (conversation, id) DO UPDATE SET tokens = 0",
    )
    .bind(conversation)
    .bind(ids)
    .execute(connection)
    .await?;
    Ok(())
}

/// The calls of the message `m`, one row for each.
const CALLS: &str = "json_array_elements(CASE json_typeof(m.tool_calls) WHEN 'array' THEN m.tool_calls ELSE '[]' END)
                     AS calls (call)";

/// Takes a call whose result was deleted out of its message, unless there is another result.
async fn stub_callers(connection: &mut PgConnection, conversation: i64, call: &str) -> Result<()> {
    let callers: Vec<(String,)> = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT m.id FROM message_rows m
         WHERE m.conversation = $1 AND m.created_at IS NOT NULL AND m.tool_calls IS NOT NULL
               AND EXISTS (SELECT FROM {CALLS} WHERE call ->> 'id' = $2)
               AND NOT EXISTS (SELECT FROM message_rows r
                               WHERE r.conversation = $1 AND r.created_at IS NOT NULL AND r.tool_call_id = $2)
         ORDER BY m.id"
    )))
    .bind(conversation)
    .bind(call)
    .fetch_all(&mut *connection)
    .await?;
    // One at a time: together they may be large.
    for (id,) in callers {
        let calls: Option<(String,)> = sqlx::query_as(
            "SELECT tool_calls::text FROM message_rows
             WHERE conversation = $1 AND id = $2 AND created_at IS NOT NULL AND tool_calls IS NOT NULL FOR UPDATE",
        )
        .bind(conversation)
        .bind(&id)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(calls) = calls.and_then(|(calls,)| Json::parse(calls).ok()) else { continue };
        let rest = without_call(&calls, call);
        sqlx::query(
            "WITH counted AS (DELETE FROM message_tokens WHERE conversation = $1 AND id = $2)
             UPDATE message_rows SET tool_calls = $3::json, item = NULL WHERE conversation = $1 AND id = $2",
        )
        .bind(conversation)
        .bind(&id)
        .bind(rest.as_ref().map(Json::as_str))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Empties the results of calls that were deleted, unless another message has the call.
async fn stub_results(
    connection: &mut PgConnection,
    conversation: i64,
    mut calls: Vec<String>,
) -> Result<()> {
    calls.sort_unstable();
    calls.dedup();
    let emptied: Vec<(String,)> = sqlx::query_as(AssertSqlSafe(format!(
        "WITH answered AS MATERIALIZED (
             SELECT r.id, r.tool_call_id FROM message_rows r
             WHERE r.conversation = $1 AND r.created_at IS NOT NULL AND r.tool_call_id = ANY ($2)),
         called AS MATERIALIZED (
             SELECT DISTINCT call ->> 'id' AS id FROM message_rows m CROSS JOIN LATERAL {CALLS}
             WHERE m.conversation = $1 AND m.created_at IS NOT NULL AND m.tool_calls IS NOT NULL
                   AND EXISTS (SELECT FROM answered)
                   AND call ->> 'id' IN (SELECT tool_call_id FROM answered))
         UPDATE message_rows e
         SET content = '', content_parts = NULL, tool_call_id = NULL, item = NULL, metadata = NULL
         FROM answered a
         WHERE e.conversation = $1 AND e.id = a.id AND a.tool_call_id NOT IN (SELECT id FROM called WHERE id IS NOT NULL)
         RETURNING e.id"
    )))
    .bind(conversation)
    .bind(&calls)
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<&str> = emptied.iter().map(|(id,)| id.as_str()).collect();
    count_as_empty(connection, conversation, &ids).await
}

/// Gives conversations new generations. Those that are closing or archived are closed again, at once and without
/// `conversation.reopened`. Their words go with the message, and are written again after that.
async fn change(
    connection: &mut PgConnection,
    changed: &BTreeMap<&ConversationKey, i64>,
) -> Result<()> {
    sqlx::query(
        "WITH changed AS (
             SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS k (tenant_id, id, generation)),
         words AS (
             DELETE FROM conversation_words w USING changed k WHERE w.tenant_id = k.tenant_id AND w.conversation_id = k.id)
         UPDATE conversations c SET
             hot_generation = k.generation,
             close_requested_at = CASE WHEN c.status = 'active' THEN c.close_requested_at
                                       ELSE coalesce(c.close_requested_at, clock_timestamp()) END,
             close_token = NULL, close_lease_until = NULL, status = 'active'
         FROM changed k
         WHERE c.tenant_id = k.tenant_id AND c.id = k.id",
    )
    .bind_keys(changed.keys().copied())
    .bind(changed.values().copied().bind_iter())
    .execute(connection)
    .await?;
    Ok(())
}
