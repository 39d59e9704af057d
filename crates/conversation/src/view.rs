//! A conversation with its messages as a JSON document: every value as it was sent.

use database::{ConversationStats, ConversationView, SessionEventView, SessionView};
use domain::message::{Content, Details, Json, Message, Role};
use domain::time::Timestamp;
use serde::Serialize;

use crate::reader::{Source, Transcript};

/// The whole document.
#[derive(Debug, Serialize)]
pub struct TranscriptView<'a> {
    /// The conversation.
    pub conversation: &'a ConversationView,
    /// Which server the messages came from.
    pub source: Source,
    /// Whether messages may be missing, because PostgreSQL did not answer.
    pub degraded: bool,
    /// The error of Redis, if it did not answer.
    pub redis_error: Option<String>,
    /// Sessions with an opened or closed event, without those that only carried messages.
    pub sessions: &'a [SessionView],
    /// Its session events and feedback as they were sent, oldest first; the newest ones if there are many.
    pub session_events: &'a [SessionEventView],
    /// Its statistics, once they are computed.
    pub statistics: Option<&'a ConversationStats>,
    /// The messages, oldest first.
    pub messages: Vec<MessageView<'a>>,
}

/// A message.
#[derive(Debug, Serialize)]
pub struct MessageView<'a> {
    id: &'a str,
    role: Role,
    content: ContentView<'a>,
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
    item: Option<&'a Json>,
    usage: Option<&'a Json>,
    finish_reason: Option<&'a str>,
    response_id: Option<&'a str>,
    parent_message_id: Option<&'a str>,
    context_hash: Option<&'a str>,
}

/// Content as it was sent: a text, or an array of parts.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ContentView<'a> {
    Text(&'a str),
    Parts(&'a Json),
}

impl<'a> TranscriptView<'a> {
    /// The document for a transcript.
    #[must_use]
    pub fn new(
        conversation: &'a ConversationView,
        sessions: &'a [SessionView],
        session_events: &'a [SessionEventView],
        statistics: Option<&'a ConversationStats>,
        transcript: &'a Transcript,
    ) -> Self {
        Self {
            conversation,
            source: transcript.source,
            degraded: transcript.degraded,
            redis_error: None,
            sessions,
            session_events,
            statistics,
            messages: transcript.messages.iter().map(MessageView::from).collect(),
        }
    }
}

impl<'a> From<&'a Message> for MessageView<'a> {
    fn from(message: &'a Message) -> Self {
        let details = Details::of(&message.details);
        Self {
            id: message.id.as_str(),
            role: message.role,
            content: match &message.content {
                Content::Text(text) => ContentView::Text(text),
                Content::Parts { json, .. } => ContentView::Parts(json),
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
            item: details.item.as_ref(),
            usage: details.usage.as_ref(),
            finish_reason: details.finish_reason.as_deref(),
            response_id: details.response_id.as_deref(),
            parent_message_id: details.parent_message_id.as_ref().map(AsRef::as_ref),
            context_hash: details.context_hash.as_deref(),
        }
    }
}
