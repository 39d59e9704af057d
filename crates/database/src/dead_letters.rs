//! Dead letters: stored with body, headers, reason and times, so that operators can inspect, edit and
//! replay them. The dead-letter queues only transport them here.
//!
//! This file has the types and the queries that only read. `store` is used by the dead-letter collector.
//! `decisions` and `replays` are used by operators; their statements also write the audit log.

mod decisions;
mod replays;
mod selection;
mod store;

use std::fmt;

use chrono::{DateTime, Utc};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use serde::{Serialize, Serializer};
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

pub use decisions::Decision;
pub use replays::{ContentFingerprint, FailedAgain, ReplayOutcome};
pub use selection::{
    DeadLetterCursor, DeadLetterFilter, DeadLetterPage, ReplayedBefore, Selection,
};

use crate::{Database, Result};

/// A dead letter as the dead-letter collector read it from its queue.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its id, a UUIDv5: if the same dead letter arrives again, it has the same id.
    pub id: Uuid,
    /// The work queue in which it failed.
    pub queue: String,
    /// Why it was dead-lettered.
    pub reason: DeadLetterReason,
    /// The field at fault, if there is one.
    pub field: Option<String>,
    /// The error message.
    pub error: String,
    /// Its tenant, if the body names it.
    pub tenant_id: Option<String>,
    /// Its conversation, if the body names it.
    pub conversation_id: Option<String>,
    /// Its session, if the body names it.
    pub session_id: Option<String>,
    /// The message id: the publisher's, or the one that the first attempt derived.
    pub message_id: Option<String>,
    /// The body's `action_type`, if it has one.
    pub action_type: Option<String>,
    /// The routing key with which it was first published.
    pub routing_key: String,
    /// The exchange to which it was first published.
    pub exchange: String,
    /// The body, unchanged.
    pub body: Vec<u8>,
    /// Its AMQP properties, as JSON.
    pub properties: serde_json::Value,
    /// Its headers, as JSON.
    pub headers: serde_json::Value,
    /// How many attempts were made.
    pub attempts: i32,
    /// How often it was replayed before.
    pub replay_count: i32,
    /// The dead letter whose replay failed again and became this one.
    pub replay_of: Option<Uuid>,
    /// When it first failed.
    pub first_failed_at: Timestamp,
    /// When it last failed.
    pub last_failed_at: Timestamp,
}

/// The status of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterStatus {
    /// No operator has decided about it.
    Open,
    /// It was published again, and RabbitMQ confirmed that.
    Replayed,
    /// An operator discarded it.
    Discarded,
}

/// A stored dead letter, complete.
#[derive(Debug, Clone, PartialEq, FromRow, Serialize)]
pub struct DeadLetterRow {
    /// Its id.
    pub id: Uuid,
    /// The work queue.
    pub queue: String,
    /// Why it was dead-lettered. A text, because a later version may have more reasons.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The error message.
    pub error: String,
    /// Its tenant.
    pub tenant_id: Option<String>,
    /// Its conversation.
    pub conversation_id: Option<String>,
    /// Its session.
    pub session_id: Option<String>,
    /// The message id: the publisher's, or the one that the first attempt derived.
    pub message_id: Option<String>,
    /// The body's `action_type`.
    pub action_type: Option<String>,
    /// The original routing key.
    pub routing_key: String,
    /// The original exchange.
    pub exchange: String,
    /// The body as it arrived; serialised as text, with replacement characters if it is not UTF-8.
    #[serde(serialize_with = "body_as_text")]
    pub body: Vec<u8>,
    /// Its AMQP properties.
    pub properties: serde_json::Value,
    /// Its headers.
    pub headers: serde_json::Value,
    /// How many attempts were made.
    pub attempts: i32,
    /// How often it was replayed before.
    pub replay_count: i32,
    /// When it first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it last failed.
    pub last_failed_at: DateTime<Utc>,
    /// When the dead-letter collector stored it.
    pub stored_at: DateTime<Utc>,
    /// How often the same dead letter arrived.
    pub copies: i64,
    /// Its status.
    #[sqlx(try_from = "String")]
    pub status: DeadLetterStatus,
    /// When the status changed.
    pub status_changed_at: Option<DateTime<Utc>>,
    /// Why it was discarded.
    pub status_reason: Option<String>,
    /// The edited body, which a replay publishes instead of the body.
    #[serde(serialize_with = "edited_as_text")]
    pub edited_body: Option<Vec<u8>>,
    /// When it was last edited.
    pub edited_at: Option<DateTime<Utc>>,
    /// Who edited it last.
    pub edited_by: Option<String>,
    /// The dead letter whose replay failed again and became this one.
    pub replay_of: Option<Uuid>,
    /// When a replay last failed to publish it.
    pub replay_tried_at: Option<DateTime<Utc>>,
    /// Why that replay failed to publish it.
    pub replay_fault: Option<String>,
}

