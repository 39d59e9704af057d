//! The two numbers that a valid hot copy must have, and the identities of the servers under which they are
//! valid.
//!
//! The numbers are the epoch (one for all copies) and the generation (one for each conversation). Each
//! change sets a new random number. A counter could reach the same number twice: after a restored backup,
//! after a failover to a lagging standby, or when a conversation is erased and created again.
//!
//! PostgreSQL itself can return to old numbers, when a failover or a restore undoes a commit. So the row of
//! the epoch has the identity of the PostgreSQL that wrote it, beside that of Redis. Every statement that reads
//! the epoch compares it with the server that runs the statement: an epoch of another history is not returned.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use sqlx::postgres::PgBindIterExt as _;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::connect::read_only;
use crate::postgresql_identity::{CURRENT, differences};
use crate::rows::{BindKeys as _, status, timestamp};
use crate::{Actor, Database, Error, Result};

/// The numbers that a hot copy must have to be valid, read by primary key with every read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// Changes when Redis may have lost writes, or PostgreSQL commits. `None`: no hot copy is valid here. This
    /// PostgreSQL is a standby, or it changed and no process has recorded that yet.
    pub hot_epoch: Option<i64>,
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
    /// Whether a message was deleted: a hot copy may have one that a slow saver appended later.
    pub has_deleted: bool,
}

/// The result of comparing the identities of the servers with the stored ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EpochChange {
    /// They are the same.
    Same,
    /// None were stored: these are the first servers that the fleet uses.
    First,
    /// One was different: all hot copies made before are invalidated.
    Changed {
        /// Whether it was that of Redis.
        redis: bool,
        /// What was different about PostgreSQL, such as `timeline 1 → 2`; `None` if nothing was.
        postgresql: Option<String>,
    },
}

/// Whether the servers are the recorded ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// Both are.
    Both,
    /// Redis is another.
    NotRedis,
    /// PostgreSQL is another, or lost commits.
    NotPostgreSql,
    /// PostgreSQL is a standby, whose numbers may be old.
    Standby,
}

/// How often the comparison is made at most, if another process changes the row meanwhile.
const IDENTITY_ROUNDS: usize = 5;

type NumbersRow = (Option<i64>, Option<String>, Option<i64>, Option<DateTime<Utc>>, bool);

impl Database {
    /// The numbers of a conversation, read by primary key.
    pub async fn numbers(&self, key: &ConversationKey) -> Result<Numbers> {
        self.statement(async |connection| read_numbers(connection, key).await).await
    }

    /// Compares the identity of the Redis that this process is connected to, and that of PostgreSQL, with the
    /// stored ones. If one differs, stores them and sets `new_epoch`, which invalidates all hot copies. Replicas
    /// may do this at the same time: the update includes the comparison, so only one of them changes the epoch.
    ///
    /// # Errors
    /// PostgreSQL is a standby, or fails.
    pub async fn record_server_identity(
        &self,
        redis_identity: &str,
        new_epoch: i64,
    ) -> Result<EpochChange> {
        self.within(async |connection| {
            for _ in 0..IDENTITY_ROUNDS {
                let (redis, postgresql, current) = identities(connection).await?;
                let Some(current) = current else { return Err(read_only()) };
                if redis == redis_identity && postgresql == current {
                    return Ok(EpochChange::Same);
                }
                let changed = sqlx::query(AssertSqlSafe(format!(
                    "UPDATE hot_epoch e
                     SET epoch = $1, redis_identity = $2, postgresql_identity = {CURRENT}
                     WHERE redis_identity = $3 AND postgresql_identity = $4"
                )))
                .bind(new_epoch)
                .bind(redis_identity)
                .bind(&redis)
                .bind(&postgresql)
                .execute(&mut *connection)
                .await?
                .rows_affected();
                if changed == 1 && redis.is_empty() {
                    return Ok(EpochChange::First);
                }
                if changed == 1 {
                    let differs = || differences(&postgresql, &current);
                    return Ok(EpochChange::Changed {
                        redis: redis != redis_identity,
                        postgresql: (postgresql != current).then(differs),
                    });
                }
                // Another process changed the row first, to these server identities or to others.
            }
            Err(Error::Contended(format!(
                "the server identities changed during each of {IDENTITY_ROUNDS} attempts; \
                 check that all processes use the same Redis and PostgreSQL"
            )))
        })
        .await
    }

