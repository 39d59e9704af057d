//! Session events: which sessions of a conversation are open, and when its close was asked for.
//!
//! Events are ordered per session by the time at which they were sent, so a delayed `closed` never
//! overrules a later `opened`. A conversation has a close request from the moment at which its last
//! open session closed; an open session withdraws it.

use chrono::{DateTime, Utc};
use domain::ids::{ConversationKey, SessionId};
use domain::time::Timestamp;
use sqlx::PgConnection;

use crate::{Archive, Result};

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionChange {
    /// It is connected.
    Opened,
    /// It is gone.
    Closed,
}

/// One session event or feedback, as it is to be recorded.
#[derive(Debug, Clone)]
pub struct SessionUpdate {
    /// The conversation that the event names or that follows from its session.
    pub key: ConversationKey,
    /// The session.
    pub session: SessionId,
    /// What happened to it; `None` for feedback, which concerns the conversation alone.
    pub change: Option<SessionChange>,
    /// Whether the event says nothing about the conversation: then a close concerns the session
    /// wherever it is open.
    pub everywhere: bool,
    /// When it was sent, or received where it does not say.
    pub at: Timestamp,
    /// Why the session closed.
    pub reason: Option<String>,
    /// How content the user was, 1 to 5.
    pub satisfaction: Option<u8>,
    /// The agent, where the event names it.
    pub agent_id: Option<String>,
    /// The user, where the event names one.
    pub user_id: Option<String>,
    /// The model, where the event names it.
    pub model_name: Option<String>,
    /// The tenant's tier, where the event names it.
    pub tenant_tier: Option<String>,
}

/// A session of a conversation.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow, serde::Serialize)]
pub struct SessionRow {
    /// Its id.
    pub session_id: String,
    /// Whether it is connected.
    pub open: bool,
    /// When it was last opened or closed.
    pub last_event_at: DateTime<Utc>,
}

