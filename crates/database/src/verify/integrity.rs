//! Orphaned rows, which no foreign key prevents: their conversation does not exist.

use sqlx::{FromRow, QueryBuilder};

use super::scope::Scope;
use crate::{Database, Result};

/// Messages whose conversation number does not exist. No reader finds them.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct OrphanedRows {
    /// The conversation number.
    pub conversation: i64,
    /// How many there are.
    pub messages: i64,
    /// The lowest of their ids.
    pub first_id: String,
}

/// Statistics of a conversation that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct OrphanedStatistics {
    /// Its tenant.
    pub tenant_id: String,
    /// Its id.
    pub conversation_id: String,
}

impl Database {
    /// Checks the next `limit` conversation numbers of `message_rows` after `after`. Returns those that no
    /// conversation has, how many numbers were checked, and the last one if there may be more after it.
    pub async fn orphaned_rows(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<(Vec<OrphanedRows>, usize, Option<i64>)> {
        self.within(async |connection| {
            // Goes from number to number by the primary key, one look-up for each.
            let (last, checked): (Option<i64>, i64) = sqlx::query_as(NUMBERS_LAST)
                .bind(after)
                .bind(i64::from(limit))
                .fetch_one(&mut *connection)
                .await?;
            let Some(last) = last else { return Ok((Vec::new(), 0, None)) };
            let orphans =
                sqlx::query_as(ORPHANS).bind(after).bind(last).fetch_all(&mut *connection).await?;
            let more = (checked == i64::from(limit)).then_some(last);
            Ok((orphans, usize::try_from(checked).unwrap_or_default(), more))
        })
        .await
    }

    /// Checks the next `limit` rows of `conversation_stats` after `after`. Returns those whose conversation
    /// does not exist, and the last row that was checked if there may be more after it.
    pub async fn orphaned_statistics(
        &self,
        scope: &Scope,
        after: Option<&OrphanedStatistics>,
        limit: u32,
    ) -> Result<(Vec<OrphanedStatistics>, Option<OrphanedStatistics>)> {
        let mut query = QueryBuilder::new(
            "SELECT tenant_id, conversation_id, NOT EXISTS (
                 SELECT FROM conversations c
                 WHERE c.tenant_id = s.tenant_id AND c.id = s.conversation_id) AS orphaned
             FROM conversation_stats s WHERE true",
        );
        if let Some(after) = after {
            query.push(" AND (tenant_id, conversation_id) > (").push_bind(&after.tenant_id);
            query.push(", ").push_bind(&after.conversation_id).push(")");
        }
        scope.push(&mut query, Some("conversation_id"));
        query.push(" ORDER BY tenant_id, conversation_id LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<(String, String, bool)> = self.values(query.build_query_as()).await?;
        let full = rows.len() == limit as usize;
        let key = |(tenant_id, conversation_id, _): &(String, String, bool)| OrphanedStatistics {
            tenant_id: tenant_id.clone(),
            conversation_id: conversation_id.clone(),
        };
        let last = rows.last().filter(|_| full).map(key);
        Ok((rows.iter().filter(|row| row.2).map(key).collect(), last))
    }
}

/// The conversation numbers of `message_rows` after $1 in order, by one look-up each.
macro_rules! numbers {
    ($and:literal, $then:literal) => {
        concat!(
            "WITH RECURSIVE numbers AS (
                 (SELECT m.conversation AS n FROM message_rows m WHERE m.conversation > $1 ",
            $and,
            " ORDER BY m.conversation LIMIT 1)
                 UNION ALL
                 SELECT (SELECT m.conversation FROM message_rows m WHERE m.conversation > numbers.n ",
            $and,
            " ORDER BY m.conversation LIMIT 1)
                 FROM numbers WHERE numbers.n IS NOT NULL) ",
            $then
        )
    };
}

const NUMBERS_LAST: &str = numbers!(
    "",
    "SELECT max(n), count(*) FROM (SELECT n FROM numbers WHERE n IS NOT NULL LIMIT $2) AS page"
);

/// Limited by the last number, not by a count: with a count, numbers that were added meanwhile would
/// displace the last ones.
const ORPHANS: &str = numbers!(
    "AND m.conversation <= $2",
    "SELECT page.n AS conversation, count(*) AS messages, min(m.id) AS first_id
     FROM numbers page JOIN message_rows m ON m.conversation = page.n
     WHERE NOT EXISTS (SELECT FROM conversations c WHERE c.number = page.n)
     GROUP BY page.n ORDER BY page.n"
);
