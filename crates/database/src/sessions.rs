//! Session events: which sessions of a conversation are open, and when its close was asked for.
//!
//! Events are ordered per session by the time at which they were sent, so a delayed `closed` never
//! overrules a later `opened`. A conversation has a close request from the moment at which its last
//! open session closed; an open session withdraws it.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use domain::ids::{ConversationKey, SessionId};
use domain::time::Timestamp;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::rows::{corrupt, timestamp};
use crate::{Database, Result};

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

impl Database {
    /// The sessions of a conversation that opened or closed, in the order of their last event.
    pub async fn sessions(&self, key: &ConversationKey) -> Result<Vec<SessionRow>> {
        self.within(async |connection| {
            Ok(sqlx::query_as(
                "SELECT session_id, open, last_event_at FROM sessions
                 WHERE tenant_id = $1 AND conversation_id = $2
                 ORDER BY last_event_at, session_id",
            )
            .bind(key.tenant.as_str())
            .bind(key.conversation.as_str())
            .fetch_all(&mut *connection)
            .await?)
        })
        .await
    }

    /// Records a batch of session events in one transaction. Repeating it changes nothing.
    ///
    /// `random` gives random numbers for the generations of conversations that are new.
    pub async fn apply_sessions(
        &self,
        updates: &[SessionUpdate],
        random: &(dyn Fn() -> i64 + Sync),
    ) -> Result<()> {
        self.within(async |connection| {
            let mut transaction = connection.begin().await?;
            take_turns(&mut transaction, updates).await?;
            let mut updates = spread(&mut transaction, updates).await?;
            end_what_is_over(&mut transaction, &mut updates).await?;
            updates.sort_by(|a, b| {
                (&a.key, &a.session, a.rank()).cmp(&(&b.key, &b.session, b.rank()))
            });
            lock_conversations(&mut transaction, &updates, random).await?;
            let applied = upsert_sessions(&mut transaction, &updates).await?;
            follow_sessions(&mut transaction, &applied).await?;
            record_satisfaction(&mut transaction, &updates).await?;
            transaction.commit().await?;
            Ok(())
        })
        .await
    }
}

impl SessionUpdate {
    /// Events of one session are ordered by their times; of two at the same time the open one wins,
    /// so that a page that reloads within a second stays connected.
    fn rank(&self) -> (Timestamp, bool) {
        (self.at, self.change == Some(SessionChange::Opened))
    }
}

/// The first key of our advisory locks, an arbitrary number; the second is a session's bucket.
const SESSION_LOCKS: i32 = 7_301;

