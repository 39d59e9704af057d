//! Conversions between rows and the types of `domain`.

use chrono::{DateTime, Utc};
use domain::ids::{AgentId, ConversationKey, InvalidId, MessageId, SessionId, UserId};
use domain::message::{BodyHash, Content, Details, Json, Message, Role};
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use sqlx::postgres::{PgArguments, PgBindIterExt as _, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use crate::{Error, Result};

/// The value of `format` for content that is stored unchanged.
pub(crate) const FORMAT_PLAIN: i16 = 1;

/// Binds arrays with one value for each conversation.
pub(crate) trait BindKeys: Sized {
    /// Binds tenants and ids.
    fn bind_keys<'k>(self, keys: impl Iterator<Item = &'k ConversationKey> + Clone) -> Self;
}

impl BindKeys for Query<'_, Postgres, PgArguments> {
    fn bind_keys<'k>(self, keys: impl Iterator<Item = &'k ConversationKey> + Clone) -> Self {
        self.bind(keys.clone().map(|key| key.tenant.as_str()).bind_iter())
            .bind(keys.map(|key| key.conversation.as_str()).bind_iter())
    }
}

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
    /// Its place in an action of several messages whose sender gave no time.
    pub place: Option<Place>,
    /// The time with which it is stored.
    pub created_at: Timestamp,
    /// Whether its sender gave no time to it: that follows from its place among the messages that were sent with it.
    pub is_time_estimated: bool,
}

impl<'a> SaveRow<'a> {
    /// A message with the time that it says.
    #[must_use]
    pub fn new(key: &'a ConversationKey, session: &'a SessionId, message: &'a Message) -> Self {
        Self {
            key,
            session,
            tenant_tier: None,
            message,
            body_hash: message.body_hash(),
            place: None,
            created_at: message.created_at,
            is_time_estimated: false,
        }
    }
}

/// The place of a message in an action whose time is that of its receipt. Another attempt has a later time: what stands
/// before a message that is stored gets an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// A number of the action within the batch.
    pub action: usize,
    /// How many microseconds after the time of the action.
    pub micros: usize,
}

/// The columns of a message as [`message`] reads them. `json` columns are read as text, which keeps them
/// byte for byte.
pub(crate) const MESSAGE_COLUMNS: &str = "m.id, m.role, m.content, m.content_parts::text AS content_parts, \
     m.tool_calls::text AS tool_calls, m.tool_call_id, m.tokens_estimate, m.user_id, m.agent_id, \
     m.model_name, m.processing_time_ms, m.created_at, m.received_at, m.metadata::text AS metadata, m.format, \
     m.item::text AS item, m.usage::text AS usage, m.finish_reason, m.response_id, m.parent_message_id, \
     m.context_hash";

/// The bytes of all columns in [`MESSAGE_COLUMNS`] whose length only the size of a body limits.
pub(crate) const MESSAGE_BYTES: &str = "octet_length(m.content) + coalesce(octet_length(m.content_parts::text), 0) \
     + coalesce(octet_length(m.tool_calls::text), 0) + coalesce(octet_length(m.tool_call_id), 0) \
     + coalesce(octet_length(m.model_name), 0) + coalesce(octet_length(m.metadata::text), 0) \
     + coalesce(octet_length(m.item::text), 0) + coalesce(octet_length(m.usage::text), 0) \
     + coalesce(octet_length(m.finish_reason), 0) + coalesce(octet_length(m.response_id), 0) \
     + coalesce(octet_length(m.context_hash), 0)";

/// Implements `FromRow`. Fields before the `;` are read from the columns with their names; those after it, as
/// `field: function`, by a function of the row.
///
/// The rule: a type that users see as JSON implements `FromRow` by this macro and never derives it. Where a column
/// has another name than the field, the query renames the column (`AS field`), so that the JSON stays.
macro_rules! from_row {
    ($type:ident: $($field:ident),* $(; $($other:ident: $of:path),+)?) => {
        impl sqlx::FromRow<'_, sqlx::postgres::PgRow> for $type {
            fn from_row(row: &sqlx::postgres::PgRow) -> sqlx::Result<Self> {
                Ok(Self {
                    $($field: sqlx::Row::try_get(row, stringify!($field))?,)*
                    $($($other: $of(row)?,)+)?
                })
            }
        }
    };
}
pub(crate) use from_row;

