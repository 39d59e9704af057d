//! Closing conversations: each step is one short transaction over a batch of claims.
//!
//! A claim is a random token with a lease. Every later write says `close_token = …`, and a new
//! message or an opened session clears the token: so whoever lost the race simply misses, and what
//! it had done so far (counting tokens, dropping a copy) was harmless. A closer that dies leaves
//! its lease to expire; the sweep takes over.
//!
//! Claims and the last write take `FOR UPDATE`, which waits for nobody (`SKIP LOCKED`): a row that a
//! saver holds `FOR KEY SHARE` is left for the next look. So no message slips between a count and
//! the status that declares it final.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain::ids::{AgentId, ConversationKey, InvalidId, MessageId, SessionId, UserId};
use domain::time::Timestamp;
use sqlx::Connection as _;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::rows::{corrupt, key, timestamp};
use crate::save::TOUCH_SECONDS;
use crate::{Archive, Result};

/// Which conversations a sweep claims, and how many.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// How long a close request waits for a reconnection.
    pub grace: Duration,
    /// After how long without a message a conversation closes by itself.
    pub idle: Duration,
    /// How long a claim holds before another closer may take it over.
    pub lease: Duration,
    /// At most so many claims.
    pub limit: u32,
}

/// Why a conversation is being closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// Its last open session closed, or a message came after archiving.
    Requested,
    /// Nothing happened in it for long.
    Idle,
    /// Another closer's lease expired.
    TakenOver,
}

/// The right to close one conversation, until its lease ends or somebody clears the token.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The conversation.
    pub key: ConversationKey,
    /// The token.
    pub token: Uuid,
    /// Why.
    pub cause: CloseCause,
}

/// A message whose tokens nobody has counted.
#[derive(Debug, Clone)]
pub struct Uncounted {
    /// Its conversation.
    pub key: ConversationKey,
    conversation: i64,
    /// Its id.
    pub id: MessageId,
    /// Its content, and its tool calls on a line of their own where it has any.
    pub text: String,
    /// The model that it was for: its own, else the conversation's.
    pub model_name: Option<String>,
}

/// A conversation's totals, as counted from its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// The conversation.
    pub key: ConversationKey,
    /// The session that began it.
    pub session_id: SessionId,
    /// The agent that spoke last.
    pub agent_id: Option<AgentId>,
    /// The user, where known.
    pub user_id: Option<UserId>,
    /// How many messages it has.
    pub message_count: i64,
    /// Their tokens.
    pub total_tokens: i64,
    /// Its first message's time.
    pub created_at: Timestamp,
    /// Its last message's time.
    pub last_message_at: Timestamp,
    /// When this close began.
    pub closed_at: Timestamp,
    /// Why it closed.
    pub close_reason: Option<String>,
    /// The claim under which it was counted.
    pub token: Uuid,
}

/// A statement over `mine`: the claims of `$1, $2, $3` that still hold their token, locked in key
/// order.
macro_rules! mine {
    ($lock:literal, $statement:literal) => {
        concat!(
            "WITH mine AS (
                 SELECT c.tenant_id, c.id, c.number
                 FROM unnest($1::text[], $2::text[], $3::uuid[]) AS k (tenant_id, id, token)
                 JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                 WHERE c.close_token = k.token
                 ORDER BY c.tenant_id, c.id ",
            $lock,
            ")",
            $statement
        )
    };
}

impl Archive {
    /// Claims conversations whose close is due, that have been idle for long, or whose closer
    /// vanished; at most `due.limit` of each.
    pub async fn claim(&self, due: &Due) -> Result<Vec<Claim>> {
        self.within(async |connection| {
            let mut claims = Vec::new();
            for cause in [CloseCause::Requested, CloseCause::Idle, CloseCause::TakenOver] {
                let after = match cause {
                    CloseCause::Requested => due.grace,
                    CloseCause::Idle => due.idle + Duration::from_secs(TOUCH_SECONDS.into()),
                    CloseCause::TakenOver => Duration::ZERO,
                };
                let rows = sqlx::query(claim_statement(cause))
                    .bind(after.as_secs_f64())
                    .bind(due.lease.as_secs_f64())
                    .bind(i64::from(due.limit))
                    .fetch_all(&mut *connection)
                    .await?;
                for row in rows {
                    claims.push(Claim {
                        key: key(row.try_get("tenant_id")?, row.try_get("id")?)?,
                        token: row.try_get("close_token")?,
                        cause,
                    });
                }
            }
            Ok(claims)
        })
        .await
    }

