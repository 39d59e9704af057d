//! The closes that name no conversation, and the conversations that they concern.
//!
//! Such a close concerns every conversation in which its session was open at that time. That follows from all opens
//! and closes of the session in the order of the times at which they count (`effective_at`), and must not depend on
//! the order in which they arrive. So every batch that adds an event to the history of a session computes from there
//! on again what its closes concern, also those that are stored, and compares the result with what is stored.
//!
//! [`concerned`] is the rule. It has no I/O. Everything before the first new event of a session stays as it is, so no
//! more of a history is read than what follows that event.

use std::collections::hash_map::{Entry, HashMap};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::action::ActionKind;
use domain::ids::{ConversationId, ConversationKey, TenantId};
use domain::session_event::SessionEvent;
use domain::time::Timestamp;
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgBindIterExt as _;
use sqlx::{PgConnection, Row as _};

use crate::Result;
use crate::rows::{BindKeys as _, id, item_of, timestamp};
use crate::session_events::stored_event;
use crate::session_update::SessionUpdate;

const TABLE: &str = "session_events";

/// What a batch of new events changes.
pub(crate) struct Assigned {
    /// The new events; each close that names no conversation once for each conversation that it concerns. And the
    /// stored closes of that kind, for each conversation that they turned out to concern.
    pub(crate) updates: Vec<SessionUpdate>,
    /// Stored closes that turned out not to concern a conversation.
    pub(crate) withdrawn: Vec<SessionUpdate>,
}

/// One session of a batch.
struct Session<'a> {
    tenant: &'a TenantId,
    /// The conversation that is derived from it.
    own: ConversationKey,
    /// The time of its first new open or close.
    since: Option<Timestamp>,
    new: Vec<&'a SessionUpdate>,
}

/// A stored open or close. A session may have very many, so it has no more than is compared.
struct StoredEvent {
    conversation: ConversationId,
    effective_at: Timestamp,
    kind: StoredKind,
}

enum StoredKind {
    /// It names its conversation.
    Change { opens: bool },
    /// A close that names none. All conversations in which it is stored share the event.
    CloseEverywhere(Arc<SessionEvent>),
}

/// A close that names no conversation, and the conversations in which it is stored.
struct Close<'a> {
    event: &'a Arc<SessionEvent>,
    at: Timestamp,
    stored_in: BTreeSet<&'a ConversationId>,
}

/// Assigns each close that names no conversation to the conversations that it concerns.
pub(crate) async fn assign_closes(
    connection: &mut PgConnection,
    new: Vec<SessionUpdate>,
) -> Result<Assigned> {
    let sessions = sessions_of(&new);
    let stored = stored_since(connection, &sessions).await?;
    let has_close = |(session, stored): &(&Session<'_>, &Vec<StoredEvent>)| {
        session.has_new_close()
            || stored.iter().any(|it| matches!(it.kind, StoredKind::CloseEverywhere(_)))
    };
    let histories: Vec<(&Session<'_>, &Vec<StoredEvent>)> =
        sessions.iter().zip(&stored).filter(has_close).collect();
    let mut updates: Vec<SessionUpdate> =
        new.iter().filter(|it| !it.closes_everywhere()).cloned().collect();
    let mut withdrawn = Vec::new();
    if histories.is_empty() {
        return Ok(Assigned { updates, withdrawn });
    }
    let known = before(connection, &histories).await?;
    for ((session, stored), Before { open, own_exists }) in histories.iter().zip(&known) {
        let names_conversation = || session.new.iter().filter(|it| !it.closes_everywhere());
        let changes: Vec<Change<'_>> = names_conversation()
            .filter(|it| !it.is_feedback())
            .map(|it| Change {
                at: it.at(),
                conversation: &it.key.conversation,
                opens: it.is_opened(),
            })
            .chain(stored.iter().filter_map(StoredEvent::change))
            .collect();
        let closes = closes_of(session, stored);
        let times: Vec<Timestamp> = closes.iter().map(|close| close.at).collect();
        let own_exists = *own_exists || names_conversation().any(|it| it.key == session.own);
        for (close, mut concerned) in closes.iter().zip(concerned(open, &changes, &times)) {
            // Messages may create the derived conversation at any time, so that is decided once for each close.
            let own = &session.own.conversation;
            let is_new = close.stored_in.is_empty();
            let has_own = if is_new { own_exists } else { close.stored_in.contains(own) };
            if has_own || concerned.is_empty() {
                concerned.insert(own);
            }
            let of = |conversation: &&ConversationId| session.close_in(conversation, close);
            updates.extend(concerned.difference(&close.stored_in).map(of));
            withdrawn.extend(close.stored_in.difference(&concerned).map(of));
        }
    }
    Ok(Assigned { updates, withdrawn })
}

/// An open or close that names a conversation.
#[derive(Debug, Clone, Copy)]
struct Change<'a> {
    at: Timestamp,
    conversation: &'a ConversationId,
    opens: bool,
}

