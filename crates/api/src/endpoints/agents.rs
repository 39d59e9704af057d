//! Agents: their statistics.

use super::conversations::{LARGEST_STATS, totals_request};
use crate::audit::Audited;
use crate::endpoint::{Answer, Call, Rows};
use crate::parameters as p;
use crate::problem::Problem;
use crate::views::AgentStatsView;

pub(crate) async fn stats(mut call: Call, rows: Rows) -> Result<Answer, Problem> {
    // Only checked: `Call::tenant` reads it.
    let _named = call.parameters.optional(&p::TENANT);
    // It also reads `agent_id`, which is in the path here, and notes its fault.
    let request = totals_request(&mut call)?;
    let agent = request.agent.clone().unwrap_or_default();
    let tenant = call.tenant()?;
    let share = call.api.pages.take(LARGEST_STATS).await?;
    let totals = rows.of(&tenant).totals_of_days(&tenant, &request).await?;
    let view = AgentStatsView::new(&tenant, &agent, &request, &totals);
    Ok(Answer::json(&view, Audited::Counted(Some(tenant.clone())))?.holding(share))
}
