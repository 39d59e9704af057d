//! Deleting single messages.
//!
//! The row of a deleted message stays, without what was said: its primary key refuses each later save of the message, at no
//! cost for other saves. What answers a deleted tool call, or called for a deleted result, becomes a stub, so that no
//! reader gets half of a pair.

use std::collections::{BTreeMap, BTreeSet};

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
            let of = |it: &Deletion| numbers.get(&it.key).map(|it| it.number).ok_or_else(contended);
            // Sorted, as saves are: two transactions cannot deadlock. The first deletion of each message is carried out.
            let mut firsts = BTreeMap::new();
            for deletion in deletions {
                firsts.entry((of(deletion)?, deletion.message.as_str())).or_insert(deletion);
            }
            let deleted_before = delete(connection, &firsts).await?;
            let outcomes = deletions.iter().map(|deletion| {
                let message = (of(deletion)?, deletion.message.as_str());
                let first = firsts.get(&message).ok_or_else(contended)?;
                let (is_first, first) =
                    (std::ptr::eq(*first, deletion), Some(first.action.as_str()));
                let deleted_by = match deleted_before.get(&message) {
                    Some(before) => before.as_deref(),
                    None if is_first => return Ok(Deleted::Now),
                    None => first,
                };
                let is_same = deleted_by == Some(deletion.action.as_str());
                Ok(if is_same { Deleted::Before } else { Deleted::ByAnother })
            });
            let outcomes = outcomes.collect::<Result<Vec<_>>>()?;
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

/// A message: the number of its conversation, and its id.
type MessageKey<'a> = (i64, &'a str);

/// A row of a message that is to be deleted, locked.
struct Found {
    /// The action that deleted it, if it is a deleted message.
    deleted_by: Option<String>,
    is_deleted: bool,
    /// Where the row is. It stays there while it is locked.
    place: String,
    has_calls: bool,
    /// The call that it answers.
    answers: Option<String>,
}

/// The place of a message in the list of those that are looked for, and the columns of [`Found`].
type FoundRow = (i64, bool, Option<String>, String, bool, Option<String>);

/// What is left of a tool call whose other half was deleted.
struct OtherHalves {
    conversation: i64,
    /// The call that a deleted message answered.
    answered: Option<String>,
    /// The calls of a deleted message.
    calls: Vec<String>,
}

/// Deletes messages, with a number of statements that does not grow with them. Those with tool calls or results need
/// some more. Returns those that had been deleted before, with the action that did.
async fn delete<'a>(
    connection: &mut PgConnection,
    deletions: &BTreeMap<MessageKey<'a>, &'a Deletion>,
) -> Result<BTreeMap<MessageKey<'a>, Option<String>>> {
    let (mut open, mut deleted_before) = (deletions.clone(), BTreeMap::new());
    for _ in 0..ROUNDS {
        let (deleted, live): (BTreeMap<_, _>, BTreeMap<_, _>) =
            find(connection, &open).await?.into_iter().partition(|(_, row)| row.is_deleted);
        open.retain(|message, _| !deleted.contains_key(message));
        deleted_before.extend(deleted.into_iter().map(|(message, row)| (message, row.deleted_by)));
        let mut halves = Vec::new();
        for (message, row) in &live {
            halves.extend(other_halves(connection, *message, row).await?);
        }
        remove(connection, &live).await?;
        store(connection, &mut open).await?;
        count_as_empty(connection, &live.into_keys().collect::<Vec<_>>()).await?;
        for OtherHalves { conversation, answered, calls } in halves {
            if let Some(call) = answered {
                stub_callers(connection, conversation, &call).await?;
            }
            if !calls.is_empty() {
                stub_results(connection, conversation, calls).await?;
            }
        }
        if open.is_empty() {
            return Ok(deleted_before);
        }
        // What is left was stored meanwhile.
    }
    Err(contended())
}

/// Finds and locks the rows of these messages.
async fn find<'a>(
    connection: &mut PgConnection,
    messages: &BTreeMap<MessageKey<'a>, &'a Deletion>,
) -> Result<BTreeMap<MessageKey<'a>, Found>> {
    if messages.is_empty() {
        return Ok(BTreeMap::new());
    }
    // LATERAL, so that the plan does not depend on table statistics: one look-up for each, in this order.
    let rows: Vec<FoundRow> = sqlx::query_as(
        "SELECT k.n, m.is_deleted, m.deleted_by, m.place, m.has_calls, m.tool_call_id
         FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS k (conversation, id, n)
         CROSS JOIN LATERAL (SELECT created_at IS NULL AS is_deleted, deleted_by, ctid::text AS place,
                                    tool_calls IS NOT NULL AS has_calls, tool_call_id
                             FROM message_rows m
                             WHERE m.conversation = k.conversation AND m.id = k.id
                             FOR UPDATE) AS m
         ORDER BY k.n",
    )
    .bind(messages.keys().map(|(conversation, _)| *conversation).bind_iter())
    .bind(messages.keys().map(|(_, id)| *id).bind_iter())
    .fetch_all(connection)
    .await?;
    let keys: Vec<MessageKey<'a>> = messages.keys().copied().collect();
    let found =
        rows.into_iter().filter_map(|(n, is_deleted, deleted_by, place, has_calls, answers)| {
            let key = keys.get(usize::try_from(n - 1).ok()?)?;
            Some((*key, Found { deleted_by, is_deleted, place, has_calls, answers }))
        });
    Ok(found.collect())
}

