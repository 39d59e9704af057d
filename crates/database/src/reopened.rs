//! Conversations that came back from the archive and whose `conversation.reopened` event is due.
//!
//! The saver only marks the row; whoever sweeps publishes. So a crash of either repeats an event at
//! worst, and the save path never waits for a publish.

use chrono::{DateTime, Utc};
use domain::event::Reopened;
use domain::ids::SessionId;
use sqlx::Row;

use crate::rows::{corrupt, key, timestamp};
use crate::{Database, Result};

impl Database {
    /// Conversations whose return has not been announced; at most `limit`.
    pub async fn unannounced(&self, limit: u32) -> Result<Vec<Reopened>> {
        self.within(async |connection| {
            sqlx::query(
                "SELECT tenant_id, id, session_id, touched_at FROM conversations WHERE reopened
                 ORDER BY tenant_id, id LIMIT $1",
            )
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(|row| {
                let key = key(row.try_get("tenant_id")?, row.try_get("id")?)?;
                Ok(Reopened {
                    tenant_id: key.tenant,
                    conversation_id: key.conversation,
                    session_id: SessionId::new(row.try_get::<&str, _>("session_id")?)
                        .map_err(|f| corrupt("conversations", format!("session_id {f}")))?,
                    reopened_at: timestamp(row.try_get::<DateTime<Utc>, _>("touched_at")?),
                })
            })
            .collect()
        })
        .await
    }

    /// Notes that these events were published and confirmed. A conversation that was touched since
    /// stays due: it may have come back a second time.
    pub async fn announced(&self, told: &[Reopened]) -> Result<()> {
        self.within(async |connection| {
            sqlx::query(
                "WITH told AS (
                     SELECT c.tenant_id, c.id
                     FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS k (tenant_id, id, at)
                     JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                     WHERE c.touched_at = k.at
                     ORDER BY c.tenant_id, c.id
                     FOR NO KEY UPDATE OF c)
                 UPDATE conversations c SET reopened = false
                 FROM told WHERE c.tenant_id = told.tenant_id AND c.id = told.id",
            )
            .bind(told.iter().map(|it| it.tenant_id.as_str()).collect::<Vec<_>>())
            .bind(told.iter().map(|it| it.conversation_id.as_str()).collect::<Vec<_>>())
            .bind(told.iter().map(|it| DateTime::<Utc>::from(it.reopened_at)).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
            Ok(())
        })
        .await
    }
}
