//! One batch of messages, one transaction, and nearly always one statement.
//!
//! What that statement (`save/statement.sql`) does, in this order, is the guarantee:
//!
//! 1. tombstones are looked up, so that nothing that was erased comes back;
//! 2. the conversations are locked `FOR KEY SHARE`, missing ones inserted: whoever closes or erases
//!    takes `FOR UPDATE` and therefore waits for this transaction, or this one for it;
//! 3. conversations that were closing, archived, asked to close or long untouched are updated. No
//!    counters: they would serialise the savers of one conversation;
//! 4. the messages are inserted.
//!
//! Where the batch before changed no conversation, a smaller statement is tried first
//! (`save/settled.sql`): it does the same for conversations that stay as they are, and nothing for others.
//!
//! It takes all or nothing. It takes nothing when it meets what it cannot see: a conversation that
//! another transaction inserted since the statement began yields neither row nor lock; or what only
//! the sender can decide: which messages a tombstone forbids. Then it is sent again. A message that
//! is stored already fails it; then what is stored is read and compared first, and left out. So a
//! batch takes one round trip when all is new, and three or four when not.
//!
//! Rows come sorted by key, so two batches never wait for each other in a circle.

mod statement;

use domain::ids::ConversationKey;
use domain::message::{BodyHash, Message};
use sqlx::postgres::PgBindIterExt as _;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::epoch::change_generations;
use crate::rows::{MESSAGE_COLUMNS, MessageRow, SaveRow, corrupt};
use crate::save::statement::Sent;
use crate::tombstones::Tombstones;
use crate::{Database, Error, Result};

/// How coarse `touched_at` is, in seconds: a busy conversation's row is written at most this often.
/// The idle sweep adds it to its limit.
pub const TOUCH_SECONDS: u32 = 60;

/// How often the statement is sent. Each repetition has its own cause: a stored message, a tombstone,
/// or a conversation that was made or dropped meanwhile, which can happen more than once.
const ROUNDS: usize = 6;

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
pub struct SavedBatch<'a> {
    /// One for each row, in the order of the rows.
    pub rows: Vec<Saved>,
    /// How many archived or closing conversations came back to life.
    pub reopened: usize,
    /// Conversations that were made, or whose row was changed: of those that gain messages every one
    /// at its first, when its state changes, and at least once in [`TOUCH_SECONDS`], whoever saves.
    pub touched: Vec<&'a ConversationKey>,
}

