//! Reading the newest messages, in one snapshot with the numbers that decide whether a hot copy is valid.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::message::{Message, Position};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::epoch::{Numbers, read_numbers};
use crate::rows::{MESSAGE_BYTES, MESSAGE_COLUMNS, message};
use crate::{Database, Result};

/// Which messages to read: the newest ones before a position.
#[derive(Debug, Clone)]
pub struct Page {
    /// The most messages to read.
    pub newest: usize,
    /// The most bytes of content to read; one message is read even if it is larger.
    pub max_bytes: usize,
    /// Only messages before this position; `None` reads from the end.
    pub before: Option<Position>,
}

/// A page of messages, with the numbers of the same database snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The conversation's numbers.
    pub numbers: Numbers,
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Whether these include the first message of the conversation.
    pub from_beginning: bool,
}

impl Database {
    /// The newest messages before a position, in one snapshot with the conversation's numbers.
    pub async fn read(&self, key: &ConversationKey, page: &Page) -> Result<Snapshot> {
        self.in_snapshot(async |connection| {
            let numbers = read_numbers(connection, key).await?;
            let mut snapshot = Snapshot { numbers, messages: Vec::new(), from_beginning: true };
            if let Some(conversation) = &snapshot.numbers.conversation {
                let erased_at = conversation.erased_at.map(DateTime::<Utc>::from);
                snapshot.messages = read_page(connection, key, page, erased_at).await?;
                if let Some(oldest) = snapshot.messages.first() {
                    snapshot.from_beginning =
                        !any_before(connection, key, &oldest.position(), erased_at).await?;
                }
            }
            Ok(snapshot)
        })
        .await
    }
}

async fn read_page(
    connection: &mut PgConnection,
    key: &ConversationKey,
    page: &Page,
    erased_at: Option<DateTime<Utc>>,
) -> Result<Vec<Message>> {
    let before = page.before.as_ref();
    // The innermost query reads the index backwards and stops at the limit, but includes all rows of
    // the last time; only these rows are sorted by id too. The running sum of bytes ends a page of large
    // messages early. The bounds of `created_at` are conditions of their own, without an `OR`, so that
    // PostgreSQL uses them as bounds of the index.
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT * FROM (
             SELECT {MESSAGE_COLUMNS},
                    row_number() OVER newest_first AS n,
                    sum({MESSAGE_BYTES}) OVER newest_first AS bytes
             FROM (SELECT * FROM message_rows
                   WHERE conversation = (SELECT number FROM conversations WHERE tenant_id = $1 AND id = $2)
                     AND created_at <= coalesce($3, 'infinity'::timestamptz)
                     AND ($3 IS NULL OR created_at < $3 OR id < $4 COLLATE \"C\")
                     AND created_at > coalesce($5, '-infinity'::timestamptz)
                   ORDER BY created_at DESC FETCH FIRST ($6) ROWS WITH TIES) AS m
             WINDOW newest_first AS (ORDER BY m.created_at DESC, m.id DESC)) AS page
         WHERE n <= $6 AND (n = 1 OR bytes <= $7)
         ORDER BY created_at, id"
    )))
    .bind(key.tenant.as_str())
    .bind(key.conversation.as_str())
    .bind(before.map(|position| DateTime::<Utc>::from(position.created_at)))
    .bind(before.map(|position| position.id.as_str()))
    .bind(erased_at)
    .bind(i64::try_from(page.newest).unwrap_or(i64::MAX))
    .bind(i64::try_from(page.max_bytes).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    rows.iter().map(message).collect()
}

async fn any_before(
    connection: &mut PgConnection,
    key: &ConversationKey,
    position: &Position,
    erased_at: Option<DateTime<Utc>>,
) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM message_rows
                        WHERE conversation = (SELECT number FROM conversations
                                              WHERE tenant_id = $1 AND id = $2)
                          AND created_at <= $3
                          AND (created_at < $3 OR id < $4 COLLATE \"C\")
                          AND created_at > coalesce($5, '-infinity'::timestamptz))",
    )
    .bind(key.tenant.as_str())
    .bind(key.conversation.as_str())
    .bind(DateTime::<Utc>::from(position.created_at))
    .bind(position.id.as_str())
    .bind(erased_at)
    .fetch_one(connection)
    .await?)
}