    /// Drops those claimed conversations that have no messages, with their sessions; returns them.
    pub async fn drop_empty(&self, claims: &[Claim]) -> Result<Vec<ConversationKey>> {
        let keys = Keys::of(claims);
        self.within(async |connection| {
            let mut transaction = connection.begin().await?;
            let dropped = sqlx::query(
                "WITH empty AS (
                     SELECT c.tenant_id, c.id
                     FROM unnest($1::text[], $2::text[], $3::uuid[]) AS k (tenant_id, id, token)
                     JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                     WHERE c.close_token = k.token
                       AND NOT EXISTS (SELECT FROM message_rows m WHERE m.conversation = c.number)
                     ORDER BY c.tenant_id, c.id
                     FOR UPDATE OF c SKIP LOCKED)
                 DELETE FROM conversations c USING empty
                 WHERE c.tenant_id = empty.tenant_id AND c.id = empty.id
                 RETURNING c.tenant_id, c.id",
            )
            .bind(&keys.tenants)
            .bind(&keys.ids)
            .bind(&keys.tokens)
            .fetch_all(&mut *transaction)
            .await?
            .iter()
            .map(|row| key(row.try_get("tenant_id")?, row.try_get("id")?))
            .collect::<Result<Vec<_>>>()?;
            sqlx::query(
                "DELETE FROM sessions s USING unnest($1::text[], $2::text[]) AS k (tenant_id, id)
                 WHERE s.tenant_id = k.tenant_id AND s.conversation_id = k.id",
            )
            .bind(dropped.iter().map(|key| key.tenant.as_str()).collect::<Vec<_>>())
            .bind(dropped.iter().map(|key| key.conversation.as_str()).collect::<Vec<_>>())
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            Ok(dropped)
        })
        .await
    }

    /// Messages of the claimed conversations that have no token count yet, in the order of the claims
    /// and then of their ids: at most `limit`, and at most `max_bytes` of text, but always one where
    /// there is one. Of the first claim only those `after` an id, so that a long conversation is
    /// walked once.
    pub async fn uncounted(
        &self,
        claims: &[Claim],
        after: Option<&MessageId>,
        limit: u32,
        max_bytes: usize,
    ) -> Result<Vec<Uncounted>> {
        let keys = Keys::of(claims);
        let mut after_ids = vec![""; claims.len()];
        if let (Some(first), Some(after)) = (after_ids.first_mut(), after) {
            *first = after.as_str();
        }
        self.within(async |connection| {
            sqlx::query(
                "SELECT n, conversation, id, coalesce(model_name, conversation_model) AS model_name,
                        content || coalesce(E'\\n' || tool_calls::text, '') AS text
                 FROM (SELECT listed.*, row_number() OVER in_order AS place,
                              sum(octet_length(content) + coalesce(octet_length(tool_calls::text), 0))
                                  OVER in_order AS bytes
                       FROM (SELECT k.n, m.*, c.model_name AS conversation_model
                             FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
                                  AS k (tenant_id, id, after, n)
                             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
                             CROSS JOIN LATERAL (
                                 SELECT * FROM message_rows m
                                 WHERE m.conversation = c.number AND m.id > k.after COLLATE \"C\"
                                   AND m.tokens IS NULL
                                 ORDER BY m.id LIMIT $4) AS m
                             LIMIT $4) AS listed
                       WINDOW in_order AS (ORDER BY n, id)) AS m
                 WHERE place = 1 OR bytes <= $5
                 ORDER BY place",
            )
            .bind(&keys.tenants)
            .bind(&keys.ids)
            .bind(&after_ids)
            .bind(i64::from(limit))
            .bind(i64::try_from(max_bytes).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(|row| {
                let n: i64 = row.try_get("n")?;
                let claim = usize::try_from(n - 1).ok().and_then(|n| claims.get(n));
                let claim =
                    claim.ok_or_else(|| corrupt("messages", "one that nobody asked for".into()))?;
                Ok(Uncounted {
                    key: claim.key.clone(),
                    conversation: row.try_get("conversation")?,
                    id: MessageId::new(row.try_get::<&str, _>("id")?)
                        .map_err(|fault| corrupt("messages", format!("id {fault}")))?,
                    text: row.try_get("text")?,
                    model_name: row.try_get("model_name")?,
                })
            })
            .collect()
        })
        .await
    }

    /// Stores token counts. A count is a fact about the words, so it needs no token.
    pub async fn store_tokens(&self, counts: &[(&Uncounted, i64)]) -> Result<()> {
        self.within(async |connection| {
            sqlx::query(
                "UPDATE message_rows m SET tokens = k.tokens
                 FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS k (conversation, id, tokens)
                 WHERE m.conversation = k.conversation AND m.id = k.id",
            )
            .bind(counts.iter().map(|(m, _)| m.conversation).collect::<Vec<_>>())
            .bind(counts.iter().map(|(m, _)| m.id.as_str()).collect::<Vec<_>>())
            .bind(counts.iter().map(|(_, tokens)| *tokens).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
            Ok(())
        })
        .await
    }

    /// Counts the claimed conversations' totals from their rows, stores them and extends the
    /// lease. Conversations that lost their token are left out of the answer.
    pub async fn store_totals(&self, claims: &[Claim], lease: Duration) -> Result<Vec<Closed>> {
        let keys = Keys::of(claims);
        self.within(async |connection| {
            sqlx::query(mine!(
                "FOR NO KEY UPDATE OF c",
                "
                 UPDATE conversations c SET
                     message_count = t.messages, total_tokens = t.tokens,
                     created_at = t.first, last_message_at = t.last,
                     agent_id = coalesce(t.agent_id, c.agent_id),
                     model_name = coalesce(t.model_name, c.model_name),
                     close_lease_until = clock_timestamp() + make_interval(secs => $4)
                 FROM (SELECT mine.tenant_id, mine.id, count(*) AS messages,
                              coalesce(sum(m.tokens), 0)::bigint AS tokens,
                              min(m.created_at) AS first, max(m.created_at) AS last,
                              (array_agg(m.agent_id ORDER BY m.created_at DESC, m.id DESC)
                                  FILTER (WHERE m.agent_id IS NOT NULL))[1] AS agent_id,
                              (array_agg(m.model_name ORDER BY m.created_at DESC, m.id DESC)
                                  FILTER (WHERE m.model_name IS NOT NULL))[1] AS model_name
                       FROM mine
                       JOIN message_rows m ON m.conversation = mine.number
                       GROUP BY mine.tenant_id, mine.id) AS t
                 WHERE c.tenant_id = t.tenant_id AND c.id = t.id
                 RETURNING c.tenant_id, c.id, c.session_id, c.agent_id, c.user_id, c.message_count,
                           c.total_tokens, c.created_at, c.last_message_at, c.closed_at,
                           c.close_reason, c.close_token"
            ))
            .bind(&keys.tenants)
            .bind(&keys.ids)
            .bind(&keys.tokens)
            .bind(lease.as_secs_f64())
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(closed)
            .collect()
        })
        .await
    }

    /// The last write: `archived`. Returns the conversations that it reached; the others lost their
    /// token or are held by a saver at this moment.
    pub async fn archive_claimed(&self, claims: &[Claim]) -> Result<Vec<ConversationKey>> {
        let keys = Keys::of(claims);
        self.within(async |connection| {
            sqlx::query(mine!(
                "FOR UPDATE OF c SKIP LOCKED",
                "
                 UPDATE conversations c SET
                     status = 'archived', finalised_at = clock_timestamp(), close_token = NULL,
                     close_lease_until = NULL
                 FROM mine WHERE c.tenant_id = mine.tenant_id AND c.id = mine.id
                 RETURNING c.tenant_id, c.id"
            ))
            .bind(&keys.tenants)
            .bind(&keys.ids)
            .bind(&keys.tokens)
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(|row| key(row.try_get("tenant_id")?, row.try_get("id")?))
            .collect()
        })
        .await
    }

    /// Extends the lease of the claims that still hold their token; returns those.
    pub async fn renew(&self, claims: &[Claim], lease: Duration) -> Result<Vec<ConversationKey>> {
        let keys = Keys::of(claims);
        self.within(async |connection| {
            sqlx::query(mine!(
                "FOR NO KEY UPDATE OF c",
                "
                 UPDATE conversations c
                 SET close_lease_until = clock_timestamp() + make_interval(secs => $4)
                 FROM mine WHERE c.tenant_id = mine.tenant_id AND c.id = mine.id
                 RETURNING c.tenant_id, c.id"
            ))
            .bind(&keys.tenants)
            .bind(&keys.ids)
            .bind(&keys.tokens)
            .bind(lease.as_secs_f64())
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(|row| key(row.try_get("tenant_id")?, row.try_get("id")?))
            .collect()
        })
        .await
    }

    /// How many conversations are active, and by how much the oldest close is overdue.
    pub async fn close_backlog(&self, grace: Duration) -> Result<(i64, Duration)> {
        self.within(async |connection| {
            let (active, lag): (i64, f64) = sqlx::query_as(
                // Two counts, so that each reads the partial index that holds nothing else.
                "SELECT (SELECT count(*) FROM conversations
                         WHERE status = 'active' AND close_requested_at IS NULL)
                        + (SELECT count(*) FROM conversations
                           WHERE status = 'active' AND close_requested_at IS NOT NULL),
                        coalesce((SELECT extract(epoch FROM statement_timestamp() - close_requested_at)::float8
                                  FROM conversations
                                  WHERE status = 'active' AND close_requested_at IS NOT NULL
                                  ORDER BY close_requested_at LIMIT 1), 0)",
            )
            .fetch_one(&mut *connection)
            .await?;
            let lag = Duration::try_from_secs_f64(lag).unwrap_or_default();
            Ok((active, lag.saturating_sub(grace)))
        })
        .await
    }
}

