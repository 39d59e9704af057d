//! Session events and feedback: which sessions of a conversation are open, when its close was requested, and
//! everything that the events said (`session_events`).
//!
//! Events of a session are ordered by the time at which they were sent, so a delayed `closed` event does not
//! override a later `opened`. When the last open session of a conversation closes, its close is requested.
//! When a session opens, the request is withdrawn. An event that is stored already is not applied again: one without
//! a time of its sender would have a later one at its redelivery.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::action::ActionKind;
use domain::ids::{AgentId, ConversationKey, UserId};
use domain::session_event::SessionEvent;
use domain::time::Timestamp;
use sqlx::{PgConnection, Row as _};

use crate::rows::{BindKeys as _, from_row, timestamp};
use crate::session_events::insert_events;
use crate::{Database, Error, Result};

/// Whether a session opened or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionChange {
    /// It is connected.
    Opened,
    /// It is disconnected.
    Closed,
}

/// One session event or feedback to record in a conversation.
#[derive(Debug, Clone)]
pub struct SessionUpdate {
    /// The conversation that the event names, else the one that is derived from its session.
    pub key: ConversationKey,
    /// Whether the session opened or closed; `None` for feedback, which concerns only the conversation.
    pub change: Option<SessionChange>,
    /// Whether the event names no conversation. Then a close closes the session in every conversation in
    /// which it is open.
    pub everywhere: bool,
    /// When the change happened.
    pub at: Timestamp,
    /// Whether that is its time of receipt, because its sender gave no time.
    pub by_receipt: bool,
    /// Why the session closed.
    pub reason: Option<String>,
    /// The user's satisfaction, 1 to 5.
    pub satisfaction: Option<u8>,
    /// The event as it was sent. Updates of several conversations share it.
    pub event: Arc<SessionEvent>,
}

/// A session of a conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SessionView {
    /// Its id.
    pub session_id: String,
    /// Whether it is connected.
    pub open: bool,
    /// When it was last opened or closed.
    pub last_event_at: DateTime<Utc>,
}

from_row! { SessionView: session_id, open, last_event_at }

impl Database {
    /// The sessions of a conversation, in the order of their last event.
    pub async fn sessions(&self, key: &ConversationKey) -> Result<Vec<SessionView>> {
        let query = sqlx::query_as(
            "SELECT session_id, open, last_event_at FROM sessions
             WHERE tenant_id = $1 AND conversation_id = $2
             ORDER BY last_event_at, session_id",
        )
        .bind(key.tenant.as_str())
        .bind(key.conversation.as_str());
        self.values(query).await
    }

    /// Records a batch of session events in one transaction. Recording it again changes nothing.
    ///
    /// `random` returns random numbers for the generations of new conversations.
    pub async fn apply_sessions(
        &self,
        updates: &[SessionUpdate],
        random: &(dyn Fn() -> i64 + Sync),
    ) -> Result<()> {
        self.in_transaction(async |connection| {
            lock_sessions(connection, updates).await?;
            let updates = new_events(connection, updates).await?;
            let mut updates = expand_closes(connection, updates).await?;
            close_outdated_opens(connection, &mut updates).await?;
            updates.sort_by(|a, b| {
                (&a.key, a.session(), a.rank()).cmp(&(&b.key, b.session(), b.rank()))
            });
            lock_conversations(connection, &updates, random).await?;
            let applied = upsert_sessions(connection, &updates).await?;
            update_close_requests(connection, &applied).await?;
            record_satisfaction(connection, &updates).await?;
            let events: Vec<_> =
                updates.iter().map(|u| (&u.key, &*u.event, u.closes_everywhere())).collect();
            insert_events(connection, &events).await
        })
        .await
    }
}

impl SessionUpdate {
    /// The update of an event in the conversation that it names or that is derived from its session.
    #[must_use]
    pub fn new(
        key: ConversationKey,
        change: Option<SessionChange>,
        everywhere: bool,
        event: SessionEvent,
    ) -> Self {
        let (at, reason, satisfaction) =
            (event.created_at, event.reason.clone(), event.satisfaction);
        let (by_receipt, event) = (at == event.received_at, Arc::new(event));
        Self { key, change, everywhere, at, by_receipt, reason, satisfaction, event }
    }

    fn closes_everywhere(&self) -> bool {
        self.everywhere && self.event.kind == ActionKind::SessionClosed
    }

    fn session(&self) -> &str {
        self.event.session.as_str()
    }

    /// The order of the events of one session: by time, and `opened` after `closed` at the same time, so
    /// that a page that reloads within a second stays connected.
    fn rank(&self) -> (Timestamp, bool) {
        (self.at, self.is_opened())
    }

