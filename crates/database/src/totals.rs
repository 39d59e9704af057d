//! Totals of a tenant over a range of days, from `daily_stats`, for dashboards.
//!
//! They are about conversations that were archived and whose statistics are computed: a conversation counts on the UTC day
//! on which it began.

use std::sync::LazyLock;

use chrono::NaiveDate;
use domain::ids::TenantId;
use sqlx::{FromRow, Postgres, QueryBuilder, Row as _};

use crate::{Database, Result};

/// How many active conversations are counted at most.
pub const COUNTED_ACTIVE: i64 = 10_000;

/// Which days, and of which agent or model.
#[derive(Debug, Clone)]
pub struct TotalsRequest {
    /// The first day.
    pub from: NaiveDate,
    /// The last day.
    pub to: NaiveDate,
    /// Of this agent.
    pub agent: Option<String>,
    /// Of this model.
    pub model: Option<String>,
}

/// Sums and averages of conversations.
#[derive(Debug, Clone, Default, PartialEq, FromRow)]
pub struct Totals {
    /// How many conversations.
    pub conversations: i64,
    /// How many messages they have.
    pub messages: i64,
    /// Their tokens.
    pub tokens: i64,
    /// Tokens of the prompts, as the providers counted them; `None` if no message says so.
    pub input_tokens: Option<i64>,
    /// Tokens of the answers, as the providers counted them.
    pub output_tokens: Option<i64>,
    /// From the first message to the last, on average.
    pub avg_duration_seconds: Option<f64>,
    /// From a user's message to the answer, on average over all such pairs.
    pub avg_response_seconds: Option<f64>,
    /// The users' satisfaction, on average over those who gave one.
    pub avg_satisfaction: Option<f64>,
}

/// The totals in each grouping.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupedTotals {
    /// Of all.
    pub all: Totals,
    /// Of each day that has any, in order.
    pub days: Vec<(NaiveDate, Totals)>,
    /// Of each agent, those with the most conversations first; an empty name: without an agent.
    pub agents: Vec<(String, Totals)>,
    /// Of each model, those with the most conversations first; an empty name: without a model.
    pub models: Vec<(String, Totals)>,
}

/// Counts the active conversations of a tenant, up to a limit.
pub(crate) const ACTIVE: &str = "SELECT count(*) FROM (SELECT FROM conversations WHERE tenant_id = $1 AND status = 'active' LIMIT $2) AS a";

/// The beginning of the statement. Each average is weighted by what it is an average of.
static SUMS: LazyLock<String> = LazyLock::new(|| {
    let weighted = |average: &str, weight: &str| {
        format!(
            "sum({average} * {weight})
             / nullif(sum({weight}) FILTER (WHERE {average} IS NOT NULL), 0)::float8 AS {average}"
        )
    };
    format!(
        "SELECT grouping(day, agent_id, model_name) AS kind, day, agent_id, model_name,
                coalesce(sum(conversations), 0)::bigint AS conversations,
                coalesce(sum(messages), 0)::bigint AS messages, coalesce(sum(tokens), 0)::bigint AS tokens,
                sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
                {}, {}, {}
         FROM daily_stats WHERE conversations > 0 AND tenant_id = ",
        weighted("avg_duration_seconds", "conversations"),
        weighted("avg_response_seconds", "responses"),
        weighted("avg_satisfaction", "ratings"),
    )
});

pub(crate) fn sums(tenant: &TenantId, request: &TotalsRequest) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new(SUMS.as_str());
    query.push_bind(tenant.as_str().to_owned()).push(" AND day BETWEEN ").push_bind(request.from);
    query.push(" AND ").push_bind(request.to);
    for (column, value) in
        [(" AND agent_id = ", &request.agent), (" AND model_name = ", &request.model)]
    {
        if let Some(value) = value {
            query.push(column).push_bind(value.clone());
        }
    }
    query.push(
        " GROUP BY GROUPING SETS ((), (day), (agent_id), (model_name))
          ORDER BY day, conversations DESC, agent_id, model_name",
    );
    query
}

impl Database {
    /// The totals of these days.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn totals_of_days(
        &self,
        tenant: &TenantId,
        request: &TotalsRequest,
    ) -> Result<GroupedTotals> {
        let mut query = sums(tenant, request);
        let mut grouped = GroupedTotals::default();
        for row in self.rows(query.build()).await? {
            let totals = Totals::from_row(&row)?;
            // A bit is set for each column that is not grouped by.
            match row.try_get::<i32, _>("kind")? {
                0b011 => grouped.days.push((row.try_get("day")?, totals)),
                0b101 => grouped.agents.push((row.try_get("agent_id")?, totals)),
                0b110 => grouped.models.push((row.try_get("model_name")?, totals)),
                _ => grouped.all = totals,
            }
        }
        Ok(grouped)
    }

    /// How many conversations of a tenant are active, at most [`COUNTED_ACTIVE`].
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn active_conversations(&self, tenant: &TenantId) -> Result<i64> {
        let query = sqlx::query_as(ACTIVE).bind(tenant.as_str()).bind(COUNTED_ACTIVE);
        self.value(query).await.map(|(count,)| count)
    }
}