fn claim_statement(cause: CloseCause) -> &'static str {
    // One statement for each work list, so that each walks its own partial index.
    macro_rules! claim {
        ($due:literal, $order:literal, $and:literal) => {
            concat!(
                "WITH due AS (SELECT tenant_id, id FROM conversations WHERE ",
                $due,
                " ORDER BY ",
                $order,
                " LIMIT $3 FOR UPDATE SKIP LOCKED)
                 UPDATE conversations c SET
                     status = 'closing', close_token = gen_random_uuid(),
                     close_lease_until = clock_timestamp() + make_interval(secs => $2)",
                $and,
                " FROM due WHERE c.tenant_id = due.tenant_id AND c.id = due.id
                 RETURNING c.tenant_id, c.id, c.close_token"
            )
        };
    }
    match cause {
        CloseCause::Requested => claim!(
            "status = 'active' AND close_requested_at <= statement_timestamp() - make_interval(secs => $1)",
            "close_requested_at",
            ", closed_at = clock_timestamp()"
        ),
        CloseCause::Idle => claim!(
            "status = 'active' AND close_requested_at IS NULL
             AND touched_at <= statement_timestamp() - make_interval(secs => $1)",
            "touched_at",
            ", closed_at = clock_timestamp(), close_requested_at = clock_timestamp(), close_reason = 'idle'"
        ),
        CloseCause::TakenOver => claim!(
            "status = 'closing'
             AND close_lease_until <= statement_timestamp() - make_interval(secs => $1)",
            "close_lease_until",
            // `closed_at` stays: the event that the one before may have published is this one's.
            ""
        ),
    }
}

