//! Selections of dead letters, and the cursor that pages through one.
//!
//! A selection is a list of ids, a filter, or explicitly everything. A command over many dead letters
//! reads them page by page through a [`DeadLetterCursor`], oldest first. It sees each dead letter at most
//! once, and none that was stored after the cursor was created, such as one that failed again meanwhile.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use serde::Serialize;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::record::{DeadLetterDetail, DeadLetterStatus};
use crate::{Database, Result};

/// A filter for dead letters. An absent field does not restrict the result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeadLetterFilter {
    /// Of this work queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// With this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadLetterReason>,
    /// With this field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// With an error that contains this text, case-insensitive. Not serialised: it may quote content.
    #[serde(skip)]
    pub error_contains: Option<String>,
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Of this conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// With this message id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// With this `action_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_type: Option<String>,
    /// Whose last failure was at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Whose last failure was before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Whether it was replayed before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_before: Option<ReplayedBefore>,
}

/// Whether a dead letter was replayed before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayedBefore {
    /// It was replayed and failed again.
    FailedAgain,
    /// It was never replayed.
    Never,
}

/// The dead letters that an operator selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// The dead letters with these ids.
    Ids(Vec<Uuid>),
    /// The dead letters that match the filter.
    Matching(DeadLetterFilter),
    /// All dead letters.
    All,
}

/// A position in the dead letters of a selection, oldest first.
#[derive(Debug, Clone)]
pub struct DeadLetterCursor {
    selection: Arc<Selection>,
    /// When the cursor was created, by PostgreSQL's clock. Dead letters that are stored later are left out.
    created_at: DateTime<Utc>,
    after: Option<(DateTime<Utc>, Uuid)>,
}

/// A page of dead letters.
#[derive(Debug)]
pub struct DeadLetterPage<T> {
    /// The dead letters, oldest first.
    pub dead_letters: Vec<T>,
    /// The cursor for the next page; `None` at the end.
    pub rest: Option<DeadLetterCursor>,
}

impl Database {
    /// Creates a cursor over the dead letters that are stored now.
    pub async fn dead_letter_cursor(&self, selection: Selection) -> Result<DeadLetterCursor> {
        let (created_at,) = self.value(sqlx::query_as("SELECT clock_timestamp()")).await?;
        Ok(DeadLetterCursor { selection: Arc::new(selection), created_at, after: None })
    }

    /// How many dead letters with one of these statuses are after the cursor.
    pub async fn count_ahead(
        &self,
        cursor: &DeadLetterCursor,
        status: &[DeadLetterStatus],
    ) -> Result<u64> {
        let mut query = QueryBuilder::new("SELECT count(*) FROM dead_letters d WHERE true");
        push_status(&mut query, status);
        cursor.push(&mut query);
        let (count,): (i64,) = self.value(query.build_query_as()).await?;
        Ok(count.unsigned_abs())
    }

    /// The next dead letters of the cursor, without taking them: at most `limit`, and fewer if they are
    /// large.
    pub async fn next_dead_letters(
        &self,
        cursor: &DeadLetterCursor,
        status: &[DeadLetterStatus],
        limit: u32,
    ) -> Result<DeadLetterPage<DeadLetterDetail>> {
        let mut query = QueryBuilder::new(format!("WITH chosen AS ({SIZED}"));
        push_status(&mut query, status);
        cursor.push(&mut query);
        query.push(" ORDER BY d.stored_at, d.id LIMIT ").push_bind(i64::from(limit));
        query.push(format!(
            "), {} SELECT d.* FROM dead_letters d JOIN light ON light.id = d.id",
            light()
        ));
        Ok(cursor.page_of_rows(self.values(query.build_query_as()).await?, limit))
    }
}

impl DeadLetterFilter {
    /// Whether it restricts nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds its conditions on the dead letters `d` to a query. Absent fields add none: one plan serves all
    /// values.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        let texts = [
            (" AND d.queue = ", self.queue.as_deref()),
            (" AND d.reason = ", self.reason.map(DeadLetterReason::as_str)),
            (" AND d.field = ", self.field.as_deref()),
            (" AND d.tenant_id = ", self.tenant.as_deref()),
            (" AND d.conversation_id = ", self.conversation.as_deref()),
            (" AND d.message_id = ", self.message_id.as_deref()),
            (" AND d.action_type = ", self.action_type.as_deref()),
        ];
        for (condition, value) in texts {
            if let Some(value) = value {
                query.push(condition).push_bind(value.to_owned());
            }
        }
        if let Some(text) = &self.error_contains {
            query
                .push(" AND position(lower(")
                .push_bind(text.clone())
                .push(") IN lower(d.error)) > 0");
        }
        for (condition, moment) in
            [(" AND d.last_failed_at >= ", self.since), (" AND d.last_failed_at < ", self.until)]
        {
            if let Some(moment) = moment {
                query.push(condition).push_bind(DateTime::<Utc>::from(moment));
            }
        }
        query.push(match self.replayed_before {
            None => "",
            Some(ReplayedBefore::FailedAgain) => " AND d.replay_count > 0",
            Some(ReplayedBefore::Never) => " AND d.replay_count = 0",
        });
    }
}