impl StoredEvent {
    fn change(&self) -> Option<Change<'_>> {
        let Self { conversation, effective_at: at, .. } = self;
        match self.kind {
            StoredKind::Change { opens } => Some(Change { at: *at, conversation, opens }),
            StoredKind::CloseEverywhere(_) => None,
        }
    }
}

/// For each close that names no conversation, given by its time, the conversations in which its session was open at
/// that time: opened before or in the same moment, and not closed in between. An open in the moment of a close stays
/// open.
///
/// `before` has the conversations in which the session was open before the first of all these events.
fn concerned<'a>(
    before: &'a BTreeSet<ConversationId>,
    changes: &[Change<'a>],
    closes: &[Timestamp],
) -> Vec<BTreeSet<&'a ConversationId>> {
    let mut moments: BTreeMap<Timestamp, (Vec<Change<'a>>, Vec<usize>)> = BTreeMap::new();
    for change in changes {
        moments.entry(change.at).or_default().0.push(*change);
    }
    for (n, at) in closes.iter().enumerate() {
        moments.entry(*at).or_default().1.push(n);
    }
    let mut open: BTreeSet<&ConversationId> = before.iter().collect();
    let mut concerned = vec![BTreeSet::new(); closes.len()];
    for (changes, closes) in moments.values() {
        let of = |opens: bool| {
            changes.iter().filter(move |it| it.opens == opens).map(|it| it.conversation)
        };
        let open_now: BTreeSet<_> = open.iter().copied().chain(of(true)).collect();
        for n in closes {
            if let Some(concerned) = concerned.get_mut(*n) {
                concerned.clone_from(&open_now);
            }
        }
        if closes.is_empty() {
            of(false).for_each(|it| {
                open.remove(it);
            });
        } else {
            open.clear();
        }
        open.extend(of(true));
    }
    concerned
}

/// The closes that name no conversation, new and stored.
fn closes_of<'a>(session: &Session<'a>, stored: &'a [StoredEvent]) -> Vec<Close<'a>> {
    let new = session.new.iter().filter(|it| it.closes_everywhere());
    let new = new.map(|it| (&it.event, it.at(), None));
    let stored = stored.iter().filter_map(|it| match &it.kind {
        StoredKind::CloseEverywhere(event) => {
            Some((event, it.effective_at, Some(&it.conversation)))
        }
        StoredKind::Change { .. } => None,
    });
    let mut closes: BTreeMap<_, Close<'a>> = BTreeMap::new();
    for (event, at, conversation) in new.chain(stored) {
        let name = (event.created_at, event.id.as_str(), event.content_hash().0);
        let close =
            closes.entry(name).or_insert_with(|| Close { event, at, stored_in: BTreeSet::new() });
        close.stored_in.extend(conversation);
    }
    closes.into_values().collect()
}

fn sessions_of(new: &[SessionUpdate]) -> Vec<Session<'_>> {
    let mut sessions: BTreeMap<(&TenantId, &str), Session<'_>> = BTreeMap::new();
    for update in new {
        let (tenant, at) = (&update.key.tenant, update.at());
        let session = sessions.entry((tenant, update.session())).or_insert_with(|| Session {
            tenant,
            own: ConversationKey::of_session(tenant.clone(), &update.event.session),
            since: None,
            new: Vec::new(),
        });
        if !update.is_feedback() {
            session.since = Some(session.since.map_or(at, |since| since.min(at)));
        }
        session.new.push(update);
    }
    sessions.into_values().filter(|session| session.since.is_some()).collect()
}

impl Session<'_> {
    fn id(&self) -> &str {
        self.new.first().map_or("", |it| it.session())
    }

    fn since(&self) -> Option<DateTime<Utc>> {
        self.since.map(DateTime::from)
    }

    fn has_new_close(&self) -> bool {
        self.new.iter().any(|it| it.closes_everywhere())
    }

    fn close_in(&self, conversation: &ConversationId, close: &Close<'_>) -> SessionUpdate {
        let (tenant, conversation) = (self.tenant.clone(), conversation.clone());
        let key = ConversationKey { tenant, conversation };
        SessionUpdate::close_everywhere(key, close.event.clone(), close.at)
    }
}

