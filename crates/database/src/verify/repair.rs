//! Repairs: each one transaction with its line in `audit_log`, and each one that the fleet finishes.
//!
//! A repair never computes anything itself. It says of what is wrong that it is stale, and whoever
//! computes it in the ordinary way does so again: a reader loads a copy anew, a sweep closes again, the
//! statistics are recomputed. So a repair that is repeated, or that was not needed, does no harm.

use domain::ids::ConversationKey;
use serde_json::Value;
use sqlx::Connection as _;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{DayKey, OrphanedStatistics};
use crate::epoch::change_generations;
use crate::{Database, Result};

/// What is to be repaired. No clones: a generation that was drawn is given to a conversation once, since
/// by the next time a copy may have been loaded under it and be incomplete.
#[derive(Debug)]
pub enum Repair {
    /// A hot copy no longer counts: the conversation has a new generation.
    VoidCopy(ConversationKey, i64),
    /// A hot copy of a conversation that is not there was dropped.
    DropCopy(ConversationKey),
    /// A close is begun anew: of a conversation that is stuck in one, or whose totals are wrong. One
    /// that was archived and has no messages any more is left alone, because a close would drop it.
    CloseAgain(ConversationKey),
    /// The statistics of a conversation are stale.
    Statistics(ConversationKey),
    /// A day is stale.
    Day(DayKey),
    /// Statistics without a conversation go, and their day is stale.
    DropStatistics(OrphanedStatistics),
}

impl Database {
    /// Repairs, and writes into the audit log who did and why; `detail` holds no words of a conversation.
    /// Returns whether there was anything to repair: by now it may be gone, or have mended itself.
    pub async fn repair(&self, repair: Repair, actor: &str, detail: &Value) -> Result<bool> {
        self.within(async |connection| {
            let mut transaction = connection.begin().await?;
            let changed = apply(&mut transaction, &repair).await?;
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
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await?;
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
            Self::VoidCopy(..) => "repair.void_hot_copy",
            Self::DropCopy(_) => "repair.drop_hot_copy",
            Self::CloseAgain(_) => "repair.close_again",
            Self::Statistics(_) => "repair.recompute_statistics",
            Self::Day(_) => "repair.recompute_day",
            Self::DropStatistics(_) => "repair.drop_statistics",
        }
    }

    /// Tenant, and the conversation or the day.
    fn subject(&self) -> (&str, String) {
        match self {
            Self::VoidCopy(key, _)
            | Self::DropCopy(key)
            | Self::CloseAgain(key)
            | Self::Statistics(key) => (key.tenant.as_str(), key.conversation.to_string()),
            Self::Day(day) => (&day.tenant_id, format!("{} {}", day.day, day.agent_id)),
            Self::DropStatistics(key) => (&key.tenant_id, key.conversation_id.clone()),
        }
    }
}

async fn apply(connection: &mut PgConnection, repair: &Repair) -> Result<bool> {
    let changed = match repair {
        Repair::VoidCopy(key, generation) => {
            change_generations(connection, &[(key.clone(), *generation)]).await?;
            return Ok(true);
        }
        // Redis does the rest.
        Repair::DropCopy(_) => return Ok(true),
        Repair::CloseAgain(key) => {
            // As when a message comes after archiving; but nothing came, so nobody hears of a return.
            // An old request is due at once.
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
            "INSERT INTO daily_stats (tenant_id, agent_id, day) VALUES ($1, $2, $3)
             ON CONFLICT (tenant_id, agent_id, day) DO UPDATE SET dirty = true",
        )
        .bind(&key.tenant_id)
        .bind(&key.agent_id)
        .bind(key.day),
        Repair::DropStatistics(key) => sqlx::query(
            "WITH gone AS (
                 DELETE FROM conversation_stats s
                 WHERE s.tenant_id = $1 AND s.conversation_id = $2
                   AND NOT EXISTS (SELECT FROM conversations c
                                   WHERE c.tenant_id = s.tenant_id AND c.id = s.conversation_id)
                 RETURNING s.tenant_id, coalesce(s.agent_id, '') AS agent_id, s.day)
             INSERT INTO daily_stats (tenant_id, agent_id, day) SELECT * FROM gone
             ON CONFLICT (tenant_id, agent_id, day) DO UPDATE SET dirty = true",
        )
        .bind(&key.tenant_id)
        .bind(&key.conversation_id),
    };
    Ok(changed.execute(connection).await?.rows_affected() > 0)
}
