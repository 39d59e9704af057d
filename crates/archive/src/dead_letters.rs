//! Dead letters: kept with body, headers, reason and times, so that they can be understood, mended
//! and sent again. The queues are only their transport.

use chrono::{DateTime, Utc};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use sqlx::Connection as _;
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

use crate::{Archive, Result};

/// A dead letter as the keeper found it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// What makes it the same letter when it comes again.
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
    /// When it first failed.
    pub first_failed_at: Timestamp,
    /// When it last failed.
    pub last_failed_at: Timestamp,
}

/// Which dead letters to list; absent fields do not restrict.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Of this work queue.
    pub queue: Option<String>,
    /// With this reason.
    pub reason: Option<DeadLetterReason>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// `open`, `replayed` or `discarded`.
    pub status: Option<String>,
}

/// A stored dead letter.
#[derive(Debug, Clone, PartialEq, FromRow, serde::Serialize)]
pub struct DeadLetterRow {
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
    /// The body; shown as text where it is UTF-8.
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
    /// When the keeper stored it.
    pub stored_at: DateTime<Utc>,
    /// How often the same letter came.
    pub copies: i64,
    /// `open`, `replayed` or `discarded`.
    pub status: String,
}

/// How many letters wait for an operator, by queue and reason.
#[derive(Debug, Clone, PartialEq, Eq, FromRow, serde::Serialize)]
pub struct OpenDeadLetters {
    /// The work queue.
    pub queue: String,
    /// Why they died.
    pub reason: String,
    /// How many.
    pub letters: i64,
}

impl Archive {
    /// Stores letters; one that is there already gains a copy. All or none.
    pub async fn store_dead_letters(&self, letters: &[DeadLetter]) -> Result<()> {
        // One statement may touch a row once only, so copies within the batch are counted here.
        let mut unique: Vec<(&DeadLetter, i64)> = Vec::with_capacity(letters.len());
        let mut sorted: Vec<&DeadLetter> = letters.iter().collect();
        sorted.sort_by_key(|letter| letter.id);
        for letter in sorted {
            match unique.last_mut() {
                Some((last, copies)) if last.id == letter.id => *copies += 1,
                _ => unique.push((letter, 1)),
            }
        }
        self.within(async |connection| {
            let mut transaction = connection.begin().await?;
            for (letter, copies) in unique {
                sqlx::query(
                    "INSERT INTO dead_letters (id, queue, reason, field, error, tenant_id,
                         conversation_id, session_id, message_id, action_type, routing_key, exchange,
                         body, properties, headers, attempts, replay_count, first_failed_at,
                         last_failed_at, copies)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                             $17, $18, $19, $20)
                     ON CONFLICT (id) DO UPDATE SET
                         copies = dead_letters.copies + excluded.copies,
                         last_failed_at = greatest(dead_letters.last_failed_at, excluded.last_failed_at)",
                )
                .bind(letter.id)
                .bind(&letter.queue)
                .bind(letter.reason.as_str())
                .bind(&letter.field)
                .bind(&letter.error)
                .bind(&letter.tenant_id)
                .bind(&letter.conversation_id)
                .bind(&letter.session_id)
                .bind(&letter.message_id)
                .bind(&letter.action_type)
                .bind(&letter.routing_key)
                .bind(&letter.exchange)
                .bind(&letter.body)
                .bind(sqlx::types::Json(&letter.properties))
                .bind(sqlx::types::Json(&letter.headers))
                .bind(letter.attempts)
                .bind(letter.replay_count)
                .bind(DateTime::<Utc>::from(letter.first_failed_at))
                .bind(DateTime::<Utc>::from(letter.last_failed_at))
                .bind(copies)
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await?;
            Ok(())
        })
        .await
    }

    /// Letters that match, newest first.
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        limit: u32,
    ) -> Result<Vec<DeadLetterRow>> {
        let mut query = QueryBuilder::new("SELECT * FROM dead_letters WHERE true");
        for (column, value) in [
            (" AND queue = ", filter.queue.as_deref()),
            (" AND reason = ", filter.reason.map(DeadLetterReason::as_str)),
            (" AND tenant_id = ", filter.tenant.as_deref()),
            (" AND status = ", filter.status.as_deref()),
        ] {
            if let Some(value) = value {
                query.push(column).push_bind(value);
            }
        }
        query.push(" ORDER BY stored_at DESC, id LIMIT ").push_bind(i64::from(limit));
        self.within(async |connection| Ok(query.build_query_as().fetch_all(connection).await?))
            .await
    }

    /// One letter.
    pub async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetterRow>> {
        self.within(async |connection| {
            Ok(sqlx::query_as("SELECT * FROM dead_letters WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *connection)
                .await?)
        })
        .await
    }

    /// How many letters are open, by queue and reason.
    pub async fn open_dead_letters(&self) -> Result<Vec<OpenDeadLetters>> {
        self.within(async |connection| {
            Ok(sqlx::query_as(
                "SELECT queue, reason, count(*) AS letters FROM dead_letters
                 WHERE status = 'open' GROUP BY queue, reason ORDER BY queue, reason",
            )
            .fetch_all(&mut *connection)
            .await?)
        })
        .await
    }
}

fn body_as_text<S: serde::Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(body))
}
