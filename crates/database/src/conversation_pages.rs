//! Pages of a tenant's conversations, newest first, with filters.
//!
//! A page walks one index in its order and stops when it is full: the index by user or by agent if one is named, that of
//! active conversations if only those are wanted, else that by time. The other filters are applied to what it walks. So a filter that hardly any conversation matches cannot make
//! one request read all of a tenant: after [`WALK`] conversations the page ends, and says where the next one begins.

use chrono::{DateTime, Utc};
use domain::ids::TenantId;
use domain::status::ConversationStatus;
use sqlx::postgres::PgRow;
use sqlx::{FromRow as _, Postgres, QueryBuilder, Row as _};

use crate::rows::{from_row, status_of};
use crate::{Database, Result};

/// How many conversations a page walks at most: some 20 ms.
pub const WALK: i64 = 10_000;

/// Which conversations of a tenant to list. An absent field does not restrict the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFilter {
    /// In this status.
    pub status: Option<ConversationStatus>,
    /// With this agent.
    pub agent: Option<String>,
    /// With this user.
    pub user: Option<String>,
    /// With this model.
    pub model: Option<String>,
    /// That began at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// That began before this time.
    pub to: Option<DateTime<Utc>>,
}

/// The place of a conversation in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagePosition {
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// Its id.
    pub id: String,
}

/// A page.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationPage {
    /// Newest first. Fewer than asked for, even none, where the walk ended first.
    pub conversations: Vec<ConversationSummary>,
    /// After which the next page begins; `None`: there are no more.
    pub next: Option<PagePosition>,
}

/// A conversation as a list shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationSummary {
    /// Its id.
    pub id: String,
    /// The session that began it.
    pub session_id: String,
    /// Its agent.
    pub agent_id: Option<String>,
    /// Its user.
    pub user_id: Option<String>,
    /// The first 256 characters of its model's name.
    pub model_name: Option<String>,
    /// The first 256 characters of the tenant's tier.
    pub tenant_tier: Option<String>,
    /// Its status.
    pub status: ConversationStatus,
    /// How many messages it has; counted when it is archived.
    pub message_count: Option<i64>,
    /// Their tokens; counted when it is archived.
    pub total_tokens: Option<i64>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When its last message was sent; up to a minute old while it is active.
    pub last_message_at: Option<DateTime<Utc>>,
    /// When it was last closed.
    pub closed_at: Option<DateTime<Utc>>,
    /// When it was last archived.
    pub finalised_at: Option<DateTime<Utc>>,
    /// The first 256 characters of why it closed.
    pub close_reason: Option<String>,
    /// How content the user was, 1 to 5.
    pub satisfaction: Option<i16>,
}

from_row! { ConversationSummary:
    id, session_id, agent_id, user_id, model_name, tenant_tier, message_count, total_tokens, created_at, last_message_at,
    closed_at, finalised_at, close_reason, satisfaction;
    status: status_of
}

/// The columns of a [`ConversationSummary`], of the conversation `c`. Texts without a limit of their own are cut.
pub(crate) const SUMMARY: &str = "c.id, c.session_id, c.agent_id, c.user_id, left(c.model_name, 256) AS model_name, \
     left(c.tenant_tier, 256) AS tenant_tier, c.status, \
     CASE WHEN c.status = 'archived' THEN c.message_count END AS message_count, \
     CASE WHEN c.status = 'archived' THEN c.total_tokens END AS total_tokens, \
     c.created_at, c.last_message_at, c.closed_at, c.finalised_at, left(c.close_reason, 256) AS close_reason, \
     c.satisfaction";

impl Database {
    /// At most `limit` conversations that match, newest first, after a position.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn conversation_page(
        &self,
        tenant: &TenantId,
        filter: &PageFilter,
        after: Option<&PagePosition>,
        limit: u32,
    ) -> Result<ConversationPage> {
        let mut query = page(tenant, filter, after, limit);
        let rows: Vec<PgRow> = self.rows(query.build()).await?;
        let mut conversations = Vec::new();
        let mut next = None;
        for row in &rows {
            let walked: i64 = row.try_get("walked")?;
            let is_match: bool = row.try_get("matches")?;
            let summary = ConversationSummary::from_row(row)?;
            let position =
                || PagePosition { created_at: summary.created_at, id: summary.id.clone() };
            // The row after the last one of the page only says that there is one.
            if conversations.len() == limit as usize {
                break;
            }
            next = (walked == WALK).then(position);
            if is_match {
                conversations.push(summary);
            }
        }
        if rows.len() > limit as usize && next.is_none() {
            let last: Option<&ConversationSummary> = conversations.last();
            next = last.map(|it| PagePosition { created_at: it.created_at, id: it.id.clone() });
        }
        Ok(ConversationPage { conversations, next })
    }
}

pub(crate) fn page(
    tenant: &TenantId,
    filter: &PageFilter,
    after: Option<&PagePosition>,
    limit: u32,
) -> QueryBuilder<Postgres> {
    // Only the conditions of the filter: one plan serves all values.
    let mut query = QueryBuilder::new("SELECT * FROM (SELECT w.*, true");
    let by_user = filter.user.as_deref();
    // A user has fewer conversations than an agent.
    let by_agent = filter.agent.as_deref().filter(|_| by_user.is_none());
    // Active conversations have an index of their own. Of one user or agent there are few enough to walk.
    let by_active = filter.status == Some(ConversationStatus::Active)
        && by_user.is_none()
        && by_agent.is_none();
    let status = filter.status.filter(|_| !by_active).map(ConversationStatus::as_str);
    for (column, value) in [
        (" AND w.status = ", status),
        (" AND w.agent_id = ", filter.agent.as_deref().filter(|_| by_agent.is_none())),
        (" AND w.whole_model = ", filter.model.as_deref()),
    ] {
        if let Some(value) = value {
            query.push(column).push_bind(value.to_owned());
        }
    }
    query.push(" AS matches FROM (SELECT c.*, row_number() OVER () AS walked FROM (SELECT ");
    query
        .push(SUMMARY)
        .push(", c.model_name AS whole_model FROM conversations c WHERE c.tenant_id = ");
    query.push_bind(tenant.as_str().to_owned());
    match (by_user, by_agent) {
        (Some(user), _) => query.push(" AND c.user_id = ").push_bind(user.to_owned()),
        (None, Some(agent)) => query.push(" AND c.agent_id = ").push_bind(agent.to_owned()),
        // Written out: only then PostgreSQL sees that the index has all of them.
        (None, None) if by_active => query.push(" AND c.status = 'active'"),
        // Allows the index by time.
        (None, None) => query.push(" AND c.created_at IS NOT NULL"),
    };
    if let Some(PagePosition { created_at, id }) = after {
        query.push(" AND (c.created_at, c.id) < (").push_bind(*created_at);
        query.push(", ").push_bind(id.clone()).push(" COLLATE \"C\")");
    }
    for (condition, at) in
        [(" AND c.created_at >= ", filter.from), (" AND c.created_at < ", filter.to)]
    {
        if let Some(at) = at {
            query.push(condition).push_bind(at);
        }
    }
    query.push(" ORDER BY c.created_at DESC, c.id DESC LIMIT ").push_bind(WALK);
    query.push(") AS c) AS w) AS listed WHERE matches OR walked = ").push_bind(WALK);
    query.push(" LIMIT ").push_bind(i64::from(limit) + 1);
    query
}
