//! Checks of daily statistics against the statistics of their conversations.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, QueryBuilder, Row};

use super::difference::{Difference, Fields, differences};
use super::scope::Scope;
use crate::day_key::{BindDays as _, DayKey};
use crate::rows::from_row;
use crate::statistics::COMPUTED_DAYS;
use crate::{Database, Result};

/// The result of checking one day.
#[derive(Debug, Clone)]
pub struct DayCheck {
    /// The day.
    pub key: DayKey,
    /// Changes with every write of the row: if two checks have the same version, the row did not change.
    pub version: String,
    /// Whether it is marked for recomputation; then its numbers are not compared.
    pub dirty: bool,
    /// Values in its row that differ from the statistics of its conversations; empty if it is dirty.
    pub differences: Vec<Difference>,
}

impl Database {
    /// The next days in key order, at most `limit`.
    pub async fn day_keys(
        &self,
        scope: &Scope,
        after: Option<&DayKey>,
        limit: u32,
    ) -> Result<Vec<DayKey>> {
        let mut query = QueryBuilder::new(
            "SELECT tenant_id, agent_id, model_name, day FROM daily_stats WHERE true",
        );
        if let Some(after) = after {
            query.push(" AND (tenant_id, agent_id, model_name, day) > (");
            query.push_bind(&after.tenant_id).push(", ").push_bind(&after.agent_id);
            query.push(", ").push_bind(&after.model_name);
            query.push(", ").push_bind(after.day).push(")");
        }
        scope.push(&mut query, None);
        if let Some(since) = scope.since {
            query.push(" AND day >= ").push_bind(DateTime::<Utc>::from(since).date_naive());
        }
        query.push(" ORDER BY tenant_id, agent_id, model_name, day LIMIT ");
        query.push_bind(i64::from(limit));
        self.values(query.build_query_as()).await
    }

    /// Checks days, in one snapshot. Those that no longer exist are left out.
    pub async fn check_days(&self, keys: &[DayKey]) -> Result<Vec<DayCheck>> {
        let query = sqlx::query(AssertSqlSafe(format!(
            "WITH chosen AS MATERIALIZED (
                 SELECT d.*, d.xmin::text AS version
                 FROM unnest($1::text[], $2::text[], $3::text[], $4::date[])
                      AS k (tenant_id, agent_id, model_name, day)
                 JOIN daily_stats d ON d.tenant_id = k.tenant_id AND d.agent_id = k.agent_id
                                       AND d.model_name = k.model_name AND d.day = k.day),
             computed AS MATERIALIZED ({COMPUTED_DAYS})
             SELECT d.tenant_id, d.agent_id, d.model_name, d.day, d.version, d.dirty,
                    to_jsonb(d) AS stored,
                    (SELECT to_jsonb(n) FROM computed n
                     WHERE n.tenant_id = d.tenant_id AND n.agent_id = d.agent_id
                       AND n.model_name = d.model_name AND n.day = d.day) AS computed
             FROM chosen d ORDER BY d.tenant_id, d.agent_id, d.model_name, d.day"
        )))
        .bind_days(keys);
        self.rows(query).await?.iter().map(|row| Ok(DayCheck::from_row(row)?)).collect()
    }

    /// Dirty days, with their versions; at most `limit`.
    pub async fn dirty_days(&self, scope: &Scope, limit: u32) -> Result<Vec<(DayKey, String)>> {
        let mut query = QueryBuilder::new(
            "SELECT tenant_id, agent_id, model_name, day, xmin::text AS version
             FROM daily_stats WHERE dirty",
        );
        scope.push(&mut query, None);
        query.push(" ORDER BY tenant_id, agent_id, model_name, day LIMIT ");
        query.push_bind(i64::from(limit));
        let versioned = |row: &PgRow| Ok((DayKey::from_row(row)?, row.try_get("version")?));
        self.rows(query.build()).await?.iter().map(versioned).collect()
    }
}

from_row! { DayCheck: version, dirty; key: DayKey::from_row, differences: of_day }

fn of_day(row: &PgRow) -> Result<Vec<Difference>> {
    let (stored, computed): (Fields, Fields) = (row.try_get("stored")?, row.try_get("computed")?);
    Ok(if row.try_get("dirty")? { Vec::new() } else { differences(&stored, &computed) })
}
