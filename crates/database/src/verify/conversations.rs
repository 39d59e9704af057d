//! Checks of conversations against their messages: totals, statistics, and overdue steps.

use domain::ids::ConversationKey;
use domain::message::Role;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow as _, QueryBuilder, Row};

use super::difference::{Difference, Fields, differences};
use super::scope::Scope;
use crate::rows::{BindKeys as _, FORMAT_PLAIN, from_row, key_of};
use crate::statistics::COMPUTED;
use crate::{Database, Result};

/// The result of checking one conversation.
#[derive(Debug, Clone)]
pub struct ConversationCheck {
    /// The conversation.
    pub key: ConversationKey,
    /// Changes with every write of the row: if two checks have the same version, the row did not change.
    pub version: String,
    /// Seconds since its lease ended, if it is `closing`; without a lease, since `touched_at`.
    pub lease_over_for: Option<f64>,
    /// Seconds since its close was requested, if it is `active`.
    pub requested_for: Option<f64>,
    /// Seconds since the last message arrived, if it is `active` and no close is requested.
    pub idle_for: Option<f64>,
    /// Seconds since it was archived, if it is `archived` and its statistics are out of date.
    pub statistics_due_for: Option<f64>,
    /// How many messages it has.
    pub messages: i64,
    /// Messages that this program cannot read: unknown role or format, or no valid hash.
    pub unreadable: i64,
    /// Totals in its row that differ from its messages, if it is `archived`.
    pub totals: Vec<Difference>,
    /// How its statistics differ from its messages, if it is `archived` and its statistics are marked as up
    /// to date.
    pub statistics: Differences,
    /// Whether `daily_stats` has no row for the day of its statistics.
    pub without_day: bool,
}

/// How stored statistics differ from computed ones.
#[derive(Debug, Clone, PartialEq)]
pub enum Differences {
    /// No differences, or not compared.
    None,
    /// There are no stored statistics.
    Missing,
    /// These fields differ.
    Fields(Vec<Difference>),
}

impl Database {
    /// The next conversations in key order, at most `limit`.
    pub async fn conversation_keys(
        &self,
        scope: &Scope,
        after: Option<&ConversationKey>,
        limit: u32,
    ) -> Result<Vec<ConversationKey>> {
        let mut query = QueryBuilder::new("SELECT tenant_id, id FROM conversations WHERE true");
        if let Some(after) = after {
            query.push(" AND (tenant_id, id) > (").push_bind(after.tenant.as_str());
            query.push(", ").push_bind(after.conversation.as_str()).push(")");
        }
        scope.push(&mut query, Some("id"));
        query.push(" ORDER BY tenant_id, id LIMIT ").push_bind(i64::from(limit));
        self.rows(query.build()).await?.iter().map(key_of).collect()
    }

    /// Those of these conversations that exist and whose `touched_at` is at or after `since`.
    pub async fn touched_since(
        &self,
        keys: &[ConversationKey],
        since: domain::time::Timestamp,
    ) -> Result<Vec<ConversationKey>> {
        let query = sqlx::query(
            "SELECT c.tenant_id, c.id FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             WHERE c.touched_at >= $3 ORDER BY c.tenant_id, c.id",
        )
        .bind_keys(keys.iter())
        .bind(chrono::DateTime::<chrono::Utc>::from(since));
        self.rows(query).await?.iter().map(key_of).collect()
    }

