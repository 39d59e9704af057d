//! Reading conversations for operators: lists and single rows.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::status::ConversationStatus;
use sqlx::{FromRow, QueryBuilder};

use crate::{Database, Result};

/// Which conversations to list. An absent field does not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct ConversationFilter {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// In this state.
    pub status: Option<ConversationStatus>,
    /// With this agent.
    pub agent: Option<String>,
    /// With this session as their first.
    pub session: Option<String>,
}

/// A conversation, without its messages.
#[derive(Debug, Clone, PartialEq, FromRow, serde::Serialize)]
pub struct ConversationRow {
    /// Its tenant.
    pub tenant_id: String,
    /// Its id.
    pub id: String,
    /// The session that began it.
    pub session_id: String,
    /// Its agent.
    pub agent_id: Option<String>,
    /// Its user.
    pub user_id: Option<String>,
    /// Its model.
    pub model_name: Option<String>,
    /// `active`, `closing` or `archived`.
    pub status: String,
    /// How many messages it has, counted by this query.
    pub message_count: i64,
    /// Their tokens; present once it was closed.
    pub total_tokens: Option<i64>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When its last message was sent; exact once it is archived.
    pub last_message_at: Option<DateTime<Utc>>,
    /// When its close was requested.
    pub close_requested_at: Option<DateTime<Utc>>,
    /// When it was last closed.
    pub closed_at: Option<DateTime<Utc>>,
    /// When it was last archived.
    pub finalised_at: Option<DateTime<Utc>>,
    /// Why it closed.
    pub close_reason: Option<String>,
    /// How content the user was, 1 to 5.
    pub satisfaction: Option<i16>,
}

const COLUMNS: &str = "c.tenant_id, c.id, c.session_id, c.agent_id, c.user_id, c.model_name, c.status, \
     (SELECT count(*) FROM message_rows m WHERE m.conversation = c.number) AS message_count, \
     c.total_tokens, c.created_at, c.last_message_at, c.close_requested_at, c.closed_at, \
     c.finalised_at, c.close_reason, c.satisfaction";

impl Database {
    /// Conversations that match, newest first.
    pub async fn conversations(
        &self,
        filter: &ConversationFilter,
        limit: u32,
    ) -> Result<Vec<ConversationRow>> {
        // Only the conditions of the filter: one plan serves all values. The first condition allows
        // PostgreSQL to use the index by date.
        let mut query = QueryBuilder::new(format!(
            "SELECT {COLUMNS} FROM conversations c WHERE c.created_at IS NOT NULL"
        ));
        let status = filter.status.map(ConversationStatus::as_str);
        for (column, value) in [
            (" AND c.tenant_id = ", filter.tenant.as_deref()),
            (" AND c.status = ", status),
            (" AND c.agent_id = ", filter.agent.as_deref()),
            (" AND c.session_id = ", filter.session.as_deref()),
        ] {
            if let Some(value) = value {
                query.push(column).push_bind(value);
            }
        }
        query.push(" ORDER BY c.created_at DESC, c.tenant_id, c.id LIMIT ");
        query.push_bind(i64::from(limit));
        self.within(async |connection| Ok(query.build_query_as().fetch_all(connection).await?))
            .await
    }

    /// One conversation.
    pub async fn conversation(&self, key: &ConversationKey) -> Result<Option<ConversationRow>> {
        self.within(async |connection| {
            Ok(sqlx::query_as(sqlx::AssertSqlSafe(format!(
                "SELECT {COLUMNS} FROM conversations c WHERE c.tenant_id = $1 AND c.id = $2"
            )))
            .bind(key.tenant.as_str())
            .bind(key.conversation.as_str())
            .fetch_optional(&mut *connection)
            .await?)
        })
        .await
    }
}
