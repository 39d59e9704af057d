//! Checks of the words of archived conversations, by which searches find them.
//!
//! The blocks that should be stored are made again from the texts. They are compared as they would be written, so a wrong
//! mark or time is found, too.

use std::ops::AddAssign;

use domain::ids::ConversationKey;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, QueryBuilder, Row as _};

use super::scope::Scope;
use crate::rows::{BindKeys as _, corrupt};
use crate::words::{WordBlock, WordsDone, WordsDue, bind_blocks, blocks};
use crate::{Database, Result};

/// How the stored words of a conversation differ from those of its texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow)]
pub struct WordsDifference {
    /// Blocks that are not stored.
    pub missing: i64,
    /// Stored blocks whose words differ, or the time of their conversation.
    pub different: i64,
    /// Stored blocks that it should not have.
    pub surplus: i64,
}

impl AddAssign for WordsDifference {
    fn add_assign(&mut self, more: Self) {
        self.missing += more.missing;
        self.different += more.different;
        self.surplus += more.surplus;
    }
}

/// Words of a conversation that does not exist, or that was never archived. No search finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrphanedWords {
    /// Its tenant.
    pub tenant_id: String,
    /// Its id.
    pub conversation_id: String,
    /// How many blocks there are.
    pub blocks: i64,
}

impl Database {
    /// Those of these conversations that are archived and whose words are not due.
    pub async fn words_written(&self, keys: &[ConversationKey]) -> Result<Vec<WordsDue>> {
        let query = sqlx::query(
            "SELECT c.tenant_id, c.id AS conversation_id, c.finalised_at
             FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             WHERE c.status = 'archived' AND c.finalised_at IS NOT NULL AND NOT EXISTS (
                 SELECT FROM words_due w WHERE w.finalised_at = c.finalised_at
                   AND w.tenant_id = c.tenant_id AND w.conversation_id = c.id)
             ORDER BY c.tenant_id, c.id",
        )
        .bind_keys(keys.iter());
        self.rows(query).await?.iter().map(WordsDue::of).collect()
    }

    /// Compares blocks of these conversations, and of those that are `done` the number of blocks, with what is stored.
    /// Returns the positions of the conversations that differ, with what differs. One that is no longer archived as it was,
    /// or whose words are due, does not differ.
    pub async fn words_differing(
        &self,
        written: &[WordsDue],
        blocks: &[WordBlock],
        done: &[WordsDone],
    ) -> Result<Vec<(usize, WordsDifference)>> {
        let query = bind_blocks(sqlx::query(DIFFERING), written, blocks, done);
        let difference = |row: &PgRow| {
            let n: i64 = row.try_get("n")?;
            let n = usize::try_from(n - 1).map_err(|_| corrupt("words", "n".to_owned()))?;
            Ok((n, WordsDifference::from_row(row)?))
        };
        self.rows(query).await?.iter().map(difference).collect()
    }

    /// Checks the next conversations that have words, at most `limit`. Returns those that do not exist or were never
    /// archived, and the last one that was checked if there may be more after it.
    pub async fn orphaned_words(
        &self,
        scope: &Scope,
        after: Option<&OrphanedWords>,
        limit: u32,
    ) -> Result<(Vec<OrphanedWords>, Option<OrphanedWords>)> {
        let mut query = QueryBuilder::new(
            "SELECT tenant_id, conversation_id, count(*) AS blocks, NOT EXISTS (
                 SELECT FROM conversations c
                 WHERE c.tenant_id = w.tenant_id AND c.id = w.conversation_id
                   AND c.finalised_at IS NOT NULL) AS orphaned
             FROM conversation_words w WHERE true",
        );
        if let Some(after) = after {
            query.push(" AND (tenant_id, conversation_id) > (").push_bind(&after.tenant_id);
            query.push(", ").push_bind(&after.conversation_id).push(")");
        }
        scope.push(&mut query, Some("conversation_id"));
        query.push(
            " GROUP BY tenant_id, conversation_id ORDER BY tenant_id, conversation_id LIMIT ",
        );
        query.push_bind(i64::from(limit));
        let rows: Vec<(String, String, i64, bool)> = self.values(query.build_query_as()).await?;
        let words =
            |(tenant_id, conversation_id, blocks, _): &(String, String, i64, bool)| OrphanedWords {
                tenant_id: tenant_id.clone(),
                conversation_id: conversation_id.clone(),
                blocks: *blocks,
            };
        let last = rows.last().filter(|_| rows.len() == limit as usize).map(words);
        Ok((rows.iter().filter(|row| row.3).map(words).collect(), last))
    }
}

pub(crate) const DIFFERING: &str = blocks!(
    "FROM due k JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
     WHERE c.status = 'archived' AND c.finalised_at = k.finalised_at AND NOT EXISTS (
         SELECT FROM words_due w WHERE w.finalised_at = c.finalised_at
           AND w.tenant_id = c.tenant_id AND w.conversation_id = c.id)",
    "compared AS (
        SELECT b.n, w.block IS NULL AS missing,
               w.block IS NOT NULL AND (w.created_at, w.finalised_at, w.words)
                   IS DISTINCT FROM (b.created_at, b.finalised_at, b.words) AS different, false AS surplus
        FROM blocks b LEFT JOIN conversation_words w
             ON w.tenant_id = b.tenant_id AND w.conversation_id = b.id AND w.block = b.block
        UNION ALL
        SELECT c.n, false, false, true
        FROM done d JOIN archived c USING (n)
        JOIN conversation_words w ON w.tenant_id = c.tenant_id AND w.conversation_id = c.id AND w.block >= d.blocks)
    SELECT n, count(*) FILTER (WHERE missing) AS missing, count(*) FILTER (WHERE different) AS different,
           count(*) FILTER (WHERE surplus) AS surplus
    FROM compared WHERE missing OR different OR surplus GROUP BY n ORDER BY n"
);
