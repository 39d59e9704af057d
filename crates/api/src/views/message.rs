//! A message: every value as it was sent.

use database::PagedMessage;
use domain::json::Json;
use domain::message::{Content, Details, Role};
use domain::time::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

/// A message.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Message")]
pub(crate) struct MessageView<'a> {
    /// Its id.
    id: &'a str,
    /// Who said it.
    role: Role,
    /// What was said: a text, or an array of parts if the sender sent one.
    #[schemars(with = "ContentSchema")]
    content: ContentView<'a>,
    /// The calls of tools in it, as the sender gave them.
    #[schemars(with = "Option<serde_json::Value>")]
    tool_calls: Option<&'a Json>,
    /// The call of a tool of which it is the result.
    tool_call_id: Option<&'a str>,
    /// Its tokens; null until the conversation is archived.
    tokens: Option<i64>,
    /// Its tokens, as its sender estimated them.
    tokens_estimate: Option<i64>,
    /// Its user.
    user_id: Option<&'a str>,
    /// Its agent.
    agent_id: Option<&'a str>,
    /// Its model.
    model_name: Option<&'a str>,
    /// How long it took to make it, in milliseconds.
    processing_time_ms: Option<f64>,
    /// When it was sent: messages are ordered by this time, then by id.
    created_at: Timestamp,
    /// When a worker received it.
    received_at: Timestamp,
    /// As its sender gave it.
    #[schemars(with = "Option<serde_json::Value>")]
    metadata: Option<&'a Json>,
    /// What another API gave for it.
    #[schemars(with = "Option<serde_json::Value>")]
    item: Option<&'a Json>,
    /// The tokens that the provider counted.
    #[schemars(with = "Option<serde_json::Value>")]
    usage: Option<&'a Json>,
    /// Why the model stopped.
    finish_reason: Option<&'a str>,
    /// The provider's id of the answer.
    response_id: Option<&'a str>,
    /// The message to which it is the answer, where that is not the one before it: it begins or continues a branch.
    parent_message_id: Option<&'a str>,
    /// The hash of the context from which it was made.
    context_hash: Option<&'a str>,
}

/// Removes the messages with which those before them have more than so many bytes as JSON, but for the first one; returns
/// whether there were any. The page that PostgreSQL made has at most as many bytes of text. As JSON a control character has
/// six.
pub(crate) fn truncate(messages: &mut Vec<PagedMessage>, most_bytes: usize) -> bool {
    let mut bytes = 0;
    let fitting = messages.iter().take_while(|it| {
        bytes += match &it.message.content {
            Content::Text(text) => text.bytes().map(json_bytes).sum(),
            Content::Parts { json, .. } => json.as_str().len(),
        };
        bytes <= most_bytes
    });
    let fitting = fitting.count().max(1);
    let is_longer = messages.len() > fitting;
    messages.truncate(fitting);
    is_longer
}

/// How many bytes a byte of a text has in a JSON string.
fn json_bytes(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..=0x1f => 6,
        _ => 1,
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ContentView<'a> {
    Text(&'a str),
    Parts(&'a Json),
}

/// For the schema of [`ContentView`].
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum ContentSchema {
    Text(String),
    Parts(Vec<serde_json::Value>),
}

impl<'a> From<&'a PagedMessage> for MessageView<'a> {
    fn from(PagedMessage { message, tokens }: &'a PagedMessage) -> Self {
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
            tokens: *tokens,
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