/// A dead letter in a list: without body, properties and headers, which may be large.
#[derive(Debug, Clone, PartialEq, FromRow, Serialize)]
pub struct ListedDeadLetter {
    /// Its id.
    pub id: Uuid,
    /// The work queue.
    pub queue: String,
    /// Why it was dead-lettered.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The error message.
    pub error: String,
    /// Its tenant.
    pub tenant_id: Option<String>,
    /// Its conversation.
    pub conversation_id: Option<String>,
    /// Its session.
    pub session_id: Option<String>,
    /// The message id: the publisher's, or the one that the first attempt derived.
    pub message_id: Option<String>,
    /// The body's `action_type`.
    pub action_type: Option<String>,
    /// The original routing key.
    pub routing_key: String,
    /// The original exchange.
    pub exchange: String,
    /// How long the body is, in bytes.
    pub body_bytes: i32,
    /// Whether it has an edited body.
    pub edited: bool,
    /// How many attempts were made.
    pub attempts: i32,
    /// How often it was replayed before.
    pub replay_count: i32,
    /// The dead letter whose replay failed again and became this one.
    pub replay_of: Option<Uuid>,
    /// When it first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it last failed.
    pub last_failed_at: DateTime<Utc>,
    /// When the dead-letter collector stored it.
    pub stored_at: DateTime<Utc>,
    /// How often the same dead letter arrived.
    pub copies: i64,
    /// Its status.
    #[sqlx(try_from = "String")]
    pub status: DeadLetterStatus,
    /// When the status changed, if it did.
    pub status_changed_at: Option<DateTime<Utc>>,
    /// Why it was discarded.
    pub status_reason: Option<String>,
    /// Why the last replay failed to publish it.
    pub replay_fault: Option<String>,
}

/// Dead letters with the same queue, reason, field and error pattern.
#[derive(Debug, Clone, PartialEq, FromRow, Serialize)]
pub struct DeadLetterGroup {
    /// The work queue.
    pub queue: String,
    /// Why they were dead-lettered.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The error message that they share: quoted values are `"…"`, numbers are `#`.
    pub error: String,
    /// How many there are.
    pub dead_letters: i64,
    /// How many tenants they belong to.
    pub tenants: i64,
    /// How many of them were replayed and failed again.
    pub failed_again: i64,
    /// The earliest first failure.
    pub first_failed_at: DateTime<Utc>,
    /// The latest last failure.
    pub last_failed_at: DateTime<Utc>,
    /// The id of the newest of them.
    pub example: Uuid,
}

/// The number of open dead letters of a queue and reason.
#[derive(Debug, Clone, PartialEq, Eq, FromRow, Serialize)]
pub struct OpenDeadLetters {
    /// The work queue.
    pub queue: String,
    /// Why they were dead-lettered.
    pub reason: String,
    /// How many there are.
    pub dead_letters: i64,
}

pub(crate) const LISTED: &str = "id, queue, reason, field, error, tenant_id, conversation_id, session_id, message_id, \
     action_type, routing_key, exchange, octet_length(body) AS body_bytes, \
     edited_body IS NOT NULL AS edited, attempts, replay_count, replay_of, first_failed_at, \
     last_failed_at, stored_at, copies, status, status_changed_at, status_reason, replay_fault";

/// An error without its values: quoted texts (with what is escaped in them) become "…"; UUIDs, numbers
/// and words that begin with a digit become #. Numbers in names, such as UTF-8 and v1.2, stay.
const PATTERN: &str = r#"regexp_replace(
    regexp_replace(error, '"([^"\\]|\\.)*"', '"…"', 'g'),
    '\m[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+\M'
    '|(?<![a-zA-Z_][0-9]?[0-9]?[-.])\m[0-9][[:alnum:]_]*([.][0-9]+)*\M',
    '#', 'g')"#;

