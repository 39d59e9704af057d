//! The record of a dead letter, and its two views: the summary in lists, and the detail.
//!
//! | type | dead letter | message | state | edit |
//! |---|---|---|---|---|
//! | [`CollectedDeadLetter`]: as the collector stores it | yes | yes | | |
//! | [`DeadLetterSummary`]: in a list | yes | its size | yes | whether |
//! | [`DeadLetterDetail`]: shown, edited, replayed | yes | yes | yes | yes |
//!
//! Users see these types as JSON.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::rows::from_row;

/// A dead letter: which message failed, where and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its id: if the same dead letter arrives again, it has the same id.
    pub id: Uuid,
    /// The work queue in which it failed.
    pub queue: String,
    /// Why it was dead-lettered. A text, because a later version may have more reasons.
    pub reason: String,
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
}

/// The failed message, as it was delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailedMessage {
    /// The body, unchanged, perhaps shared with the delivery that it came with; as JSON a text, with replacement characters where it is not UTF-8.
    #[serde(serialize_with = "body_as_text")]
    pub body: Bytes,
    /// The AMQP properties that its sender set.
    pub properties: serde_json::Value,
    /// The headers that its sender set.
    pub headers: serde_json::Value,
    /// Which headers of its sender are missing, if any are.
    pub left_out: Option<serde_json::Value>,
    /// How it was delivered to the dead-letter collector: the headers of RabbitMQ and of the fleet, and of a copy
    /// its own properties.
    pub delivery: serde_json::Value,
}

/// What became of a stored dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterState {
    /// When the dead-letter collector stored it.
    pub stored_at: DateTime<Utc>,
    /// Which columns PostgreSQL refused to store, and its error: `{"columns": ["headers", …], "error": "…"}`. `None`
    /// if it is stored whole.
    pub not_stored: Option<serde_json::Value>,
    /// How often the same dead letter arrived.
    pub copies: i64,
    /// Its status.
    pub status: DeadLetterStatus,
    /// When the status changed, if it did.
    pub status_changed_at: Option<DateTime<Utc>>,
    /// Why it was discarded.
    pub status_reason: Option<String>,
    /// When a replay last failed to publish it.
    pub replay_tried_at: Option<DateTime<Utc>>,
    /// Why that replay failed to publish it.
    pub replay_fault: Option<String>,
}

domain::named! {
    /// The status of a dead letter.
    #[derive(Serialize, sqlx::Type)]
    #[serde(rename_all = "snake_case")]
    #[sqlx(type_name = "text", rename_all = "snake_case")]
    pub enum DeadLetterStatus {
        /// No operator has decided about it.
        Open = "open",
        /// It was published again, and RabbitMQ confirmed that.
        Replayed = "replayed",
        /// An operator discarded it.
        Discarded = "discarded",
    }
}

/// The edited copy of a body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeadLetterEdit {
    /// The edited body, which a replay publishes instead of the body.
    #[serde(serialize_with = "edited_as_text")]
    pub edited_body: Option<Vec<u8>>,
    /// When it was last edited.
    pub edited_at: Option<DateTime<Utc>>,
    /// Who edited it last.
    pub edited_by: Option<String>,
}

/// A dead letter as the dead-letter collector read it from its queue.
#[derive(Debug, Clone)]
pub struct CollectedDeadLetter {
    /// What failed, where and why.
    pub dead_letter: DeadLetter,
    /// The failed message.
    pub message: FailedMessage,
}

/// A dead letter in a list: without its message, which may be large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterSummary {
    /// What failed, where and why.
    #[serde(flatten)]
    pub dead_letter: DeadLetter,
    /// What became of it.
    #[serde(flatten)]
    pub state: DeadLetterState,
    /// How long the body is, in bytes.
    pub body_bytes: i32,
    /// Whether it has an edited body.
    pub edited: bool,
}

/// A stored dead letter, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetterDetail {
    /// What failed, where and why.
    #[serde(flatten)]
    pub dead_letter: DeadLetter,
    /// The failed message.
    #[serde(flatten)]
    pub message: FailedMessage,
    /// What became of it.
    #[serde(flatten)]
    pub state: DeadLetterState,
    /// Its edited copy.
    #[serde(flatten)]
    pub edit: DeadLetterEdit,
}

/// Dead letters with the same queue, reason, field and error pattern.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenDeadLetters {
    /// The work queue.
    pub queue: String,
    /// Why they were dead-lettered.
    pub reason: String,
    /// How many there are.
    pub dead_letters: i64,
}

impl DeadLetterDetail {
    /// The body that a replay publishes: the edited one if there is one.
    #[must_use]
    pub fn body_to_send(&self) -> &[u8] {
        self.edit.edited_body.as_deref().unwrap_or(&self.message.body)
    }

    /// Bytes of its body and its edited body.
    pub(super) fn bytes(&self) -> usize {
        self.message.body.len() + self.edit.edited_body.as_ref().map_or(0, Vec::len)
    }
}

from_row! { DeadLetter:
    id, queue, reason, field, error, tenant_id, conversation_id, session_id, message_id, action_type,
    routing_key, exchange, attempts, replay_count, replay_of, first_failed_at, last_failed_at
}
from_row! { FailedMessage: properties, headers, left_out, delivery; body: body_of }
from_row! { DeadLetterState:
    stored_at, not_stored, copies, status, status_changed_at, status_reason, replay_tried_at,
    replay_fault
}
from_row! { DeadLetterEdit: edited_body, edited_at, edited_by }
from_row! { DeadLetterSummary: body_bytes, edited;
    dead_letter: DeadLetter::from_row, state: DeadLetterState::from_row
}
from_row! { DeadLetterDetail:;
    dead_letter: DeadLetter::from_row, message: FailedMessage::from_row,
    state: DeadLetterState::from_row, edit: DeadLetterEdit::from_row
}
from_row! { DeadLetterGroup:
    queue, reason, field, error, dead_letters, tenants, failed_again, first_failed_at, last_failed_at,
    example
}
from_row! { OpenDeadLetters: queue, reason, dead_letters }

fn body_of(row: &PgRow) -> sqlx::Result<Bytes> {
    row.try_get::<Vec<u8>, _>("body").map(Bytes::from)
}

fn body_as_text<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(body))
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn edited_as_text<S: Serializer>(body: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    body.as_deref().map(String::from_utf8_lossy).serialize(serializer)
}
