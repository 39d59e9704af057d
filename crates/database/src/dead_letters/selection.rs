//! Which dead letters something is done to.
//!
//! A selection is ids, a filter, or everything, and the last one has to be said. Whatever is done to
//! many dead letters *walks* over them, oldest first: each dead letter is met at most once, and what comes back
//! while the walk is under way lies beyond its end.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::failure::DeadLetterReason;
use domain::time::Timestamp;
use serde::Serialize;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{DeadLetterRow, DeadLetterStatus};
use crate::{Database, Result};

/// What dead letters have in common; absent fields do not restrict.
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
    /// With an error that holds this text, in capitals or not. Never told: it may quote a sender.
    #[serde(skip)]
    pub error_contains: Option<String>,
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Of this conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Known by this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// With this `action_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_type: Option<String>,
    /// That failed last at this moment or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// That failed last before this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// That were replayed before, or never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_before: Option<ReplayedBefore>,
}

/// Whether a dead letter is one that came back from a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayedBefore {
    /// It was replayed and came back.
    FailedAgain,
    /// It was never replayed.
    Never,
}

/// The dead letters that an operator means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// These.
    Ids(Vec<Uuid>),
    /// Those that have this in common.
    Matching(DeadLetterFilter),
    /// All of them.
    All,
}

/// A way through the dead letters of a selection, oldest first.
#[derive(Debug, Clone)]
pub struct DeadLetterCursor {
    selection: Arc<Selection>,
    /// By PostgreSQL's clock: what is stored later is not met.
    began: DateTime<Utc>,
    after: Option<(DateTime<Utc>, Uuid)>,
}

/// A part of a walk.
#[derive(Debug)]
pub struct DeadLetterPage<T> {
    /// What it met, oldest first.
    pub dead_letters: Vec<T>,
    /// The way that is left; none at the end.
    pub rest: Option<DeadLetterCursor>,
}

impl Database {
    /// Begins a walk over the dead letters that are there now.
    pub async fn dead_letter_cursor(&self, selection: Selection) -> Result<DeadLetterCursor> {
        let began = self
            .within(async |connection| {
                Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(connection).await?)
            })
            .await?;
        Ok(DeadLetterCursor { selection: Arc::new(selection), began, after: None })
    }

    /// How many dead letters the rest of a walk leads over.
    pub async fn count_ahead(
        &self,
        cursor: &DeadLetterCursor,
        status: &[DeadLetterStatus],
    ) -> Result<u64> {
        let mut query = QueryBuilder::new("SELECT count(*) FROM dead_letters d WHERE true");
        push_status(&mut query, status);
        cursor.push(&mut query);
        let count: i64 = self
            .within(async |connection| Ok(query.build_query_scalar().fetch_one(connection).await?))
            .await?;
        Ok(count.unsigned_abs())
    }

    /// The next dead letters of a walk, only to look at: at most `limit`, and fewer where they are large.
    pub async fn next_dead_letters(
        &self,
        cursor: &DeadLetterCursor,
        status: &[DeadLetterStatus],
        limit: u32,
    ) -> Result<DeadLetterPage<DeadLetterRow>> {
        let mut query = QueryBuilder::new(format!("WITH chosen AS ({SIZED}"));
        push_status(&mut query, status);
        cursor.push(&mut query);
        query.push(" ORDER BY d.stored_at, d.id LIMIT ").push_bind(i64::from(limit));
        query.push(format!(
            "), {} SELECT d.* FROM dead_letters d JOIN light ON light.id = d.id",
            light()
        ));
        let rows: Vec<DeadLetterRow> = self
            .within(async |connection| Ok(query.build_query_as().fetch_all(connection).await?))
            .await?;
        Ok(cursor.page_of_rows(rows, limit))
    }
}

impl DeadLetterFilter {
    /// Whether it restricts nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds its conditions on the dead letters `d`. Only those that are asked for: one plan serves all
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
    /// What it leads over.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// When it began, by PostgreSQL's clock.
    pub(super) fn began(&self) -> DateTime<Utc> {
        self.began
    }

    /// Adds the conditions of what lies ahead.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        match &*self.selection {
            Selection::Ids(ids) => {
                query.push(" AND d.id = ANY(").push_bind(ids.clone()).push(")");
            }
            Selection::Matching(filter) => filter.push(query),
            Selection::All => {}
        }
        query.push(" AND d.stored_at <= ").push_bind(self.began);
        if let Some((stored_at, id)) = self.after {
            query.push(" AND (d.stored_at, d.id) > (").push_bind(stored_at);
            query.push(", ").push_bind(id).push(")");
        }
    }

    /// Leaves out what was opened or decided about since the walk began: a dead letter that is open again
    /// because it came back keeps its place in time, and would be met as if it had been there.
    pub(super) fn push_decided_before(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" AND (d.status_changed_at IS NULL OR d.status_changed_at <= ");
        query.push_bind(self.began).push(")");
    }

    /// What a statement met that was to meet `limit` dead letters at most, and only those that are [`light`].
    pub(super) fn page_of_rows(
        &self,
        rows: Vec<DeadLetterRow>,
        limit: u32,
    ) -> DeadLetterPage<DeadLetterRow> {
        let bytes: usize = rows.iter().map(DeadLetterRow::bytes).sum();
        // Where some were left out, those before them have so many bytes.
        let limit = if bytes < PAGE_BYTES { limit } else { 0 };
        self.page(rows, limit, |row| (row.stored_at, row.id))
    }

    /// What a statement met that was to meet `limit` dead letters at most, in any order.
    pub(super) fn page<T>(
        &self,
        mut dead_letters: Vec<T>,
        limit: u32,
        place: impl Fn(&T) -> (DateTime<Utc>, Uuid),
    ) -> DeadLetterPage<T> {
        dead_letters.sort_by_key(&place);
        let rest = (dead_letters.len() as u64 >= u64::from(limit)).then(|| {
            let after = dead_letters.last().map(place).or(self.after);
            Self { after, ..self.clone() }
        });
        DeadLetterPage { dead_letters, rest }
    }
}

/// Restricts the dead letters `d` to these statuses; none means any. Written out, because an index of open
/// dead letters serves no parameter.
pub(super) fn push_status(query: &mut QueryBuilder<Postgres>, status: &[DeadLetterStatus]) {
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

/// Bytes of bodies and edited copies that are read together, about: a page of ordinary dead letters is far
/// below, and one of those that died because they are too large would not fit into memory.
const PAGE_BYTES: usize = 16 << 20;

/// The dead letters `d` with their sizes, to be restricted.
pub(super) const SIZED: &str = "SELECT d.id, d.stored_at, octet_length(d.body)::bigint
         + coalesce(octet_length(d.edited_body), 0) AS bytes
     FROM dead_letters d WHERE true";

/// Of `chosen`, which are [`SIZED`], the first one and as many after it as have [`PAGE_BYTES`] together.
pub(super) fn light() -> String {
    format!(
        "light AS (
             SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY stored_at, id) - bytes AS before
                             FROM chosen) AS c
             WHERE before < {PAGE_BYTES})"
    )
}

/// Restricts the dead letters `d` to those that no replay has just now.
pub(super) const NOT_UNDER_WAY: &str =
    " AND (d.replay_lease_until IS NULL OR d.replay_lease_until < clock_timestamp())";
