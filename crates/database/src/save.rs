//! Saving messages: one batch, one transaction, and nearly always one statement.
//!
//! The guarantees of a save follow from what that statement (`save/statement.sql`) does, in this order:
//!
//! 1. It looks up tombstones, so that erased messages are not stored again.
//! 2. It locks the conversations `FOR KEY SHARE` and inserts missing ones. A close or an erasure takes
//!    `FOR UPDATE`, so it waits for this transaction, or this transaction waits for it.
//! 3. It updates conversations that are closing, archived or asked to close, or whose `touched_at` is
//!    old. It keeps no counters: they would serialise the saves of one conversation.
//! 4. It inserts the messages.
//!
//! If the batch before changed no conversation, a smaller statement is tried first
//! (`save/settled.sql`). It does the same for conversations that need no change, and stores nothing if
//! one needs a change.
//!
//! The statement saves the whole batch or nothing:
//!
//! | case | result | before it is sent again |
//! |---|---|---|
//! | all messages are new | saved | |
//! | another transaction inserted or deleted a conversation meanwhile | nothing saved | |
//! | a tombstone covers a message | nothing saved | tombstones are read, erased messages left out |
//! | the row of this process in `writers` is gone | nothing saved | another row is inserted |
//! | a message is already stored, or was deleted | error | stored messages are read, compared and left out |
//!
//! A batch takes one round trip if all its messages are new, else three or four.
//!
//! The rows are sorted by key, so two batches cannot deadlock.

mod statement;

pub use self::statement::{HotWrites, TOUCH_SECONDS};

use std::collections::BTreeMap;

use domain::ids::ConversationKey;
use domain::message::{BodyHash, Message};
use domain::time::Timestamp;
use sqlx::postgres::PgBindIterExt as _;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::epoch::{OpenSaves, change_generations};
use crate::rows::{MESSAGE_COLUMNS, Place, SaveRow, corrupt, item_of, message};
use crate::save::statement::Sent;
use crate::tombstones::Tombstones;
use crate::writers::WriterRow;
use crate::{Database, Error, Result};

/// How often the statement is sent at most. Each repetition has its own cause: a stored message, a
/// tombstone, a lost row of `writers`, or a conversation that was inserted or deleted meanwhile, which can happen more than once.
const ROUNDS: usize = 6;

/// The outcome of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Saved {
    /// This batch stored it.
    New,
    /// It was stored before. This is the stored message; its timestamps are the valid ones.
    Duplicate(Box<Message>),
    /// A message with the same id and different content is stored.
    Conflict,
    /// It is not stored, because its conversation or user was erased after it was sent.
    Erased,
    /// It is not stored, because it was deleted before.
    Deleted,
    /// It is not stored, because another row is a conflict and all or none were wanted.
    Withheld,
}

/// What to do with the other rows if one is a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// They are saved.
    Each,
    /// They are not saved. Duplicates and erased messages are no conflicts.
    AllOrNone,
}

/// The outcome of a batch.
#[derive(Debug, Default)]
pub struct SavedBatch<'a> {
    /// One outcome for each row, in the order of the rows.
    pub rows: Vec<Saved>,
    /// The rows, by their number, that were stored with another time than the message has.
    pub times: Vec<(usize, Timestamp)>,
    /// How many archived or closing conversations were reopened.
    pub reopened: usize,
    /// Conversations that were inserted or whose row was updated. For a conversation that receives
    /// messages this happens with the first message, when its state changes, and once per
    /// [`TOUCH_SECONDS`], counted over all processes.
    pub touched: Vec<&'a ConversationKey>,
}

