//! Replays of dead letters: each is taken under a lease, and marked once RabbitMQ confirms its publish.
//!
//! There is no status in between. A dead letter stays open until its publish is confirmed. The lease excludes other
//! runs and decisions of operators; it is measured by PostgreSQL's clock and ends by itself if its run crashed. A run
//! that was stopped for longer than its lease holds nothing any more.

use std::time::Duration;

use domain::ids::{ConversationKey, MessageId};
use domain::message::BodyHash;
use serde::Serialize;
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::record::{DeadLetterDetail, DeadLetterStatus};
use super::selection::{
    DeadLetterCursor, DeadLetterPage, NOT_UNDER_WAY, SIZED, light, push_status,
};
use crate::rows::from_row;
use crate::{Actor, Database, Result};

/// The outcome of a dead letter that a run has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayOutcome {
    /// The dead letter.
    pub dead_letter: Uuid,
    /// The queue to which it was published.
    pub queue: String,
    /// Why the publish failed; `None` if RabbitMQ confirmed it.
    pub fault: Option<String>,
}

/// A dead letter that was replayed and failed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailedAgain {
    /// The new dead letter.
    pub id: Uuid,
    /// The one that was replayed.
    pub replay_of: Uuid,
    /// Why it was dead-lettered again.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The error message.
    pub error: String,
}

/// The identity and content hash of a message: whether it is stored with the same content.
#[derive(Debug, Clone)]
pub struct ContentFingerprint {
    /// Its conversation.
    pub key: ConversationKey,
    /// Its id.
    pub id: MessageId,
    /// The hash of role, content and tool calls.
    pub hash: BodyHash,
}

from_row! { FailedAgain: id, replay_of, reason, field, error }

impl Database {
    /// Takes the next open dead letters of the cursor for a run, for the duration of `lease`: at most
    /// `limit`, and fewer if they are large. Those that another run has taken are skipped.
    pub async fn take_dead_letters(
        &self,
        cursor: &DeadLetterCursor,
        actor: &Actor,
        lease: Duration,
        limit: u32,
    ) -> Result<DeadLetterPage<DeadLetterDetail>> {
        let mut query = QueryBuilder::new(format!("WITH chosen AS ({SIZED}"));
        push_status(&mut query, &[DeadLetterStatus::Open]);
        query.push(NOT_UNDER_WAY);
        cursor.push(&mut query);
        cursor.push_decided_before(&mut query);
        query.push(" ORDER BY d.stored_at, d.id LIMIT ").push_bind(i64::from(limit));
        query.push(format!(
            " FOR UPDATE SKIP LOCKED), {} UPDATE dead_letters d SET replay_run = ",
            light()
        ));
        query.push_bind(actor.run);
        query.push(", replay_lease_until = clock_timestamp() + interval '1 second' * ");
        query.push_bind(lease.as_secs_f64());
        query.push(" FROM light WHERE d.id = light.id RETURNING d.*");
        let taken = self.values(query.build_query_as()).await?;
        Ok(cursor.page_of_rows(taken, limit))
    }

    /// How many open dead letters of the cursor the run has not taken, because another run holds them. Those whose
    /// status changed after the cursor was created are not counted.
    pub async fn count_held_by_others(
        &self,
        cursor: &DeadLetterCursor,
        actor: &Actor,
    ) -> Result<u64> {
        let mut query = QueryBuilder::new("SELECT count(*) FROM dead_letters d WHERE true");
        push_status(&mut query, &[DeadLetterStatus::Open]);
        cursor.push(&mut query);
        cursor.push_decided_before(&mut query);
        query.push(" AND d.replay_run IS DISTINCT FROM ").push_bind(actor.run);
        let (count,): (i64,) = self.value(query.build_query_as()).await?;
        Ok(count.unsigned_abs())
    }