/// The message in the columns [`MESSAGE_COLUMNS`].
pub(crate) fn message(row: &PgRow) -> Result<Message> {
    let format: i16 = row.try_get("format")?;
    if format != FORMAT_PLAIN {
        return Err(corrupt(
            "messages",
            format!("unknown format {format}; a newer version of Verbatim wrote it"),
        ));
    }
    let content: String = row.try_get("content")?;
    Ok(Message {
        id: id(row, "messages", "id", MessageId::new)?,
        role: row
            .try_get::<&str, _>("role")
            .map(Role::parse)?
            .ok_or_else(|| corrupt("messages", "unknown role".to_owned()))?,
        content: match json(row, "messages", "content_parts")? {
            Some(json) => Content::Parts { json, text: content },
            None => Content::Text(content),
        },
        tool_calls: json(row, "messages", "tool_calls")?,
        tool_call_id: row.try_get("tool_call_id")?,
        tokens_estimate: row.try_get("tokens_estimate")?,
        user_id: optional_id(row, "messages", "user_id", UserId::new)?,
        agent_id: optional_id(row, "messages", "agent_id", AgentId::new)?,
        model_name: row.try_get("model_name")?,
        processing_time_ms: row.try_get("processing_time_ms")?,
        created_at: timestamp(row.try_get("created_at")?),
        received_at: timestamp(row.try_get("received_at")?),
        metadata: json(row, "messages", "metadata")?,
        details: Details {
            item: json(row, "messages", "item")?,
            usage: json(row, "messages", "usage")?,
            finish_reason: row.try_get("finish_reason")?,
            response_id: row.try_get("response_id")?,
            parent_message_id: optional_id(row, "messages", "parent_message_id", MessageId::new)?,
            context_hash: row.try_get("context_hash")?,
        }
        .boxed(),
    })
}

/// The JSON in a column that was read as text.
pub(crate) fn json(row: &PgRow, table: &'static str, column: &'static str) -> Result<Option<Json>> {
    row.try_get::<Option<String>, _>(column)?
        .map(Json::parse)
        .transpose()
        .map_err(|error| corrupt(table, format!("{column}: {error}")))
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

/// The status in the column `status`.
pub(crate) fn status_of(row: &PgRow) -> sqlx::Result<ConversationStatus> {
    Ok(status(row.try_get("status")?)?)
}

/// The id in a column.
pub(crate) fn id<'r, T>(
    row: &'r PgRow,
    table: &'static str,
    column: &str,
    new: impl FnOnce(&'r str) -> Result<T, InvalidId>,
) -> Result<T> {
    new(row.try_get(column)?).map_err(|fault| corrupt(table, format!("{column} {fault}")))
}

/// The id in a column that may be null.
pub(crate) fn optional_id<'r, T>(
    row: &'r PgRow,
    table: &'static str,
    column: &str,
    new: impl FnOnce(&'r str) -> Result<T, InvalidId>,
) -> Result<Option<T>> {
    match row.try_get::<Option<&str>, _>(column)? {
        Some(_) => id(row, table, column, new).map(Some),
        None => Ok(None),
    }
}

/// The item that a row is about, by its position `n` among the items of the query, counted from 1.
pub(crate) fn item_of<'a, T>(row: &PgRow, items: &'a [T], table: &'static str) -> Result<&'a T> {
    let n: i64 = row.try_get("n")?;
    let item = usize::try_from(n - 1).ok().and_then(|n| items.get(n));
    item.ok_or_else(|| corrupt(table, "the result has a row that was not requested".into()))
}

/// The key in the columns `tenant_id` and `id`.
pub(crate) fn key_of(row: &PgRow) -> Result<ConversationKey> {
    key(row.try_get("tenant_id")?, row.try_get("id")?)
}

pub(crate) fn key(tenant: &str, conversation: &str) -> Result<ConversationKey> {
    ConversationKey::parse(tenant, conversation)
        .map_err(|fault| corrupt("conversations", format!("key: {fault}")))
}

pub(crate) fn corrupt(table: &'static str, fault: String) -> Error {
    Error::Corrupt { table, fault }
}
