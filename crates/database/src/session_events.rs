//! The table `session_events`: every session event and feedback, with all that its sender said.
//!
//! Stored in the transaction that applies the event, so that nothing of an acknowledged event is lost, also
//! where it changes nothing: it arrived late, or named what the conversation has already.

use chrono::{DateTime, Utc};
use domain::action::ActionKind;
use domain::ids::{AgentId, ConversationKey, MessageId, SessionId, UserId};
use domain::json::Json;
use domain::session_event::SessionEvent;
use sqlx::postgres::{PgBindIterExt as _, PgRow};
use sqlx::{PgConnection, Row as _};

use crate::rows::{BindKeys as _, corrupt, from_row, id, json, optional_id, timestamp};
use crate::session_update::SessionUpdate;
use crate::{Database, Result};

const TABLE: &str = "session_events";

/// A session event or feedback of a conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SessionEventView {
    /// The id of the action.
    pub id: String,
    /// Which action it was.
    pub action_type: String,
    /// The session.
    pub session_id: String,
    /// When it happened.
    pub created_at: DateTime<Utc>,
    /// When it was first received.
    pub received_at: DateTime<Utc>,
    /// Why the session closed.
    pub reason: Option<String>,
    /// The user's satisfaction, 1 to 5.
    pub satisfaction: Option<i16>,
    /// The end user, if it named one.
    pub user_id: Option<String>,
    /// The agent, if it named one.
    pub agent_id: Option<String>,
    /// The model, if it named one.
    pub model_name: Option<String>,
    /// The tenant's price plan, if it named one.
    pub tenant_tier: Option<String>,
    /// Its metadata, with the fields that the contract does not define.
    pub metadata: Option<Json>,
}

from_row! { SessionEventView:
    id, action_type, session_id, created_at, received_at, reason, satisfaction, user_id, agent_id,
    model_name, tenant_tier;
    metadata: metadata
}

/// The event in the columns of `session_events`, with the metadata as text.
pub(crate) fn stored_event(row: &PgRow) -> Result<SessionEvent> {
    let kind: &str = row.try_get("action_type")?;
    let satisfaction: Option<i16> = row.try_get("satisfaction")?;
    Ok(SessionEvent {
        id: id(row, TABLE, "id", MessageId::new)?,
        kind: ActionKind::parse(kind)
            .ok_or_else(|| corrupt(TABLE, format!("unknown action_type {kind:?}")))?,
        session: id(row, TABLE, "session_id", SessionId::new)?,
        created_at: timestamp(row.try_get("created_at")?),
        received_at: timestamp(row.try_get("received_at")?),
        reason: row.try_get("reason")?,
        satisfaction: satisfaction.and_then(|it| u8::try_from(it).ok()),
        user_id: optional_id(row, TABLE, "user_id", UserId::new)?,
        agent_id: optional_id(row, TABLE, "agent_id", AgentId::new)?,
        model_name: row.try_get("model_name")?,
        tenant_tier: row.try_get("tenant_tier")?,
        metadata: json(row, TABLE, "metadata")?,
    })
}

/// The metadata, byte for byte as it was sent.
fn metadata(row: &PgRow) -> sqlx::Result<Option<Json>> {
    Ok(json(row, TABLE, "metadata")?)
}

impl Database {
    /// The session events and feedback of a conversation, in the order in which they count; the newest `limit`.
    pub async fn session_events(
        &self,
        key: &ConversationKey,
        limit: u32,
    ) -> Result<Vec<SessionEventView>> {
        let query = sqlx::query_as(
            "SELECT * FROM (
                 SELECT id, action_type, session_id, created_at, received_at, reason, satisfaction, user_id,
                        agent_id, model_name, tenant_tier, metadata::text AS metadata, effective_at
                 FROM session_events WHERE tenant_id = $1 AND conversation_id = $2
                 ORDER BY effective_at DESC, id DESC LIMIT $3) AS newest
             ORDER BY effective_at, id",
        )
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str())
        .bind(i64::from(limit));
        self.values(query).await
    }
}

/// Stores events, each in a conversation. An event that is stored already stays as it is.
pub(crate) async fn insert_events(
    connection: &mut PgConnection,
    events: &[SessionUpdate],
) -> Result<()> {
    fn all<'a, T: 'a>(
        events: &'a [SessionUpdate],
        of: impl Fn(&'a SessionEvent) -> T + Clone,
    ) -> impl Iterator<Item = T> + Clone {
        events.iter().map(move |it| of(&it.event))
    }
    let time = |time| DateTime::<Utc>::from(time);
    sqlx::query(
        "INSERT INTO session_events (tenant_id, conversation_id, id, action_type, session_id, created_at,
                                     received_at, reason, satisfaction, user_id, agent_id, model_name,
                                     tenant_tier, metadata, content_hash, everywhere, effective_at)
         SELECT tenant_id, conversation_id, id, action_type, session_id, created_at, received_at, reason,
                satisfaction, user_id, agent_id, model_name, tenant_tier, metadata::json, content_hash, everywhere,
                effective_at
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
                     $7::timestamptz[], $8::text[], $9::smallint[], $10::text[], $11::text[], $12::text[],
                     $13::text[], $14::text[], $15::bytea[], $16::boolean[],
                     $17::timestamptz[])
              AS e (tenant_id, conversation_id, id, action_type, session_id, created_at, received_at, reason,
                    satisfaction, user_id, agent_id, model_name, tenant_tier, metadata, content_hash, everywhere,
                    effective_at)
         ON CONFLICT (tenant_id, id, content_hash, conversation_id, created_at) DO NOTHING",
    )
    .bind_keys(events.iter().map(|it| &it.key))
    .bind(all(events, |it| it.id.as_str()).bind_iter())
    .bind(all(events, |it| it.kind.as_str()).bind_iter())
    .bind(all(events, |it| it.session.as_str()).bind_iter())
    .bind(all(events, |it| time(it.created_at)).bind_iter())
    .bind(all(events, |it| time(it.received_at)).bind_iter())
    .bind(all(events, |it| it.reason.as_deref()).bind_iter())
    .bind(all(events, |it| it.satisfaction.map(i16::from)).bind_iter())
    .bind(all(events, |it| it.user_id.as_ref().map(AsRef::<str>::as_ref)).bind_iter())
    .bind(all(events, |it| it.agent_id.as_ref().map(AsRef::<str>::as_ref)).bind_iter())
    .bind(all(events, |it| it.model_name.as_deref()).bind_iter())
    .bind(all(events, |it| it.tenant_tier.as_deref()).bind_iter())
    .bind(all(events, |it| it.metadata.as_ref().map(Json::as_str)).bind_iter())
    .bind(events.iter().map(|it| it.event.content_hash().0).collect::<Vec<_>>())
    .bind(events.iter().map(SessionUpdate::closes_everywhere).collect::<Vec<_>>())
    .bind(events.iter().map(|it| time(it.at())).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
