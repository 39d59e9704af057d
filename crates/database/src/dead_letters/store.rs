//! Storing dead letters for the dead-letter collector: once, however often they arrive.
//!
//! An operator's decision about a dead letter does not cover later failures of the same message. So it is
//! opened again if it failed after the decision. If the same failure only arrives twice, its status does
//! not change.

use std::borrow::Borrow;
use std::cmp::Reverse;

use domain::ids::ConversationKey;
use sqlx::PgConnection;

use super::record::CollectedDeadLetter;
use crate::epoch::{OpenSaves, change_generations};
use crate::{Database, Result};

/// The most dead letters in one statement: beyond a few hundred it does not get faster.
const CHUNK_DEAD_LETTERS: usize = 250;
/// About how many bytes of bodies one statement has at most: the client holds a second copy of each body
/// while it is sent.
const CHUNK_BYTES: usize = 1 << 20;
/// Seconds. A failure counts as later than a decision even if its time is up to this much earlier. The
/// failure has the time of a worker's or RabbitMQ's clock, in whole seconds; the decision has the time of
/// PostgreSQL's clock. An operator sees a dead letter that was opened needlessly, but not one that wrongly
/// stayed closed.
const SLACK_SECONDS: f64 = 5.0;

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
        let mut unique: Vec<(&CollectedDeadLetter, i64)> = Vec::with_capacity(dead_letters.len());
        let mut sorted: Vec<&CollectedDeadLetter> =
            dead_letters.iter().map(Borrow::borrow).collect();
        sorted.sort_by_key(|it| (it.dead_letter.id, Reverse(it.dead_letter.last_failed_at)));
        for collected in sorted {
            match unique.last_mut() {
                Some((last, copies)) if last.dead_letter.id == collected.dead_letter.id => {
                    *copies += 1;
                }
                _ => unique.push((collected, 1)),
            }
        }
        self.in_transaction(async |connection| {
            let mut rest = unique.as_slice();
            while !rest.is_empty() {
                let (chunk, others) = rest.split_at(chunk_len(rest));
                insert(connection, chunk).await?;
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

/// How many of the dead letters the next statement inserts: at least one.
fn chunk_len(dead_letters: &[(&CollectedDeadLetter, i64)]) -> usize {
    let mut bytes = 0;
    let fits = dead_letters.iter().take(CHUNK_DEAD_LETTERS).take_while(|(collected, _)| {
        let fits = bytes < CHUNK_BYTES;
        bytes += collected.message.body.len();
        fits
    });
    fits.count().max(1)
}

async fn insert(
    connection: &mut PgConnection,
    dead_letters: &[(&CollectedDeadLetter, i64)],
) -> Result<()> {
    fn all<'a, T>(
        dead_letters: &[(&'a CollectedDeadLetter, i64)],
        of: fn(&'a CollectedDeadLetter) -> T,
    ) -> Vec<T> {
        dead_letters.iter().map(|(dead_letter, _)| of(dead_letter)).collect()
    }
    // As text: sqlx would send `jsonb`, which rejects values that headers may contain, such as NUL.
    sqlx::query(
        "INSERT INTO dead_letters (id, queue, reason, field, error, tenant_id, conversation_id,
             session_id, message_id, action_type, routing_key, exchange, body, properties, headers,
             left_out, delivery, attempts, replay_count, replay_of, first_failed_at, last_failed_at, copies)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                     $13::bytea[], $14::text[]::json[], $15::text[]::json[], $16::text[]::json[],
                     $17::text[]::json[], $18::integer[], $19::integer[], $20::uuid[],
                     $21::timestamptz[], $22::timestamptz[], $23::bigint[])
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
                              AND excluded.last_failed_at + interval '1 second' * $24
                                  > dead_letters.status_changed_at) AS failure (later))",
    )
    .bind(all(dead_letters, |it| it.dead_letter.id))
    .bind(all(dead_letters, |it| it.dead_letter.queue.as_str()))
    .bind(all(dead_letters, |it| it.dead_letter.reason.as_str()))
    .bind(all(dead_letters, |it| it.dead_letter.field.as_deref()))
    .bind(all(dead_letters, |it| it.dead_letter.error.as_str()))
    .bind(all(dead_letters, |it| it.dead_letter.tenant_id.as_deref()))
    .bind(all(dead_letters, |it| it.dead_letter.conversation_id.as_deref()))
    .bind(all(dead_letters, |it| it.dead_letter.session_id.as_deref()))
    .bind(all(dead_letters, |it| it.dead_letter.message_id.as_deref()))
    .bind(all(dead_letters, |it| it.dead_letter.action_type.as_deref()))
    .bind(all(dead_letters, |it| it.dead_letter.routing_key.as_str()))
    .bind(all(dead_letters, |it| it.dead_letter.exchange.as_str()))
    .bind(all(dead_letters, |it| it.message.body.as_slice()))
    .bind(all(dead_letters, |it| it.message.properties.to_string()))
    .bind(all(dead_letters, |it| it.message.headers.to_string()))
    .bind(all(dead_letters, |it| it.message.left_out.as_ref().map(ToString::to_string)))
    .bind(all(dead_letters, |it| it.message.delivery.to_string()))
    .bind(all(dead_letters, |it| it.dead_letter.attempts))
    .bind(all(dead_letters, |it| it.dead_letter.replay_count))
    .bind(all(dead_letters, |it| it.dead_letter.replay_of))
    .bind(all(dead_letters, |it| it.dead_letter.first_failed_at))
    .bind(all(dead_letters, |it| it.dead_letter.last_failed_at))
    .bind(dead_letters.iter().map(|(_, copies)| *copies).collect::<Vec<_>>())
    .bind(SLACK_SECONDS)
    .execute(connection)
    .await?;
    Ok(())
}
