//! Repairs: each is one transaction with an entry in `audit_log`.
//!
//! A repair computes nothing itself. It only marks the wrong data as out of date, and the process that
//! normally computes it does so again: a reader reloads a hot copy, a sweep closes the conversation again,
//! the statistics are recomputed, the words written. So a repair that is repeated, or was not needed, does no harm.

use domain::ids::ConversationKey;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::integrity::OrphanedStatistics;
use super::words::OrphanedWords;
use crate::day_key::{BindDays as _, DayKey};
use crate::epoch::{OpenSaves, change_generations};
use crate::{Database, Result};

/// A repair. It cannot be cloned: its new generation must be used only once, because a hot copy may be loaded
/// under it after the first use and become incomplete.
#[derive(Debug)]
pub enum Repair {
    /// Invalidates a hot copy: sets this new generation of the conversation.
    InvalidateCopy(ConversationKey, i64),
    /// Records that a hot copy is deleted whose conversation does not exist. The caller deletes it in Redis.
    DropCopy(ConversationKey),
    /// Closes a conversation again that is stuck in `closing`, or whose totals are wrong. An archived
    /// conversation without messages is not changed, because a close would delete it.
    CloseAgain(ConversationKey),
    /// Recomputes the statistics of a conversation.
    Statistics(ConversationKey),
    /// Recomputes a day.
    Day(DayKey),
    /// Deletes statistics without a conversation, and recomputes their day.
    DropStatistics(OrphanedStatistics),
    /// Makes the words of an archived conversation due again.
    Words(ConversationKey),
    /// Deletes words of a conversation that does not exist or was never archived.
    DropWords(OrphanedWords),
}

impl Database {
    /// Applies a repair and writes an audit entry; `detail` must hold no content of a conversation. Returns
    /// false if there was nothing to repair any more, because the row was deleted or repaired meanwhile.
    pub async fn repair(&self, repair: Repair, actor: &str, detail: &Value) -> Result<bool> {
        self.in_transaction(async |connection| {
            let changed = apply(connection, &repair).await?;
            if changed {
                let (tenant, subject) = repair.subject();
                sqlx::query(
                    "INSERT INTO audit_log (actor, action, tenant_id, subject, detail)
                     VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(actor)
                .bind(repair.action())
                .bind(tenant)
                .bind(subject)
                .bind(Json(detail))
                .execute(&mut *connection)
                .await?;
            }
            Ok(changed)
        })
        .await
    }
}

impl Repair {
    /// Its name in the audit log.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::InvalidateCopy(..) => "repair.invalidate_hot_copy",
            Self::DropCopy(_) => "repair.drop_hot_copy",
            Self::CloseAgain(_) => "repair.close_again",
            Self::Statistics(_) => "repair.recompute_statistics",
            Self::Day(_) => "repair.recompute_day",
            Self::DropStatistics(_) => "repair.drop_statistics",
            Self::Words(_) => "repair.write_words",
            Self::DropWords(_) => "repair.drop_words",
        }
    }

    /// The tenant, and the conversation or the day with its agent and model.
    fn subject(&self) -> (&str, String) {
        match self {
            Self::InvalidateCopy(key, _)
            | Self::DropCopy(key)
            | Self::CloseAgain(key)
            | Self::Statistics(key)
            | Self::Words(key) => (key.tenant.as_str(), key.conversation.to_string()),
            Self::Day(DayKey { tenant_id, agent_id, model_name, day }) => {
                (tenant_id, format!("{day} {agent_id} {model_name}"))
            }
            Self::DropStatistics(key) => (&key.tenant_id, key.conversation_id.clone()),
            Self::DropWords(words) => (&words.tenant_id, words.conversation_id.clone()),
        }
    }
}

async fn apply(connection: &mut PgConnection, repair: &Repair) -> Result<bool> {
    let changed = match repair {
        Repair::InvalidateCopy(key, generation) => {
            change_generations(connection, &[(key.clone(), *generation)], OpenSaves::Independent)
                .await?;
            return Ok(true);
        }
        // Nothing changes in PostgreSQL except the audit log.
        Repair::DropCopy(_) => return Ok(true),
        Repair::CloseAgain(key) => {
            // The same change as when a message arrives after archiving, but without `reopened`: no event is
            // published. An existing close request keeps its time, so it is due at once.
            sqlx::query(
                "UPDATE conversations c SET
                     status = 'active', close_token = NULL, close_lease_until = NULL,
                     close_requested_at = coalesce(close_requested_at, clock_timestamp())
                 WHERE tenant_id = $1 AND id = $2 AND status <> 'active'
                   AND (status = 'closing'
                        OR EXISTS (SELECT FROM message_rows m WHERE m.conversation = c.number))",
            )
            .bind(key.tenant.as_str())
            .bind(key.conversation.as_str())
        }
        Repair::Statistics(key) => sqlx::query(
            "UPDATE conversations SET stats_from = NULL
             WHERE tenant_id = $1 AND id = $2 AND status = 'archived'",
        )
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str()),
        Repair::Day(key) => sqlx::query(
            "INSERT INTO daily_stats (tenant_id, agent_id, model_name, day) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant_id, agent_id, model_name, day) DO UPDATE SET dirty = true",
        )
        .bind_day(key),
        Repair::DropStatistics(key) => sqlx::query(
            "WITH deleted AS (
                 DELETE FROM conversation_stats s
                 WHERE s.tenant_id = $1 AND s.conversation_id = $2
                   AND NOT EXISTS (SELECT FROM conversations c
                                   WHERE c.tenant_id = s.tenant_id AND c.id = s.conversation_id)
                 RETURNING s.tenant_id, coalesce(s.agent_id, ''), coalesce(s.model_name, ''), s.day)
             INSERT INTO daily_stats (tenant_id, agent_id, model_name, day) SELECT * FROM deleted
             ON CONFLICT (tenant_id, agent_id, model_name, day) DO UPDATE SET dirty = true",
        )
        .bind(&key.tenant_id)
        .bind(&key.conversation_id),
        Repair::Words(key) => sqlx::query(
            "INSERT INTO words_due (finalised_at, tenant_id, conversation_id)
             SELECT finalised_at, tenant_id, id FROM conversations
             WHERE tenant_id = $1 AND id = $2 AND status = 'archived'
             ON CONFLICT DO NOTHING",
        )
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str()),
        Repair::DropWords(words) => sqlx::query(
            "DELETE FROM conversation_words w
             WHERE w.tenant_id = $1 AND w.conversation_id = $2
               AND NOT EXISTS (SELECT FROM conversations c
                               WHERE c.tenant_id = w.tenant_id AND c.id = w.conversation_id
                                 AND c.finalised_at IS NOT NULL)",
        )
        .bind(&words.tenant_id)
        .bind(&words.conversation_id),
    };
    Ok(changed.execute(connection).await?.rows_affected() > 0)
}