impl Database {
    /// Saves a batch: all that is new in it is stored in one transaction, and durable when this
    /// returns.
    ///
    /// `rows` must be sorted by (tenant, conversation, message id) and hold each of them once.
    /// `random` gives random numbers for new generations.
    pub async fn save<'a>(
        &self,
        rows: &[SaveRow<'a>],
        hot: HotWrites,
        random: &(dyn Fn() -> i64 + Sync),
    ) -> Result<SavedBatch<'a>> {
        debug_assert!(
            rows.is_sorted_by(|a, b| (a.key, &a.message.id) < (b.key, &b.message.id)),
            "rows must be sorted and unique"
        );
        self.within(async |connection| {
            let saved_by = self.writer(connection).await?;
            let mut saved: Vec<Option<Saved>> = rows.iter().map(|_| None).collect();
            let mut tombstones = Tombstones::default();
            let mut expect_duplicates = self.expect_duplicates.is_set();
            for _ in 0..ROUNDS {
                if expect_duplicates {
                    tombstones = Tombstones::read(connection, rows).await?;
                    refuse(rows, &tombstones, &mut saved);
                    let stored = compare(connection, rows, &mut saved).await?;
                    self.expect_duplicates.learn(stored);
                }
                let open: Vec<&SaveRow<'a>> =
                    rows.iter().zip(&saved).filter(|it| it.1.is_none()).map(|it| it.0).collect();
                if open.is_empty() {
                    let nothing = Sent::default();
                    return finish(connection, rows, saved, nothing, hot, random).await;
                }
                let sent = self.send(connection, &open, &tombstones, hot, random, saved_by).await;
                match sent {
                    Ok(Some(sent)) => {
                        return finish(connection, rows, saved, sent, hot, random).await;
                    }
                    Ok(None) => {
                        tombstones = Tombstones::read(connection, rows).await?;
                        refuse(rows, &tombstones, &mut saved);
                    }
                    Err(error) if is_stored_already(&error) => {
                        self.expect_duplicates.learn(1);
                        expect_duplicates = true;
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(corrupt("conversations", "they keep changing under a batch".into()))
        })
        .await
    }

    /// Saves rows of which none is expected to be stored; `None` when nothing was stored.
    async fn send<'a>(
        &self,
        connection: &mut PgConnection,
        rows: &[&SaveRow<'a>],
        tombstones: &Tombstones<'_>,
        hot: HotWrites,
        random: &(dyn Fn() -> i64 + Sync),
        saved_by: Option<i32>,
    ) -> Result<Option<Sent<'a>>> {
        let expect_settled = hot == HotWrites::Follow && self.expect_settled.is_set();
        if expect_settled && statement::save_settled(connection, rows, saved_by).await? {
            return Ok(Some(Sent::default()));
        }
        let sent = statement::save(connection, rows, tombstones, hot, random, saved_by).await?;
        let stayed = |sent: &Sent<'_>| sent.touched.is_empty() && !sent.tombstones;
        self.expect_settled.learn(sent.as_ref().is_some_and(stayed));
        Ok(sent)
    }
}

/// The outcome of a batch whose open rows have just been stored.
async fn finish<'a>(
    connection: &mut PgConnection,
    rows: &[SaveRow<'a>],
    saved: Vec<Option<Saved>>,
    Sent { reopened, touched, .. }: Sent<'a>,
    hot: HotWrites,
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<SavedBatch<'a>> {
    if hot == HotWrites::KnownDown {
        // The statement saw to the conversations that gained a message. A saver that died may have
        // kept the others' messages from Redis too.
        let known = |saved: &Option<Saved>| !matches!(saved, None | Some(Saved::Erased));
        let mut changes: Vec<(ConversationKey, i64)> = rows
            .iter()
            .zip(&saved)
            .filter(|(_, saved)| known(saved))
            .map(|(row, _)| (row.key.clone(), random()))
            .collect();
        changes.dedup_by(|a, b| a.0 == b.0);
        if !changes.is_empty() {
            change_generations(connection, &changes).await?;
        }
    }
    let rows = saved.into_iter().map(|saved| saved.unwrap_or(Saved::New)).collect();
    Ok(SavedBatch { rows, reopened, touched })
}

fn refuse(rows: &[SaveRow<'_>], tombstones: &Tombstones<'_>, saved: &mut [Option<Saved>]) {
    for (row, saved) in rows.iter().zip(saved) {
        if tombstones.forbid(row) {
            *saved = Some(Saved::Erased);
        }
    }
}

/// Settles those open rows whose ids are stored; returns how many that were.
async fn compare(
    connection: &mut PgConnection,
    rows: &[SaveRow<'_>],
    saved: &mut [Option<Saved>],
) -> Result<usize> {
    let open: Vec<usize> = (0..rows.len()).filter(|n| saved[*n].is_none()).collect();
    let asked = || open.iter().map(|n| &rows[*n]);
    // LATERAL, so that there is one plan whatever the statistics say: two look-ups for each row.
    let found = sqlx::query(AssertSqlSafe(format!(
        "SELECT k.n, m.* FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
             AS k (tenant_id, conversation_id, id, n)
         CROSS JOIN LATERAL (
             SELECT m.body_hash, {MESSAGE_COLUMNS} FROM message_rows m
             WHERE m.id = k.id AND m.conversation = (
                 SELECT c.number FROM conversations c
                 WHERE c.tenant_id = k.tenant_id AND c.id = k.conversation_id)
             OFFSET 0) AS m"
    )))
    .bind(asked().map(|row| row.key.tenant.as_str()).bind_iter())
    .bind(asked().map(|row| row.key.conversation.as_str()).bind_iter())
    .bind(asked().map(|row| row.message.id.as_str()).bind_iter())
    .fetch_all(connection)
    .await?;
    for stored in &found {
        let n: i64 = stored.try_get("n")?;
        let n = usize::try_from(n - 1).ok().and_then(|n| open.get(n)).copied();
        let n = n.ok_or_else(|| corrupt("messages", "one that nobody asked for".into()))?;
        let hash = <[u8; 16]>::try_from(stored.try_get::<&[u8], _>("body_hash")?)
            .map_err(|_| corrupt("messages", "body_hash is not 16 bytes long".into()))?;
        let MessageRow(message) = sqlx::FromRow::from_row(stored)?;
        saved[n] = Some(if BodyHash(hash) == rows[n].body_hash {
            Saved::Duplicate(Box::new(message))
        } else {
            Saved::Conflict
        });
    }
    Ok(found.len())
}

fn is_stored_already(error: &Error) -> bool {
    let Error::Database(sqlx::Error::Database(error)) = error else { return false };
    error.constraint() == Some("message_rows_pkey")
}