impl Database {
    /// Saves a batch: stores all its new messages in one transaction, which is committed when this
    /// returns.
    ///
    /// `rows` must be sorted by (tenant, conversation, message id), without repetitions. `random` returns
    /// random numbers for new generations.
    ///
    /// # Errors
    /// PostgreSQL refuses the batch or is unavailable: nothing is stored.
    pub async fn save<'a>(
        &self,
        rows: &[SaveRow<'a>],
        hot: HotWrites,
        random: &(dyn Fn() -> i64 + Sync),
        wanted: Wanted,
    ) -> Result<SavedBatch<'a>> {
        debug_assert!(
            rows.is_sorted_by(|a, b| (a.key, &a.message.id) < (b.key, &b.message.id)),
            "rows must be sorted and unique"
        );
        self.within(async |connection| {
            let mut saved_by = self.writer(connection).await?;
            let mut saved: Vec<Option<Saved>> = rows.iter().map(|_| None).collect();
            let mut tombstones = Tombstones::default();
            let all_or_none = wanted == Wanted::AllOrNone;
            let mut expect_duplicates = self.expect_duplicates.is_set() || all_or_none;
            for _ in 0..ROUNDS {
                if expect_duplicates {
                    tombstones = Tombstones::read(connection, rows).await?;
                    mark_erased(rows, &tombstones, &mut saved);
                    let stored = compare(connection, rows, &mut saved).await?;
                    if !all_or_none {
                        self.expect_duplicates.record_batch(stored);
                    }
                }
                if all_or_none && saved.contains(&Some(Saved::Conflict)) {
                    let withheld = |it: Option<Saved>| match it {
                        Some(Saved::Conflict) => Saved::Conflict,
                        _ => Saved::Withheld,
                    };
                    let rows = saved.into_iter().map(withheld).collect();
                    return Ok(SavedBatch { rows, ..SavedBatch::default() });
                }
                let (moved, times) = with_times_of_stored(rows, &saved);
                let rows_to_store = if moved.is_empty() { rows } else { &moved };
                let open: Vec<&SaveRow<'a>> = rows_to_store
                    .iter()
                    .zip(&saved)
                    .filter(|it| it.1.is_none())
                    .map(|it| it.0)
                    .collect();
                if open.is_empty() {
                    let nothing = Sent::default();
                    return finish(connection, rows, saved, nothing, hot, random).await;
                }
                let sent = self.send(connection, &open, &tombstones, hot, random, saved_by).await;
                match sent {
                    Ok(Some(sent)) => {
                        let batch = finish(connection, rows, saved, sent, hot, random).await?;
                        return Ok(SavedBatch { times, ..batch });
                    }
                    Ok(None) => {
                        tombstones = Tombstones::read(connection, rows).await?;
                        mark_erased(rows, &tombstones, &mut saved);
                        saved_by = self.existing_writer(connection, saved_by).await?;
                    }
                    Err(error) if is_stored_already(&error) => {
                        self.expect_duplicates.record_batch(1);
                        expect_duplicates = true;
                    }
                    Err(error) => return Err(error),
                }
            }
            let fault =
                format!("conversations changed during each of {ROUNDS} attempts to save a batch");
            Err(Error::Contended(fault))
        })
        .await
    }

    /// Saves rows that are expected to be new; `None` if nothing was stored.
    pub(crate) async fn send<'a>(
        &self,
        connection: &mut PgConnection,
        rows: &[&SaveRow<'a>],
        tombstones: &Tombstones<'_>,
        hot: HotWrites,
        random: &(dyn Fn() -> i64 + Sync),
        saved_by: Option<WriterRow>,
    ) -> Result<Option<Sent<'a>>> {
        let expect_settled = hot == HotWrites::Follow && self.expect_settled.is_set();
        if expect_settled && statement::save_settled(connection, rows, saved_by).await? {
            return Ok(Some(Sent::default()));
        }
        let sent = statement::save(connection, rows, tombstones, hot, random, saved_by).await?;
        let settled = |sent: &Sent<'_>| sent.touched.is_empty() && !sent.tombstones;
        self.expect_settled.record_batch(sent.as_ref().is_some_and(settled));
        Ok(sent)
    }
}

/// Inserts one message that is new, with its conversation.
pub(crate) async fn insert_new(
    connection: &mut PgConnection,
    row: &SaveRow<'_>,
    saved_by: Option<WriterRow>,
) -> Result<()> {
    let (nothing, hot) = (Tombstones::default(), HotWrites::Follow);
    statement::save(connection, &[row], &nothing, hot, &|| 0, saved_by).await.map(drop)
}

/// The outcome of a batch whose last rows have just been stored.
async fn finish<'a>(
    connection: &mut PgConnection,
    rows: &[SaveRow<'a>],
    saved: Vec<Option<Saved>>,
    Sent { reopened, touched, .. }: Sent<'a>,
    hot: HotWrites,
    random: &(dyn Fn() -> i64 + Sync),
) -> Result<SavedBatch<'a>> {
    if hot == HotWrites::KnownDown {
        // The statement has already changed the generation of conversations with new messages. Duplicates
        // need it too: the process that stored them may have crashed before it updated Redis.
        let needs_change =
            |saved: &Option<Saved>| !matches!(saved, None | Some(Saved::Erased | Saved::Deleted));
        let mut changes: Vec<(ConversationKey, i64)> = rows
            .iter()
            .zip(&saved)
            .filter(|(_, saved)| needs_change(saved))
            .map(|(row, _)| (row.key.clone(), random()))
            .collect();
        changes.dedup_by(|a, b| a.0 == b.0);
        if !changes.is_empty() {
            change_generations(connection, &changes, OpenSaves::Independent).await?;
        }
    }
    let rows = saved.into_iter().map(|saved| saved.unwrap_or(Saved::New)).collect();
    Ok(SavedBatch { rows, times: Vec::new(), reopened, touched })
}

