//! The keeper's way in: letters are stored once, however often they come.
//!
//! Whoever decided about a letter did not decide about a later death of the same words. So a letter that
//! died after the decision is open again; one whose old death only arrives twice stays as it is.

use std::borrow::Borrow;
use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};

use super::DeadLetter;
use crate::{Archive, Result};

/// Letters to one statement at most: beyond a few hundred it does not get faster.
const PIECE_LETTERS: usize = 250;
/// Bytes of bodies to one statement, about: the client holds each a second time while it is sent.
const PIECE_BYTES: usize = 1 << 20;
/// By how much a death may seem older than a decision and still count as later: it is told by a worker's
/// clock or by RabbitMQ's, in whole seconds, and the decision by PostgreSQL's. A letter that is opened
/// needlessly is seen; one that is not is lost from sight.
const SLACK_SECONDS: f64 = 5.0;

impl Archive {
    /// Stores letters; one that is there already gains a copy, and is open again if it died since
    /// somebody decided about it. All or none.
    pub async fn store_dead_letters<L: Borrow<DeadLetter> + Sync>(
        &self,
        letters: &[L],
    ) -> Result<()> {
        // One statement may touch a row once only, so copies within the batch are counted here: the
        // latest death is told.
        let mut unique: Vec<(&DeadLetter, i64)> = Vec::with_capacity(letters.len());
        let mut sorted: Vec<&DeadLetter> = letters.iter().map(Borrow::borrow).collect();
        sorted.sort_by_key(|letter| (letter.id, Reverse(letter.last_failed_at)));
        for letter in sorted {
            match unique.last_mut() {
                Some((last, copies)) if last.id == letter.id => *copies += 1,
                _ => unique.push((letter, 1)),
            }
        }
        self.within(async |connection| {
            let mut transaction = connection.begin().await?;
            let mut rest = unique.as_slice();
            while !rest.is_empty() {
                let (piece, others) = rest.split_at(piece(rest));
                insert(&mut transaction, piece).await?;
                rest = others;
            }
            transaction.commit().await?;
            Ok(())
        })
        .await
    }
}

/// How many of the letters go into the next statement: one at least.
fn piece(letters: &[(&DeadLetter, i64)]) -> usize {
    let mut bytes = 0;
    let fits = letters.iter().take(PIECE_LETTERS).take_while(|(letter, _)| {
        let fits = bytes < PIECE_BYTES;
        bytes += letter.body.len();
        fits
    });
    fits.count().max(1)
}

async fn insert(connection: &mut PgConnection, letters: &[(&DeadLetter, i64)]) -> Result<()> {
    fn all<'a, T>(letters: &[(&'a DeadLetter, i64)], of: fn(&'a DeadLetter) -> T) -> Vec<T> {
        letters.iter().map(|(letter, _)| of(letter)).collect()
    }
    // As text: `jsonb`, which the client would send, refuses what a sender's headers may hold.
    sqlx::query(
        "INSERT INTO dead_letters (id, queue, reason, field, error, tenant_id, conversation_id,
             session_id, message_id, action_type, routing_key, exchange, body, properties, headers,
             attempts, replay_count, replay_of, first_failed_at, last_failed_at, copies)
         SELECT id, queue, reason, field, error, tenant_id, conversation_id, session_id, message_id,
                action_type, routing_key, exchange, body, properties::json, headers::json, attempts,
                replay_count, replay_of, first_failed_at, last_failed_at, copies
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                     $13::bytea[], $14::text[], $15::text[], $16::integer[], $17::integer[],
                     $18::uuid[], $19::timestamptz[], $20::timestamptz[], $21::bigint[])
              AS l (id, queue, reason, field, error, tenant_id, conversation_id, session_id,
                    message_id, action_type, routing_key, exchange, body, properties, headers,
                    attempts, replay_count, replay_of, first_failed_at, last_failed_at, copies)
         ON CONFLICT (id) DO UPDATE SET
             copies = dead_letters.copies + excluded.copies,
             last_kept_at = clock_timestamp(),
             last_failed_at = greatest(dead_letters.last_failed_at, excluded.last_failed_at),
             (status, status_changed_at, status_reason, replay_lease_until) = (
                 SELECT CASE WHEN later THEN 'open' ELSE dead_letters.status END,
                        CASE WHEN later THEN clock_timestamp() ELSE dead_letters.status_changed_at END,
                        CASE WHEN later THEN NULL ELSE dead_letters.status_reason END,
                        CASE WHEN later THEN NULL ELSE dead_letters.replay_lease_until END
                 FROM (SELECT dead_letters.status <> 'open'
                              AND excluded.last_failed_at + interval '1 second' * $22
                                  > dead_letters.status_changed_at) AS death (later))",
    )
    .bind(all(letters, |it| it.id))
    .bind(all(letters, |it| it.queue.as_str()))
    .bind(all(letters, |it| it.reason.as_str()))
    .bind(all(letters, |it| it.field.as_deref()))
    .bind(all(letters, |it| it.error.as_str()))
    .bind(all(letters, |it| it.tenant_id.as_deref()))
    .bind(all(letters, |it| it.conversation_id.as_deref()))
    .bind(all(letters, |it| it.session_id.as_deref()))
    .bind(all(letters, |it| it.message_id.as_deref()))
    .bind(all(letters, |it| it.action_type.as_deref()))
    .bind(all(letters, |it| it.routing_key.as_str()))
    .bind(all(letters, |it| it.exchange.as_str()))
    .bind(all(letters, |it| it.body.as_slice()))
    .bind(all(letters, |it| it.properties.to_string()))
    .bind(all(letters, |it| it.headers.to_string()))
    .bind(all(letters, |it| it.attempts))
    .bind(all(letters, |it| it.replay_count))
    .bind(all(letters, |it| it.replay_of))
    .bind(all(letters, |it| DateTime::<Utc>::from(it.first_failed_at)))
    .bind(all(letters, |it| DateTime::<Utc>::from(it.last_failed_at)))
    .bind(letters.iter().map(|(_, copies)| *copies).collect::<Vec<_>>())
    .bind(SLACK_SECONDS)
    .execute(connection)
    .await?;
    Ok(())
}