impl Archive {
    /// The sessions of a conversation that opened or closed, in the order of their last event.
    pub async fn sessions(&self, key: &ConversationKey) -> Result<Vec<SessionRow>> {
        self.within(async {
            Ok(sqlx::query_as(
                "SELECT session_id, open, last_event_at FROM sessions
                 WHERE tenant_id = $1 AND conversation_id = $2
                 ORDER BY last_event_at, session_id",
            )
            .bind(key.tenant.as_str())
            .bind(key.conversation.as_str())
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Records a batch of session events in one transaction. Repeating it changes nothing.
    ///
    /// `fresh` gives random numbers for the generations of conversations that are new.
    pub async fn apply_sessions(
        &self,
        updates: &[SessionUpdate],
        fresh: &(dyn Fn() -> i64 + Sync),
    ) -> Result<()> {
        self.within(async {
            let mut transaction = self.pool.begin().await?;
            let mut updates = spread(&mut transaction, updates).await?;
            updates.sort_by(|a, b| (&a.key, &a.session, a.at).cmp(&(&b.key, &b.session, b.at)));
            lock_conversations(&mut transaction, &updates, fresh).await?;
            upsert_sessions(&mut transaction, &updates).await?;
            follow_sessions(&mut transaction, &updates).await?;
            record_satisfaction(&mut transaction, &updates).await?;
            transaction.commit().await?;
            Ok(())
        })
        .await
    }
}

/// A close that names no conversation concerns its session in every conversation where it is open,
/// and the session's own conversation where that exists or nothing else is meant.
async fn spread(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
) -> Result<Vec<SessionUpdate>> {
    let everywhere = |u: &&SessionUpdate| u.everywhere && u.change == Some(SessionChange::Closed);
    let closes: Vec<&SessionUpdate> = updates.iter().filter(everywhere).collect();
    if closes.is_empty() {
        return Ok(updates.to_vec());
    }
    let open: Vec<(i64, String, String, bool)> = sqlx::query_as(
        "SELECT k.n, s.tenant_id, s.conversation_id,
                EXISTS (SELECT FROM conversations c
                        WHERE c.tenant_id = k.tenant_id AND c.id = k.own) AS own_exists
         FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (tenant_id, session_id, own, n)
         JOIN sessions s ON s.tenant_id = k.tenant_id AND s.session_id = k.session_id
                        AND s.open AND s.conversation_id <> k.own",
    )
    .bind(closes.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(closes.iter().map(|u| u.session.as_str()).collect::<Vec<_>>())
    .bind(closes.iter().map(|u| u.key.conversation.as_str()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut elsewhere = Vec::with_capacity(open.len());
    let mut without_own: Vec<&ConversationKey> = Vec::new();
    for (n, tenant, conversation, own_exists) in open {
        if let Some(update) = usize::try_from(n - 1).ok().and_then(|n| closes.get(n)) {
            let key = crate::rows::key(&tenant, &conversation)?;
            elsewhere.push(SessionUpdate { key, ..(*update).clone() });
            if !own_exists {
                without_own.push(&update.key);
            }
        }
    }
    let meant = |u: &&SessionUpdate| !(everywhere(u) && without_own.contains(&&u.key));
    Ok(updates.iter().filter(meant).cloned().chain(elsewhere).collect())
}

/// Inserts the conversations that are missing and locks all of them, in key order.
async fn lock_conversations(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
    fresh: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
    let mut firsts: Vec<&SessionUpdate> = updates.iter().collect();
    firsts.dedup_by_key(|update| &update.key);
    let text = |of: fn(&SessionUpdate) -> &str| firsts.iter().map(|u| of(u)).collect::<Vec<_>>();
    let optional = |of: fn(&SessionUpdate) -> &Option<String>| {
        firsts.iter().map(|u| of(u).as_deref()).collect::<Vec<_>>()
    };
    sqlx::query(
        "INSERT INTO conversations (tenant_id, id, session_id, agent_id, user_id, model_name,
                                    tenant_tier, created_at, hot_generation)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                              $7::text[], $8::timestamptz[], $9::bigint[])
         ON CONFLICT DO NOTHING",
    )
    .bind(text(|u| u.key.tenant.as_str()))
    .bind(text(|u| u.key.conversation.as_str()))
    .bind(text(|u| u.session.as_str()))
    .bind(optional(|u| &u.agent_id))
    .bind(optional(|u| &u.user_id))
    .bind(optional(|u| &u.model_name))
    .bind(optional(|u| &u.tenant_tier))
    .bind(firsts.iter().map(|u| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .bind(firsts.iter().map(|_| fresh()).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "SELECT FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
         JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
         ORDER BY c.tenant_id, c.id
         FOR NO KEY UPDATE OF c",
    )
    .bind(text(|u| u.key.tenant.as_str()))
    .bind(text(|u| u.key.conversation.as_str()))
    .execute(connection)
    .await?;
    Ok(())
}

async fn upsert_sessions(connection: &mut PgConnection, updates: &[SessionUpdate]) -> Result<()> {
    // The newest event of each session in this batch; the batch is sorted by time within it.
    let mut newest: Vec<(&SessionUpdate, SessionChange)> = Vec::with_capacity(updates.len());
    for update in updates {
        let Some(change) = update.change else {
            continue;
        };
        match newest.last_mut() {
            Some(last) if last.0.key == update.key && last.0.session == update.session => {
                *last = (update, change);
            }
            _ => newest.push((update, change)),
        }
    }
    sqlx::query(
        "INSERT INTO sessions (tenant_id, conversation_id, session_id, open, last_event_at)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[])
         ON CONFLICT (tenant_id, conversation_id, session_id) DO UPDATE
         SET open = excluded.open, last_event_at = excluded.last_event_at
         WHERE sessions.last_event_at < excluded.last_event_at",
    )
    .bind(newest.iter().map(|(u, _)| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(newest.iter().map(|(u, _)| u.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(newest.iter().map(|(u, _)| u.session.as_str()).collect::<Vec<_>>())
    .bind(newest.iter().map(|(_, change)| *change == SessionChange::Opened).collect::<Vec<_>>())
    .bind(newest.iter().map(|(u, _)| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes each conversation's close request follow from its sessions. A request that stands already
/// keeps its time: repeating a close does not postpone it.
async fn follow_sessions(connection: &mut PgConnection, updates: &[SessionUpdate]) -> Result<()> {
    let mut changed: Vec<&SessionUpdate> = updates.iter().filter(|u| u.change.is_some()).collect();
    // The last one of each conversation in the batch; only its reason is taken.
    changed.reverse();
    changed.dedup_by_key(|update| &update.key);
    sqlx::query(
        "UPDATE conversations c SET
             status = CASE WHEN k.open THEN 'active' ELSE c.status END,
             close_token = CASE WHEN k.open THEN NULL ELSE c.close_token END,
             close_lease_until = CASE WHEN k.open THEN NULL ELSE c.close_lease_until END,
             close_requested_at = CASE
                 WHEN k.open THEN NULL
                 WHEN c.status = 'active' THEN coalesce(c.close_requested_at, clock_timestamp())
                 ELSE c.close_requested_at END,
             close_reason = CASE
                 WHEN k.open THEN NULL
                 WHEN c.status = 'active' THEN coalesce(k.reason, c.close_reason)
                 ELSE c.close_reason END,
             touched_at = CASE WHEN k.open THEN clock_timestamp() ELSE c.touched_at END,
             reopened = c.reopened OR (k.open AND c.status = 'archived'),
             agent_id = coalesce(c.agent_id, k.agent_id),
             user_id = coalesce(c.user_id, k.user_id)
         FROM (SELECT u.*, EXISTS (SELECT FROM sessions s
                                   WHERE s.tenant_id = u.tenant_id AND s.conversation_id = u.id
                                     AND s.open) AS open
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                    AS u (tenant_id, id, reason, agent_id, user_id)) AS k
         WHERE c.tenant_id = k.tenant_id AND c.id = k.id",
    )
    .bind(changed.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(changed.iter().map(|u| u.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(changed.iter().map(|u| u.reason.as_deref()).collect::<Vec<_>>())
    .bind(changed.iter().map(|u| u.agent_id.as_deref()).collect::<Vec<_>>())
    .bind(changed.iter().map(|u| u.user_id.as_deref()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The newest word on satisfaction wins, whenever it arrives; it makes the statistics stale.
async fn record_satisfaction(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
) -> Result<()> {
    let mut said: Vec<(&SessionUpdate, i16)> = updates
        .iter()
        .filter_map(|u| u.satisfaction.map(|satisfaction| (u, i16::from(satisfaction))))
        .collect();
    if said.is_empty() {
        return Ok(());
    }
    said.sort_by(|(a, _), (b, _)| (&a.key, b.at).cmp(&(&b.key, a.at)));
    said.dedup_by_key(|(update, _)| &update.key);
    sqlx::query(
        "UPDATE conversations c
         SET satisfaction = k.satisfaction, satisfaction_at = k.at, stats_from = NULL
         FROM unnest($1::text[], $2::text[], $3::smallint[], $4::timestamptz[])
              AS k (tenant_id, id, satisfaction, at)
         WHERE c.tenant_id = k.tenant_id AND c.id = k.id
           AND (c.satisfaction_at IS NULL OR c.satisfaction_at < k.at)",
    )
    .bind(said.iter().map(|(u, _)| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(said.iter().map(|(u, _)| u.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(said.iter().map(|(_, satisfaction)| *satisfaction).collect::<Vec<_>>())
    .bind(said.iter().map(|(u, _)| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
