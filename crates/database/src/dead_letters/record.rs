//! Dead letters: as they are collected, stored and listed.

use std::fmt;

use chrono::{DateTime, Utc};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use serde::{Serialize, Serializer};
use sqlx::FromRow;
use uuid::Uuid;

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

impl DeadLetterRow {
    /// The body that a replay publishes: the edited one if there is one.
    #[must_use]
    pub fn body_to_send(&self) -> &[u8] {
        self.edited_body.as_deref().unwrap_or(&self.body)
    }

    /// Bytes of its body and its edited body.
    pub(super) fn bytes(&self) -> usize {
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
