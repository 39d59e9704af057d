//! What is checked.

use domain::ids::{ConversationId, ConversationKey, TenantId};
use domain::time::Timestamp;
use sqlx::{Postgres, QueryBuilder};

/// What is checked. An absent field does not restrict it.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Conversations with this id.
    pub conversation: Option<ConversationId>,
    /// Conversations that were active since this time, and days from then on.
    pub since: Option<Timestamp>,
}

impl Scope {
    /// The conversation, if it names both tenant and conversation.
    #[must_use]
    pub fn key(&self) -> Option<ConversationKey> {
        let (tenant, conversation) = (self.tenant.clone()?, self.conversation.clone()?);
        Some(ConversationKey { tenant, conversation })
    }

    /// Adds the conditions on the tenant and, in this column, on the conversation to a query. Only those that
    /// it has, so that PostgreSQL uses each as a bound of the index.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>, conversation: Option<&str>) {
        if let Some(tenant) = &self.tenant {
            query.push(" AND tenant_id = ").push_bind(tenant.as_str());
        }
        if let (Some(column), Some(id)) = (conversation, &self.conversation) {
            query.push(format_args!(" AND {column} = ")).push_bind(id.as_str());
        }
    }

    /// Whether it restricts nothing.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.tenant.is_none() && self.conversation.is_none() && self.since.is_none()
    }
}