/// The session of an event, by its position, and what names the event: id, time and content hash.
type EventName = (usize, String, DateTime<Utc>, Vec<u8>);

/// The stored opens and closes of each session from its first new one on; none if no close among them and the new
/// ones names no conversation. Only such closes come with their metadata.
async fn stored_since(
    connection: &mut PgConnection,
    sessions: &[Session<'_>],
) -> Result<Vec<Vec<StoredEvent>>> {
    let query = sqlx::query(
        "WITH k AS MATERIALIZED (
             SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::boolean[]) WITH ORDINALITY
                           AS k (tenant_id, session_id, since, has_new_close, n)
             WHERE k.has_new_close OR EXISTS (
                 SELECT FROM session_events e
                 WHERE e.tenant_id = k.tenant_id AND e.session_id = k.session_id AND e.effective_at >= k.since
                   AND e.everywhere))
         SELECT k.n, e.conversation_id, e.everywhere, e.id, e.action_type, e.session_id, e.created_at,
                e.received_at, e.reason, e.satisfaction, e.user_id, e.agent_id, e.model_name, e.tenant_tier,
                e.effective_at, e.content_hash,
                CASE WHEN e.everywhere THEN e.metadata::text END AS metadata
         FROM k
         JOIN session_events e ON e.tenant_id = k.tenant_id AND e.session_id = k.session_id
                              AND e.effective_at >= k.since
         WHERE e.action_type <> 'conversation.feedback'",
    )
    .bind(sessions.iter().map(|it| it.tenant.as_str()).bind_iter())
    .bind(sessions.iter().map(Session::id).bind_iter())
    .bind(sessions.iter().map(Session::since).bind_iter())
    .bind(sessions.iter().map(Session::has_new_close).collect::<Vec<_>>());
    let mut rows = query.fetch(connection);
    let mut stored: Vec<Vec<StoredEvent>> = sessions.iter().map(|_| Vec::new()).collect();
    let positions: Vec<usize> = (0..sessions.len()).collect();
    let mut closes: HashMap<EventName, Arc<SessionEvent>> = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let n = *item_of(&row, &positions, TABLE)?;
        let kind = if row.try_get("everywhere")? {
            let (id, hash) = (row.try_get("id")?, row.try_get("content_hash")?);
            let event = match closes.entry((n, id, row.try_get("created_at")?, hash)) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => new.insert(Arc::new(stored_event(&row)?)).clone(),
            };
            StoredKind::CloseEverywhere(event)
        } else {
            let action_type: &str = row.try_get("action_type")?;
            StoredKind::Change { opens: action_type == ActionKind::SessionOpened.as_str() }
        };
        stored[n].push(StoredEvent {
            conversation: id(&row, TABLE, "conversation_id", ConversationId::new)?,
            effective_at: timestamp(row.try_get("effective_at")?),
            kind,
        });
    }
    Ok(stored)
}

/// What is known of a session from before its first new event.
#[derive(Default)]
struct Before {
    /// The conversations in which it was open.
    open: BTreeSet<ConversationId>,
    /// Whether the conversation that is derived from it exists.
    own_exists: bool,
}

