//! The conversation as a JSON document: every value as it was sent.

use database::{ConversationRow, ConversationStats, SessionRow};
use domain::message::{Content, Json, Message, Role};
use domain::time::Timestamp;
use serde::Serialize;

/// The whole document.
#[derive(Debug, Serialize)]
pub(super) struct Shown<'a> {
    pub(super) conversation: &'a ConversationRow,
    /// `redis` or `postgresql`.
    pub(super) source: &'static str,
    /// Whether messages may be missing, because PostgreSQL did not answer.
    pub(super) degraded: bool,
    /// The error of Redis, if it did not answer.
    pub(super) redis_error: Option<String>,
    /// Sessions with an opened or closed event, without those that only carried messages.
    pub(super) sessions: &'a [SessionRow],
    pub(super) statistics: Option<&'a ConversationStats>,
    pub(super) messages: Vec<MessageShown<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct MessageShown<'a> {
    id: &'a str,
    role: Role,
    content: ContentShown<'a>,
    tool_calls: Option<&'a Json>,
    tool_call_id: Option<&'a str>,
    tokens_estimate: Option<i64>,
    user_id: Option<&'a str>,
    agent_id: Option<&'a str>,
    model_name: Option<&'a str>,
    processing_time_ms: Option<f64>,
    created_at: Timestamp,
    received_at: Timestamp,
    metadata: Option<&'a Json>,
}

/// As it was sent: a text, or an array of parts.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ContentShown<'a> {
    Text(&'a str),
    Parts(&'a Json),
}

impl<'a> From<&'a Message> for MessageShown<'a> {
    fn from(message: &'a Message) -> Self {
        Self {
            id: message.id.as_str(),
            role: message.role,
            content: match &message.content {
                Content::Text(text) => ContentShown::Text(text),
                Content::Parts { json, .. } => ContentShown::Parts(json),
            },
            tool_calls: message.tool_calls.as_ref(),
            tool_call_id: message.tool_call_id.as_deref(),
            tokens_estimate: message.tokens_estimate,
            user_id: message.user_id.as_ref().map(AsRef::as_ref),
            agent_id: message.agent_id.as_ref().map(AsRef::as_ref),
            model_name: message.model_name.as_deref(),
            processing_time_ms: message.processing_time_ms,
            created_at: message.created_at,
            received_at: message.received_at,
            metadata: message.metadata.as_ref(),
        }
    }
}
