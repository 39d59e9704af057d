//! Session events and feedback: which sessions of a conversation are open, when its close was requested, and
//! everything that the events said (`session_events`).
//!
//! Events of a session are ordered by the time at which they were sent, so a delayed `closed` event does not
//! override a later `opened`; a sender's clock that is ahead counts for a minute at most (`session_update.rs`). When
//! the last open session of a conversation closes, its close is requested. When a session opens, the request is
//! withdrawn. An event that is stored already is not applied again: one without a time of its sender would have a
//! later one at its redelivery.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use domain::action::TimeSource;
use domain::ids::{AgentId, ConversationKey, UserId};
use domain::session_event::SessionEvent;
use domain::time::Timestamp;
use sqlx::{PgConnection, Row as _};

use crate::rows::{BindKeys as _, from_row, timestamp};
use crate::session_events::insert_events;
use crate::session_history::{Assigned, assign_closes, withdraw};
use crate::session_update::{SessionUpdate, limit_times};
use crate::{Database, Error, Result};

/// A session of a conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SessionView {
    /// Its id.
    pub session_id: String,
    /// Whether it is connected.
    pub open: bool,
    /// When it was last opened or closed: the time at which that event counts.
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
        let limit = self.limits.time_out;
        self.in_transaction(async |connection| {
            apply_updates(connection, updates, random, limit).await
        })
        .await
    }
}

/// Records a batch of session events within a transaction. It ends with an error if that takes longer than `limit`.
pub(crate) async fn apply_updates(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
    random: &(dyn Fn() -> i64 + Sync),
    limit: Duration,
) -> Result<()> {
    let began = Instant::now();
    let now = lock_sessions(connection, updates).await?;
    let mut new = new_events(connection, updates).await?;
    limit_times(&mut new, now);
    let Assigned { mut updates, mut withdrawn } = assign_closes(connection, new).await?;
    updates.sort_by(|a, b| (&a.key, a.session(), a.rank()).cmp(&(&b.key, b.session(), b.rank())));
    withdrawn.sort_by(|a, b| a.key.cmp(&b.key));
    for (updates, withdrawn) in pages(&updates, &withdrawn, |it| &it.key, PAGE) {
        if began.elapsed() > limit {
            return Err(Error::TooSlow(limit));
        }
        lock_conversations(connection, updates.iter().chain(withdrawn), random).await?;
        let applied = upsert_sessions(connection, updates).await?;
        update_close_requests(connection, &applied).await?;
        record_satisfaction(connection, updates).await?;
        insert_events(connection, updates).await?;
        withdraw(connection, withdrawn).await?;
    }
    Ok(())
}

/// How many updates one statement applies, unless a conversation has more. A close of a session that is open in very
/// many conversations is applied in pages, so no statement and no array of parameters is large.
const PAGE: usize = 5_000;

/// Cuts two lists, both in the order of their keys, into pages of `size` items of each or fewer; into more only if so
/// many have one key. All items of a key are in one page, and the pages are in the order of the keys.
fn pages<'a, T, K: Ord + 'a>(
    mut one: &'a [T],
    mut other: &'a [T],
    key: impl Fn(&T) -> &K,
    size: usize,
) -> Vec<(&'a [T], &'a [T])> {
    let mut pages = Vec::new();
    while !one.is_empty() || !other.is_empty() {
        let last = |of: &'a [T]| of.get(size.saturating_sub(1)).map(&key);
        let up_to = [last(one), last(other)].into_iter().flatten().min();
        let cut = |of: &'a [T]| {
            of.split_at(of.partition_point(|it| up_to.is_none_or(|up_to| key(it) <= up_to)))
        };
        let ((one_page, one_rest), (other_page, other_rest)) = (cut(one), cut(other));
        pages.push((one_page, other_page));
        (one, other) = (one_rest, other_rest);
    }
    pages
}

