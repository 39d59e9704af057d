//! What operators decide about letters: an edited copy, discarding, restoring.
//!
//! A letter that a replay has just now is left alone: what it sends must be what the row says that it
//! sent.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::selection::{NOT_UNDER_WAY, Stretch, Walk, push_status};
use super::{DeadLetterRow, DeadLetterStatus};
use crate::{Archive, By, Result};

/// What is decided about many letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Open ones may stay dead.
    Discard {
        /// Why.
        why: &'a str,
    },
    /// Discarded or replayed ones are open again.
    Restore,
}

impl Archive {
    /// Puts an edited copy beside a letter's body, or takes it away. False if the letter is not open, is
    /// being replayed, or was edited by somebody else since `seen`.
    ///
    /// `fields` are the names of what was changed, for the audit log.
    pub async fn edit_dead_letter(
        &self,
        seen: &DeadLetterRow,
        body: Option<&[u8]>,
        fields: &[String],
        by: &By,
    ) -> Result<bool> {
        let mut query =
            QueryBuilder::new("WITH changed AS (UPDATE dead_letters d SET edited_body = ");
        query.push_bind(body.map(<[u8]>::to_vec));
        let edited = if body.is_some() { "clock_timestamp()" } else { "NULL" };
        query.push(", edited_at = ").push(edited).push(", edited_by = ");
        query.push_bind(body.map(|_| by.actor.clone()));
        // A run whose lease has ended may still be about to note what it sent, which is not this.
        query.push(", replay_run = NULL, replay_lease_until = NULL");
        query.push(" WHERE d.id = ").push_bind(seen.id);
        query.push(" AND d.edited_at IS NOT DISTINCT FROM ").push_bind(seen.edited_at);
        push_status(&mut query, &[DeadLetterStatus::Open]);
        query.push(NOT_UNDER_WAY).push(" RETURNING d.id, d.tenant_id, d.edited_body) ");
        query.push("INSERT INTO audit_log (actor, action, tenant_id, subject, detail) SELECT ");
        query.push_bind(by.actor.clone());
        query.push(if body.is_some() { ", 'dead_letter.edit'" } else { ", 'dead_letter.revert'" });
        query.push(", tenant_id, id::text, json_build_object('run', ").push_bind(by.run);
        query.push(", 'fields', to_json(").push_bind(fields.to_vec());
        query.push("), 'bytes', octet_length(edited_body)) FROM changed");
        let done =
            self.within(async |connection| Ok(query.build().execute(connection).await?)).await?;
        Ok(done.rows_affected() > 0)
    }

    /// Decides about the next letters of a walk, at most `limit` of those with such a status.
    pub async fn decide_dead_letters(
        &self,
        walk: &Walk,
        status: &[DeadLetterStatus],
        decision: Decision<'_>,
        by: &By,
        limit: u32,
    ) -> Result<Stretch<Uuid>> {
        let (action, becomes, why) = match decision {
            Decision::Discard { why } => ("dead_letter.discard", "discarded", Some(why)),
            Decision::Restore => ("dead_letter.restore", "open", None),
        };
        let mut query = QueryBuilder::new(
            "WITH chosen AS (SELECT d.id, d.status FROM dead_letters d WHERE true",
        );
        push_status(&mut query, status);
        query.push(NOT_UNDER_WAY);
        walk.push(&mut query);
        walk.push_decided_before(&mut query);
        query.push(" ORDER BY d.stored_at, d.id LIMIT ").push_bind(i64::from(limit));
        query.push(" FOR UPDATE), changed AS (UPDATE dead_letters d SET status = '").push(becomes);
        query.push("', status_changed_at = clock_timestamp(), status_reason = ");
        query.push_bind(why.map(str::to_owned));
        query.push(
            " FROM chosen WHERE d.id = chosen.id
              RETURNING d.id, d.stored_at, d.tenant_id, d.reason, chosen.status AS was),
              noted AS (INSERT INTO audit_log (actor, action, tenant_id, subject, detail) SELECT ",
        );
        query.push_bind(by.actor.clone()).push(", ").push_bind(action);
        query.push(", tenant_id, id::text, json_strip_nulls(json_build_object('run', ");
        query.push_bind(by.run).push(", 'reason', reason, 'was', was, 'why', ");
        query.push_bind(why.map(str::to_owned));
        query.push(")) FROM changed) SELECT stored_at, id FROM changed");
        let changed: Vec<(DateTime<Utc>, Uuid)> = self
            .within(async |connection| Ok(query.build_query_as().fetch_all(connection).await?))
            .await?;
        let Stretch { letters, rest } = walk.stretch(changed, limit, |place| *place);
        Ok(Stretch { letters: letters.into_iter().map(|(_, id)| id).collect(), rest })
    }
}
