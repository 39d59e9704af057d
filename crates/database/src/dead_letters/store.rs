//! Storing dead letters for the dead-letter collector: once, however often they arrive.
//!
//! An operator's decision about a dead letter does not cover later failures of the same message. So it is
//! opened again if it failed after the decision. If the same failure only arrives twice, its status does
//! not change.

use std::borrow::Borrow;
use std::cmp::Reverse;

use domain::ids::ConversationKey;
use sqlx::PgConnection;
use uuid::Uuid;

use super::columns::{Columns, Omitted};
use super::record::{CollectedDeadLetter, DeadLetter};
use crate::epoch::{OpenSaves, change_generations};
use crate::{Database, Result};

/// The most dead letters in one statement: beyond a few hundred it does not get faster.
const CHUNK_DEAD_LETTERS: usize = 250;
/// About how many bytes of bodies one statement has at most: while it is sent, the client holds each body three times,
/// once as an argument and once in the buffer of the connection.
const CHUNK_BYTES: usize = 1 << 20;
/// A longer body is sent in parts of [`CHUNK_BYTES`], each by its own statement.
const LARGE_BYTES: usize = 4 << 20;
/// Seconds. A failure counts as later than a decision even if its time is up to this much earlier. The
/// failure has the time of a worker's or RabbitMQ's clock, in whole seconds; the decision has the time of
/// PostgreSQL's clock. An operator sees a dead letter that was opened needlessly, but not one that wrongly
/// stayed closed.
const SLACK_SECONDS: f64 = 5.0;

/// A dead letter to insert, and how often it is in the batch.
struct Row<'a> {
    collected: &'a CollectedDeadLetter,
    columns: Columns<'a>,
    copies: i64,
}

impl Database {
    /// Stores dead letters, all or none. One that is already stored counts one more copy, and is opened
    /// again if it failed after an operator's decision about it.
    ///
    /// In the same transaction, sets new generations, which invalidates the hot copies of these conversations: each
    /// may have a message that was stored before it became a dead letter, and that its saver did not append. The
    /// transactions that are saving messages of them are awaited. Returns how many of these conversations exist.
    pub async fn store_dead_letters<L: Borrow<CollectedDeadLetter> + Sync>(
        &self,
        dead_letters: &[L],
        generations: &[(ConversationKey, i64)],
    ) -> Result<u64> {
        // One statement may change a row only once, so copies within the batch are counted here. The copy
        // with the latest failure is stored.
        let mut rows: Vec<Row<'_>> = Vec::with_capacity(dead_letters.len());
        let mut sorted: Vec<&CollectedDeadLetter> =
            dead_letters.iter().map(Borrow::borrow).collect();
        sorted.sort_by_key(|it| (it.dead_letter.id, Reverse(it.dead_letter.last_failed_at)));
        for collected in sorted {
            match rows.last_mut() {
                Some(last) if last.collected.dead_letter.id == collected.dead_letter.id => {
                    last.copies += 1;
                }
                _ => rows.push(Row { collected, columns: Columns::whole(collected), copies: 1 }),
            }
        }
        self.store(&rows, generations).await
    }

    /// Stores a dead letter of which PostgreSQL refused more, as [`Database::store_dead_letters`] does. `error` is
    /// stored with it. A dead letter that is stored already is not changed by that.
    pub async fn store_dead_letter_without(
        &self,
        collected: &CollectedDeadLetter,
        omitted: Omitted,
        error: &str,
        generations: &[(ConversationKey, i64)],
    ) -> Result<u64> {
        let columns = Columns::without(collected, omitted, error);
        self.store(&[Row { collected, columns, copies: 1 }], generations).await
    }

    async fn store(&self, rows: &[Row<'_>], generations: &[(ConversationKey, i64)]) -> Result<u64> {
        self.in_transaction(async |connection| {
            let mut rest = rows;
            while !rest.is_empty() {
                let (chunk, others) = rest.split_at(chunk_len(rest));
                match chunk {
                    [row] if row.is_large() => insert_in_parts(connection, row).await?,
                    _ => insert(connection, chunk, None).await?,
                }
                rest = others;
            }
            match generations {
                [] => Ok(0),
                changes => change_generations(connection, changes, OpenSaves::Independent).await,
            }
        })
        .await
    }
}

/// Inserts one dead letter within a transaction.
pub(crate) async fn insert_one(
    connection: &mut PgConnection,
    collected: &CollectedDeadLetter,
) -> Result<()> {
    let row = Row { collected, columns: Columns::whole(collected), copies: 1 };
    insert(connection, &[row], None).await
}

impl Row<'_> {
    fn body(&self) -> &[u8] {
        &self.collected.message.body
    }

    fn is_large(&self) -> bool {
        self.body().len() > LARGE_BYTES
    }
}