struct Keys<'a> {
    tenants: Vec<&'a str>,
    ids: Vec<&'a str>,
    tokens: Vec<Uuid>,
}

impl<'a> Keys<'a> {
    fn of(claims: &'a [Claim]) -> Self {
        Self {
            tenants: claims.iter().map(|claim| claim.key.tenant.as_str()).collect(),
            ids: claims.iter().map(|claim| claim.key.conversation.as_str()).collect(),
            tokens: claims.iter().map(|claim| claim.token).collect(),
        }
    }
}

fn closed(row: &PgRow) -> Result<Closed> {
    let time = |column: &'static str| -> Result<Timestamp> {
        Ok(timestamp(row.try_get::<DateTime<Utc>, _>(column)?))
    };
    let fault = |column: &'static str| {
        move |fault: InvalidId| corrupt("conversations", format!("{column} {fault}"))
    };
    Ok(Closed {
        key: key(row.try_get("tenant_id")?, row.try_get("id")?)?,
        session_id: SessionId::new(row.try_get::<&str, _>("session_id")?)
            .map_err(fault("session_id"))?,
        agent_id: row
            .try_get::<Option<&str>, _>("agent_id")?
            .map(AgentId::new)
            .transpose()
            .map_err(fault("agent_id"))?,
        user_id: row
            .try_get::<Option<&str>, _>("user_id")?
            .map(UserId::new)
            .transpose()
            .map_err(fault("user_id"))?,
        message_count: row.try_get("message_count")?,
        total_tokens: row.try_get("total_tokens")?,
        created_at: time("created_at")?,
        last_message_at: time("last_message_at")?,
        closed_at: time("closed_at")?,
        close_reason: row.try_get("close_reason")?,
        token: row.try_get("close_token")?,
    })
}
