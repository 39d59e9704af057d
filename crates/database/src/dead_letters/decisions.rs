//! What operators do with dead letters besides replays: edit, discard, restore.
//!
//! A dead letter that is being replayed is not changed: the row must match what the replay publishes.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::record::{DeadLetterDetail, DeadLetterStatus};
use super::selection::{DeadLetterCursor, DeadLetterPage, NOT_UNDER_WAY, push_status};
use crate::{Actor, Database, Result};

/// A decision about many dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Discards open dead letters.
    Discard {
        /// The reason that the operator gave.
        why: &'a str,
    },
    /// Opens discarded or replayed dead letters again.
    Restore,
}

impl Database {
    /// Stores an edited body of a dead letter, or removes it (`None`). False if the dead letter is not
    /// open, is being replayed, or was edited since `seen` was read.
    ///
    /// `fields` are the names of the changed fields, for the audit log.
    pub async fn edit_dead_letter(
        &self,
        seen: &DeadLetterDetail,
        body: Option<&[u8]>,
        fields: &[String],
        actor: &Actor,
    ) -> Result<bool> {
        let mut query =
            QueryBuilder::new("WITH changed AS (UPDATE dead_letters d SET edited_body = ");
        query.push_bind(body.map(<[u8]>::to_vec));
        let edited = if body.is_some() { "clock_timestamp()" } else { "NULL" };
        query.push(", edited_at = ").push(edited).push(", edited_by = ");
        query.push_bind(body.map(|_| actor.name.clone()));
        // A run whose lease has ended may still record that it published the earlier body. It must not mark
        // this one as replayed.
        query.push(", replay_run = NULL, replay_lease_until = NULL");
        query.push(" WHERE d.id = ").push_bind(seen.dead_letter.id);
        query.push(" AND d.edited_at IS NOT DISTINCT FROM ").push_bind(seen.edit.edited_at);
        push_status(&mut query, &[DeadLetterStatus::Open]);
        query.push(NOT_UNDER_WAY).push(" RETURNING d.id, d.tenant_id, d.edited_body) ");
        query.push("INSERT INTO audit_log (actor, action, tenant_id, subject, detail) SELECT ");
        query.push_bind(actor.name.clone());
        query.push(if body.is_some() { ", 'dead_letter.edit'" } else { ", 'dead_letter.revert'" });
        query.push(", tenant_id, id::text, json_build_object('run', ").push_bind(actor.run);
        query.push(", 'fields', to_json(").push_bind(fields.to_vec());
        query.push("), 'bytes', octet_length(edited_body)) FROM changed");
        Ok(self.execute(query.build()).await? > 0)
    }

    /// Applies a decision to the next dead letters of the cursor with one of these statuses, at most `limit`.
    /// Returns their ids.
    pub async fn decide_dead_letters(
        &self,
        cursor: &DeadLetterCursor,
        status: &[DeadLetterStatus],
        decision: Decision<'_>,
        actor: &Actor,
        limit: u32,
    ) -> Result<DeadLetterPage<Uuid>> {
        let (action, becomes, why) = match decision {
            Decision::Discard { why } => ("dead_letter.discard", "discarded", Some(why)),
            Decision::Restore => ("dead_letter.restore", "open", None),
        };
        let mut query = QueryBuilder::new(
            "WITH chosen AS (SELECT d.id, d.status FROM dead_letters d WHERE true",
        );
        push_status(&mut query, status);
        query.push(NOT_UNDER_WAY);
        cursor.push(&mut query);
        cursor.push_decided_before(&mut query);
        query.push(" ORDER BY d.stored_at, d.id LIMIT ").push_bind(i64::from(limit));
        query.push(" FOR UPDATE), changed AS (UPDATE dead_letters d SET status = '").push(becomes);
        query.push("', status_changed_at = clock_timestamp(), status_reason = ");
        query.push_bind(why.map(str::to_owned));
        query.push(
            " FROM chosen WHERE d.id = chosen.id
              RETURNING d.id, d.stored_at, d.tenant_id, d.reason, chosen.status AS previous_status),
              audited AS (INSERT INTO audit_log (actor, action, tenant_id, subject, detail) SELECT ",
        );
        query.push_bind(actor.name.clone()).push(", ").push_bind(action);
        query.push(", tenant_id, id::text, json_strip_nulls(json_build_object('run', ");
        query
            .push_bind(actor.run)
            .push(", 'reason', reason, 'previous_status', previous_status, 'why', ");
        query.push_bind(why.map(str::to_owned));
        query.push(")) FROM changed) SELECT stored_at, id FROM changed");
        let changed: Vec<(DateTime<Utc>, Uuid)> = self.values(query.build_query_as()).await?;
        let DeadLetterPage { dead_letters, rest } = cursor.page(changed, limit, |place| *place);
        Ok(DeadLetterPage {
            dead_letters: dead_letters.into_iter().map(|(_, id)| id).collect(),
            rest,
        })
    }
}