impl DeadLetterCursor {
    /// The selection that it pages through.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    pub(super) fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }

    /// Adds the conditions for the dead letters after the cursor to a query.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        match &*self.selection {
            Selection::Ids(ids) => {
                query.push(" AND d.id = ANY(").push_bind(ids.clone()).push(")");
            }
            Selection::Matching(filter) => filter.push(query),
            Selection::All => {}
        }
        query.push(" AND d.stored_at <= ").push_bind(self.created_at);
        if let Some((stored_at, id)) = self.after {
            query.push(" AND (d.stored_at, d.id) > (").push_bind(stored_at);
            query.push(", ").push_bind(id).push(")");
        }
    }

    /// Leaves out dead letters whose status changed after the cursor was created. A dead letter that is open
    /// again because it failed again keeps its `stored_at`, so the cursor would otherwise include it.
    pub(super) fn push_decided_before(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" AND (d.status_changed_at IS NULL OR d.status_changed_at <= ");
        query.push_bind(self.created_at).push(")");
    }

    /// The page for the result of a query with this `limit` that is restricted to [`light`].
    pub(super) fn page_of_rows(
        &self,
        rows: Vec<DeadLetterDetail>,
        limit: u32,
    ) -> DeadLetterPage<DeadLetterDetail> {
        let bytes: usize = rows.iter().map(DeadLetterDetail::bytes).sum();
        // If the query left some out because of their size, the others have at least so many bytes.
        let limit = if bytes < PAGE_BYTES { limit } else { 0 };
        self.page(rows, limit, |row| (row.state.stored_at, row.dead_letter.id))
    }

    /// The page for the result of a query with this `limit`, in any order.
    pub(super) fn page<T>(
        &self,
        mut dead_letters: Vec<T>,
        limit: u32,
        position: impl Fn(&T) -> (DateTime<Utc>, Uuid),
    ) -> DeadLetterPage<T> {
        dead_letters.sort_by_key(&position);
        let rest = (dead_letters.len() as u64 >= u64::from(limit)).then(|| {
            let after = dead_letters.last().map(position).or(self.after);
            Self { after, ..self.clone() }
        });
        DeadLetterPage { dead_letters, rest }
    }
}

/// Restricts the dead letters `d` to these statuses; an empty list means any. The status is a literal,
/// because PostgreSQL does not use the index of open dead letters for a parameter.
pub(super) fn push_status(query: &mut QueryBuilder<Postgres>, status: &[DeadLetterStatus]) {
    // Always true: it allows the index by time.
    query.push(" AND d.attempts >= 0");
    match status {
        [] => {}
        [one] => {
            query.push(" AND d.status = '").push(one.as_str()).push("'");
        }
        many => {
            query.push(" AND d.status IN (");
            let mut names = query.separated(", ");
            for status in many {
                names.push(format!("'{status}'"));
            }
            query.push(")");
        }
    }
}

/// About how many bytes of bodies and edited bodies one page has at most. A usual page is far below. A full
/// page of messages that were dead-lettered as too large would not fit into memory.
const PAGE_BYTES: usize = 16 << 20;

/// The dead letters `d` with their sizes; conditions are appended.
pub(super) const SIZED: &str = "SELECT d.id, d.stored_at, octet_length(d.body)::bigint
         + coalesce(octet_length(d.edited_body), 0) AS bytes
     FROM dead_letters d WHERE true";

/// Of the rows of `chosen`, which come from [`SIZED`]: the first one, and those after it until they have
/// [`PAGE_BYTES`] together.
pub(super) fn light() -> String {
    format!(
        "light AS (
             SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY stored_at, id) - bytes AS before
                             FROM chosen) AS c
             WHERE before < {PAGE_BYTES})"
    )
}

/// Restricts the dead letters `d` to those that are not under the lease of a replay run.
pub(super) const NOT_UNDER_WAY: &str =
    " AND (d.replay_lease_until IS NULL OR d.replay_lease_until < clock_timestamp())";
