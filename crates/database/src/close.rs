//! Closing conversations: each step is one short transaction over a batch of claims.
//!
//! A claim is a random token with a lease. Every later write of the close requires that token
//! (`close_token = …`), and a new message or an opened session clears it. After that the writes of the
//! close change nothing, and its earlier steps (counting tokens, dropping a hot copy) did no harm. If
//! the closing process crashes, its lease ends and the sweep claims the conversation again.
//!
//! Claims and the last write use `FOR UPDATE SKIP LOCKED`: they do not wait, and skip a row that a save
//! holds `FOR KEY SHARE`; the next sweep takes it. So no message is saved between the count of the
//! messages and the change to `archived`. No step of a close waits for the lock of a conversation's row, and none
//! holds it for longer than a write takes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain::event::Migrated;
use domain::ids::{AgentId, ConversationKey, MessageId, SessionId, UserId};
use domain::time::Timestamp;
use failpoints::Guard;
use sqlx::postgres::{PgArguments, PgBindIterExt as _, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row as _};
use uuid::Uuid;

use crate::rows::{BindKeys, corrupt, id, item_of, key_of, optional_id, timestamp};
use crate::save::TOUCH_SECONDS;
use crate::{Database, Result};

const TABLE: &str = "conversations";

/// Which conversations a sweep claims, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct ClaimCriteria {
    /// How long a close request waits, in case the session reconnects.
    pub grace: Duration,
    /// After how long without a message a conversation is closed. The time of the last activity is stored
    /// once a minute, so it may take a minute more.
    pub idle: Duration,
    /// How long a claim is held without renewal before another closer takes it over.
    pub lease: Duration,
}

domain::named! {
    /// Why a conversation is being closed. The names are those of the statement that claims.
    pub enum CloseCause {
        /// Its last open session closed, or a message arrived after that.
        Requested = "requested",
        /// No message arrived for the idle time.
        Idle = "idle",
        /// Another process claimed it, and that lease ended.
        TakenOver = "taken over",
    }
}

/// The right to close one conversation, until the lease ends or the token is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The conversation.
    pub key: ConversationKey,
    /// The token that every later write requires.
    pub token: Uuid,
    /// Why it is closed.
    pub cause: CloseCause,
}

/// A message whose tokens are not counted yet.
#[derive(Debug, Clone)]
pub struct Uncounted {
    /// Its conversation.
    pub key: ConversationKey,
    conversation: i64,
    /// Its id.
    pub id: MessageId,
    /// Its content; its tool calls, if any, follow on a new line.
    pub text: String,
    /// The message's model, else the conversation's.
    pub model_name: Option<String>,
}

/// A conversation that is about to be archived.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// The claim under which it was counted.
    pub claim: Claim,
    /// The model of the newest message that names one.
    pub model_name: Option<String>,
    /// The totals of its messages. The agent is that of the newest message that names one. `None` for a
    /// conversation without messages: its session events or feedback may have overtaken them, or they are
    /// dead letters that will be replayed.
    pub event: Option<Migrated>,
}

impl Database {
    /// Claims conversations whose close request is older than the grace period, that are idle, or whose
    /// earlier claim ended without a result; at most `limit` of each.
    pub async fn claim(&self, criteria: &ClaimCriteria, limit: u32) -> Result<Vec<Claim>> {
        let idle = criteria.idle + Duration::from_secs(TOUCH_SECONDS.into());
        let query = sqlx::query(CLAIM)
            .bind(criteria.grace.as_secs_f64())
            .bind(idle.as_secs_f64())
            .bind(criteria.lease.as_secs_f64())
            .bind(i64::from(limit))
            .bind(failpoints::holds(Guard::CloseTakenOver));
        let claim = |row: &PgRow| {
            let unknown = || corrupt(TABLE, "unknown close cause".to_owned());
            let cause = CloseCause::parse(row.try_get("cause")?).ok_or_else(unknown)?;
            Ok(Claim { key: key_of(row)?, token: row.try_get("close_token")?, cause })
        };
        self.rows(query).await?.iter().map(claim).collect()
    }

