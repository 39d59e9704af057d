//! Finding everything about an id: conversations, messages and dead letters.
//!
//! An id alone gives neither its kind nor its tenant. Only the indexes of dead letters and the audit log
//! start with an id. Conversations are looked up in one tenant after the other, and messages in one
//! conversation after the other, newest first and page by page. Each look-up by primary key takes some
//! microseconds, and no additional index slows down saving.

use chrono::{DateTime, Utc};
use domain::ids::{ConversationKey, TenantId};
use sqlx::{AssertSqlSafe, FromRow};
use uuid::Uuid;

use crate::conversations::{COLUMNS, ConversationView};
use crate::dead_letters::{DeadLetterSummary, LISTED};
use crate::rows::from_row;
use crate::{Database, Result};

/// A conversation, with more of the times of its changes.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationTrace {
    /// The conversation. While it is active, `created_at` is the time of the message that was saved first, and
    /// `last_message_at` may be a minute old.
    pub conversation: ConversationView,
    /// When a message last arrived; up to a minute old.
    pub touched_at: DateTime<Utc>,
    /// When its statistics were last computed.
    pub statistics_at: Option<DateTime<Utc>>,
    /// When it was erased: messages at or before this time are not read.
    pub erased_at: Option<DateTime<Utc>>,
}

/// A stored message, without its content.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct MessageTrace {
    /// Its tenant.
    pub tenant_id: String,
    /// Its conversation.
    pub conversation_id: String,
    /// Its id.
    pub id: String,
    /// The role of its author.
    pub role: String,
    /// When it was sent, by its sender's clock; of a deleted message, when that was deleted.
    pub created_at: DateTime<Utc>,
    /// The action that deleted it. Who saved it is not known then.
    pub deleted_by: Option<String>,
    /// When a worker first received it.
    pub received_at: DateTime<Utc>,
    /// When it was committed, if PostgreSQL records that (`track_commit_timestamp`).
    pub committed_at: Option<DateTime<Utc>>,
    /// The process that saved it; null if it did not identify itself.
    pub saver: Option<String>,
    /// Host and process id of that process.
    pub saver_instance: Option<String>,
    /// When that process saved its first batch.
    pub saver_started_at: Option<DateTime<Utc>>,
}