/// Locks the sessions of a batch, by the hashes of their names. The seed of the hashes is a secret of the database: every
/// role may take advisory locks, so whoever knew the hash of a session could keep its events waiting. Without a seed the
/// sessions are locked nevertheless. A close that names no conversation and an earlier open of
/// the session may be in two transactions, and one of them must see the other. Returns PostgreSQL's time after the
/// locks: of two transactions with events of one session, the later one has the later time.
async fn lock_sessions(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
) -> Result<Timestamp> {
    let rows = sqlx::query(
        "SELECT pg_advisory_xact_lock(name), clock_timestamp() AS now
         FROM (SELECT DISTINCT hashtextextended(tenant_id || E'\\x01' || session_id,
                                                coalesce((SELECT seed FROM session_lock_seed), 0))
                               AS name
               FROM unnest($1::text[], $2::text[]) AS k (tenant_id, session_id)
               ORDER BY name) AS sessions",
    )
    .bind(updates.iter().map(|u| u.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(updates.iter().map(SessionUpdate::session).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let last = rows.last().map(|row| row.try_get("now")).transpose()?;
    Ok(last.map_or(Timestamp::EARLIEST, timestamp))
}

/// Those of the events that are neither stored nor repeat an earlier one of this batch. A stored event was applied by
/// the same transaction. A repetition has the same id, content and time, as far as its sender gave one: an AMQP
/// `timestamp` has whole seconds, which each receipt completes.
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
    by_time.sort_by_key(|(_, update)| update.sent_at());
    let mut new = Vec::with_capacity(updates.len());
    for (name, update) in by_time {
        let times = times.entry(name).or_default();
        let at = update.sent_at();
        let repeats = |earlier: &Timestamp| match update.time_source {
            TimeSource::Body => *earlier == at,
            TimeSource::AmqpSecond => earlier.second() == at.second(),
            TimeSource::Receipt => true,
        };
        if !times.iter().any(repeats) {
            times.push(at);
            new.push(update.clone());
        }
    }
    Ok(new)
}

/// How often insert and lock are tried at most. They are repeated if a conversation is deleted in between.
const LOCK_ROUNDS: usize = 5;

/// Inserts the conversations that are missing and locks all of them, in key order.
async fn lock_conversations(
    connection: &mut PgConnection,
    updates: impl Iterator<Item = &SessionUpdate>,
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
    // The first update of each conversation.
    let mut conversations: Vec<&SessionUpdate> = updates.collect();
    conversations.sort_by_key(|update| &update.key);
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
    .bind(conversations.iter().map(|u| DateTime::<Utc>::from(u.at())).collect::<Vec<_>>())
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
    for update in updates.iter().filter(|update| !update.is_feedback()) {
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
    .bind(newest.iter().map(|u| DateTime::<Utc>::from(u.at())).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.event.reason.as_deref()).collect::<Vec<_>>())
    .bind(newest.iter().map(|u| u.event.satisfaction.map(i16::from)).collect::<Vec<_>>())
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

/// Records the newest satisfaction of each conversation, by the time at which it counts, and marks the
/// statistics of the conversation as out of date.
async fn record_satisfaction(
    connection: &mut PgConnection,
    updates: &[SessionUpdate],
) -> Result<()> {
    let mut ratings: Vec<(&SessionUpdate, i16)> = updates
        .iter()
        .filter_map(|u| u.event.satisfaction.map(|satisfaction| (u, i16::from(satisfaction))))
        .collect();
    if ratings.is_empty() {
        return Ok(());
    }
    ratings.sort_by(|(a, _), (b, _)| (&a.key, b.at()).cmp(&(&b.key, a.at())));
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
    .bind(ratings.iter().map(|(u, _)| DateTime::<Utc>::from(u.at())).collect::<Vec<_>>())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use domain::action::{ActionKind, ConversationSource, TimeSource};
    use domain::ids::{MessageId, SessionId};
    use proptest::prelude::*;
    use testkit::TestEnv;

    use super::*;
    use crate::{Database, Settings};

    #[tokio::test]
    async fn a_session_is_locked_under_a_secret_hash_and_also_where_the_secret_is_missing() {
        let env = TestEnv::new().await;
        let database = Database::open(&Settings {
            url: env.database_url.clone(),
            application: "test".to_owned(),
            connections: 1,
            time_out: Duration::from_secs(10),
            lock_time_out: Duration::from_secs(1),
        });
        let database = database.unwrap();
        database.migrate(|| {}).await.unwrap();
        let key = ConversationKey::parse("acme", "c").unwrap();
        let event = SessionEvent {
            id: MessageId::new("e").unwrap(),
            kind: ActionKind::SessionOpened,
            session: SessionId::new("s").unwrap(),
            created_at: Timestamp::EARLIEST,
            received_at: Timestamp::EARLIEST,
            reason: None,
            satisfaction: None,
            user_id: None,
            agent_id: None,
            model_name: None,
            tenant_tier: None,
            metadata: None,
        };
        let event = Arc::new(event);
        let update = SessionUpdate::new(key, ConversationSource::Explicit, TimeSource::Body, event);
        // The locks of the transaction, and whether one is of the hash that everybody can compute.
        let locked = async || {
            let updates = [update.clone()];
            let locks = async |connection: &mut PgConnection| {
                lock_sessions(connection, &updates).await?;
                let query = "SELECT count(*), coalesce(bool_or(
                                 (classid::bigint << 32 | objid::bigint) = hashtextextended('acme' || E'\\x01' || 's', 0)), false)
                             FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
                Ok(sqlx::query_as::<_, (i64, bool)>(query).fetch_one(connection).await?)
            };
            database.in_transaction(locks).await.unwrap()
        };
        assert_eq!(locked().await, (1, false));
        env.psql("DELETE FROM session_lock_seed").await.unwrap();
        assert_eq!(locked().await, (1, true));
    }

    proptest! {
        #[test]
        fn pages_are_small_and_in_order_and_each_key_is_in_one(
            mut one in prop::collection::vec(0..40_u8, 0..60),
            mut other in prop::collection::vec(0..40_u8, 0..60),
            size in 1..20_usize,
        ) {
            one.sort_unstable();
            other.sort_unstable();
            let pages = pages(&one, &other, |it| it, size);
            let (ones, others): (Vec<&[u8]>, Vec<&[u8]>) = pages.iter().copied().unzip();
            prop_assert_eq!(&ones.concat(), &one);
            prop_assert_eq!(&others.concat(), &other);
            let mut before = None;
            for (one, other) in pages {
                let keys = || one.iter().chain(other);
                prop_assert!(keys().min() > before, "a page begins after the one before it");
                before = keys().max();
                for items in [one, other] {
                    let of_last_key = items.iter().filter(|it| Some(*it) == items.last()).count();
                    prop_assert!(items.len() < size + of_last_key.max(1));
                }
            }
        }
    }
}