    /// Messages of the claimed conversations whose tokens are not counted yet, in the order of the claims
    /// and then of their ids. At most `limit` messages and `max_bytes` of text, but at least one message
    /// if there is one. In the first claim's conversation only messages `after` that id, so that a long
    /// conversation is read page by page. Returns them, and whether there may be more.
    pub async fn uncounted(
        &self,
        claims: &[Claim],
        after: Option<&MessageId>,
        limit: u32,
        max_bytes: usize,
    ) -> Result<(Vec<Uncounted>, bool)> {
        let mut after_ids = vec![""; claims.len()];
        if let (Some(first), Some(after)) = (after_ids.first_mut(), after) {
            *first = after.as_str();
        }
        let query = sqlx::query(
            "SELECT n, conversation, id, found, coalesce(model_name, conversation_model) AS model_name,
                    content || coalesce(E'\\n' || tool_calls::text, '') AS text
             FROM (SELECT listed.*, row_number() OVER in_order AS place,
                          count(*) OVER () AS found,
                          sum(octet_length(content) + coalesce(octet_length(tool_calls::text), 0))
                              OVER in_order AS bytes
                   FROM (SELECT k.n, m.*, c.model_name AS conversation_model
                         FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
                              AS k (tenant_id, id, after, n)
                         JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                         CROSS JOIN LATERAL (
                             SELECT u.id FROM message_rows u
                             LEFT JOIN LATERAL (
                                 SELECT true AS counted FROM message_tokens t
                                 WHERE t.conversation = u.conversation AND t.id = u.id LIMIT 1) AS t ON true
                             WHERE u.conversation = c.number AND u.id > k.after COLLATE \"C\"
                               AND counted IS NULL
                             ORDER BY u.id LIMIT $4) AS u
                         CROSS JOIN LATERAL (
                             SELECT * FROM message_rows m
                             WHERE m.conversation = c.number AND m.id = u.id LIMIT 1) AS m
                         ORDER BY k.n, m.id LIMIT $4) AS listed
                   WINDOW in_order AS (ORDER BY n, id)) AS m
             WHERE place = 1 OR bytes <= $5
             ORDER BY place",
        )
        .bind_keys(claims.iter().map(|claim| &claim.key))
        .bind(&after_ids)
        .bind(i64::from(limit))
        .bind(i64::try_from(max_bytes).unwrap_or(i64::MAX));
        let rows = self.rows(query).await?;
        let found: i64 = rows.first().map_or(Ok(0), |row| row.try_get("found"))?;
        let more = found == i64::from(limit) || found > rows.len() as i64;
        let message = |row: &PgRow| {
            Ok(Uncounted {
                key: item_of(row, claims, TABLE)?.key.clone(),
                conversation: row.try_get("conversation")?,
                id: id(row, "messages", "id", MessageId::new)?,
                text: row.try_get("text")?,
                model_name: row.try_get("model_name")?,
            })
        };
        Ok((rows.iter().map(message).collect::<Result<_>>()?, more))
    }

