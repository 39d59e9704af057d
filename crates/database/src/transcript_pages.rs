//! Pages of a conversation's messages, from either end, active or archived alike.

use chrono::{DateTime, Duration, Utc};
use domain::ids::ConversationKey;
use domain::json::Json;
use domain::message::{Message, Position};
use domain::time::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow as _, PgConnection, Row as _};

use crate::conversation_pages::{ConversationSummary, SUMMARY};
use crate::rows::{MESSAGE_BYTES, MESSAGE_COLUMNS, json, message};
use crate::{ConversationStats, Database, Result};

/// In which order messages are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadingOrder {
    /// From the first message on.
    OldestFirst,
    /// From the last message back.
    NewestFirst,
}

/// Which messages to read.
#[derive(Debug, Clone)]
pub struct TranscriptRequest {
    /// In which order.
    pub order: ReadingOrder,
    /// Those after this position, in that order; `None`: from the end where the order begins.
    pub after: Option<Position>,
    /// The most messages.
    pub limit: u32,
    /// The most bytes of content; one message is read even if it is larger.
    pub max_bytes: usize,
}

/// A page of a transcript, of one snapshot.
#[derive(Debug, Clone)]
pub struct TranscriptPage {
    /// The conversation.
    pub conversation: ConversationSummary,
    /// What its first sender gave of it.
    pub metadata: Option<Json>,
    /// When its content was erased last: nothing before it is read.
    pub erased_at: Option<DateTime<Utc>>,
    /// Up to which feedback counts in `satisfaction`.
    pub satisfaction_at: Option<DateTime<Utc>>,
    /// Its statistics, once they are computed.
    pub statistics: Option<ConversationStats>,
    /// The messages, in the order that was asked for.
    pub messages: Vec<PagedMessage>,
    /// Whether there are more in that order.
    pub has_more: bool,
}

/// A message of a page.
#[derive(Debug, Clone)]
pub struct PagedMessage {
    /// The message.
    pub message: Message,
    /// Its tokens; counted when the conversation is archived.
    pub tokens: Option<i64>,
}

impl Database {
    /// A page of a conversation's messages; `None` if the conversation does not exist.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn transcript_page(
        &self,
        key: &ConversationKey,
        request: &TranscriptRequest,
    ) -> Result<Option<TranscriptPage>> {
        self.in_snapshot(async |connection| {
            let Some(row) = conversation(self, connection, key).await? else { return Ok(None) };
            let erased_at: Option<DateTime<Utc>> = row.try_get("erased_at")?;
            let mut messages =
                messages(self, connection, row.try_get("number")?, request, erased_at).await?;
            let has_more = messages.has_more;
            let statistics = statistics(self, connection, key).await?;
            Ok(Some(TranscriptPage {
                conversation: ConversationSummary::from_row(&row)?,
                metadata: json(&row, "conversations", "metadata")?,
                erased_at,
                satisfaction_at: row.try_get("satisfaction_at")?,
                statistics,
                messages: std::mem::take(&mut messages.messages),
                has_more,
            }))
        })
        .await
    }
}

pub(crate) fn conversation_statement() -> String {
    format!(
        "SELECT {SUMMARY}, c.number, c.metadata::text AS metadata, c.erased_at, c.satisfaction_at
         FROM conversations c WHERE c.tenant_id = $1 AND c.id = $2"
    )
}

async fn conversation(
    database: &Database,
    connection: &mut PgConnection,
    key: &ConversationKey,
) -> Result<Option<PgRow>> {
    Ok(sqlx::query(AssertSqlSafe(conversation_statement()))
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str())
        .persistent(database.keeps_statements())
        .fetch_optional(connection)
        .await?)
}

pub(crate) const fn statistics_statement() -> &'static str {
    "SELECT * FROM conversation_stats WHERE tenant_id = $1 AND conversation_id = $2"
}

async fn statistics(
    database: &Database,
    connection: &mut PgConnection,
    key: &ConversationKey,
) -> Result<Option<ConversationStats>> {
    Ok(sqlx::query_as(statistics_statement())
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str())
        .persistent(database.keeps_statements())
        .fetch_optional(connection)
        .await?)
}

/// A time before every message: times are of the years 1970 to 2199 (`domain::time`).
fn before_all() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH - Duration::days(1)
}

