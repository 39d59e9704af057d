//! Dead letters: kept with body, headers, reason and times, so that they can be understood, mended
//! and sent again. The queues are only their transport.
//!
//! Here is what a dead letter is and how it is looked at, which changes nothing. `store` is the dead-letter collector's way
//! in, `decisions` and `replays` are what operators do; each of these writes the audit log in the same
//! statement.

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

/// A dead letter as the dead-letter collector found it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// What makes it the same dead letter when it comes again.
    pub id: Uuid,
    /// The work queue that it could not leave in the ordinary way.
    pub queue: String,
    /// Why it died.
    pub reason: DeadLetterReason,
    /// The field at fault, where one is.
    pub field: Option<String>,
    /// The error in words.
    pub error: String,
    /// Its tenant, where the body tells.
    pub tenant_id: Option<String>,
    /// Its conversation, where the body tells.
    pub conversation_id: Option<String>,
    /// Its session, where the body tells.
    pub session_id: Option<String>,
    /// The identity that the first attempt gave it.
    pub message_id: Option<String>,
    /// The body's `action_type`, where it has one.
    pub action_type: Option<String>,
    /// The routing key with which it was first published.
    pub routing_key: String,
    /// The exchange to which it was first published.
    pub exchange: String,
    /// The body, untouched.
    pub body: Vec<u8>,
    /// Its AMQP properties, as JSON.
    pub properties: serde_json::Value,
    /// Its headers, as JSON.
    pub headers: serde_json::Value,
    /// How often it was tried.
    pub attempts: i32,
    /// How often it was replayed before.
    pub replay_count: i32,
    /// The dead letter whose replay came back as this one.
    pub replay_of: Option<Uuid>,
    /// When it first failed.
    pub first_failed_at: Timestamp,
    /// When it last failed.
    pub last_failed_at: Timestamp,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterStatus {
    /// Nobody has decided yet.
    Open,
    /// It was sent again, and RabbitMQ confirmed that.
    Replayed,
    /// Somebody decided that it may stay dead.
    Discarded,
}

/// A stored dead letter with all that is known about it.
#[derive(Debug, Clone, PartialEq, FromRow, Serialize)]
pub struct DeadLetterRow {
    /// Its id.
    pub id: Uuid,
    /// The work queue.
    pub queue: String,
    /// Why it died; a text, because a later version may know more reasons.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The error in words.
    pub error: String,
    /// Its tenant.
    pub tenant_id: Option<String>,
    /// Its conversation.
    pub conversation_id: Option<String>,
    /// Its session.
    pub session_id: Option<String>,
    /// The identity that the first attempt gave it.
    pub message_id: Option<String>,
    /// The body's `action_type`.
    pub action_type: Option<String>,
    /// The original routing key.
    pub routing_key: String,
    /// The original exchange.
    pub exchange: String,
    /// The body as it came; shown as text where it is UTF-8.
    #[serde(serialize_with = "body_as_text")]
    pub body: Vec<u8>,
    /// Its AMQP properties.
    pub properties: serde_json::Value,
    /// Its headers.
    pub headers: serde_json::Value,
    /// How often it was tried.
    pub attempts: i32,
    /// How often it was replayed before.
    pub replay_count: i32,
    /// When it first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it last failed.
    pub last_failed_at: DateTime<Utc>,
    /// When the dead-letter collector stored it.
    pub stored_at: DateTime<Utc>,
    /// How often the same dead letter came.
    pub copies: i64,
    /// What became of it.
    #[sqlx(try_from = "String")]
    pub status: DeadLetterStatus,
    /// Since when.
    pub status_changed_at: Option<DateTime<Utc>>,
    /// Why it was discarded.
    pub status_reason: Option<String>,
    /// What a replay sends instead of the body.
    #[serde(serialize_with = "edited_as_text")]
    pub edited_body: Option<Vec<u8>>,
    /// When it was edited last.
    pub edited_at: Option<DateTime<Utc>>,
    /// By whom.
    pub edited_by: Option<String>,
    /// The dead letter whose replay came back as this one.
    pub replay_of: Option<Uuid>,
    /// When a replay last failed to send it.
    pub replay_tried_at: Option<DateTime<Utc>>,
    /// Why it failed.
    pub replay_fault: Option<String>,
}

