//! Locking conversations that may not exist yet.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::time::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::rows::{BindKeys as _, item_of};
use crate::{Error, Result};

/// A conversation to lock, with what it is inserted with if it is missing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToLock<'a> {
    pub(crate) session: &'a str,
    pub(crate) agent_id: Option<&'a str>,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) model_name: Option<&'a str>,
    pub(crate) tenant_tier: Option<&'a str>,
    pub(crate) created_at: Timestamp,
}

/// A locked conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Locked {
    /// Its number.
    pub(crate) number: i64,
    /// Whether this transaction inserted it.
    pub(crate) is_new: bool,
}

/// Locks the conversations in key order, those that are missing inserted before. The lock excludes others of its kind, closes,
/// and saves that change the row.
///
/// Nothing is inserted while a row is locked: an insert may wait for another transaction that waits for the row.
pub(crate) async fn lock_or_insert<'a>(
    connection: &mut PgConnection,
    conversations: &BTreeMap<&'a ConversationKey, ToLock<'_>>,
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<BTreeMap<&'a ConversationKey, Locked>> {
    let keys: Vec<&ConversationKey> = conversations.keys().copied().collect();
    let mut found = lock_if_all_exist(connection, &keys).await?;
    let inserts = found.is_empty() && !keys.is_empty();
    if inserts {
        insert_missing(connection, conversations, random).await?;
        found = lock_if_all_exist(connection, &keys).await?;
    }
    if found.len() < keys.len() {
        return Err(Error::Contended("a conversation was deleted meanwhile".to_owned()));
    }
    let locked = |row: &PgRow| {
        let is_new = inserts && row.try_get("is_new")?;
        let key = *item_of(row, &keys, "conversations")?;
        Ok((key, Locked { number: row.try_get("number")?, is_new }))
    };
    found.iter().map(locked).collect()
}

/// Locks the conversations, unless one is missing.
async fn lock_if_all_exist(
    connection: &mut PgConnection,
    keys: &[&ConversationKey],
) -> Result<Vec<PgRow>> {
    // The condition does not depend on a row, so it is evaluated before any is locked.
    let rows = sqlx::query(
        "SELECT k.n, c.number, c.is_new
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (tenant_id, id, n)
         CROSS JOIN LATERAL (SELECT number, c.xmin = pg_current_xact_id()::xid AS is_new FROM conversations c
                             WHERE c.tenant_id = k.tenant_id AND c.id = k.id
                             FOR NO KEY UPDATE) AS c
         WHERE (SELECT count(*) FROM unnest($1::text[], $2::text[]) AS e (tenant_id, id)
                JOIN conversations USING (tenant_id, id)) = cardinality($1)
         ORDER BY k.n",
    )
    .bind_keys(keys.iter().copied())
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

async fn insert_missing(
    connection: &mut PgConnection,
    conversations: &BTreeMap<&ConversationKey, ToLock<'_>>,
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
    let all = || conversations.values();
    sqlx::query(
        "INSERT INTO conversations (tenant_id, id, session_id, agent_id, user_id, model_name, tenant_tier,
                                    created_at, hot_generation)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                              $8::timestamptz[], $9::bigint[])
         ON CONFLICT (tenant_id, id) DO NOTHING",
    )
    .bind_keys(conversations.keys().copied())
    .bind(all().map(|it| it.session).collect::<Vec<_>>())
    .bind(all().map(|it| it.agent_id).collect::<Vec<_>>())
    .bind(all().map(|it| it.user_id).collect::<Vec<_>>())
    .bind(all().map(|it| it.model_name).collect::<Vec<_>>())
    .bind(all().map(|it| it.tenant_tier).collect::<Vec<_>>())
    .bind(all().map(|it| DateTime::<Utc>::from(it.created_at)).collect::<Vec<_>>())
    .bind(all().map(|_| random()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