    /// Whether the servers are the recorded ones. For tools that only read: they must not change the epoch,
    /// because their URLs may name the wrong servers.
    pub async fn recorded(&self, redis_identity: &str) -> Result<Recorded> {
        self.within(async |connection| {
            let (redis, postgresql, current) = identities(connection).await?;
            Ok(match current {
                None => Recorded::Standby,
                Some(_) if redis != redis_identity => Recorded::NotRedis,
                Some(current) if postgresql != current => Recorded::NotPostgreSql,
                Some(_) => Recorded::Both,
            })
        })
        .await
    }

    /// Sets a new epoch, which invalidates all hot copies, and writes an audit entry. Needed after PostgreSQL
    /// returned to old numbers in a way that its identity does not show, such as a restored disk snapshot. Such a PostgreSQL
    /// may have lost nonces, so requests that were signed before are refused from now on.
    pub async fn invalidate_hot_copies(&self, actor: &Actor, new_epoch: i64) -> Result<()> {
        let query = sqlx::query(
            "WITH changed AS (UPDATE hot_epoch SET epoch = $1 RETURNING epoch),
                  nonces AS (INSERT INTO api_nonce_history AS h (identity, complete_since)
                             VALUES (verbatim_identity('api_nonces'), clock_timestamp())
                             ON CONFLICT (is_only) DO UPDATE SET complete_since = excluded.complete_since)
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
    /// before the acknowledgement of a message whose write to Redis failed or has an unknown result, and of one
    /// that may be stored under two ids. A conversation that does not exist is left out.
    pub async fn change_generations(
        &self,
        changes: &[(ConversationKey, i64)],
        open_saves: OpenSaves,
    ) -> Result<()> {
        self.within(async |connection| {
            change_generations(connection, changes, open_saves).await?;
            Ok(())
        })
        .await
    }
}

/// The transactions that are saving messages of a conversation while its generation changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenSaves {
    /// The generation changes beside them: whoever runs them writes or invalidates the hot copy, too, or the wait
    /// would delay others.
    Independent,
    /// Whoever ran them may be gone: the generation changes after their commits.
    Awaited,
}

/// Returns how many of the conversations exist.
pub(crate) async fn change_generations(
    connection: &mut PgConnection,
    changes: &[(ConversationKey, i64)],
    open_saves: OpenSaves,
) -> Result<u64> {
    let mut changes: Vec<_> = changes.iter().collect();
    changes.sort();
    // A save holds FOR KEY SHARE.
    let lock = match open_saves {
        OpenSaves::Independent => "NO KEY UPDATE",
        OpenSaves::Awaited => "UPDATE",
    };
    let changed = sqlx::query(AssertSqlSafe(format!(
        "WITH wanted AS (
             SELECT c.number, k.generation
             FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY
                  AS k (tenant_id, id, generation, n)
             CROSS JOIN LATERAL (SELECT number FROM conversations c
                                 WHERE c.tenant_id = k.tenant_id AND c.id = k.id
                                 FOR {lock}) AS c)
         UPDATE conversations c SET hot_generation = wanted.generation
         FROM wanted WHERE c.number = wanted.number"
    )))
    .bind_keys(changes.iter().map(|(key, _)| key))
    .bind(changes.iter().map(|(_, generation)| *generation).bind_iter())
    .execute(connection)
    .await?;
    Ok(changed.rows_affected())
}

/// The stored identities of Redis and PostgreSQL, and the current one of PostgreSQL.
async fn identities(connection: &mut PgConnection) -> Result<(String, String, Option<String>)> {
    let query = format!("SELECT redis_identity, postgresql_identity, {CURRENT} FROM hot_epoch e");
    Ok(sqlx::query_as(AssertSqlSafe(query)).fetch_one(connection).await?)
}

/// One statement, so that the epoch and the server that it is compared with belong together, also behind a
/// connection pooler.
pub(crate) async fn read_numbers(
    connection: &mut PgConnection,
    key: &ConversationKey,
) -> Result<Numbers> {
    let (hot_epoch, found, hot_generation, erased_at, has_deleted): NumbersRow =
        sqlx::query_as(AssertSqlSafe(format!(
            "SELECT CASE WHEN e.postgresql_identity = {CURRENT} THEN e.epoch END,
                c.status, c.hot_generation, c.erased_at,
                EXISTS (SELECT FROM message_rows m WHERE m.conversation = c.number AND m.created_at IS NULL)
         FROM hot_epoch e LEFT JOIN conversations c ON c.tenant_id = $1 AND c.id = $2"
        )))
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str())
        .fetch_one(connection)
        .await?;
    let conversation = match (found, hot_generation) {
        (Some(found), Some(hot_generation)) => Some(ConversationNumbers {
            status: status(&found)?,
            hot_generation,
            erased_at: erased_at.map(timestamp),
            has_deleted,
        }),
        _ => None,
    };
    Ok(Numbers { hot_epoch, conversation })
}
