//! One batch of messages, one transaction.
//!
//! The order of the statements is the guarantee:
//!
//! 1. tombstones are read, so that nothing that was erased comes back;
//! 2. the conversations are locked `FOR KEY SHARE`, missing ones inserted first: whoever closes or
//!    erases takes `FOR UPDATE` and therefore waits for this transaction, or this one for it. The
//!    lock is a statement of its own, after the insert: in one statement with it, a row that a
//!    concurrent transaction inserts yields neither row nor lock;
//! 3. the messages are inserted `ON CONFLICT DO NOTHING`; what was there already is compared;
//! 4. conversations that gained a message and were closing, archived, asked to close or long
//!    untouched are updated. No counters: they would serialise the savers of one conversation.
//!
//! Rows come sorted by key, so two batches never wait for each other in a circle.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use domain::ids::{ConversationKey, TenantId};
use domain::message::{BodyHash, Message};
use domain::time::Timestamp;
use sqlx::AssertSqlSafe;
use sqlx::Connection as _;
use sqlx::{PgConnection, Row};

use crate::rows::{FORMAT_PLAIN, MESSAGE_COLUMNS, MessageRow, SaveRow, corrupt, timestamp};
use crate::{Archive, Result};

/// How coarse `touched_at` is, in seconds: a busy conversation's row is written at most this often.
/// The idle sweep adds it to its limit.
pub const TOUCH_SECONDS: u32 = 60;

/// How often the lock is tried again because a conversation vanished between insert and lock. The
/// sweep would have to drop the same empty conversation each time.
const LOCK_ROUNDS: usize = 5;

/// What the save transaction must know about Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotWrites {
    /// The hot copies will be written after the commit.
    Follow,
    /// Redis is known to be down: the hot copies of these conversations are void from the commit
    /// on.
    KnownDown,
}

/// What became of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Saved {
    /// It is stored now.
    New,
    /// It was stored before: this is the committed message, whose timestamp is the only one.
    Duplicate(Box<Message>),
    /// The id is taken by other words.
    Conflict,
    /// A tombstone forbids it.
    Erased,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct SavedBatch {
    /// One for each row, in the order of the rows.
    pub rows: Vec<Saved>,
    /// How many archived or closing conversations came back to life.
    pub reopened: usize,
}

impl Archive {
    /// Saves a batch in one transaction: all of it is durable when this returns, or none of it is.
    ///
    /// `rows` must be sorted by (tenant, conversation, message id) and hold each of them once.
    /// `fresh` gives random numbers for new generations.
    pub async fn save(
        &self,
        rows: &[SaveRow<'_>],
        hot: HotWrites,
        fresh: &(dyn Fn() -> i64 + Sync),
    ) -> Result<SavedBatch> {
        debug_assert!(
            rows.is_sorted_by(|a, b| (a.key, &a.message.id) < (b.key, &b.message.id)),
            "rows must be sorted and unique"
        );
        self.within(async |connection| {
            let mut transaction = connection.begin().await?;
            let tombstones = Tombstones::read(&mut transaction, rows).await?;
            let kept: Vec<&SaveRow<'_>> =
                rows.iter().filter(|row| !tombstones.forbid(row)).collect();
            let conversations =
                lock_conversations(&mut transaction, &kept, &tombstones, fresh).await?;
            let new = insert_messages(&mut transaction, &kept).await?;
            let mut stored = if new.len() == kept.len() {
                HashMap::new()
            } else {
                let present: Vec<_> =
                    kept.iter().copied().filter(|row| !new.contains(&identity(row))).collect();
                read_stored(&mut transaction, &present).await?
            };
            let reopened =
                update_conversations(&mut transaction, &kept, &new, &conversations, hot, fresh)
                    .await?;
            transaction.commit().await?;

            let mut saved = Vec::with_capacity(rows.len());
            for row in rows {
                saved.push(if tombstones.forbid(row) {
                    Saved::Erased
                } else if new.contains(&identity(row)) {
                    Saved::New
                } else {
                    match stored.remove(&identity(row)) {
                        Some((hash, message)) if hash == row.body_hash => {
                            Saved::Duplicate(Box::new(message))
                        }
                        Some(_) => Saved::Conflict,
                        None => {
                            // Erased between the two statements; the next attempt sees why.
                            return Err(corrupt(
                                "messages",
                                "a row vanished while it was compared".into(),
                            ));
                        }
                    }
                });
            }
            Ok(SavedBatch { rows: saved, reopened })
        })
        .await
    }
}

type Identity<'a> = (&'a str, &'a str, &'a str);

