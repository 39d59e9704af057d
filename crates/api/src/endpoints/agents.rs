//! Agents: their statistics.

use database::TotalsRequest;

use super::conversations::totals_request;
use crate::endpoint::{Answer, Call};
use crate::parameters as p;
use crate::problem::Problem;
use crate::views::AgentStatsView;

pub(crate) async fn stats(mut call: Call) -> Result<Answer, Problem> {
    // Only checked: `Call::tenant` reads it.
    let _named = call.parameters.optional(&p::TENANT);
    let agent = call.parameters.optional(&p::AGENT).unwrap_or_default();
    let request = TotalsRequest { agent: Some(agent.clone()), ..totals_request(&mut call)? };
    let tenant = call.tenant()?;
    let totals = call.database(&tenant).totals_of_days(&tenant, &request).await?;
    Answer::json(&AgentStatsView::new(&tenant, &agent, &request, &totals))
}