/// The other halves of the tool calls of a message that is about to be deleted.
async fn other_halves(
    connection: &mut PgConnection,
    (conversation, id): MessageKey<'_>,
    row: &Found,
) -> Result<Option<OtherHalves>> {
    let mut calls = Vec::new();
    // One message at a time: together their calls may be large.
    if row.has_calls {
        let text: Option<(String,)> = sqlx::query_as(
            "SELECT tool_calls::text FROM message_rows WHERE conversation = $1 AND id = $2 AND tool_calls IS NOT NULL",
        )
        .bind(conversation)
        .bind(id)
        .fetch_optional(connection)
        .await?;
        calls = text
            .and_then(|(text,)| Json::parse(text).ok())
            .map_or_else(Vec::new, |it| call_ids(&it));
    }
    let answered = row.answers.clone();
    let has_other_half = answered.is_some() || !calls.is_empty();
    Ok(has_other_half.then_some(OtherHalves { conversation, answered, calls }))
}

/// Removes the rows of messages.
async fn remove(
    connection: &mut PgConnection,
    rows: &BTreeMap<MessageKey<'_>, Found>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let places: Vec<&str> = rows.values().map(|row| row.place.as_str()).collect();
    sqlx::query("DELETE FROM message_rows WHERE ctid = ANY ($1::text[]::tid[])")
        .bind(places)
        .execute(connection)
        .await?;
    Ok(())
}

/// Stores that messages are deleted, and takes these deletions out. A message that was stored meanwhile is not changed.
async fn store(
    connection: &mut PgConnection,
    open: &mut BTreeMap<MessageKey<'_>, &Deletion>,
) -> Result<()> {
    if open.is_empty() {
        return Ok(());
    }
    let all = || open.values();
    let stored: Vec<(i64, String)> = sqlx::query_as(
        "INSERT INTO message_rows (conversation, id, received_at, role, content, body_hash, user_id, agent_id, model_name,
                                   metadata, deleted_by, deleted_at)
         SELECT conversation, id, received_at, '', '', '', user_id, agent_id, model_name, metadata::json, deleted_by,
                deleted_at
         FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::timestamptz[])
              AS k (conversation, id, received_at, user_id, agent_id, model_name, metadata, deleted_by, deleted_at)
         ON CONFLICT (conversation, id) DO NOTHING
         RETURNING conversation, id",
    )
    .bind(open.keys().map(|(conversation, _)| *conversation).bind_iter())
    .bind(open.keys().map(|(_, id)| *id).bind_iter())
    .bind(all().map(|it| DateTime::<Utc>::from(it.received_at)).bind_iter())
    .bind(all().map(|it| it.user_id.as_deref()).bind_iter())
    .bind(all().map(|it| it.agent_id.as_deref()).bind_iter())
    .bind(all().map(|it| it.model_name.as_deref()).bind_iter())
    .bind(all().map(|it| it.metadata.as_ref().map(Json::as_str)).bind_iter())
    .bind(all().map(|it| it.action.as_str()).bind_iter())
    .bind(all().map(|it| DateTime::<Utc>::from(it.deleted_at)).bind_iter())
    .fetch_all(connection)
    .await?;
    let stored: BTreeSet<(i64, &str)> =
        stored.iter().map(|(conversation, id)| (*conversation, id.as_str())).collect();
    open.retain(|message, _| !stored.contains(message));
    Ok(())
}

/// The tokens of these messages are counted: none.
async fn count_as_empty(connection: &mut PgConnection, messages: &[MessageKey<'_>]) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO message_tokens (conversation, id, tokens)
         SELECT conversation, id, 0 FROM unnest($1::bigint[], $2::text[]) AS k (conversation, id)
         ON CONFLICT (conversation, id) DO UPDATE SET tokens = 0",
    )
    .bind(messages.iter().map(|(conversation, _)| *conversation).bind_iter())
    .bind(messages.iter().map(|(_, id)| *id).bind_iter())
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
    let emptied: Vec<MessageKey<'_>> =
        emptied.iter().map(|(id,)| (conversation, id.as_str())).collect();
    count_as_empty(connection, &emptied).await
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
