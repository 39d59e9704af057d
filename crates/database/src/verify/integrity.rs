//! What no foreign key holds together: rows whose conversation is not there.

use sqlx::{FromRow, QueryBuilder};

use super::Scope;
use crate::{Database, Result};

/// Messages under a number that no conversation has. Nobody can read them.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct OrphanedRows {
    /// The number.
    pub conversation: i64,
    /// How many there are.
    pub messages: i64,
    /// The first of their ids.
    pub first_id: String,
}

/// Statistics of a conversation that is not there.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct OrphanedStatistics {
    /// Its tenant.
    pub tenant_id: String,
    /// Its id.
    pub conversation_id: String,
}

impl Database {
    /// Of the next `limit` numbers under which there are messages, those that no conversation has; how
    /// many numbers were looked at; and the last one, where there may be more behind it.
    pub async fn orphaned_rows(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<(Vec<OrphanedRows>, usize, Option<i64>)> {
        self.within(async |connection| {
            // From number to number along the primary key, one look-up for each.
            let (last, looked_at): (Option<i64>, i64) = sqlx::query_as(NUMBERS_LAST)
                .bind(after)
                .bind(i64::from(limit))
                .fetch_one(&mut *connection)
                .await?;
            let Some(last) = last else { return Ok((Vec::new(), 0, None)) };
            let orphans =
                sqlx::query_as(ORPHANS).bind(after).bind(last).fetch_all(&mut *connection).await?;
            let more = (looked_at == i64::from(limit)).then_some(last);
            Ok((orphans, usize::try_from(looked_at).unwrap_or_default(), more))
        })
        .await
    }

    /// Of the next `limit` statistics those whose conversation is not there; and the last of all that were
    /// looked at, where there may be more behind it.
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
        if let Some(tenant) = &scope.tenant {
            query.push(" AND tenant_id = ").push_bind(tenant.as_str());
        }
        if let Some(conversation) = &scope.conversation {
            query.push(" AND conversation_id = ").push_bind(conversation.as_str());
        }
        query.push(" ORDER BY tenant_id, conversation_id LIMIT ").push_bind(i64::from(limit));
        self.within(async |connection| {
            let rows: Vec<(String, String, bool)> =
                query.build_query_as().fetch_all(connection).await?;
            let full = rows.len() == limit as usize;
            let key =
                |(tenant_id, conversation_id, _): &(String, String, bool)| OrphanedStatistics {
                    tenant_id: tenant_id.clone(),
                    conversation_id: conversation_id.clone(),
                };
            let last = rows.last().filter(|_| full).map(key);
            Ok((rows.iter().filter(|row| row.2).map(key).collect(), last))
        })
        .await
    }
}

/// The numbers after $1 under which there are messages, by one look-up each, in order.
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

/// Up to a number, not so many: numbers that came since would push out the last.
const ORPHANS: &str = numbers!(
    "AND m.conversation <= $2",
    "SELECT page.n AS conversation, count(*) AS messages, min(m.id) AS first_id
     FROM numbers page JOIN message_rows m ON m.conversation = page.n
     WHERE NOT EXISTS (SELECT FROM conversations c WHERE c.number = page.n)
     GROUP BY page.n ORDER BY page.n"
);