    /// Stores token counts. The count depends on the content alone, so no close token is required. If two
    /// processes count the same message, the first count stays.
    pub async fn store_tokens(&self, counts: &[(&Uncounted, i64)]) -> Result<()> {
        let query = sqlx::query(
            "INSERT INTO message_tokens (conversation, id, tokens)
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])
             ON CONFLICT (conversation, id) DO NOTHING",
        )
        .bind(counts.iter().map(|(m, _)| m.conversation).collect::<Vec<_>>())
        .bind(counts.iter().map(|(m, _)| m.id.as_str()).collect::<Vec<_>>())
        .bind(counts.iter().map(|(_, tokens)| *tokens).collect::<Vec<_>>());
        self.execute(query).await?;
        Ok(())
    }

    /// Counts the totals of the claimed conversations from their messages. Conversations whose token was
    /// cleared are left out.
    pub async fn totals(&self, claims: &[Claim]) -> Result<Vec<Closed>> {
        let query = sqlx::query(
            "SELECT k.n, c.session_id, c.user_id, c.closed_at, c.close_reason,
                    coalesce(agent.agent_id, c.agent_id) AS agent_id,
                    coalesce(model.model_name, c.model_name) AS model_name,
                    m.messages, m.first, m.last, t.tokens
             FROM unnest($1::text[], $2::text[], $3::uuid[]) WITH ORDINALITY
                  AS k (tenant_id, id, token, n)
             JOIN conversations c
                  ON c.tenant_id = k.tenant_id AND c.id = k.id AND c.close_token = k.token
             CROSS JOIN LATERAL (
                 SELECT count(*) AS messages, min(created_at) AS first, max(created_at) AS last
                 -- Always true: so the index by time alone is read.
                 FROM message_rows WHERE conversation = c.number AND created_at IS NOT NULL) AS m
             CROSS JOIN LATERAL (
                 SELECT coalesce(sum(tokens), 0)::bigint AS tokens
                 FROM message_tokens WHERE conversation = c.number) AS t
             LEFT JOIN LATERAL (
                 SELECT agent_id FROM message_rows
                 WHERE conversation = c.number AND created_at IS NOT NULL AND agent_id IS NOT NULL
                 ORDER BY created_at DESC, id DESC LIMIT 1) AS agent ON true
             LEFT JOIN LATERAL (
                 SELECT model_name FROM message_rows
                 WHERE conversation = c.number AND created_at IS NOT NULL AND model_name IS NOT NULL
                 ORDER BY created_at DESC, id DESC LIMIT 1) AS model ON true",
        )
        .bind_claims(claims.iter());
        self.rows(query).await?.iter().map(|row| closed(row, claims)).collect()
    }

    /// The last write: sets the status `archived` and the totals, and notes that the words are due. Returns the
    /// conversations that it changed; of the others the token was cleared, or a save holds the row at the moment.
    pub async fn archive_closed(&self, closed: &[Closed]) -> Result<Vec<ConversationKey>> {
        fn totals<'a, T>(
            closed: &'a [Closed],
            of: fn(&'a Migrated) -> T,
        ) -> impl Iterator<Item = Option<T>> + Clone {
            closed.iter().map(move |it| it.event.as_ref().map(of))
        }
        let query = sqlx::query(
            "WITH mine AS (
                 SELECT k.*
                 FROM unnest($1::text[], $2::text[], $3::uuid[], $4::bigint[], $5::bigint[],
                             $6::timestamptz[], $7::timestamptz[], $8::text[], $9::text[])
                      AS k (tenant_id, id, token, messages, tokens, first, last, agent_id, model_name)
                 JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                 WHERE c.close_token = k.token
                 ORDER BY c.tenant_id, c.id
                 FOR UPDATE OF c SKIP LOCKED),
             archived AS (
                 UPDATE conversations c SET
                     status = 'archived', finalised_at = clock_timestamp(), close_token = NULL,
                     close_lease_until = NULL, message_count = coalesce(mine.messages, 0),
                     total_tokens = coalesce(mine.tokens, 0), created_at = coalesce(mine.first, c.created_at),
                     last_message_at = mine.last,
                     -- A session event may have set them since the totals were read.
                     agent_id = coalesce(mine.agent_id, c.agent_id),
                     model_name = coalesce(mine.model_name, c.model_name)
                 FROM mine WHERE c.tenant_id = mine.tenant_id AND c.id = mine.id
                 RETURNING c.finalised_at, c.tenant_id, c.id),
             due AS (
                 INSERT INTO words_due (finalised_at, tenant_id, conversation_id) SELECT * FROM archived
                 ON CONFLICT DO NOTHING)
             SELECT tenant_id, id FROM archived",
        )
        .bind_claims(closed.iter().map(|it| &it.claim))
        .bind(totals(closed, |it| it.message_count).bind_iter())
        .bind(totals(closed, |it| it.total_tokens).bind_iter())
        .bind(totals(closed, |it| DateTime::<Utc>::from(it.created_at)).bind_iter())
        .bind(totals(closed, |it| DateTime::<Utc>::from(it.last_message_at)).bind_iter())
        .bind(totals(closed, |it| it.agent_id.as_ref().map(AgentId::as_str)).map(Option::flatten).bind_iter())
        .bind(closed.iter().map(|it| it.model_name.as_deref()).collect::<Vec<_>>());
        self.rows(query).await?.iter().map(key_of).collect()
    }

    /// Extends the leases of these claims. Returns the conversations whose token is still valid. The lease of one
    /// whose row is locked stays as it is.
    pub async fn renew<'a>(
        &self,
        claims: impl Iterator<Item = &'a Claim> + Clone,
        lease: Duration,
    ) -> Result<Vec<ConversationKey>> {
        let query = sqlx::query(
            "WITH mine AS (
                 SELECT c.tenant_id, c.id
                 FROM unnest($1::text[], $2::text[], $3::uuid[]) AS k (tenant_id, id, token)
                 JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                 WHERE c.close_token = k.token
                 ORDER BY c.tenant_id, c.id
                 FOR NO KEY UPDATE OF c SKIP LOCKED),
             renewed AS (
                 UPDATE conversations c
                 SET close_lease_until = clock_timestamp() + make_interval(secs => $4)
                 FROM mine WHERE c.tenant_id = mine.tenant_id AND c.id = mine.id)
             SELECT c.tenant_id, c.id
             FROM unnest($1::text[], $2::text[], $3::uuid[]) AS k (tenant_id, id, token)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             WHERE c.close_token = k.token",
        )
        .bind_claims(claims)
        .bind(lease.as_secs_f64());
        self.rows(query).await?.iter().map(key_of).collect()
    }

    /// How many conversations are active, and by how much the oldest close is overdue (0 if none is).
    pub async fn close_backlog(&self, grace: Duration) -> Result<(i64, Duration)> {
        // Two counts, so that each reads the partial index that holds nothing else.
        let query = sqlx::query_as(
            "SELECT (SELECT count(*) FROM conversations
                     WHERE status = 'active' AND close_requested_at IS NULL)
                    + (SELECT count(*) FROM conversations
                       WHERE status = 'active' AND close_requested_at IS NOT NULL),
                    coalesce((SELECT extract(epoch FROM statement_timestamp() - close_requested_at)::float8
                              FROM conversations
                              WHERE status = 'active' AND close_requested_at IS NOT NULL
                              ORDER BY close_requested_at LIMIT 1), 0)",
        );
        let (active, lag): (i64, f64) = self.value(query).await?;
        let lag = Duration::try_from_secs_f64(lag).unwrap_or_default();
        Ok((active, lag.saturating_sub(grace)))
    }
}