/// A dead letter in a list: without body, properties and headers, which may be large.
#[derive(Debug, Clone, PartialEq, FromRow, Serialize)]
pub struct ListedDeadLetter {
    /// Its id.
    pub id: Uuid,
    /// The work queue.
    pub queue: String,
    /// Why it died.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The error in words.
    pub error: String,
    /// Its tenant.
    pub tenant_id: Option<String>,
    /// Its conversation.
    pub conversation_id: Option<String>,
    /// Its session.
    pub session_id: Option<String>,
    /// The identity that the first attempt gave it.
    pub message_id: Option<String>,
    /// The body's `action_type`.
    pub action_type: Option<String>,
    /// The original routing key.
    pub routing_key: String,
    /// The original exchange.
    pub exchange: String,
    /// How long the body is, in bytes.
    pub body_bytes: i32,
    /// Whether an edited copy lies beside the body.
    pub edited: bool,
    /// How often it was tried.
    pub attempts: i32,
    /// How often it was replayed before.
    pub replay_count: i32,
    /// The dead letter whose replay came back as this one.
    pub replay_of: Option<Uuid>,
    /// When it first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it last failed.
    pub last_failed_at: DateTime<Utc>,
    /// When the dead-letter collector stored it.
    pub stored_at: DateTime<Utc>,
    /// How often the same dead letter came.
    pub copies: i64,
    /// What became of it.
    #[sqlx(try_from = "String")]
    pub status: DeadLetterStatus,
    /// Since when, where that changed.
    pub status_changed_at: Option<DateTime<Utc>>,
    /// Why an operator changed it.
    pub status_reason: Option<String>,
    /// Why the last replay could not send it.
    pub replay_fault: Option<String>,
}

/// Dead letters that died alike.
#[derive(Debug, Clone, PartialEq, FromRow, Serialize)]
pub struct DeadLetterGroup {
    /// The work queue.
    pub queue: String,
    /// Why they died.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// What their errors have in common: quoted values are `"…"`, numbers are `#`.
    pub error: String,
    /// How many they are.
    pub dead_letters: i64,
    /// Of how many tenants.
    pub tenants: i64,
    /// How many of them were replayed before and came back.
    pub failed_again: i64,
    /// When the first of them failed first.
    pub first_failed_at: DateTime<Utc>,
    /// When the last of them failed last.
    pub last_failed_at: DateTime<Utc>,
    /// The newest of them.
    pub example: Uuid,
}

/// How many dead letters wait for an operator, by queue and reason.
#[derive(Debug, Clone, PartialEq, Eq, FromRow, Serialize)]
pub struct OpenDeadLetters {
    /// The work queue.
    pub queue: String,
    /// Why they died.
    pub reason: String,
    /// How many.
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
    /// Dead letters that match, newest first; from the dead letter `before` on, where a page ended with it.
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

    /// Dead letters that match, by what they have in common, the largest group first.
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

    /// What a dead letter's replays came back as, the first one first.
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
    /// What a replay sends: the edited copy where there is one.
    #[must_use]
    pub fn body_to_send(&self) -> &[u8] {
        self.edited_body.as_deref().unwrap_or(&self.body)
    }

    /// Bytes of its body and its edited copy.
    fn bytes(&self) -> usize {
        self.body.len() + self.edited_body.as_ref().map_or(0, Vec::len)
    }
}

impl DeadLetterStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Open, Self::Replayed, Self::Discarded];

    /// The stored name.
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

/// A stored status that no version has written.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no status of a dead letter")]
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