async fn before(
    connection: &mut PgConnection,
    histories: &[(&Session<'_>, &Vec<StoredEvent>)],
) -> Result<Vec<Before>> {
    // Conversations with later events: for them `sessions` has a later state.
    let mut later: Vec<(i64, &ConversationId, &Session<'_>)> = Vec::new();
    for (n, (session, stored)) in (1..).zip(histories) {
        let ids: BTreeSet<&ConversationId> = stored.iter().map(|it| &it.conversation).collect();
        later.extend(ids.into_iter().map(|id| (n, id, *session)));
    }
    let sessions = || histories.iter().map(|(session, _)| *session);
    let query = sqlx::query(
        "WITH k AS (
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) WITH ORDINALITY
                           AS k (tenant_id, own, session_id, since, n))
         SELECT k.n, s.conversation_id, true AS open
         FROM k JOIN sessions s ON s.tenant_id = k.tenant_id AND s.session_id = k.session_id
                               AND s.open AND s.last_event_at < k.since
         UNION ALL
         SELECT l.n, l.conversation_id, true
         FROM unnest($5::bigint[], $6::text[], $7::text[], $8::text[], $9::timestamptz[])
              AS l (n, tenant_id, conversation_id, session_id, since)
         CROSS JOIN LATERAL (
             SELECT e.action_type FROM session_events e
             WHERE e.tenant_id = l.tenant_id AND e.conversation_id = l.conversation_id
               AND e.session_id = l.session_id AND e.effective_at < l.since
               AND e.action_type <> 'conversation.feedback'
             ORDER BY e.effective_at DESC, e.action_type DESC LIMIT 1) AS last
         WHERE last.action_type = 'conversation.session_opened'
         UNION ALL
         SELECT k.n, k.own, false
         FROM k JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.own",
    )
    .bind_keys(sessions().map(|it| &it.own))
    .bind(sessions().map(Session::id).bind_iter())
    .bind(sessions().map(Session::since).bind_iter())
    .bind(later.iter().map(|it| it.0).bind_iter())
    .bind(later.iter().map(|it| it.2.tenant.as_str()).bind_iter())
    .bind(later.iter().map(|it| it.1.as_str()).bind_iter())
    .bind(later.iter().map(|it| it.2.id()).bind_iter())
    .bind(later.iter().map(|it| it.2.since()).bind_iter());
    let mut rows = query.fetch(connection);
    let mut before: Vec<Before> = histories.iter().map(|_| Before::default()).collect();
    let positions: Vec<usize> = (0..histories.len()).collect();
    while let Some(row) = rows.try_next().await? {
        let before = &mut before[*item_of(&row, &positions, TABLE)?];
        if row.try_get("open")? {
            before.open.insert(id(&row, TABLE, "conversation_id", ConversationId::new)?);
        } else {
            before.own_exists = true;
        }
    }
    Ok(before)
}

/// Takes back stored closes from conversations that they turned out not to concern. Their sessions and ratings are
/// then those of the events that are left. Each conversation had been closed by an earlier event, so whether it is
/// open does not change.
pub(crate) async fn withdraw(
    connection: &mut PgConnection,
    withdrawn: &[SessionUpdate],
) -> Result<()> {
    if withdrawn.is_empty() {
        return Ok(());
    }
    let keys = || withdrawn.iter().map(|it| &it.key);
    sqlx::query(
        "DELETE FROM session_events e
         USING unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::timestamptz[])
               AS k (tenant_id, conversation_id, id, content_hash, created_at)
         WHERE e.everywhere AND e.tenant_id = k.tenant_id AND e.conversation_id = k.conversation_id AND e.id = k.id
           AND e.content_hash = k.content_hash AND e.created_at = k.created_at",
    )
    .bind_keys(keys())
    .bind(withdrawn.iter().map(|it| it.event.id.as_str()).bind_iter())
    .bind(withdrawn.iter().map(|it| it.event.content_hash().0).collect::<Vec<_>>())
    .bind(withdrawn.iter().map(|it| DateTime::<Utc>::from(it.sent_at())).bind_iter())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE sessions s
         SET open = last.action_type = 'conversation.session_opened', last_event_at = last.effective_at,
             close_reason = last.reason, satisfaction = last.satisfaction
         FROM unnest($1::text[], $2::text[], $3::text[]) AS k (tenant_id, conversation_id, session_id)
         CROSS JOIN LATERAL (
             SELECT e.action_type, e.effective_at, e.reason, e.satisfaction FROM session_events e
             WHERE e.tenant_id = k.tenant_id AND e.conversation_id = k.conversation_id
               AND e.session_id = k.session_id AND e.action_type <> 'conversation.feedback'
             ORDER BY e.effective_at DESC, e.action_type DESC LIMIT 1) AS last
         WHERE s.tenant_id = k.tenant_id AND s.conversation_id = k.conversation_id AND s.session_id = k.session_id",
    )
    .bind_keys(keys())
    .bind(withdrawn.iter().map(SessionUpdate::session).bind_iter())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE conversations c
         SET satisfaction = last.satisfaction, satisfaction_at = last.effective_at, stats_from = NULL
         FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
         LEFT JOIN LATERAL (
             SELECT e.satisfaction, e.effective_at FROM session_events e
             WHERE e.tenant_id = k.tenant_id AND e.conversation_id = k.id AND e.satisfaction IS NOT NULL
             ORDER BY e.effective_at DESC LIMIT 1) AS last ON true
         WHERE c.tenant_id = k.tenant_id AND c.id = k.id",
    )
    .bind_keys(keys())
    .execute(connection)
    .await?;
    Ok(())
}