    fn is_opened(&self) -> bool {
        self.change == Some(SessionChange::Opened)
    }
}

/// The first key of the advisory locks, an arbitrary number. The second key is a session's bucket.
const SESSION_LOCKS: i32 = 7_301;

/// Locks the sessions of a batch, by hash buckets. A close that names no conversation and an earlier open of
/// the session may be in two transactions, and one of them must see the other.
async fn lock_sessions(connection: &mut PgConnection, updates: &[SessionUpdate]) -> Result<()> {
    sqlx::query(
        "SELECT pg_advisory_xact_lock($3, bucket)
         FROM (SELECT DISTINCT hashtext(tenant_id || E'\\x01' || session_id) & 63 AS bucket
               FROM unnest($1::text[], $2::text[]) AS k (tenant_id, session_id)
               ORDER BY bucket) AS sessions",
    )
    .bind(updates.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(updates.iter().map(SessionUpdate::session).collect::<Vec<_>>())
    .bind(SESSION_LOCKS)
    .execute(connection)
    .await?;
    Ok(())
}

/// Those of the events that are neither stored nor repeat an earlier one of this batch. A stored event was applied by
/// the same transaction. A repetition has the same id and content, and its sender gave no time or one in the same
/// second: that of an AMQP `timestamp` is completed at each receipt.
async fn new_events(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
) -> Result<Vec<SessionUpdate>> {
    let hashes: Vec<_> = updates.iter().map(|u| u.event.content_hash().0).collect();
    let stored: Vec<(i64, DateTime<Utc>)> = sqlx::query_as(
        "SELECT k.n, e.created_at
         FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::boolean[]) WITH ORDINALITY
              AS k (tenant_id, own, id, content_hash, everywhere, n)
         JOIN session_events e ON e.tenant_id = k.tenant_id AND e.id = k.id AND e.content_hash = k.content_hash
                              AND (e.conversation_id = k.own OR (k.everywhere AND e.everywhere))",
    )
    .bind(updates.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(updates.iter().map(|u| u.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(updates.iter().map(|u| u.event.id.as_str()).collect::<Vec<_>>())
    .bind(hashes.iter().map(|hash| &hash[..]).collect::<Vec<_>>())
    .bind(updates.iter().map(|u| u.everywhere).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    // The times at which each event happened, as far as they are stored and then as this batch has them.
    let mut times: HashMap<_, Vec<Timestamp>> = HashMap::with_capacity(updates.len());
    let names = updates.iter().zip(&hashes).map(|(u, hash)| (&u.key, u.event.id.as_str(), hash));
    let names: Vec<_> = names.collect();
    for (n, at) in stored {
        if let Some(name) = usize::try_from(n - 1).ok().and_then(|n| names.get(n)) {
            times.entry(name).or_default().push(timestamp(at));
        }
    }
    let mut by_time: Vec<_> = names.iter().zip(updates).collect();
    by_time.sort_by_key(|(_, update)| update.at);
    let mut new = Vec::with_capacity(updates.len());
    for (name, update) in by_time {
        let times = times.entry(name).or_default();
        if !times.iter().any(|at| update.by_receipt || at.second() == update.at.second()) {
            times.push(update.at);
            new.push(update.clone());
        }
    }
    Ok(new)
}

/// Replaces each close that names no conversation by one close for each conversation that it concerns: those
/// in which the session has been open since before, in the database or by an event of this batch, and the
/// conversation that is derived from the session, if it exists or there is no other.
async fn expand_closes(
    connection: &mut PgConnection,
    updates: Vec<SessionUpdate>,
) -> Result<Vec<SessionUpdate>> {
    let (closes, mut expanded): (Vec<_>, Vec<_>) =
        updates.into_iter().partition(SessionUpdate::closes_everywhere);
    if closes.is_empty() {
        return Ok(expanded);
    }
    let open: Vec<(i64, Option<String>, bool)> = sqlx::query_as(
        "SELECT k.n, s.conversation_id,
                EXISTS (SELECT FROM conversations c
                        WHERE c.tenant_id = k.tenant_id AND c.id = k.own) AS own_exists
         FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) WITH ORDINALITY
              AS k (tenant_id, session_id, own, at, n)
         LEFT JOIN sessions s ON s.tenant_id = k.tenant_id AND s.session_id = k.session_id
                             AND s.open AND s.last_event_at <= k.at AND s.conversation_id <> k.own",
    )
    .bind(closes.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(closes.iter().map(SessionUpdate::session).collect::<Vec<_>>())
    .bind(closes.iter().map(|u| u.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(closes.iter().map(|u| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let opens: Vec<SessionUpdate> = expanded.iter().filter(|u| u.is_opened()).cloned().collect();
    for (n, close) in (1..).zip(&closes) {
        let mut conversations: Vec<ConversationKey> = opens
            .iter()
            .filter(|u| u.key.tenant == close.key.tenant && u.session() == close.session())
            .filter(|u| u.at <= close.at)
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
        expanded
            .extend(conversations.into_iter().map(|key| SessionUpdate { key, ..close.clone() }));
    }
    Ok(expanded)
}

/// Turns an open into a close if a later close of the session that named no conversation is already stored.
/// That close then applies to the conversation of the open, too, with its reason and satisfaction.
async fn close_outdated_opens(
    connection: &mut PgConnection,
    updates: &mut [SessionUpdate],
) -> Result<()> {
    let mut opens: Vec<_> = updates.iter_mut().filter(|u| u.is_opened()).collect();
    if opens.is_empty() {
        return Ok(());
    }
    type Close = (i64, DateTime<Utc>, Option<String>, Option<i16>);
    let closes: Vec<Close> = sqlx::query_as(
        "SELECT DISTINCT ON (k.n) k.n, e.created_at, e.reason, e.satisfaction
         FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS k (tenant_id, session_id, at, n)
         JOIN session_events e ON e.tenant_id = k.tenant_id AND e.session_id = k.session_id
                              AND e.everywhere AND e.created_at > k.at
         ORDER BY k.n, e.created_at DESC",
    )
    .bind(opens.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(opens.iter().map(|u| u.session()).collect::<Vec<_>>())
    .bind(opens.iter().map(|u| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    for (n, closed_at, reason, satisfaction) in closes {
        if let Some(open) = usize::try_from(n - 1).ok().and_then(|n| opens.get_mut(n)) {
            open.change = Some(SessionChange::Closed);
            open.at = timestamp(closed_at);
            open.reason = reason;
            open.satisfaction = satisfaction.and_then(|it| u8::try_from(it).ok());
        }
    }
    Ok(())
}

/// How often insert and lock are tried at most. They are repeated if a conversation is deleted in between.
const LOCK_ROUNDS: usize = 5;

/// Inserts the conversations that are missing and locks all of them, in key order.
async fn lock_conversations(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
    // The first update of each conversation.
    let mut conversations: Vec<&SessionUpdate> = updates.iter().collect();
    conversations.dedup_by_key(|update| &update.key);
    for _ in 0..LOCK_ROUNDS {
        insert_conversations(connection, &conversations, random).await?;
        let locked = sqlx::query(
            "SELECT FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             ORDER BY c.tenant_id, c.id
             FOR NO KEY UPDATE OF c",
        )
        .bind_keys(conversations.iter().map(|u| &u.key))
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if locked == conversations.len() as u64 {
            return Ok(());
        }
    }
    Err(Error::Contended(format!(
        "a conversation was deleted between insert and lock in each of {LOCK_ROUNDS} attempts"
    )))
}

async fn insert_conversations(
    connection: &mut PgConnection,
    conversations: &[&SessionUpdate],
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
    let events = || conversations.iter().map(|u| &*u.event);
    sqlx::query(
        "INSERT INTO conversations (tenant_id, id, session_id, agent_id, user_id, model_name,
                                    tenant_tier, created_at, hot_generation)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                              $7::text[], $8::timestamptz[], $9::bigint[])
         ON CONFLICT (tenant_id, id) DO NOTHING",
    )
    .bind_keys(conversations.iter().map(|u| &u.key))
    .bind(conversations.iter().map(|u| u.session()).collect::<Vec<_>>())
    .bind(events().map(agent).collect::<Vec<_>>())
    .bind(events().map(user).collect::<Vec<_>>())
    .bind(events().map(|it| it.model_name.as_deref()).collect::<Vec<_>>())
    .bind(events().map(|it| it.tenant_tier.as_deref()).collect::<Vec<_>>())
    .bind(conversations.iter().map(|u| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .bind(conversations.iter().map(|_| random()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Records the newest event of each session if it is newer than the stored one; returns the events that were
/// recorded.
async fn upsert_sessions<'a>(
    connection: &mut PgConnection,
    updates: &'a [SessionUpdate],
) -> Result<Vec<&'a SessionUpdate>> {
    // The batch is sorted by rank within each session, so the last one is the newest.
    let mut newest: Vec<&SessionUpdate> = Vec::with_capacity(updates.len());
    for update in updates.iter().filter(|update| update.change.is_some()) {
        match newest.last_mut() {
            Some(last) if last.key == update.key && last.session() == update.session() => {
                *last = update;
            }
            _ => newest.push(update),
        }
    }
    let applied = sqlx::query(
        "INSERT INTO sessions (tenant_id, conversation_id, session_id, open, last_event_at, close_reason,
                               satisfaction)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[], $6::text[],
                              $7::smallint[])
         ON CONFLICT (tenant_id, conversation_id, session_id) DO UPDATE
         SET open = excluded.open, last_event_at = excluded.last_event_at,
             close_reason = excluded.close_reason, satisfaction = excluded.satisfaction
         WHERE (sessions.last_event_at, sessions.open) < (excluded.last_event_at, excluded.open)
         RETURNING tenant_id, conversation_id, session_id",
    )
    .bind_keys(newest.iter().map(|u| &u.key))
    .bind(newest.iter().map(|u| u.session()).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.is_opened()).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.reason.as_deref()).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.satisfaction.map(i16::from)).collect::<Vec<_>>())
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
        let name = (u.key.tenant.as_str(), u.key.conversation.as_str(), u.session());
        names.contains(&name)
    });
    Ok(newest)
}

/// Updates the close requests of conversations whose sessions changed: a session that opened withdraws the
/// request, the last open session that closed makes it. An existing request keeps its time, so that a
/// repeated close does not postpone it. A conversation that closes or is archived gets none: its messages, if
/// any, make one.
async fn update_close_requests(
    connection: &mut PgConnection,
    applied: &[&SessionUpdate],
) -> Result<()> {
    // For each conversation the newest event, which gives the reason, and whether a session opened.
    let mut changed: Vec<(&SessionUpdate, bool)> = Vec::with_capacity(applied.len());
    for update in applied {
        let opened = update.is_opened();
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
             close_reason = CASE WHEN k.opened THEN NULL ELSE c.close_reason END,
             touched_at = CASE WHEN k.opened THEN clock_timestamp() ELSE c.touched_at END,
             -- `conversation.migrated` was not published for one that was archived without messages.
             reopened = c.reopened OR (k.opened AND (
                 c.status = 'closing' OR (c.status = 'archived' AND c.message_count IS DISTINCT FROM 0))),
             agent_id = coalesce(c.agent_id, k.agent_id),
             user_id = coalesce(c.user_id, k.user_id),
             -- Statistics are grouped by agent, so they change with it.
             stats_from = CASE WHEN c.agent_id IS NULL AND k.agent_id IS NOT NULL THEN NULL ELSE c.stats_from END
         FROM (SELECT u.*, NOT EXISTS (SELECT FROM sessions s
                                       WHERE s.tenant_id = u.tenant_id AND s.conversation_id = u.id
                                         AND s.open) AS over
               FROM unnest($1::text[], $2::text[], $3::boolean[], $4::text[], $5::text[])
                    AS u (tenant_id, id, opened, agent_id, user_id)) AS k
         WHERE c.tenant_id = k.tenant_id AND c.id = k.id",
    )
    .bind_keys(changed.iter().map(|(u, _)| &u.key))
    .bind(changed.iter().map(|(_, opened)| *opened).collect::<Vec<_>>())
    .bind(changed.iter().map(|(u, _)| agent(&u.event)).collect::<Vec<_>>())
    .bind(changed.iter().map(|(u, _)| user(&u.event)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Records the newest satisfaction of each conversation, by the time at which it was sent, and marks the
/// statistics of the conversation as out of date.
async fn record_satisfaction(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
) -> Result<()> {
    let mut ratings: Vec<(&SessionUpdate, i16)> = updates
        .iter()
        .filter_map(|u| u.satisfaction.map(|satisfaction| (u, i16::from(satisfaction))))
        .collect();
    if ratings.is_empty() {
        return Ok(());
    }
    ratings.sort_by(|(a, _), (b, _)| (&a.key, b.at).cmp(&(&b.key, a.at)));
    ratings.dedup_by_key(|(update, _)| &update.key);
    sqlx::query(
        "UPDATE conversations c
         SET satisfaction = k.satisfaction, satisfaction_at = k.at, stats_from = NULL
         FROM unnest($1::text[], $2::text[], $3::smallint[], $4::timestamptz[])
              AS k (tenant_id, id, satisfaction, at)
         WHERE c.tenant_id = k.tenant_id AND c.id = k.id
           AND (c.satisfaction_at IS NULL OR c.satisfaction_at < k.at)",
    )
    .bind_keys(ratings.iter().map(|(u, _)| &u.key))
    .bind(ratings.iter().map(|(_, satisfaction)| *satisfaction).collect::<Vec<_>>())
    .bind(ratings.iter().map(|(u, _)| DateTime::<Utc>::from(u.at)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

fn agent(event: &SessionEvent) -> Option<&str> {
    event.agent_id.as_ref().map(AgentId::as_str)
}

fn user(event: &SessionEvent) -> Option<&str> {
    event.user_id.as_ref().map(UserId::as_str)
}
