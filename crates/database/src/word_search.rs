//! Conversations that have words: a page of archived ones, newest first.
//!
//! The function `verbatim_conversations_with_words` searches, with the rights of the owner: `@>` is not leakproof, so under
//! row-level security PostgreSQL would read all words of all tenants. The conversations that it names are read with
//! row-level security.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain::ids::TenantId;
use domain::words::SearchWords;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow as _, Row as _};

use crate::conversation_pages::SUMMARY;
use crate::{ConversationPage, ConversationSummary, Database, PageFilter, PagePosition, Result};

/// A search.
#[derive(Debug, Clone, Copy)]
pub struct WordSearch<'a> {
    /// What the conversations have, all in one block.
    pub words: &'a SearchWords,
    /// What else is wanted of them. Its status is not read: only archived conversations are found.
    pub filter: &'a PageFilter,
    /// Where the page begins.
    pub after: Option<&'a PagePosition>,
    /// The most conversations.
    pub limit: u32,
    /// After which time no further part of the archive is searched.
    pub time: Duration,
}

impl Database {
    /// A page of the conversations that were found. It has fewer than the limit, even none, where the time ended first;
    /// `next` then says where the next page begins.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn search_words(
        &self,
        tenant: &TenantId,
        search: &WordSearch<'_>,
    ) -> Result<ConversationPage> {
        let &WordSearch { words, filter, after, limit, time } = search;
        // One more says that there is a next page.
        let places = limit.saturating_add(1);
        let statement = statement();
        let query = sqlx::query(AssertSqlSafe(statement))
            .bind(words.iter().collect::<Vec<_>>())
            .bind(&filter.agent)
            .bind(&filter.user)
            .bind(&filter.model)
            .bind(filter.from)
            .bind(filter.to)
            .bind(after.map(|it| it.created_at))
            .bind(after.map(|it| it.id.as_str()))
            .bind(i32::try_from(places).unwrap_or(i32::MAX))
            .bind(i32::try_from(time.as_millis()).unwrap_or(i32::MAX))
            .bind(tenant.as_str());
        let mut found = Vec::new();
        let mut next = None;
        for row in &self.rows(query).await? {
            let position = position(row)?;
            if !row.try_get::<bool, _>("is_match")? {
                next = Some(position);
            } else if found.len() < limit as usize {
                found.push((position, ConversationSummary::from_row(row)?));
            } else {
                next = found.last().map(|(position, _): &(PagePosition, _)| position.clone());
            }
        }
        Ok(ConversationPage { conversations: found.into_iter().map(|it| it.1).collect(), next })
    }
}

/// Its last parameter is the tenant. In the order of the function: a look-up for each row keeps it.
pub(crate) fn statement() -> String {
    format!(
        "SELECT f.found_at, f.found_id, f.is_match, c.*
         FROM verbatim_conversations_with_words($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS f
         LEFT JOIN LATERAL (SELECT {SUMMARY} FROM conversations c WHERE c.tenant_id = $11 AND c.id = f.found_id
                            LIMIT 1) AS c ON f.is_match"
    )
}

fn position(row: &PgRow) -> Result<PagePosition> {
    let created_at: DateTime<Utc> = row.try_get("found_at")?;
    Ok(PagePosition { created_at, id: row.try_get("found_id")? })
}
