//! The JSON of the answers. Each type here is a promise: fields are only added.

mod conversation;
mod message;
mod totals;

pub(crate) use conversation::{ConversationListView, ConversationPageView};
pub(crate) use totals::{AgentStatsView, TenantStatsView};

use chrono::{DateTime, Utc};
use domain::time::Timestamp;

/// A stored time. One that something else stored and that is out of range is clamped.
fn time(at: DateTime<Utc>) -> Timestamp {
    let nearest = if at < DateTime::from(Timestamp::EARLIEST) {
        Timestamp::EARLIEST
    } else {
        Timestamp::LATEST
    };
    Timestamp::try_from(at).unwrap_or(nearest)
}
