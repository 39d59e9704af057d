//! Pages of dead letters, newest first, as the conversation-api reads them: of one tenant, or of all.
//!
//! As pages of conversations: one index is walked in its order, and a page ends after [`WALK`] dead letters.

use chrono::{DateTime, Utc};
use domain::failure::DeadLetterReason;
use domain::ids::TenantId;
use sqlx::postgres::PgRow;
use sqlx::{FromRow as _, Postgres, QueryBuilder, Row as _};
use uuid::Uuid;

use super::reading::LISTED;
use super::record::{DeadLetterStatus, DeadLetterSummary};
use crate::conversation_pages::WALK;
use crate::{Database, Result};

/// Which dead letters to list. An absent field does not restrict the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterPageFilter {
    /// In this status.
    pub status: Option<DeadLetterStatus>,
    /// Of this work queue.
    pub queue: Option<String>,
    /// With this reason.
    pub reason: Option<DeadLetterReason>,
    /// With this `action_type`.
    pub action_type: Option<String>,
}

/// The place of a dead letter in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterPosition {
    /// When it was stored.
    pub stored_at: DateTime<Utc>,
    /// Its id.
    pub id: Uuid,
}

/// A page.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterListPage {
    /// Newest first. Fewer than asked for, even none, where the walk ended first.
    pub dead_letters: Vec<DeadLetterSummary>,
    /// After which the next page begins; `None`: there are no more.
    pub next: Option<DeadLetterPosition>,
}

impl Database {
    /// At most `limit` dead letters that match, newest first, after a position; of a tenant, or with `None` of every tenant
    /// and those that name none.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn dead_letter_list(
        &self,
        tenant: Option<&TenantId>,
        filter: &DeadLetterPageFilter,
        after: Option<DeadLetterPosition>,
        limit: u32,
    ) -> Result<DeadLetterListPage> {
        let mut query = page(tenant, filter, after, limit);
        let rows: Vec<PgRow> = self.rows(query.build()).await?;
        let (mut dead_letters, mut next) = (Vec::new(), None);
        for row in rows.iter().take(limit as usize) {
            let summary = DeadLetterSummary::from_row(row)?;
            let position = || DeadLetterPosition {
                stored_at: summary.state.stored_at,
                id: summary.dead_letter.id,
            };
            next = (row.try_get::<i64, _>("walked")? == WALK).then(position);
            if row.try_get("matches")? {
                dead_letters.push(summary);
            }
        }
        if rows.len() > limit as usize && next.is_none() {
            let last: Option<&DeadLetterSummary> = dead_letters.last();
            next = last.map(|it| DeadLetterPosition {
                stored_at: it.state.stored_at,
                id: it.dead_letter.id,
            });
        }
        Ok(DeadLetterListPage { dead_letters, next })
    }
}

pub(crate) fn page(
    tenant: Option<&TenantId>,
    filter: &DeadLetterPageFilter,
    after: Option<DeadLetterPosition>,
    limit: u32,
) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("SELECT * FROM (SELECT w.*, true");
    for (column, value) in [
        (" AND w.status = ", filter.status.map(DeadLetterStatus::as_str)),
        (" AND w.queue = ", filter.queue.as_deref()),
        (" AND w.reason = ", filter.reason.map(DeadLetterReason::as_str)),
        (" AND w.action_type = ", filter.action_type.as_deref()),
    ] {
        if let Some(value) = value {
            query.push(column).push_bind(value.to_owned());
        }
    }
    query.push(" AS matches FROM (SELECT d.*, row_number() OVER () AS walked FROM (SELECT ");
    query.push(LISTED).push(" FROM dead_letters WHERE ");
    match tenant {
        Some(tenant) => query.push("tenant_id = ").push_bind(tenant.as_str().to_owned()),
        // Always true: it allows the index by time.
        None => query.push("attempts >= 0"),
    };
    match after {
        Some(DeadLetterPosition { stored_at, id }) => {
            query.push(" AND (stored_at, id) < (").push_bind(stored_at);
            query.push(", ").push_bind(id).push(")");
        }
        None => {
            query.push(" AND stored_at < 'infinity'");
        }
    }
    query.push(" ORDER BY stored_at DESC, id DESC LIMIT ").push_bind(WALK);
    query.push(") AS d) AS w) AS listed WHERE matches OR walked = ").push_bind(WALK);
    query.push(" LIMIT ").push_bind(i64::from(limit) + 1);
    query
}
