//! The two numbers under which a hot copy counts, and the row that remembers whose server identity it is.
//!
//! Both numbers are random at every change. A counter could come to the same number a second time: after
//! a restored backup, a failover to a lagging standby, or when a conversation is erased and made anew.
//! What a backup brings back itself are the numbers of then; a restore has to say that it was one.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use sqlx::postgres::PgBindIterExt as _;

use crate::rows::{corrupt, status, timestamp};
use crate::{Actor, Database, Result};

/// What decides whether a hot copy may be believed, read by primary key beside every read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// Changes when Redis may have forgotten writes.
    pub hot_epoch: i64,
    /// The conversation's own part; `None` when there is no such conversation.
    pub conversation: Option<ConversationNumbers>,
}

/// The conversation's own part of the [`Numbers`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationNumbers {
    /// Its state.
    pub status: ConversationStatus,
    /// Changes when a write to its hot copy failed.
    pub hot_generation: i64,
    /// Nothing at or before this moment is to be read.
    pub erased_at: Option<Timestamp>,
}

/// What comparing Redis's server identity with the stored one led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochChange {
    /// The stored server identity is this one.
    Same,
    /// It was another: every hot copy made before is void.
    Changed,
}

/// How often the comparison is repeated because another process changed the row in between.
const IDENTITY_ROUNDS: usize = 5;

type NumbersRow = (i64, Option<String>, Option<i64>, Option<DateTime<Utc>>);

impl Database {
    /// The numbers of a conversation: one read by primary key.
    pub async fn numbers(&self, key: &ConversationKey) -> Result<Numbers> {
        self.within(async |connection| read_numbers(connection, key).await).await
    }

    /// Compares the server identity of the Redis that this process speaks to with the stored one, and makes
    /// a new epoch when they differ. Replicas may race: the comparison is part of the update, so
    /// one of them changes the epoch and the others find theirs stored.
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
                    return Ok(EpochChange::Changed);
                }
                // Somebody was faster; perhaps with this server identity, perhaps with another.
            }
            Err(corrupt(
                "hot_epoch",
                "the server identity keeps changing: processes see different Redis".into(),
            ))
        })
        .await
    }

    /// Whether the hot copies live in the Redis of this server identity. For those who only look: they must
    /// not change the epoch, since they may have been sent to the wrong server.
    pub async fn is_recorded_server_identity(&self, server_identity: &str) -> Result<bool> {
        self.within(async |connection| {
            Ok(sqlx::query_scalar("SELECT server_identity = $1 FROM hot_epoch")
                .bind(server_identity)
                .fetch_one(&mut *connection)
                .await?)
        })
        .await
    }

    /// Makes a new epoch, so that no hot copy counts any more, and writes that into the audit log. For a
    /// database that went back in time: it bears the numbers of then, and living copies may bear them
    /// too, with more or fewer messages.
    pub async fn void_hot_copies(&self, actor: &Actor, new_epoch: i64) -> Result<()> {
        self.within(async |connection| {
            sqlx::query(
                "WITH changed AS (UPDATE hot_epoch SET epoch = $1 RETURNING epoch)
                 INSERT INTO audit_log (actor, action, subject)
                 SELECT $2, 'hot_copies.void', $3 FROM changed",
            )
            .bind(new_epoch)
            .bind(&actor.name)
            .bind(actor.run.to_string())
            .execute(connection)
            .await?;
            Ok(())
        })
        .await
    }

    /// Gives conversations a new generation: whatever their hot copies hold no longer counts. To be
    /// called before anything is acknowledged whose write to Redis failed or is unknown.
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
    .bind(changes.iter().map(|(key, _)| key.tenant.as_str()).bind_iter())
    .bind(changes.iter().map(|(key, _)| key.conversation.as_str()).bind_iter())
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
