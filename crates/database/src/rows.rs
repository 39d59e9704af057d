//! Conversions between rows and the types of `domain`.

use chrono::{DateTime, Utc};
use domain::ids::{AgentId, ConversationKey, MessageId, SessionId, UserId};
use domain::message::{BodyHash, Content, Json, Message, Role};
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use crate::{Error, Result};

/// The value of `format` for content that is stored unchanged.
pub(crate) const FORMAT_PLAIN: i16 = 1;

/// A message to save, with the data for its conversation if this is the first message.
#[derive(Debug, Clone, Copy)]
pub struct SaveRow<'a> {
    /// The conversation.
    pub key: &'a ConversationKey,
    /// The session that sent it.
    pub session: &'a SessionId,
    /// The tenant's tier, if the sender named it.
    pub tenant_tier: Option<&'a str>,
    /// The message.
    pub message: &'a Message,
    /// The hash of its role, content and tool calls.
    pub body_hash: BodyHash,
}

/// The columns of a message as [`message`] reads them. `json` columns are read as text, which keeps them
/// byte for byte.
pub(crate) const MESSAGE_COLUMNS: &str = "m.id, m.role, m.content, m.content_parts::text AS content_parts, \
     m.tool_calls::text AS tool_calls, m.tool_call_id, m.tokens_estimate, m.user_id, m.agent_id, \
     m.model_name, m.processing_time_ms, m.created_at, m.received_at, m.metadata::text AS metadata, m.format";

pub(crate) struct MessageRow(pub(crate) Message);

impl<'r> FromRow<'r, PgRow> for MessageRow {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        message(row).map(Self).map_err(|error| match error {
            Error::Database(error) => error,
            other => sqlx::Error::Decode(Box::new(other)),
        })
    }
}

fn message(row: &PgRow) -> Result<Message> {
    let format: i16 = row.try_get("format")?;
    if format != FORMAT_PLAIN {
        return Err(corrupt(
            "messages",
            format!("unknown format {format}; a newer version of Verbatim wrote it"),
        ));
    }
    let content: String = row.try_get("content")?;
    let id = |name: &'static str, fault: domain::ids::InvalidId| {
        corrupt("messages", format!("{name} {fault}"))
    };
    Ok(Message {
        id: MessageId::new(row.try_get::<&str, _>("id")?).map_err(|e| id("id", e))?,
        role: row
            .try_get::<&str, _>("role")
            .map(Role::parse)?
            .ok_or_else(|| corrupt("messages", "unknown role".to_owned()))?,
        content: match json(row, "content_parts")? {
            Some(json) => Content::Parts { json, text: content },
            None => Content::Text(content),
        },
        tool_calls: json(row, "tool_calls")?,
        tool_call_id: row.try_get("tool_call_id")?,
        tokens_estimate: row.try_get("tokens_estimate")?,
        user_id: row
            .try_get::<Option<&str>, _>("user_id")?
            .map(UserId::new)
            .transpose()
            .map_err(|e| id("user_id", e))?,
        agent_id: row
            .try_get::<Option<&str>, _>("agent_id")?
            .map(AgentId::new)
            .transpose()
            .map_err(|e| id("agent_id", e))?,
        model_name: row.try_get("model_name")?,
        processing_time_ms: row.try_get("processing_time_ms")?,
        created_at: timestamp(row.try_get("created_at")?),
        received_at: timestamp(row.try_get("received_at")?),
        metadata: json(row, "metadata")?,
    })
}

fn json(row: &PgRow, column: &'static str) -> Result<Option<Json>> {
    row.try_get::<Option<String>, _>(column)?
        .map(Json::parse)
        .transpose()
        .map_err(|error| corrupt("messages", format!("{column}: {error}")))
}

/// A stored time. This program stores only times in range. A time that something else stored is clamped,
/// so that its row stays readable.
pub(crate) fn timestamp(stored: DateTime<Utc>) -> Timestamp {
    let earliest = Timestamp::EARLIEST;
    Timestamp::try_from(stored).unwrap_or(if stored < DateTime::<Utc>::from(earliest) {
        earliest
    } else {
        Timestamp::LATEST
    })
}

pub(crate) fn status(stored: &str) -> Result<ConversationStatus> {
    ConversationStatus::parse(stored)
        .ok_or_else(|| corrupt("conversations", format!("unknown status {stored:?}")))
}

pub(crate) fn key(tenant: &str, conversation: &str) -> Result<ConversationKey> {
    ConversationKey::parse(tenant, conversation)
        .map_err(|fault| corrupt("conversations", format!("key: {fault}")))
}

pub(crate) fn corrupt(table: &'static str, fault: String) -> Error {
    Error::Corrupt { table, fault }
}