    /// Checks conversations, in one snapshot. Those that no longer exist are left out.
    pub async fn check_conversations(
        &self,
        keys: &[ConversationKey],
    ) -> Result<Vec<ConversationCheck>> {
        let query = sqlx::query(AssertSqlSafe(format!(
            "WITH chosen AS MATERIALIZED (
                 SELECT c.*, c.xmin::text AS version
                 FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
                 JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id),
             computed AS MATERIALIZED ({COMPUTED})
             SELECT c.tenant_id, c.id, c.version, c.status, m.messages, m.unreadable,
                    extract(epoch FROM statement_timestamp() - CASE c.status
                        WHEN 'closing' THEN coalesce(c.close_lease_until, c.touched_at)
                        END)::float8 AS lease_over_for,
                    CASE c.status WHEN 'active' THEN
                        extract(epoch FROM statement_timestamp() - c.close_requested_at)::float8
                        END AS requested_for,
                    CASE WHEN c.status = 'active' AND c.close_requested_at IS NULL THEN
                        extract(epoch FROM statement_timestamp() - c.touched_at)::float8
                        END AS idle_for,
                    CASE WHEN c.status = 'archived' AND c.finalised_at IS DISTINCT FROM c.stats_from THEN
                        extract(epoch FROM statement_timestamp() - c.finalised_at)::float8
                        END AS statistics_due_for,
                    c.status = 'archived' AND c.finalised_at = c.stats_from AS statistics_current,
                    jsonb_build_object('message_count', c.message_count, 'total_tokens', c.total_tokens,
                        'created_at', c.created_at, 'last_message_at', c.last_message_at,
                        'finalised', c.finalised_at IS NOT NULL) AS row_totals,
                    jsonb_build_object('message_count', m.messages, 'total_tokens', t.tokens,
                        'created_at', coalesce(m.first, c.created_at), 'last_message_at', m.last,
                        'finalised', true) AS message_totals,
                    to_jsonb(s) - 'computed_at' AS stored,
                    (SELECT to_jsonb(n) FROM computed AS n
                     WHERE n.tenant_id = c.tenant_id AND n.conversation_id = c.id) AS computed,
                    s.day IS NOT NULL AND NOT EXISTS (
                        SELECT FROM daily_stats d
                        WHERE d.tenant_id = s.tenant_id AND d.agent_id = coalesce(s.agent_id, '')
                          AND d.model_name = coalesce(s.model_name, '') AND d.day = s.day) AS without_day
             FROM chosen c
             CROSS JOIN LATERAL (
                 SELECT count(*) AS messages, min(created_at) AS first, max(created_at) AS last,
                        count(*) FILTER (WHERE format <> $3 OR octet_length(body_hash) <> 16
                            OR role <> ALL ($4))
                            AS unreadable
                 FROM message_rows WHERE conversation = c.number AND created_at IS NOT NULL) AS m
             CROSS JOIN LATERAL (
                 SELECT coalesce(sum(tokens), 0)::bigint AS tokens
                 FROM message_tokens WHERE conversation = c.number) AS t
             LEFT JOIN conversation_stats s ON s.tenant_id = c.tenant_id AND s.conversation_id = c.id
             ORDER BY c.tenant_id, c.id"
        )))
        .bind_keys(keys.iter())
        .bind(FORMAT_PLAIN)
        .bind(Role::ALL.map(Role::as_str));
        let check = |row: &PgRow| Ok(ConversationCheck::from_row(row)?);
        self.rows(query).await?.iter().map(check).collect()
    }
}

from_row! { ConversationCheck:
    version, lease_over_for, requested_for, idle_for, statistics_due_for, messages, unreadable, without_day;
    key: key_of, totals: totals, statistics: statistics
}

fn totals(row: &PgRow) -> Result<Vec<Difference>> {
    let archived = row.try_get::<&str, _>("status")? == "archived";
    let (stored, computed): (Fields, Fields) =
        (row.try_get("row_totals")?, row.try_get("message_totals")?);
    Ok(if archived { differences(&stored, &computed) } else { Vec::new() })
}

fn statistics(row: &PgRow) -> Result<Differences> {
    let current: Option<bool> = row.try_get("statistics_current")?;
    let (stored, computed): (Option<Fields>, Option<Fields>) =
        (row.try_get("stored")?, row.try_get("computed")?);
    Ok(match (stored, computed) {
        _ if current != Some(true) => Differences::None,
        (None, Some(_)) => Differences::Missing,
        (Some(stored), Some(computed)) => match differences(&stored, &computed) {
            fields if fields.is_empty() => Differences::None,
            fields => Differences::Fields(fields),
        },
        // Its last message was deleted.
        (Some(stored), None) => Differences::Fields(vec![Difference {
            field: "message_count".to_owned(),
            is: stored.get("message_count").cloned().unwrap_or_default(),
            should_be: 0.into(),
        }]),
        (None, None) => Differences::None,
    })
}
