//! Reopened conversations whose `conversation.reopened` event is not published yet.
//!
//! The save transaction only sets `reopened`; the sweep publishes the event. So the save path never waits
//! for a publish, and a crash of either process at worst repeats an event.

use chrono::{DateTime, Utc};
use domain::event::Reopened;
use domain::ids::SessionId;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::rows::{id, key_of, timestamp};
use crate::{Database, Result};

impl Database {
    /// Reopened conversations whose event is not published yet; at most `limit`. One whose row is locked is left out:
    /// [`Self::announced`] could not record its event, which would be published again and again.
    pub async fn unannounced(&self, limit: u32) -> Result<Vec<Reopened>> {
        let query = sqlx::query(
            "SELECT tenant_id, id, session_id, touched_at FROM conversations WHERE reopened
             ORDER BY tenant_id, id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED",
        )
        .bind(i64::from(limit));
        let reopened = |row: &PgRow| {
            let key = key_of(row)?;
            Ok(Reopened {
                tenant_id: key.tenant,
                conversation_id: key.conversation,
                session_id: id(row, "conversations", "session_id", SessionId::new)?,
                reopened_at: timestamp(row.try_get("touched_at")?),
            })
        };
        self.rows(query).await?.iter().map(reopened).collect()
    }

    /// Records that these events were published and confirmed. A conversation whose `touched_at` changed
    /// since then stays in the list: it may have been reopened a second time. So does one whose row is locked.
    pub async fn announced(&self, events: &[Reopened]) -> Result<()> {
        let query = sqlx::query(
            "WITH published AS (
                 SELECT c.tenant_id, c.id
                 FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS k (tenant_id, id, at)
                 JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                 WHERE c.touched_at = k.at
                 ORDER BY c.tenant_id, c.id
                 FOR NO KEY UPDATE OF c SKIP LOCKED)
             UPDATE conversations c SET reopened = false
             FROM published p WHERE c.tenant_id = p.tenant_id AND c.id = p.id",
        )
        .bind(events.iter().map(|it| it.tenant_id.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|it| it.conversation_id.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|it| DateTime::<Utc>::from(it.reopened_at)).collect::<Vec<_>>());
        self.execute(query).await?;
        Ok(())
    }
}
