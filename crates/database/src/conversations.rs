//! Conversations as users see them: lists and single ones.

use chrono::{DateTime, Utc};
use domain::ids::ConversationKey;
use domain::status::ConversationStatus;
use serde::Serialize;
use sqlx::{AssertSqlSafe, QueryBuilder};

use crate::rows::{from_row, status_of};
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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConversationView {
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
    /// Its status.
    pub status: ConversationStatus,
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

/// The columns of a [`ConversationView`], of the conversation `c`.
pub(crate) const COLUMNS: &str = "c.tenant_id, c.id, c.session_id, c.agent_id, c.user_id, c.model_name, c.status, \
     (SELECT count(*) FROM message_rows m WHERE m.conversation = c.number AND m.created_at IS NOT NULL) AS message_count, \
     c.total_tokens, c.created_at, c.last_message_at, c.close_requested_at, c.closed_at, \
     c.finalised_at, c.close_reason, c.satisfaction";

from_row! { ConversationView:
    tenant_id, id, session_id, agent_id, user_id, model_name, message_count, total_tokens, created_at,
    last_message_at, close_requested_at, closed_at, finalised_at, close_reason, satisfaction;
    status: status_of
}

impl Database {
    /// Conversations that match, newest first.
    pub async fn conversations(
        &self,
        filter: &ConversationFilter,
        limit: u32,
    ) -> Result<Vec<ConversationView>> {
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
        self.values(query.build_query_as()).await
    }

    /// One conversation.
    pub async fn conversation(&self, key: &ConversationKey) -> Result<Option<ConversationView>> {
        let query = AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM conversations c WHERE c.tenant_id = $1 AND c.id = $2"
        ));
        let query = sqlx::query_as(query).bind(key.tenant.as_str()).bind(key.conversation.as_str());
        Ok(self.values(query).await?.pop())
    }
}