    /// Which of these dead letters the run still holds: they are open, no other run has taken them, and its lease
    /// has not ended. Their lease is renewed.
    pub async fn hold_dead_letters(
        &self,
        dead_letters: &[Uuid],
        actor: &Actor,
        lease: Duration,
    ) -> Result<Vec<Uuid>> {
        let query = sqlx::query_as(
            "WITH held AS (SELECT id FROM dead_letters
                           WHERE id = ANY($1) AND replay_run = $2 AND status = 'open'
                             AND replay_lease_until > clock_timestamp()
                           ORDER BY id FOR UPDATE)
             UPDATE dead_letters d
             SET replay_lease_until = clock_timestamp() + interval '1 second' * $3
             FROM held WHERE d.id = held.id RETURNING d.id",
        )
        .bind(dead_letters)
        .bind(actor.run)
        .bind(lease.as_secs_f64());
        let held: Vec<(Uuid,)> = self.values(query).await?;
        Ok(held.into_iter().map(|(id,)| id).collect())
    }

    /// Records the outcomes of dead letters that the run has taken: confirmed ones become replayed, the
    /// others stay open with the fault. Returns how many of them the run still had.
    pub async fn note_replayed(&self, outcomes: &[ReplayOutcome], actor: &Actor) -> Result<u64> {
        let query = sqlx::query(
            "WITH outcomes AS (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])
                                   AS t (id, queue, fault)),
                  held AS (SELECT d.id FROM dead_letters d JOIN outcomes o ON o.id = d.id
                           WHERE d.replay_run = $4 AND d.status = 'open'
                           ORDER BY d.id FOR UPDATE OF d),
                  changed AS (
                      UPDATE dead_letters d SET
                          status = CASE WHEN fault IS NULL THEN 'replayed' ELSE status END,
                          status_changed_at =
                              CASE WHEN fault IS NULL THEN clock_timestamp()
                                   ELSE status_changed_at END,
                          status_reason =
                              CASE WHEN fault IS NULL THEN NULL ELSE status_reason END,
                          replay_lease_until = NULL,
                          replay_tried_at =
                              CASE WHEN fault IS NULL THEN NULL ELSE clock_timestamp() END,
                          replay_fault = fault
                      FROM outcomes o JOIN held ON held.id = o.id
                      WHERE d.id = o.id
                      RETURNING d.id, d.tenant_id, d.reason, d.replay_count, o.queue AS sent_to,
                                o.fault, d.edited_body IS NOT NULL AS edited)
             INSERT INTO audit_log (actor, action, tenant_id, subject, detail)
             SELECT $5,
                    CASE WHEN fault IS NULL THEN 'dead_letter.replay'
                         ELSE 'dead_letter.replay_failed' END,
                    tenant_id, id::text,
                    json_strip_nulls(json_build_object(
                        'run', $4::uuid, 'reason', reason, 'to', sent_to,
                        'replay_count', replay_count + 1, 'edited', edited, 'fault', fault))
             FROM changed",
        )
        .bind(outcomes.iter().map(|it| it.dead_letter).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|it| it.queue.as_str()).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|it| it.fault.as_deref()).collect::<Vec<_>>())
        .bind(actor.run)
        .bind(&actor.name);
        self.execute(query).await
    }

    /// Dead letters that the run replayed and that failed again since the cursor was created.
    pub async fn failed_again_in(
        &self,
        run: Uuid,
        cursor: &DeadLetterCursor,
    ) -> Result<Vec<FailedAgain>> {
        let query = sqlx::query_as(
            "SELECT r.id, r.replay_of, r.reason, r.field, r.error
             FROM dead_letters r JOIN dead_letters o ON o.id = r.replay_of
             WHERE r.replay_of IS NOT NULL AND r.last_seen_at > $1 AND o.replay_run = $2
             ORDER BY r.last_seen_at, r.id",
        )
        .bind(cursor.created_at())
        .bind(run);
        self.values(query).await
    }

    /// Which of these messages are stored with the same content, or were deleted: their positions in the list.
    pub async fn stored_fingerprints(
        &self,
        fingerprints: &[ContentFingerprint],
    ) -> Result<Vec<usize>> {
        let query = sqlx::query_as(
            "SELECT k.n
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
                  WITH ORDINALITY AS k (tenant_id, conversation_id, id, hash, n)
             JOIN conversations c ON c.tenant_id = k.tenant_id AND c.id = k.conversation_id
             JOIN message_rows m ON m.conversation = c.number AND m.id = k.id
             WHERE m.body_hash = k.hash OR m.created_at IS NULL",
        )
        .bind(fingerprints.iter().map(|it| it.key.tenant.as_str()).collect::<Vec<_>>())
        .bind(fingerprints.iter().map(|it| it.key.conversation.as_str()).collect::<Vec<_>>())
        .bind(fingerprints.iter().map(|it| it.id.as_str()).collect::<Vec<_>>())
        .bind(fingerprints.iter().map(|it| &it.hash.0[..]).collect::<Vec<_>>());
        let places: Vec<(i64,)> = self.values(query).await?;
        Ok(places.into_iter().filter_map(|(n,)| usize::try_from(n - 1).ok()).collect())
    }
}
