//! Queries that only read: lists, groups, single dead letters, counts.

use sqlx::{AssertSqlSafe, QueryBuilder};
use uuid::Uuid;

use super::record::{
    DeadLetterDetail, DeadLetterGroup, DeadLetterStatus, DeadLetterSummary, OpenDeadLetters,
};
use super::selection::{self, DeadLetterFilter};
use crate::{Database, Error, Result};

pub(crate) const LISTED: &str = "id, queue, reason, field, error, tenant_id, conversation_id, session_id, message_id, \
     action_type, routing_key, exchange, octet_length(body) AS body_bytes, \
     edited_body IS NOT NULL AS edited, attempts, replay_count, replay_of, first_failed_at, \
     last_failed_at, stored_at, not_stored, copies, status, status_changed_at, status_reason, replay_tried_at, replay_fault";

/// An error without its values: quoted texts (with what is escaped in them) become "…"; UUIDs, numbers
/// and words that begin with a digit become #. Numbers in names, such as UTF-8 and v1.2, stay.
const PATTERN: &str = r#"regexp_replace(
    regexp_replace(error, '"([^"\\]|\\.)*"', '"…"', 'g'),
    '\m[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+\M'
    '|(?<![a-zA-Z_][0-9]?[0-9]?[-.])\m[0-9][[:alnum:]_]*([.][0-9]+)*\M',
    '#', 'g')"#;

impl Database {
    /// Dead letters that match, newest first; only those older than `before`, the last one of the page
    /// before, which must be stored.
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        status: Option<DeadLetterStatus>,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<DeadLetterSummary>> {
        let mut query =
            QueryBuilder::new(format!("SELECT {LISTED} FROM dead_letters d WHERE true"));
        selection::push_status(&mut query, status.as_slice());
        filter.push(&mut query);
        if let Some(before) = before {
            query.push(
                " AND (d.stored_at, d.id) < (SELECT p.stored_at, p.id FROM dead_letters p WHERE p.id = ",
            );
            query.push_bind(before).push(")");
        }
        query.push(" ORDER BY d.stored_at DESC, d.id DESC LIMIT ").push_bind(i64::from(limit));
        let page: Vec<_> = self.values(query.build_query_as()).await?;
        match before {
            Some(before) if page.is_empty() && self.dead_letter(before).await?.is_none() => {
                Err(Error::UnknownDeadLetter(before))
            }
            _ => Ok(page),
        }
    }

    /// How many dead letters match.
    pub async fn count_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        status: Option<DeadLetterStatus>,
    ) -> Result<u64> {
        let mut query = QueryBuilder::new("SELECT count(*) FROM dead_letters d WHERE true");
        selection::push_status(&mut query, status.as_slice());
        filter.push(&mut query);
        let (count,): (i64,) = self.value(query.build_query_as()).await?;
        Ok(count.unsigned_abs())
    }

    /// Groups of dead letters that match, the largest group first.
    pub async fn dead_letter_groups(
        &self,
        filter: &DeadLetterFilter,
        status: Option<DeadLetterStatus>,
        limit: u32,
    ) -> Result<Vec<DeadLetterGroup>> {
        let mut query = QueryBuilder::new(format!(
            "SELECT queue, reason, field, {PATTERN} AS error, count(*) AS dead_letters,
                    count(DISTINCT tenant_id) AS tenants,
                    count(*) FILTER (WHERE replay_count > 0) AS failed_again,
                    min(first_failed_at) AS first_failed_at, max(last_failed_at) AS last_failed_at,
                    (array_agg(id ORDER BY stored_at DESC, id DESC))[1] AS example
             FROM dead_letters d WHERE true"
        ));
        selection::push_status(&mut query, status.as_slice());
        filter.push(&mut query);
        query.push(" GROUP BY 1, 2, 3, 4 ORDER BY dead_letters DESC, 1, 2, 3, 4 LIMIT ");
        query.push_bind(i64::from(limit));
        self.values(query.build_query_as()).await
    }

    /// One dead letter.
    pub async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetterDetail>> {
        let query = sqlx::query_as("SELECT * FROM dead_letters WHERE id = $1").bind(id);
        Ok(self.values(query).await?.pop())
    }

    /// The dead letters that replays of this one became when they failed again, oldest first.
    pub async fn failed_again_as(&self, id: Uuid) -> Result<Vec<DeadLetterSummary>> {
        let query = AssertSqlSafe(format!(
            "SELECT {LISTED} FROM dead_letters WHERE replay_of = $1 ORDER BY stored_at, id"
        ));
        self.values(sqlx::query_as(query).bind(id)).await
    }

    /// How many dead letters are open, by queue and reason.
    pub async fn open_dead_letters(&self) -> Result<Vec<OpenDeadLetters>> {
        let query = sqlx::query_as(
            "SELECT queue, reason, count(*) AS dead_letters FROM dead_letters
             WHERE status = 'open' GROUP BY queue, reason ORDER BY queue, reason",
        );
        self.values(query).await
    }
}