impl Database {
    /// Dead letters that match, newest first; only those older than `before`, the last one of the page
    /// before.
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        status: Option<DeadLetterStatus>,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<ListedDeadLetter>> {
        let mut query =
            QueryBuilder::new(format!("SELECT {LISTED} FROM dead_letters d WHERE true"));
        selection::push_status(&mut query, status.as_slice());
        filter.push(&mut query);
        if let Some(before) = before {
            query.push(
                " AND (d.stored_at, d.id) < (SELECT p.stored_at, p.id FROM dead_letters p WHERE p.id = ",
            );
            query.push_bind(before).push(")");
        }
        query.push(" ORDER BY d.stored_at DESC, d.id DESC LIMIT ").push_bind(i64::from(limit));
        self.within(async |connection| Ok(query.build_query_as().fetch_all(connection).await?))
            .await
    }

    /// How many dead letters match.
    pub async fn count_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        status: Option<DeadLetterStatus>,
    ) -> Result<u64> {
        let mut query = QueryBuilder::new("SELECT count(*) FROM dead_letters d WHERE true");
        selection::push_status(&mut query, status.as_slice());
        filter.push(&mut query);
        let count: i64 = self
            .within(async |connection| Ok(query.build_query_scalar().fetch_one(connection).await?))
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Groups of dead letters that match, the largest group first.
    pub async fn dead_letter_groups(
        &self,
        filter: &DeadLetterFilter,
        status: Option<DeadLetterStatus>,
        limit: u32,
    ) -> Result<Vec<DeadLetterGroup>> {
        let mut query = QueryBuilder::new(format!(
            "SELECT queue, reason, field, {PATTERN} AS error, count(*) AS dead_letters,
                    count(DISTINCT tenant_id) AS tenants,
                    count(*) FILTER (WHERE replay_count > 0) AS failed_again,
                    min(first_failed_at) AS first_failed_at, max(last_failed_at) AS last_failed_at,
                    (array_agg(id ORDER BY stored_at DESC, id DESC))[1] AS example
             FROM dead_letters d WHERE true"
        ));
        selection::push_status(&mut query, status.as_slice());
        filter.push(&mut query);
        query.push(" GROUP BY 1, 2, 3, 4 ORDER BY dead_letters DESC, 1, 2, 3, 4 LIMIT ");
        query.push_bind(i64::from(limit));
        self.within(async |connection| Ok(query.build_query_as().fetch_all(connection).await?))
            .await
    }

    /// One dead letter.
    pub async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetterRow>> {
        self.within(async |connection| {
            Ok(sqlx::query_as("SELECT * FROM dead_letters WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *connection)
                .await?)
        })
        .await
    }

    /// The dead letters that replays of this one became when they failed again, oldest first.
    pub async fn failed_again_as(&self, id: Uuid) -> Result<Vec<ListedDeadLetter>> {
        self.within(async |connection| {
            Ok(sqlx::query_as(sqlx::AssertSqlSafe(format!(
                "SELECT {LISTED} FROM dead_letters WHERE replay_of = $1 ORDER BY stored_at, id"
            )))
            .bind(id)
            .fetch_all(&mut *connection)
            .await?)
        })
        .await
    }

    /// How many dead letters are open, by queue and reason.
    pub async fn open_dead_letters(&self) -> Result<Vec<OpenDeadLetters>> {
        self.within(async |connection| {
            Ok(sqlx::query_as(
                "SELECT queue, reason, count(*) AS dead_letters FROM dead_letters
                 WHERE status = 'open' GROUP BY queue, reason ORDER BY queue, reason",
            )
            .fetch_all(&mut *connection)
            .await?)
        })
        .await
    }
}

impl DeadLetterRow {
    /// The body that a replay publishes: the edited one if there is one.
    #[must_use]
    pub fn body_to_send(&self) -> &[u8] {
        self.edited_body.as_deref().unwrap_or(&self.body)
    }

    /// Bytes of its body and its edited body.
    fn bytes(&self) -> usize {
        self.body.len() + self.edited_body.as_ref().map_or(0, Vec::len)
    }
}

impl DeadLetterStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Open, Self::Replayed, Self::Discarded];

    /// The name in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        }
    }
}

impl fmt::Display for DeadLetterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A stored status that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown dead-letter status {0:?}")]
pub struct UnknownStatus(String);

impl TryFrom<String> for DeadLetterStatus {
    type Error = UnknownStatus;
    fn try_from(stored: String) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|it| it.as_str() == stored).ok_or(UnknownStatus(stored))
    }
}

fn body_as_text<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(body))
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn edited_as_text<S: Serializer>(body: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    body.as_deref().map(String::from_utf8_lossy).serialize(serializer)
}