/// The rows, where some of an action without a time are stored: those that stand before one of these get the time that puts
/// them there. The others have a later time already. Also the numbers of those that got another time. Nothing if no row
/// changes.
fn with_times_of_stored<'a>(
    rows: &[SaveRow<'a>],
    saved: &[Option<Saved>],
) -> (Vec<SaveRow<'a>>, Vec<(usize, Timestamp)>) {
    if rows.iter().all(|row| row.place.is_none()) {
        return Default::default();
    }
    let mut stored: BTreeMap<Place, Timestamp> = BTreeMap::new();
    for (row, saved) in rows.iter().zip(saved) {
        if let (Some(place), Some(Saved::Duplicate(message))) = (row.place, saved) {
            stored.insert(place, message.created_at);
        }
    }
    let time = |row: &SaveRow<'_>| {
        let place = row.place?;
        let (behind, time) = stored.range(place..).next()?;
        let distance = behind.micros - place.micros;
        (behind.action == place.action).then(|| time.earlier_by(distance))
    };
    let is_open = |n: &usize| saved[*n].is_none();
    let times: Vec<(usize, Timestamp)> = (0..rows.len())
        .filter(is_open)
        .filter_map(|n| Some((n, time(&rows[n])?)).filter(|(_, time)| *time != rows[n].created_at))
        .collect();
    if times.is_empty() {
        return Default::default();
    }
    let mut moved = rows.to_vec();
    for (n, time) in &times {
        moved[*n].created_at = *time;
    }
    (moved, times)
}

/// Marks the rows that a tombstone covers as erased.
fn mark_erased(rows: &[SaveRow<'_>], tombstones: &Tombstones<'_>, saved: &mut [Option<Saved>]) {
    for (row, saved) in rows.iter().zip(saved) {
        if tombstones.forbid(row) {
            *saved = Some(Saved::Erased);
        }
    }
}

/// Compares the rows without an outcome with the stored messages of the same ids. Sets the outcome of those
/// that are stored; returns how many that were.
async fn compare(
    connection: &mut PgConnection,
    rows: &[SaveRow<'_>],
    saved: &mut [Option<Saved>],
) -> Result<usize> {
    let open: Vec<usize> = (0..rows.len()).filter(|n| saved[*n].is_none()).collect();
    let compared = || open.iter().map(|n| &rows[*n]);
    // LATERAL, so that the plan does not depend on table statistics: three look-ups for each row. The message of a
    // conflict is not read: it may be large where what arrived is small.
    let found = sqlx::query(AssertSqlSafe(format!(
        "SELECT k.n, stored.body_hash, stored.is_deleted, m.* FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
             WITH ORDINALITY AS k (tenant_id, conversation_id, id, body_hash, n)
         CROSS JOIN LATERAL (
             SELECT m.conversation, m.body_hash, m.created_at IS NULL AS is_deleted FROM message_rows m
             WHERE m.id = k.id AND m.conversation = (
                 SELECT c.number FROM conversations c
                 WHERE c.tenant_id = k.tenant_id AND c.id = k.conversation_id)
             OFFSET 0) AS stored
         LEFT JOIN LATERAL (
             SELECT {MESSAGE_COLUMNS} FROM message_rows m
             WHERE m.id = k.id AND m.conversation = stored.conversation AND stored.body_hash = k.body_hash
             OFFSET 0) AS m ON true"
    )))
    .bind(compared().map(|row| row.key.tenant.as_str()).bind_iter())
    .bind(compared().map(|row| row.key.conversation.as_str()).bind_iter())
    .bind(compared().map(|row| row.message.id.as_str()).bind_iter())
    .bind(compared().map(|row| &row.body_hash.0[..]).bind_iter())
    .fetch_all(connection)
    .await?;
    for stored in &found {
        let n = *item_of(stored, &open, "messages")?;
        if stored.try_get("is_deleted")? {
            saved[n] = Some(Saved::Deleted);
            continue;
        }
        let hash = <[u8; 16]>::try_from(stored.try_get::<&[u8], _>("body_hash")?)
            .map_err(|_| corrupt("messages", "body_hash is not 16 bytes long".into()))?;
        saved[n] = Some(if BodyHash(hash) == rows[n].body_hash {
            Saved::Duplicate(Box::new(message(stored)?))
        } else {
            Saved::Conflict
        });
    }
    Ok(found.len())
}

pub(crate) fn is_stored_already(error: &Error) -> bool {
    let Error::Database(sqlx::Error::Database(error)) = error else { return false };
    error.constraint() == Some("message_rows_pkey")
}