/// How many of the rows the next statement inserts: at least one, and a large one alone.
fn chunk_len(rows: &[Row<'_>]) -> usize {
    let mut bytes = 0;
    let fits = rows.iter().take(CHUNK_DEAD_LETTERS).take_while(|row| {
        let fits = bytes < CHUNK_BYTES && !row.is_large();
        bytes += row.body().len();
        fits
    });
    fits.count().max(1)
}

/// Inserts a row whose body is sent in parts, so that the client never holds a second copy of it.
async fn insert_in_parts(connection: &mut PgConnection, row: &Row<'_>) -> Result<()> {
    let upload = Uuid::new_v4();
    for (part, bytes) in (0_i32..).zip(row.body().chunks(CHUNK_BYTES)) {
        sqlx::query("INSERT INTO dead_letter_parts (upload, part, bytes) VALUES ($1, $2, $3)")
            .bind(upload)
            .bind(part)
            .bind(bytes)
            .execute(&mut *connection)
            .await?;
    }
    insert(&mut *connection, std::slice::from_ref(row), Some(upload)).await?;
    sqlx::query("DELETE FROM dead_letter_parts WHERE upload = $1")
        .bind(upload)
        .execute(connection)
        .await?;
    Ok(())
}

/// The statement that inserts dead letters, with the expression for their bodies.
macro_rules! insert_with_body {
    ($body:literal) => {
        concat!(
            "INSERT INTO dead_letters (id, queue, reason, field, error, tenant_id, conversation_id,
                 session_id, message_id, action_type, routing_key, exchange, body, properties, headers,
                 left_out, delivery, not_stored, attempts, replay_count, replay_of, first_failed_at,
                 last_failed_at, copies)
             SELECT id, queue, reason, field, error, tenant_id, conversation_id,
                 session_id, message_id, action_type, routing_key, exchange, ",
            $body,
            ", properties, headers,
                 left_out, delivery, not_stored, attempts, replay_count, replay_of,
                 least(first_failed_at, latest), least(last_failed_at, latest), copies
             FROM (SELECT clock_timestamp() + interval '1 minute') AS clock (latest), unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                     $13::bytea[], $14::text[]::json[], $15::text[]::json[], $16::text[]::json[],
                     $17::text[]::json[], $18::text[]::json[], $19::integer[], $20::integer[], $21::uuid[],
                     $22::timestamptz[], $23::timestamptz[], $24::bigint[])
                 AS new (id, queue, reason, field, error, tenant_id, conversation_id, session_id,
                     message_id, action_type, routing_key, exchange, body, properties, headers, left_out,
                     delivery, not_stored, attempts, replay_count, replay_of, first_failed_at,
                     last_failed_at, copies)
             ON CONFLICT (id) DO UPDATE SET
                 copies = dead_letters.copies + excluded.copies,
                 last_seen_at = clock_timestamp(),
                 last_failed_at = greatest(dead_letters.last_failed_at, excluded.last_failed_at),
                 (status, status_changed_at, status_reason, replay_lease_until) = (
                     SELECT CASE WHEN later THEN 'open' ELSE dead_letters.status END,
                            CASE WHEN later THEN clock_timestamp() ELSE dead_letters.status_changed_at END,
                            CASE WHEN later THEN NULL ELSE dead_letters.status_reason END,
                            CASE WHEN later THEN NULL ELSE dead_letters.replay_lease_until END
                     FROM (SELECT dead_letters.status <> 'open'
                                  AND excluded.last_failed_at + interval '1 second' * $25
                                      > dead_letters.status_changed_at) AS failure (later))"
        )
    };
}

/// Inserts rows with their bodies or, if there is an `upload`, one row with the body that was sent in its parts.
async fn insert(
    connection: &mut PgConnection,
    rows: &[Row<'_>],
    upload: Option<Uuid>,
) -> Result<()> {
    fn of_dead_letter<'a, T>(rows: &[Row<'a>], of: fn(&'a DeadLetter) -> T) -> Vec<T> {
        rows.iter().map(|row| of(&row.collected.dead_letter)).collect()
    }
    fn of_columns<'r, T>(rows: &'r [Row<'_>], of: fn(&'r Columns<'r>) -> T) -> Vec<T> {
        rows.iter().map(|row| of(&row.columns)).collect()
    }
    let statement = match upload {
        None => insert_with_body!("body"),
        Some(_) => insert_with_body!(
            "(SELECT string_agg(bytes, ''::bytea ORDER BY part) FROM dead_letter_parts WHERE upload = $26)"
        ),
    };
    // As text: sqlx would send `jsonb`, which rejects values that headers may contain, such as NUL.
    let query = sqlx::query(statement)
        .bind(of_dead_letter(rows, |it| it.id))
        .bind(of_dead_letter(rows, |it| it.queue.as_str()))
        .bind(of_dead_letter(rows, |it| it.reason.as_str()))
        .bind(of_columns(rows, |it| it.field))
        .bind(of_columns(rows, |it| it.error))
        .bind(of_columns(rows, |it| it.tenant_id))
        .bind(of_columns(rows, |it| it.conversation_id))
        .bind(of_columns(rows, |it| it.session_id))
        .bind(of_columns(rows, |it| it.message_id))
        .bind(of_columns(rows, |it| it.action_type))
        .bind(of_columns(rows, |it| it.routing_key))
        .bind(of_columns(rows, |it| it.exchange))
        .bind(
            rows.iter()
                .map(|row| if upload.is_none() { row.body() } else { &[] })
                .collect::<Vec<&[u8]>>(),
        )
        .bind(of_columns(rows, |it| it.properties.as_str()))
        .bind(of_columns(rows, |it| it.headers.as_str()))
        .bind(of_columns(rows, |it| it.left_out.as_deref()))
        .bind(of_columns(rows, |it| it.delivery.as_str()))
        .bind(of_columns(rows, |it| it.not_stored.as_deref()))
        .bind(of_dead_letter(rows, |it| it.attempts))
        .bind(of_dead_letter(rows, |it| it.replay_count))
        .bind(of_dead_letter(rows, |it| it.replay_of))
        .bind(of_dead_letter(rows, |it| it.first_failed_at))
        .bind(of_dead_letter(rows, |it| it.last_failed_at))
        .bind(rows.iter().map(|it| it.copies).collect::<Vec<_>>())
        .bind(SLACK_SECONDS);
    let query = match upload {
        None => query,
        Some(upload) => query.bind(upload),
    };
    query.execute(connection).await?;
    Ok(())
}