/// A time after every message.
fn after_all() -> DateTime<Utc> {
    DateTime::from(Timestamp::LATEST) + Duration::days(1)
}

struct Messages {
    messages: Vec<PagedMessage>,
    has_more: bool,
}

/// As `read_page` of `messages.rs`: the innermost query reads the index in its order, with all rows of the last time,
/// which are then sorted by id. Each condition compares a column with a parameter: under row-level security PostgreSQL
/// enters an index with nothing else, not with `coalesce($2, …)`.
pub(crate) fn messages_statement(order: ReadingOrder) -> String {
    let (direction, beyond) = match order {
        ReadingOrder::OldestFirst => ("ASC", ">"),
        ReadingOrder::NewestFirst => ("DESC", "<"),
    };
    format!(
        "SELECT page.*, (SELECT t.tokens FROM message_tokens t WHERE t.conversation = $1 AND t.id = page.id) AS tokens
         FROM (SELECT {MESSAGE_COLUMNS},
                      row_number() OVER in_order AS n,
                      sum({MESSAGE_BYTES}) OVER in_order AS bytes
               FROM (SELECT * FROM message_rows
                     WHERE conversation = $1
                       AND created_at {beyond}= $2
                       AND (created_at {beyond} $2 OR id {beyond} $3 COLLATE \"C\")
                       AND created_at > $4
                     ORDER BY created_at {direction} FETCH FIRST ($5) ROWS WITH TIES) AS m
               WINDOW in_order AS (ORDER BY m.created_at {direction}, m.id {direction})) AS page
         WHERE n <= $5 AND (n = 1 OR bytes <= $6)
         ORDER BY n"
    )
}

async fn messages(
    database: &Database,
    connection: &mut PgConnection,
    number: i64,
    request: &TranscriptRequest,
    erased_at: Option<DateTime<Utc>>,
) -> Result<Messages> {
    let wanted = i64::from(request.limit);
    let after = request.after.as_ref();
    let rows = sqlx::query(AssertSqlSafe(messages_statement(request.order)))
        .bind(number)
        .bind(match (after, request.order) {
            (Some(position), _) => position.created_at.into(),
            (None, ReadingOrder::OldestFirst) => before_all(),
            (None, ReadingOrder::NewestFirst) => after_all(),
        })
        .bind(after.map_or("", |position| position.id.as_str()))
        .bind(erased_at.unwrap_or_else(before_all))
        .bind(wanted + 1)
        .bind(i64::try_from(request.max_bytes).unwrap_or(i64::MAX))
        .persistent(database.keeps_statements())
        .fetch_all(&mut *connection)
        .await?;
    let paged = |row| Ok(PagedMessage { message: message(row)?, tokens: row.try_get("tokens")? });
    let mut messages = rows.iter().map(paged).collect::<Result<Vec<_>>>()?;
    let is_full = messages.len() > request.limit as usize;
    messages.truncate(request.limit as usize);
    // A page that the bytes ended is asked what follows it: that is rare.
    let has_more = match messages.last() {
        Some(last) if !is_full && messages.len() < request.limit as usize => {
            any_beyond(
                database,
                connection,
                number,
                &last.message.position(),
                request.order,
                erased_at,
            )
            .await?
        }
        _ => is_full,
    };
    Ok(Messages { messages, has_more })
}

/// Whether a message lies beyond a position.
pub(crate) fn beyond(order: ReadingOrder) -> String {
    let beyond = match order {
        ReadingOrder::OldestFirst => ">",
        ReadingOrder::NewestFirst => "<",
    };
    format!(
        "SELECT EXISTS (SELECT FROM message_rows
                        WHERE conversation = $1 AND created_at {beyond}= $2
                          AND (created_at {beyond} $2 OR id {beyond} $3 COLLATE \"C\")
                          AND created_at > $4)"
    )
}

async fn any_beyond(
    database: &Database,
    connection: &mut PgConnection,
    number: i64,
    position: &Position,
    order: ReadingOrder,
    erased_at: Option<DateTime<Utc>>,
) -> Result<bool> {
    Ok(sqlx::query_scalar(AssertSqlSafe(beyond(order)))
        .bind(number)
        .bind(DateTime::<Utc>::from(position.created_at))
        .bind(position.id.as_str())
        .bind(erased_at.unwrap_or_else(before_all))
        .persistent(database.keeps_statements())
        .fetch_one(connection)
        .await?)
}
