//! Conversations and their pages.

use database::{ConversationStats, ConversationSummary, TranscriptPage};
use domain::ids::TenantId;
use domain::json::Json;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::message::MessageView;
use super::time::time;

/// A page of conversations.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConversationList")]
pub(crate) struct ConversationListView<'a> {
    /// Newest first.
    conversations: Vec<ConversationView<'a>>,
    /// `cursor` of the next page; null: there is none.
    next: Option<String>,
    /// Where `text` was searched; absent without `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    searched: Option<Searched>,
}

/// Where words are searched.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Searched {
    /// In archived conversations. Those that go on are not found by words.
    Archived,
}

/// A conversation.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Conversation")]
pub(crate) struct ConversationView<'a> {
    /// Its id.
    id: &'a str,
    /// The session that began it.
    session_id: &'a str,
    /// Its agent.
    agent_id: Option<&'a str>,
    /// Its user.
    user_id: Option<&'a str>,
    /// The first 256 characters of its model's name.
    model_name: Option<&'a str>,
    /// The first 256 characters of the tenant's tier.
    tenant_tier: Option<&'a str>,
    /// `active`: it goes on; `closing`: it is being archived; `archived`: it has ended, and is active again if another
    /// message comes.
    status: Status,
    /// How many messages it has; null until it is archived.
    message_count: Option<i64>,
    /// Their tokens; null until it is archived.
    total_tokens: Option<i64>,
    /// When it began.
    created_at: Timestamp,
    /// When its last message was sent; up to a minute old while it is active.
    last_message_at: Option<Timestamp>,
    /// When it was last closed.
    closed_at: Option<Timestamp>,
    /// When it was last archived.
    finalised_at: Option<Timestamp>,
    /// The first 256 characters of why it closed.
    close_reason: Option<&'a str>,
    /// How content the user was, 1 to 5.
    #[schemars(range(min = 1, max = 5))]
    satisfaction: Option<i16>,
}

/// The status of a conversation.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Status {
    Active,
    Closing,
    Archived,
}

/// A page of a conversation.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConversationPage")]
pub(crate) struct ConversationPageView<'a> {
    /// Its tenant.
    tenant_id: &'a str,
    /// The conversation.
    conversation: ConversationView<'a>,
    /// `metadata` of the conversation, as its sender gave it.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    metadata: Option<&'a Json>,
    /// When its content was erased last: nothing from before is shown.
    erased_at: Option<Timestamp>,
    /// Its statistics; null until they are computed, some seconds after it was archived.
    statistics: Option<StatisticsView<'a>>,
    /// The messages of the page, in the order that was asked for.
    messages: Vec<MessageView<'a>>,
    /// `cursor` of the next page; null: there is none.
    next: Option<String>,
}

/// Statistics of a conversation.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConversationStatistics")]
pub(crate) struct StatisticsView<'a> {
    /// The agent of the newest message that names one.
    agent_id: Option<&'a str>,
    /// The model, by the same rule.
    model_name: Option<&'a str>,
    /// How many messages there were.
    message_count: i64,
    /// Those of role `user`.
    user_messages: i64,
    /// Those of role `assistant`.
    assistant_messages: i64,
    /// Tokens of all messages.
    total_tokens: i64,
    /// From the first message to the last.
    duration_seconds: f64,
    /// From a user's message to the answer that directly follows it, on average; null: there is no such pair whose times
    /// are known.
    avg_response_seconds: Option<f64>,
    /// Tokens of the prompts, as the providers counted them; null: no message says so.
    input_tokens: Option<i64>,
    /// Tokens of the answers, as the providers counted them.
    output_tokens: Option<i64>,
    /// Tokens of the prompts that were read from the providers' caches.
    cache_read_tokens: Option<i64>,
    /// Tokens of the prompts that were written to the providers' caches.
    cache_write_tokens: Option<i64>,
    /// Tokens of the models' reasoning.
    reasoning_tokens: Option<i64>,
    /// `finalised_at` of the conversation when they were computed.
    computed_from: Timestamp,
    /// When they were computed.
    computed_at: Timestamp,
}

impl<'a> ConversationListView<'a> {
    pub(crate) fn new(
        conversations: &'a [ConversationSummary],
        next: Option<String>,
        searched: Option<Searched>,
    ) -> Self {
        let conversations = conversations.iter().map(ConversationView::from).collect();
        Self { conversations, next, searched }
    }
}

impl<'a> ConversationPageView<'a> {
    pub(crate) fn new(
        tenant: &'a TenantId,
        page: &'a TranscriptPage,
        next: Option<String>,
    ) -> Self {
        Self {
            tenant_id: tenant.as_str(),
            conversation: (&page.conversation).into(),
            metadata: page.metadata.as_ref(),
            erased_at: page.erased_at.map(time),
            statistics: page.statistics.as_ref().map(StatisticsView::from),
            messages: page.messages.iter().map(MessageView::from).collect(),
            next,
        }
    }
}

impl<'a> From<&'a ConversationSummary> for ConversationView<'a> {
    fn from(it: &'a ConversationSummary) -> Self {
        Self {
            id: &it.id,
            session_id: &it.session_id,
            agent_id: it.agent_id.as_deref(),
            user_id: it.user_id.as_deref(),
            model_name: it.model_name.as_deref(),
            tenant_tier: it.tenant_tier.as_deref(),
            status: match it.status {
                ConversationStatus::Active => Status::Active,
                ConversationStatus::Closing => Status::Closing,
                ConversationStatus::Archived => Status::Archived,
            },
            message_count: it.message_count,
            total_tokens: it.total_tokens,
            created_at: time(it.created_at),
            last_message_at: it.last_message_at.map(time),
            closed_at: it.closed_at.map(time),
            finalised_at: it.finalised_at.map(time),
            close_reason: it.close_reason.as_deref(),
            satisfaction: it.satisfaction,
        }
    }
}

impl<'a> From<&'a ConversationStats> for StatisticsView<'a> {
    fn from(it: &'a ConversationStats) -> Self {
        Self {
            agent_id: it.agent_id.as_deref(),
            model_name: it.model_name.as_deref(),
            message_count: it.message_count,
            user_messages: it.user_messages,
            assistant_messages: it.assistant_messages,
            total_tokens: it.total_tokens,
            duration_seconds: it.duration_seconds,
            avg_response_seconds: it.avg_response_seconds,
            input_tokens: it.input_tokens,
            output_tokens: it.output_tokens,
            cache_read_tokens: it.cache_read_tokens,
            cache_write_tokens: it.cache_write_tokens,
            reasoning_tokens: it.reasoning_tokens,
            computed_from: time(it.computed_from),
            computed_at: time(it.computed_at),
        }
    }
}