fn identity<'a>(row: &SaveRow<'a>) -> Identity<'a> {
    (row.key.tenant.as_str(), row.key.conversation.as_str(), row.message.id.as_str())
}

/// The erasures that concern a batch.
struct Tombstones(HashMap<(TenantId, Kind, String), Timestamp>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Conversation,
    User,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::User => "user",
        }
    }
}

impl Tombstones {
    async fn read(connection: &mut PgConnection, rows: &[SaveRow<'_>]) -> Result<Self> {
        let mut subjects: Vec<(&str, Kind, &str)> = Vec::with_capacity(rows.len() / 4);
        for row in rows {
            let tenant = row.key.tenant.as_str();
            subjects.push((tenant, Kind::Conversation, row.key.conversation.as_str()));
            if let Some(user) = &row.message.user_id {
                subjects.push((tenant, Kind::User, user.as_str()));
            }
        }
        subjects.sort_unstable_by_key(|(tenant, kind, subject)| (*tenant, kind.as_str(), *subject));
        subjects.dedup();
        let found: Vec<(String, String, String, DateTime<Utc>)> = sqlx::query_as(
            "SELECT t.tenant_id, t.kind, t.subject, t.erased_at
             FROM unnest($1::text[], $2::text[], $3::text[]) AS k (tenant_id, kind, subject)
             JOIN tombstones t USING (tenant_id, kind, subject)",
        )
        .bind(subjects.iter().map(|s| s.0).collect::<Vec<_>>())
        .bind(subjects.iter().map(|s| s.1.as_str()).collect::<Vec<_>>())
        .bind(subjects.iter().map(|s| s.2).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        let mut tombstones = HashMap::with_capacity(found.len());
        for (tenant, kind, subject, erased_at) in found {
            let tenant = TenantId::new(tenant)
                .map_err(|fault| corrupt("tombstones", format!("tenant_id {fault}")))?;
            let kind = if kind == Kind::User.as_str() { Kind::User } else { Kind::Conversation };
            tombstones.insert((tenant, kind, subject), timestamp(erased_at));
        }
        Ok(Self(tombstones))
    }

    fn of(&self, row: &SaveRow<'_>) -> Option<Timestamp> {
        if self.0.is_empty() {
            return None;
        }
        let tenant = &row.key.tenant;
        let of = |kind, subject: &str| self.0.get(&(tenant.clone(), kind, subject.to_owned()));
        let conversation = of(Kind::Conversation, row.key.conversation.as_str());
        let user = row.message.user_id.as_ref().and_then(|user| of(Kind::User, user.as_str()));
        conversation.max(user).copied()
    }

    fn forbid(&self, row: &SaveRow<'_>) -> bool {
        self.of(row).is_some_and(|erased_at| row.message.created_at <= erased_at)
    }
}

/// What the lock tells about a conversation.
struct Locked {
    key: ConversationKey,
    /// Active, nobody asked to close it, and touched recently: nothing to update.
    settled: bool,
    /// What nobody has said of it yet, though a message may.
    lacks: Lacks,
}

#[derive(Debug, Clone, Copy)]
struct Lacks {
    agent: bool,
    user: bool,
    model: bool,
}

impl Lacks {
    fn are_told_by(self, message: &Message) -> bool {
        (self.agent && message.agent_id.is_some())
            || (self.user && message.user_id.is_some())
            || (self.model && message.model_name.is_some())
    }
}

async fn lock_conversations(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'_>],
    tombstones: &Tombstones,
    fresh: &(dyn Fn() -> i64 + Sync),
) -> Result<Vec<Locked>> {
    // One row for each conversation: its first message, in key order.
    let mut firsts: Vec<&SaveRow<'_>> = rows.to_vec();
    firsts.dedup_by_key(|row| row.key);
    for _ in 0..LOCK_ROUNDS {
        let locked = lock_present(connection, &firsts).await?;
        if locked.len() == firsts.len() {
            return Ok(locked);
        }
        let present: HashSet<&ConversationKey> = locked.iter().map(|l| &l.key).collect();
        let missing: Vec<_> =
            firsts.iter().copied().filter(|row| !present.contains(row.key)).collect();
        insert_conversations(connection, &missing, rows, tombstones, fresh).await?;
    }
    Err(corrupt("conversations", "a row keeps vanishing between insert and lock".into()))
}

async fn lock_present(
    connection: &mut PgConnection,
    firsts: &[&SaveRow<'_>],
) -> Result<Vec<Locked>> {
    let rows = sqlx::query(
        "SELECT c.tenant_id, c.id,
                c.status = 'active' AND c.close_requested_at IS NULL
                    AND c.touched_at > clock_timestamp() - make_interval(secs => $3) AS settled,
                c.agent_id IS NULL AS lacks_agent, c.user_id IS NULL AS lacks_user,
                c.model_name IS NULL AS lacks_model
         FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)
         JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
         ORDER BY c.tenant_id, c.id
         FOR KEY SHARE OF c",
    )
    .bind(firsts.iter().map(|row| row.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(firsts.iter().map(|row| row.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(f64::from(TOUCH_SECONDS))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Locked {
                key: crate::rows::key(row.try_get("tenant_id")?, row.try_get("id")?)?,
                settled: row.try_get("settled")?,
                lacks: Lacks {
                    agent: row.try_get("lacks_agent")?,
                    user: row.try_get("lacks_user")?,
                    model: row.try_get("lacks_model")?,
                },
            })
        })
        .collect()
}

async fn insert_conversations(
    connection: &mut PgConnection,
    missing: &[&SaveRow<'_>],
    rows: &[&SaveRow<'_>],
    tombstones: &Tombstones,
    fresh: &(dyn Fn() -> i64 + Sync),
) -> Result<()> {
    let mut earliest: HashMap<&ConversationKey, Timestamp> = HashMap::new();
    for row in rows {
        let at = earliest.entry(row.key).or_insert(row.message.created_at);
        *at = (*at).min(row.message.created_at);
    }
    let at = |row: &SaveRow<'_>| *earliest.get(row.key).unwrap_or(&row.message.created_at);
    sqlx::query(
        "INSERT INTO conversations (tenant_id, id, session_id, agent_id, user_id, model_name,
                                    tenant_tier, created_at, last_message_at, hot_generation, erased_at)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                              $7::text[], $8::timestamptz[], $8::timestamptz[], $9::bigint[],
                              $10::timestamptz[])
         ON CONFLICT DO NOTHING",
    )
    .bind(missing.iter().map(|row| row.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(missing.iter().map(|row| row.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(missing.iter().map(|row| row.session.as_str()).collect::<Vec<_>>())
    .bind(optional(missing, |row| row.message.agent_id.as_ref().map(AsRef::as_ref)))
    .bind(optional(missing, |row| row.message.user_id.as_ref().map(AsRef::as_ref)))
    .bind(optional(missing, |row| row.message.model_name.as_deref()))
    .bind(optional(missing, |row| row.tenant_tier))
    .bind(missing.iter().map(|row| DateTime::<Utc>::from(at(row))).collect::<Vec<_>>())
    .bind(missing.iter().map(|_| fresh()).collect::<Vec<_>>())
    .bind(missing.iter().map(|row| tombstones.of(row).map(DateTime::<Utc>::from)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts what is not there yet and says which rows that were.
async fn insert_messages<'a>(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'a>],
) -> Result<HashSet<Identity<'a>>> {
    let column =
        |of: fn(&SaveRow<'a>) -> &'a str| rows.iter().map(|row| of(row)).collect::<Vec<_>>();
    let text = |of: fn(&'a Message) -> Option<&'a str>| {
        rows.iter().map(|row| of(row.message)).collect::<Vec<_>>()
    };
    let time = |of: fn(&Message) -> Timestamp| {
        rows.iter().map(|row| DateTime::<Utc>::from(of(row.message))).collect::<Vec<_>>()
    };
    let inserted = sqlx::query(
        "INSERT INTO messages (tenant_id, conversation_id, id, role, content, content_parts,
                               tool_calls, tool_call_id, tokens_estimate, user_id, agent_id,
                               model_name, processing_time_ms, created_at, received_at, body_hash,
                               metadata, format)
         SELECT t, c, id, role, content, parts::json, calls::json, call, estimate, u, agent, model,
                took, created, received, hash, metadata::json, $18
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[], $12::text[],
                     $13::float8[], $14::timestamptz[], $15::timestamptz[], $16::bytea[], $17::text[])
              AS r (t, c, id, role, content, parts, calls, call, estimate, u, agent, model, took,
                    created, received, hash, metadata)
         ON CONFLICT DO NOTHING
         RETURNING tenant_id, conversation_id, id",
    )
    .bind(column(|row| row.key.tenant.as_str()))
    .bind(column(|row| row.key.conversation.as_str()))
    .bind(column(|row| row.message.id.as_str()))
    .bind(column(|row| row.message.role.as_str()))
    .bind(column(|row| row.message.content.text()))
    .bind(text(|m| m.content.parts().map(domain::message::Json::as_str)))
    .bind(text(|m| m.tool_calls.as_ref().map(domain::message::Json::as_str)))
    .bind(text(|m| m.tool_call_id.as_deref()))
    .bind(rows.iter().map(|row| row.message.tokens_estimate).collect::<Vec<_>>())
    .bind(text(|m| m.user_id.as_ref().map(AsRef::as_ref)))
    .bind(text(|m| m.agent_id.as_ref().map(AsRef::as_ref)))
    .bind(text(|m| m.model_name.as_deref()))
    .bind(rows.iter().map(|row| row.message.processing_time_ms).collect::<Vec<_>>())
    .bind(time(|m| m.created_at))
    .bind(time(|m| m.received_at))
    .bind(rows.iter().map(|row| row.body_hash.0.to_vec()).collect::<Vec<_>>())
    .bind(text(|m| m.metadata.as_ref().map(domain::message::Json::as_str)))
    .bind(FORMAT_PLAIN)
    .fetch_all(connection)
    .await?;
    let mut new = HashSet::with_capacity(inserted.len());
    // Inserted rows come back in the order in which they were sent, so one walk over both pairs them.
    let mut sent = rows.iter();
    for row in &inserted {
        let found =
            (row.try_get("tenant_id")?, row.try_get("conversation_id")?, row.try_get("id")?);
        match sent.by_ref().find(|row| identity(row) == found) {
            Some(row) => new.insert(identity(row)),
            None => return Err(corrupt("messages", "an inserted row was not sent".into())),
        };
    }
    Ok(new)
}

type Stored = (BodyHash, Message);

async fn read_stored<'a>(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'a>],
) -> Result<HashMap<Identity<'a>, Stored>> {
    let found = sqlx::query(AssertSqlSafe(format!(
        "SELECT k.n, m.body_hash, {MESSAGE_COLUMNS}
         FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
              AS k (tenant_id, conversation_id, id, n)
         JOIN messages m USING (tenant_id, conversation_id, id)"
    )))
    .bind(rows.iter().map(|row| row.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.message.id.as_str()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    found
        .iter()
        .map(|row| {
            let n: i64 = row.try_get("n")?;
            let sent = usize::try_from(n - 1).ok().and_then(|n| rows.get(n)).ok_or_else(|| {
                corrupt("messages", "a row came back that was not asked for".into())
            })?;
            let hash = <[u8; 16]>::try_from(row.try_get::<&[u8], _>("body_hash")?)
                .map_err(|_| corrupt("messages", "body_hash is not 16 bytes long".into()))?;
            let MessageRow(message) = sqlx::FromRow::from_row(row)?;
            Ok((identity(sent), (BodyHash(hash), message)))
        })
        .collect()
}

/// Brings conversations that gained a message up to date, those alone that need it; returns how
/// many came back from closing or the archive.
async fn update_conversations(
    connection: &mut PgConnection,
    rows: &[&SaveRow<'_>],
    new: &HashSet<Identity<'_>>,
    locked: &[Locked],
    hot: HotWrites,
    fresh: &(dyn Fn() -> i64 + Sync),
) -> Result<usize> {
    let mut newest: HashMap<&ConversationKey, &Message> = HashMap::new();
    for row in rows.iter().filter(|row| new.contains(&identity(row))) {
        let message = newest.entry(row.key).or_insert(row.message);
        if message.position() < row.message.position() {
            *message = row.message;
        }
    }
    let is_stale = |l: &&Locked| match newest.get(&l.key) {
        _ if hot == HotWrites::KnownDown => true,
        Some(message) => !l.settled || l.lacks.are_told_by(message),
        None => false,
    };
    let stale: Vec<&Locked> = locked.iter().filter(is_stale).collect();
    if stale.is_empty() {
        return Ok(0);
    }
    let of = |l: &Locked| newest.get(&l.key).copied();
    let generation = |_| (hot == HotWrites::KnownDown).then(fresh);
    let reopened = sqlx::query_scalar::<_, bool>(
        "WITH stale AS (
             SELECT c.tenant_id, c.id, c.status AS was, k.newest, k.agent_id, k.user_id, k.model_name, k.generation
             FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::bigint[])
                  AS k (tenant_id, id, newest, agent_id, user_id, model_name, generation)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.id
             ORDER BY c.tenant_id, c.id
             FOR NO KEY UPDATE OF c)
         UPDATE conversations c SET
             hot_generation = coalesce(stale.generation, c.hot_generation),
             status = CASE WHEN stale.newest IS NULL THEN c.status ELSE 'active' END,
             close_requested_at = CASE
                 WHEN stale.newest IS NULL THEN c.close_requested_at
                 WHEN c.status <> 'active' OR c.close_requested_at IS NOT NULL THEN clock_timestamp() END,
             close_token = CASE WHEN stale.newest IS NULL THEN c.close_token END,
             close_lease_until = CASE WHEN stale.newest IS NULL THEN c.close_lease_until END,
             reopened = c.reopened OR (stale.newest IS NOT NULL AND stale.was <> 'active'),
             touched_at = CASE WHEN stale.newest IS NULL THEN c.touched_at ELSE clock_timestamp() END,
             last_message_at = greatest(c.last_message_at, stale.newest),
             agent_id = coalesce(c.agent_id, stale.agent_id),
             user_id = coalesce(c.user_id, stale.user_id),
             model_name = coalesce(c.model_name, stale.model_name)
         FROM stale WHERE c.tenant_id = stale.tenant_id AND c.id = stale.id
         RETURNING stale.newest IS NOT NULL AND stale.was <> 'active'",
    )
    .bind(stale.iter().map(|l| l.key.tenant.as_str()).collect::<Vec<_>>())
    .bind(stale.iter().map(|l| l.key.conversation.as_str()).collect::<Vec<_>>())
    .bind(stale.iter().map(|l| of(l).map(|m| DateTime::<Utc>::from(m.created_at))).collect::<Vec<_>>())
    .bind(stale.iter().map(|l| of(l).and_then(|m| m.agent_id.as_ref().map(AsRef::as_ref))).collect::<Vec<Option<&str>>>())
    .bind(stale.iter().map(|l| of(l).and_then(|m| m.user_id.as_ref().map(AsRef::as_ref))).collect::<Vec<Option<&str>>>())
    .bind(stale.iter().map(|l| of(l).and_then(|m| m.model_name.as_deref())).collect::<Vec<_>>())
    .bind(stale.iter().map(generation).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(reopened.into_iter().filter(|came_back| *came_back).count())
}

fn optional<'a>(
    rows: &[&SaveRow<'a>],
    of: impl Fn(&SaveRow<'a>) -> Option<&'a str>,
) -> Vec<Option<&'a str>> {
    rows.iter().map(|row| of(row)).collect()
}
