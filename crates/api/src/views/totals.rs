//! Statistics of tenants and agents.

use chrono::NaiveDate;
use database::{COUNTED_ACTIVE, GroupedTotals, Totals, TotalsRequest};
use domain::ids::TenantId;
use schemars::JsonSchema;
use serde::Serialize;

/// How many agents and models an answer lists.
const LISTED: usize = 100;

/// Statistics of a tenant.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TenantStatistics")]
pub(crate) struct TenantStatsView<'a> {
    tenant_id: &'a str,
    /// The first day, in UTC.
    #[schemars(with = "Day")]
    from: NaiveDate,
    /// The last day, in UTC.
    #[schemars(with = "Day")]
    to: NaiveDate,
    /// How many conversations are active now, whenever they began.
    active_now: i64,
    /// Whether there are more than `active_now` says: counting ends at 10 000.
    active_now_is_a_minimum: bool,
    /// Of all conversations that began on these days.
    totals: TotalsView,
    /// Of each day on which one began.
    days: Vec<DayView>,
    /// How many agents there are.
    agent_count: usize,
    /// Of each agent, those with the most conversations first; at most 100.
    agents: Vec<AgentView<'a>>,
    /// Of each model, those with the most conversations first; at most 100.
    models: Vec<ModelView<'a>>,
}

/// Statistics of an agent.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentStatistics")]
pub(crate) struct AgentStatsView<'a> {
    tenant_id: &'a str,
    agent_id: &'a str,
    /// The first day, in UTC.
    #[schemars(with = "Day")]
    from: NaiveDate,
    /// The last day, in UTC.
    #[schemars(with = "Day")]
    to: NaiveDate,
    /// Of all conversations that began on these days.
    totals: TotalsView,
    /// Of each day on which one began.
    days: Vec<DayView>,
    /// Of each model, those with the most conversations first; at most 100.
    models: Vec<ModelView<'a>>,
}

/// Sums and averages of conversations.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Totals")]
struct TotalsView {
    conversations: i64,
    messages: i64,
    /// Tokens of all messages.
    tokens: i64,
    /// Tokens of the prompts, as the providers counted them; null: no message says so.
    input_tokens: Option<i64>,
    /// Tokens of the answers, as the providers counted them.
    output_tokens: Option<i64>,
    /// From the first message of a conversation to its last.
    avg_duration_seconds: Option<f64>,
    /// From a user's message to the answer that directly follows it, over all such pairs.
    avg_response_seconds: Option<f64>,
    /// Over the conversations whose user gave one, 1 to 5.
    avg_satisfaction: Option<f64>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DayTotals")]
struct DayView {
    #[schemars(with = "Day")]
    day: NaiveDate,
    #[serde(flatten)]
    totals: TotalsView,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AgentTotals")]
struct AgentView<'a> {
    /// Null: the conversations without an agent.
    agent_id: Option<&'a str>,
    #[serde(flatten)]
    totals: TotalsView,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ModelTotals")]
struct ModelView<'a> {
    /// Null: the conversations without a model.
    model_name: Option<&'a str>,
    #[serde(flatten)]
    totals: TotalsView,
}

/// For the schema of a day.
struct Day;

impl JsonSchema for Day {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Day".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date" })
    }
}

impl<'a> TenantStatsView<'a> {
    pub(crate) fn new(
        tenant: &'a TenantId,
        request: &TotalsRequest,
        totals: &'a GroupedTotals,
        active_now: i64,
    ) -> Self {
        let agents = totals.agents.iter().take(LISTED);
        Self {
            tenant_id: tenant.as_str(),
            from: request.from,
            to: request.to,
            active_now,
            active_now_is_a_minimum: active_now == COUNTED_ACTIVE,
            totals: (&totals.all).into(),
            days: days(totals),
            agent_count: totals.agents.iter().filter(|(name, _)| !name.is_empty()).count(),
            agents: agents
                .map(|(name, totals)| AgentView { agent_id: named(name), totals: totals.into() })
                .collect(),
            models: models(totals),
        }
    }
}

impl<'a> AgentStatsView<'a> {
    pub(crate) fn new(
        tenant: &'a TenantId,
        agent: &'a str,
        request: &TotalsRequest,
        totals: &'a GroupedTotals,
    ) -> Self {
        Self {
            tenant_id: tenant.as_str(),
            agent_id: agent,
            from: request.from,
            to: request.to,
            totals: (&totals.all).into(),
            days: days(totals),
            models: models(totals),
        }
    }
}

fn days(totals: &GroupedTotals) -> Vec<DayView> {
    totals.days.iter().map(|(day, totals)| DayView { day: *day, totals: totals.into() }).collect()
}

fn models(totals: &GroupedTotals) -> Vec<ModelView<'_>> {
    let models = totals.models.iter().take(LISTED);
    models
        .map(|(name, totals)| ModelView { model_name: named(name), totals: totals.into() })
        .collect()
}

fn named(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

impl From<&Totals> for TotalsView {
    fn from(it: &Totals) -> Self {
        Self {
            conversations: it.conversations,
            messages: it.messages,
            tokens: it.tokens,
            input_tokens: it.input_tokens,
            output_tokens: it.output_tokens,
            avg_duration_seconds: it.avg_duration_seconds,
            avg_response_seconds: it.avg_response_seconds,
            avg_satisfaction: it.avg_satisfaction,
        }
    }
}