/// Every tenant that has a conversation, by one index look-up each; or only the tenant $2.
const TENANTS: &str = "
    WITH RECURSIVE every AS (
        (SELECT tenant_id FROM conversations WHERE $2::text IS NULL ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT (SELECT c.tenant_id FROM conversations c WHERE c.tenant_id > every.tenant_id
                ORDER BY c.tenant_id LIMIT 1)
        FROM every WHERE every.tenant_id IS NOT NULL),
    tenants AS (SELECT tenant_id FROM every WHERE tenant_id IS NOT NULL
                UNION ALL SELECT $2 WHERE $2 IS NOT NULL)";

const MORE_TIMES: &str = "c.touched_at, c.erased_at, \
     (SELECT computed_at FROM conversation_stats s \
      WHERE s.tenant_id = c.tenant_id AND s.conversation_id = c.id) AS statistics_at";

const MESSAGE: &str = "c.tenant_id, c.id AS conversation_id, m.id, m.role, \
     coalesce(m.created_at, m.deleted_at) AS created_at, m.deleted_by, m.received_at, \
     CASE WHEN current_setting('track_commit_timestamp') = 'on' \
          THEN pg_xact_commit_timestamp(m.xmin) END AS committed_at, \
     w.process AS saver, w.instance AS saver_instance, w.started_at AS saver_started_at";

from_row! { ConversationTrace: touched_at, statistics_at, erased_at;
    conversation: ConversationView::from_row
}

impl Database {
    /// The conversations with this id, of one tenant or of all.
    pub async fn conversations_named(
        &self,
        id: &str,
        tenant: Option<&TenantId>,
    ) -> Result<Vec<ConversationTrace>> {
        let query = AssertSqlSafe(format!(
            "{TENANTS} SELECT {COLUMNS}, {MORE_TIMES} FROM tenants
             JOIN conversations c ON c.tenant_id = tenants.tenant_id AND c.id = $1
             ORDER BY c.tenant_id"
        ));
        let query = sqlx::query_as(query).bind(id).bind(tenant.map(TenantId::as_str));
        self.values(query).await
    }

    /// The conversations that a session began or is open in, of one tenant or of all: the newest `limit`, in
    /// ascending order of time.
    pub async fn conversations_of_session(
        &self,
        session: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> Result<Vec<ConversationTrace>> {
        let query = AssertSqlSafe(format!(
            "{TENANTS},
             found AS (
                 SELECT c.tenant_id, c.id FROM tenants
                 JOIN conversations c ON c.tenant_id = tenants.tenant_id AND c.session_id = $1
                 UNION
                 SELECT s.tenant_id, s.conversation_id FROM tenants
                 JOIN sessions s ON s.tenant_id = tenants.tenant_id AND s.session_id = $1 AND s.open),
             newest AS (
                 SELECT c.* FROM found
                 JOIN conversations c ON c.tenant_id = found.tenant_id AND c.id = found.id
                 ORDER BY c.created_at DESC, c.tenant_id, c.id LIMIT $3)
             SELECT {COLUMNS}, {MORE_TIMES} FROM newest c ORDER BY c.created_at, c.tenant_id, c.id"
        ));
        let query = sqlx::query_as(query)
            .bind(session)
            .bind(tenant.map(TenantId::as_str))
            .bind(i64::from(limit));
        self.values(query).await
    }

    /// The messages with this id in the newest `limit` conversations whose number is below `before`, and the
    /// `before` of the next page if there may be more. New conversations get higher numbers.
    pub async fn messages_named(
        &self,
        id: &str,
        tenant: Option<&TenantId>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<(Vec<MessageTrace>, Option<i64>)> {
        let before = before.unwrap_or(i64::MAX);
        self.within(async |connection| {
            let (oldest, looked_at): (Option<i64>, i64) = sqlx::query_as(
                "SELECT min(number), count(*)
                 FROM (SELECT number FROM conversations WHERE number < $1
                       ORDER BY number DESC LIMIT $2) AS page",
            )
            .bind(before)
            .bind(i64::from(limit))
            .fetch_one(&mut *connection)
            .await?;
            let Some(oldest) = oldest else { return Ok((Vec::new(), None)) };
            // Limited by the first and last number, not by a count: with a count, conversations that began
            // meanwhile would displace the oldest ones.
            let found = sqlx::query_as(AssertSqlSafe(format!(
                "SELECT {MESSAGE} FROM (SELECT number, tenant_id, id FROM conversations
                                        WHERE number >= $2 AND number < $1) AS c
                 CROSS JOIN LATERAL (SELECT m.*, m.xmin FROM message_rows m
                                     WHERE m.conversation = c.number AND m.id = $3 OFFSET 0) AS m
                 LEFT JOIN writers w ON w.id = m.saved_by
                 WHERE $4::text IS NULL OR c.tenant_id = $4
                 ORDER BY c.tenant_id, c.id"
            )))
            .bind(before)
            .bind(oldest)
            .bind(id)
            .bind(tenant.map(TenantId::as_str))
            .fetch_all(&mut *connection)
            .await?;
            Ok((found, (looked_at == i64::from(limit)).then_some(oldest)))
        })
        .await
    }

    /// One message of a conversation.
    pub async fn message_trace(
        &self,
        key: &ConversationKey,
        id: &str,
    ) -> Result<Option<MessageTrace>> {
        let query = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT {MESSAGE} FROM conversations c
             JOIN message_rows m ON m.conversation = c.number AND m.id = $3
             LEFT JOIN writers w ON w.id = m.saved_by
             WHERE c.tenant_id = $1 AND c.id = $2"
        )))
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str())
        .bind(id);
        Ok(self.values(query).await?.pop())
    }

    /// Dead letters with this id, or with this message, conversation or session: the `limit` that were
    /// stored last, in ascending order of time.
    pub async fn dead_letters_about(
        &self,
        id: &str,
        tenant: Option<&TenantId>,
        limit: u32,
    ) -> Result<Vec<DeadLetterSummary>> {
        let query = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT {LISTED} FROM (
                 SELECT d.* FROM (
                     SELECT id FROM dead_letters WHERE id = $3
                     UNION SELECT id FROM dead_letters WHERE message_id = $1
                     UNION SELECT id FROM dead_letters WHERE conversation_id = $1
                     UNION SELECT id FROM dead_letters WHERE session_id = $1) AS found
                 JOIN dead_letters d ON d.id = found.id
                 WHERE $2::text IS NULL OR d.tenant_id = $2
                 ORDER BY d.stored_at DESC, d.id DESC LIMIT $4) AS newest
             ORDER BY stored_at, id"
        )))
        .bind(id)
        .bind(tenant.map(TenantId::as_str))
        .bind(Uuid::parse_str(id).ok())
        .bind(i64::from(limit));
        self.values(query).await
    }
}
