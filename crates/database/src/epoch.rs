//! The two numbers that a valid hot copy must have, and the server identity of the Redis that holds the
//! copies.
//!
//! The numbers are the epoch (one for all copies) and the generation (one for each conversation). Each
//! change sets a new random number. A counter could reach the same number twice: after a restored backup,
//! after a failover to a lagging standby, or when a conversation is erased and created again. A restored
//! backup also restores old numbers, so the operator must invalidate the copies after a restore.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use sqlx::postgres::PgBindIterExt as _;

use crate::rows::{BindKeys as _, status, timestamp};
use crate::{Actor, Database, Error, Result};

/// The numbers that a hot copy must have to be valid, read by primary key with every read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// Changes when Redis may have lost writes.
    pub hot_epoch: i64,
    /// The numbers of the conversation; `None` if it does not exist.
    pub conversation: Option<ConversationNumbers>,
}

/// The part of [`Numbers`] that belongs to the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationNumbers {
    /// Its state.
    pub status: ConversationStatus,
    /// Changes when a write to its hot copy failed.
    pub hot_generation: i64,
    /// Messages at or before this time are erased and must not be read.
    pub erased_at: Option<Timestamp>,
}

/// The result of comparing Redis's server identity with the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochChange {
    /// The stored server identity is the same.
    Same,
    /// None was stored: this is the first Redis that the fleet uses.
    First,
    /// It was different: all hot copies made before are invalidated.
    Changed,
}

/// How often the comparison is made at most, if another process changes the row meanwhile.
const IDENTITY_ROUNDS: usize = 5;

type NumbersRow = (i64, Option<String>, Option<i64>, Option<DateTime<Utc>>);

impl Database {
    /// The numbers of a conversation, read by primary key.
    pub async fn numbers(&self, key: &ConversationKey) -> Result<Numbers> {
        self.within(async |connection| read_numbers(connection, key).await).await
    }

    /// Compares the server identity of the Redis that this process is connected to with the stored one.
    /// If they differ, stores it and sets `new_epoch`, which invalidates all hot copies. Replicas may do
    /// this at the same time: the update includes the comparison, so only one of them changes the epoch.
    pub async fn record_server_identity(
        &self,
        server_identity: &str,
        new_epoch: i64,
    ) -> Result<EpochChange> {
        self.within(async |connection| {
            for _ in 0..IDENTITY_ROUNDS {
                let stored: String = sqlx::query_scalar("SELECT server_identity FROM hot_epoch")
                    .fetch_one(&mut *connection)
                    .await?;
                if stored == server_identity {
                    return Ok(EpochChange::Same);
                }
                let changed =
                    sqlx::query("UPDATE hot_epoch SET epoch = $1, server_identity = $2 WHERE server_identity = $3")
                        .bind(new_epoch)
                        .bind(server_identity)
                        .bind(&stored)
                        .execute(&mut *connection)
                        .await?
                        .rows_affected();
                if changed == 1 {
                    let first = stored.is_empty();
                    return Ok(if first { EpochChange::First } else { EpochChange::Changed });
                }
                // Another process changed the row first, to this server identity or to another.
            }
            Err(Error::Contended(format!(
                "the server identity of Redis changed during each of {IDENTITY_ROUNDS} attempts; \
                 check that all processes use the same Redis"
            )))
        })
        .await
    }

    /// Whether this is the stored server identity. For tools that only read: they must not change the
    /// epoch, because their Redis URL may name the wrong server.
    pub async fn is_recorded_server_identity(&self, server_identity: &str) -> Result<bool> {
        let query = sqlx::query_as("SELECT server_identity = $1 FROM hot_epoch");
        let (is_recorded,) = self.value(query.bind(server_identity)).await?;
        Ok(is_recorded)
    }

    /// Sets a new epoch, which invalidates all hot copies, and writes an audit entry. Needed after a
    /// backup was restored: the database then has old numbers, and hot copies with the same numbers may
    /// have more or fewer messages.
    pub async fn invalidate_hot_copies(&self, actor: &Actor, new_epoch: i64) -> Result<()> {
        let query = sqlx::query(
            "WITH changed AS (UPDATE hot_epoch SET epoch = $1 RETURNING epoch)
             INSERT INTO audit_log (actor, action, subject)
             SELECT $2, 'hot_copies.invalidate', $3 FROM changed",
        )
        .bind(new_epoch)
        .bind(&actor.name)
        .bind(actor.run.to_string());
        self.execute(query).await?;
        Ok(())
    }

    /// Sets new generations, which invalidates the hot copies of these conversations. Must be called
    /// before the acknowledgement of a message whose write to Redis failed or has an unknown result.
    pub async fn change_generations(&self, changes: &[(ConversationKey, i64)]) -> Result<()> {
        self.within(async |connection| change_generations(connection, changes).await).await
    }
}

pub(crate) async fn change_generations(
    connection: &mut sqlx::PgConnection,
    changes: &[(ConversationKey, i64)],
) -> Result<()> {
    let mut changes: Vec<_> = changes.iter().collect();
    changes.sort();
    sqlx::query(
        "WITH wanted AS (
             SELECT c.number, k.generation
             FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY
                  AS k (tenant_id, id, generation, n)
             CROSS JOIN LATERAL (SELECT number FROM conversations c
                                 WHERE c.tenant_id = k.tenant_id AND c.id = k.id
                                 FOR NO KEY UPDATE) AS c)
         UPDATE conversations c SET hot_generation = wanted.generation
         FROM wanted WHERE c.number = wanted.number",
    )
    .bind_keys(changes.iter().map(|(key, _)| key))
    .bind(changes.iter().map(|(_, generation)| *generation).bind_iter())
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn read_numbers(
    connection: &mut sqlx::PgConnection,
    key: &ConversationKey,
) -> Result<Numbers> {
    let (hot_epoch, found, hot_generation, erased_at): NumbersRow = sqlx::query_as(
        "SELECT e.epoch, c.status, c.hot_generation, c.erased_at
         FROM hot_epoch e LEFT JOIN conversations c ON c.tenant_id = $1 AND c.id = $2",
    )
    .bind(key.tenant.as_str())
    .bind(key.conversation.as_str())
    .fetch_one(connection)
    .await?;
    let conversation = match (found, hot_generation) {
        (Some(found), Some(hot_generation)) => Some(ConversationNumbers {
            status: status(&found)?,
            hot_generation,
            erased_at: erased_at.map(timestamp),
        }),
        _ => None,
    };
    Ok(Numbers { hot_epoch, conversation })
}
