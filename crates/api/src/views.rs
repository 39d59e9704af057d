//! The JSON of the answers. Each type here is a promise: fields are only added.

mod actions;
mod conversation;
mod dead_letters;
mod message;
mod time;
mod totals;

pub(crate) use actions::{ActionStatus, ActionsBody, PublishedActionView, PublishedActionsView};
pub(crate) use conversation::{ConversationListView, ConversationPageView, Searched};
pub(crate) use dead_letters::{
    DeadLetterDetailView, DeadLetterListView, DiscardBody, DiscardedView, Errors, ReplayedView,
};
pub(crate) use message::truncate;
pub(crate) use totals::{AgentStatsView, TenantStatsView};