/// Binds tenants, ids and close tokens of claims.
trait BindClaims: BindKeys {
    fn bind_claims<'k>(self, claims: impl Iterator<Item = &'k Claim> + Clone) -> Self;
}

impl BindClaims for Query<'_, Postgres, PgArguments> {
    fn bind_claims<'k>(self, claims: impl Iterator<Item = &'k Claim> + Clone) -> Self {
        self.bind_keys(claims.clone().map(|claim| &claim.key))
            .bind(claims.map(|claim| claim.token).bind_iter())
    }
}

/// Three work lists, each read by its own partial index. A conversation is in at most one of them. `$5` is true but
/// in a test build that leaves out taking over.
const CLAIM: &str = "
    WITH requested AS (
        SELECT tenant_id, id, 'requested' AS cause FROM conversations
        WHERE status = 'active' AND close_requested_at <= statement_timestamp() - make_interval(secs => $1)
        ORDER BY close_requested_at LIMIT $4 FOR UPDATE SKIP LOCKED),
    idle AS (
        SELECT tenant_id, id, 'idle' AS cause FROM conversations
        WHERE status = 'active' AND close_requested_at IS NULL
          AND touched_at <= statement_timestamp() - make_interval(secs => $2)
        ORDER BY touched_at LIMIT $4 FOR UPDATE SKIP LOCKED),
    lapsed AS (
        SELECT tenant_id, id, 'taken over' AS cause FROM conversations
        WHERE status = 'closing' AND close_lease_until <= statement_timestamp() AND $5
        ORDER BY close_lease_until LIMIT $4 FOR UPDATE SKIP LOCKED)
    UPDATE conversations c SET
        status = 'closing', close_token = gen_random_uuid(),
        close_lease_until = clock_timestamp() + make_interval(secs => $3),
        -- It stays when a close is taken over: the earlier process may have published its event already.
        closed_at = CASE due.cause WHEN 'taken over' THEN c.closed_at ELSE clock_timestamp() END,
        close_requested_at = coalesce(c.close_requested_at, clock_timestamp()),
        close_reason = CASE due.cause WHEN 'taken over' THEN c.close_reason ELSE (
            SELECT CASE WHEN coalesce(bool_or(s.open), true) THEN 'idle'
                        ELSE (array_agg(s.close_reason ORDER BY s.last_event_at DESC, s.session_id DESC))[1] END
            FROM sessions s WHERE s.tenant_id = c.tenant_id AND s.conversation_id = c.id) END
    FROM (TABLE requested UNION ALL TABLE idle UNION ALL TABLE lapsed) AS due
    WHERE c.tenant_id = due.tenant_id AND c.id = due.id
    RETURNING c.tenant_id, c.id, c.close_token, due.cause";

fn closed(row: &PgRow, claims: &[Claim]) -> Result<Closed> {
    let claim = item_of(row, claims, TABLE)?.clone();
    let model_name = row.try_get("model_name")?;
    let message_count: i64 = row.try_get("messages")?;
    if message_count == 0 {
        return Ok(Closed { claim, model_name, event: None });
    }
    let time = |column: &str| -> Result<Timestamp> { Ok(timestamp(row.try_get(column)?)) };
    let event = Migrated {
        tenant_id: claim.key.tenant.clone(),
        conversation_id: claim.key.conversation.clone(),
        session_id: id(row, TABLE, "session_id", SessionId::new)?,
        agent_id: optional_id(row, TABLE, "agent_id", AgentId::new)?,
        user_id: optional_id(row, TABLE, "user_id", UserId::new)?,
        message_count,
        total_tokens: row.try_get("tokens")?,
        created_at: time("first")?,
        last_message_at: time("last")?,
        closed_at: time("closed_at")?,
        close_reason: row.try_get("close_reason")?,
        close_token: claim.token,
    };
    Ok(Closed { claim, model_name, event: Some(event) })
}