/// Locks the sessions of a batch, by buckets: a close that names no conversation and the open that it
/// ends may be in two transactions, and one of them must see the other.
async fn take_turns(connection: &mut PgConnection, updates: &[SessionUpdate]) -> Result<()> {
    sqlx::query(
        "SELECT pg_advisory_xact_lock($3, bucket)
         FROM (SELECT DISTINCT hashtext(tenant_id || E'\\x01' || session_id) & 63 AS bucket
               FROM unnest($1::text[], $2::text[]) AS k (tenant_id, session_id)
               ORDER BY bucket) AS sessions",
    )
    .bind(updates.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(updates.iter().map(|u| u.session.as_str()).collect::<Vec<_>>())
    .bind(SESSION_LOCKS)
    .execute(connection)
    .await?;
    Ok(())
}

/// A close that names no conversation concerns its session in every conversation where it is open,
/// in the archive or by an event of this batch, and the session's own conversation where that exists
/// or nothing else is meant.
async fn spread(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
) -> Result<Vec<SessionUpdate>> {
    let is_everywhere =
        |u: &&SessionUpdate| u.everywhere && u.change == Some(SessionChange::Closed);
    let closes: Vec<&SessionUpdate> = updates.iter().filter(is_everywhere).collect();
    if closes.is_empty() {
        return Ok(updates.to_vec());
    }
    let open: Vec<(i64, Option<String>, bool)> = sqlx::query_as(
        "SELECT k.n, s.conversation_id,
                EXISTS (SELECT FROM conversations c
                        WHERE c.tenant_id = k.tenant_id AND c.id = k.own) AS own_exists
         FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS k (tenant_id, session_id, own, n)
         LEFT JOIN sessions s ON s.tenant_id = k.tenant_id AND s.session_id = k.session_id
                             AND s.open AND s.conversation_id <> k.own",
    )
    .bind(closes.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(closes.iter().map(|u| u.session.as_str()).collect::<Vec<_>>())
    .bind(closes.iter().map(|u| u.key.conversation.as_str()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut spread: Vec<SessionUpdate> =
        updates.iter().filter(|u| !is_everywhere(u)).cloned().collect();
    let opens: Vec<SessionUpdate> =
        spread.iter().filter(|u| u.change == Some(SessionChange::Opened)).cloned().collect();
    for (n, close) in (1..).zip(closes) {
        let mut conversations: Vec<ConversationKey> = opens
            .iter()
            .filter(|u| u.key.tenant == close.key.tenant && u.session == close.session)
            .map(|u| u.key.clone())
            .collect();
        let mut own_exists = conversations.contains(&close.key);
        for (_, found, exists) in open.iter().filter(|row| row.0 == n) {
            own_exists |= exists;
            if let Some(conversation) = found {
                conversations.push(crate::rows::key(close.key.tenant.as_str(), conversation)?);
            }
        }
        if own_exists || conversations.is_empty() {
            conversations.push(close.key.clone());
        }
        conversations.sort();
        conversations.dedup();
        spread.extend(conversations.into_iter().map(|key| SessionUpdate { key, ..close.clone() }));
    }
    Ok(spread)
}

/// An open that arrives after the close that ended it, where that close named no conversation, is
/// over already.
async fn end_what_is_over(
    connection: &mut PgConnection,
    updates: &mut [SessionUpdate],
) -> Result<()> {
    let mut opens: Vec<&mut SessionUpdate> =
        updates.iter_mut().filter(|u| u.change == Some(SessionChange::Opened)).collect();
    if opens.is_empty() {
        return Ok(());
    }
    let over: Vec<(i64, DateTime<Utc>)> = sqlx::query_as(
        "SELECT k.n, max(s.last_event_at)
         FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS k (tenant_id, session_id, at, n)
         JOIN sessions s ON s.tenant_id = k.tenant_id AND s.session_id = k.session_id
                        AND s.everywhere AND s.last_event_at > k.at
         GROUP BY k.n",
    )
    .bind(opens.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(opens.iter().map(|u| u.session.as_str()).collect::<Vec<_>>())
    .bind(opens.iter().map(|u| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    for (n, closed_at) in over {
        if let Some(open) = usize::try_from(n - 1).ok().and_then(|n| opens.get_mut(n)) {
            open.change = Some(SessionChange::Closed);
            open.at = timestamp(closed_at);
        }
    }
    Ok(())
}

/// How often the lock is tried again because a conversation vanished between insert and lock: the
/// sweep would have to drop the same empty conversation each time.
const LOCK_ROUNDS: usize = 5;

/// Inserts the conversations that are missing and locks all of them, in key order.
async fn lock_conversations(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
    let mut firsts: Vec<&SessionUpdate> = updates.iter().collect();
    firsts.dedup_by_key(|update| &update.key);
    for _ in 0..LOCK_ROUNDS {
        insert_conversations(connection, &firsts, random).await?;
        let locked = sqlx::query(
            "SELECT FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             ORDER BY c.tenant_id, c.id
             FOR NO KEY UPDATE OF c",
        )
        .bind(firsts.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
        .bind(firsts.iter().map(|u| u.key.conversation.as_str()).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if locked == firsts.len() as u64 {
            return Ok(());
        }
    }
    Err(corrupt("conversations", "a row keeps vanishing between insert and lock".into()))
}

async fn insert_conversations(
    connection: &mut PgConnection,
    firsts: &[&SessionUpdate],
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
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
    .bind(firsts.iter().map(|_| random()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Records the newest event of each session, where it is newer than what is known; returns those
/// that were.
async fn upsert_sessions<'a>(
    connection: &mut PgConnection,
    updates: &'a [SessionUpdate],
) -> Result<Vec<&'a SessionUpdate>> {
    // The batch is sorted by rank within each session, so the last one is the newest.
    let mut newest: Vec<&SessionUpdate> = Vec::with_capacity(updates.len());
    for update in updates.iter().filter(|update| update.change.is_some()) {
        match newest.last_mut() {
            Some(last) if last.key == update.key && last.session == update.session => {
                *last = update;
            }
            _ => newest.push(update),
        }
    }
    let is_open = |u: &&SessionUpdate| u.change == Some(SessionChange::Opened);
    let applied = sqlx::query(
        "INSERT INTO sessions (tenant_id, conversation_id, session_id, open, last_event_at, everywhere)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[], $6::boolean[])
         ON CONFLICT (tenant_id, conversation_id, session_id) DO UPDATE
         SET open = excluded.open, last_event_at = excluded.last_event_at,
             everywhere = excluded.everywhere
         WHERE (sessions.last_event_at, sessions.open) < (excluded.last_event_at, excluded.open)
         RETURNING tenant_id, conversation_id, session_id",
    )
    .bind(newest.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.session.as_str()).collect::<Vec<_>>())
    .bind(newest.iter().map(is_open).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.everywhere && !is_open(u)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut names: HashSet<(&str, &str, &str)> = HashSet::with_capacity(applied.len());
    for row in &applied {
        names.insert((
            row.try_get("tenant_id")?,
            row.try_get("conversation_id")?,
            row.try_get("session_id")?,
        ));
    }
    newest.retain(|u| {
        let name = (u.key.tenant.as_str(), u.key.conversation.as_str(), u.session.as_str());
        names.contains(&name)
    });
    Ok(newest)
}

/// Makes each conversation's close request follow from what changed. A session that opened withdraws
/// it; the last open one that closed makes it. A request that stands already keeps its time:
/// repeating a close does not postpone it.
async fn follow_sessions(connection: &mut PgConnection, applied: &[&SessionUpdate]) -> Result<()> {
    // Of each conversation whether a session opened, and the newest event, whose reason counts.
    let mut changed: Vec<(&SessionUpdate, bool)> = Vec::with_capacity(applied.len());
    for update in applied {
        let opened = update.change == Some(SessionChange::Opened);
        match changed.last_mut() {
            Some((newest, any)) if newest.key == update.key => {
                *any |= opened;
                if newest.rank() < update.rank() {
                    *newest = update;
                }
            }
            _ => changed.push((update, opened)),
        }
    }
    sqlx::query(
        "UPDATE conversations c SET
             status = CASE WHEN k.opened THEN 'active' ELSE c.status END,
             close_token = CASE WHEN k.opened THEN NULL ELSE c.close_token END,
             close_lease_until = CASE WHEN k.opened THEN NULL ELSE c.close_lease_until END,
             close_requested_at = CASE
                 WHEN k.opened THEN NULL
                 WHEN k.over AND c.status = 'active' THEN coalesce(c.close_requested_at, clock_timestamp())
                 ELSE c.close_requested_at END,
             close_reason = CASE
                 WHEN k.opened THEN NULL
                 WHEN k.over AND c.status = 'active' THEN coalesce(k.reason, c.close_reason)
                 ELSE c.close_reason END,
             touched_at = CASE WHEN k.opened THEN clock_timestamp() ELSE c.touched_at END,
             reopened = c.reopened OR (k.opened AND c.status <> 'active'),
             agent_id = coalesce(c.agent_id, k.agent_id),
             user_id = coalesce(c.user_id, k.user_id),
             -- Statistics are of an agent.
             stats_from = CASE WHEN c.agent_id IS NULL AND k.agent_id IS NOT NULL THEN NULL ELSE c.stats_from END
         FROM (SELECT u.*, NOT EXISTS (SELECT FROM sessions s
                                       WHERE s.tenant_id = u.tenant_id AND s.conversation_id = u.id
                                         AND s.open) AS over
               FROM unnest($1::text[], $2::text[], $3::boolean[], $4::text[], $5::text[], $6::text[])
                    AS u (tenant_id, id, opened, reason, agent_id, user_id)) AS k
         WHERE c.tenant_id = k.tenant_id AND c.id = k.id",
    )
    .bind(changed.iter().map(|(u, _)| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(changed.iter().map(|(u, _)| u.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(changed.iter().map(|(_, opened)| *opened).collect::<Vec<_>>())
    .bind(changed.iter().map(|(u, _)| u.reason.as_deref()).collect::<Vec<_>>())
    .bind(changed.iter().map(|(u, _)| u.agent_id.as_deref()).collect::<Vec<_>>())
    .bind(changed.iter().map(|(u, _)| u.user_id.as_deref()).collect::<Vec<_>>())
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
