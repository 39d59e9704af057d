//! The audit log: who read or changed what, and when. It never holds content of a conversation.
//!
//! A statement that changes a row also inserts the audit entry, so neither exists without the other.
//! The entries of one run over many dead letters share the run's id (`run` in their detail). The run
//! has an entry of its own, whose subject is that id.
//!
//! PostgreSQL appends each entry to the chain of hashes of its process (`migrations/0003_audit.sql`). `chain` has the hash,
//! `checkpoints` records the ends of the chains, `verify` checks all of it.

mod chain;
mod checkpoints;
mod verify;

use chrono::{DateTime, Utc};
use domain::ids::TenantId;
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

pub use self::checkpoints::{CHECKPOINT_EVERY, Checkpoint};
pub use self::verify::{AuditFinding, AuditReport};
use crate::rows::from_row;
use crate::{Database, Result};

/// The action of an entry about a conversation that was read.
pub const CONVERSATION_READ: &str = "conversation.read";

/// The action of an entry about a dead letter that was read.
pub const DEAD_LETTER_READ: &str = "dead_letter.read";

/// Who changes something, and in which run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The operator, as the audit log names them.
    pub name: String,
    /// The run: one command over any number of dead letters.
    pub run: Uuid,
    /// The tenant, if the run may change the data of one tenant alone.
    pub tenant: Option<TenantId>,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditEntry {
    /// Its number; later entries have higher ones.
    pub id: i64,
    /// When it was done.
    pub at: DateTime<Utc>,
    /// Who did it.
    pub actor: String,
    /// What was done, such as `dead_letter.discard`.
    pub action: String,
    /// The tenant whose data was read or changed.
    pub tenant_id: Option<String>,
    /// What it was done to: the id of a dead letter, of a run, of an API key or of a conversation; for a repair the
    /// conversation, or the day and its agent.
    pub subject: Option<String>,
    /// Details, as JSON.
    pub detail: Option<Value>,
}

from_row! { AuditEntry: id, at, actor, action, tenant_id, subject, detail }

/// An entry that the conversation-api writes about what it did for a key.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAuditEntry {
    /// Who did it.
    pub actor: String,
    /// What was done, such as `conversation.read`.
    pub action: &'static str,
    /// The tenant whose data was read or changed.
    pub tenant: Option<TenantId>,
    /// What it was done to.
    pub subject: Option<String>,
    /// Details, without any content of a conversation.
    pub detail: Value,
}

/// Which entries to list. An absent field does not restrict the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of this actor.
    pub actor: Option<String>,
    /// This action, or those that begin with it and a dot.
    pub action: Option<String>,
    /// About this tenant.
    pub tenant: Option<String>,
    /// About this subject.
    pub subject: Option<String>,
    /// From this time on.
    pub since: Option<DateTime<Utc>>,
    /// Before this time.
    pub until: Option<DateTime<Utc>>,
}

impl Database {
    /// Records the start or the result of a run. `detail` must hold no content of a conversation.
    pub async fn record_run(&self, actor: &Actor, action: &str, detail: &Value) -> Result<()> {
        let query = sqlx::query(
            "INSERT INTO audit_log (actor, action, tenant_id, subject, detail) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&actor.name)
        .bind(action)
        .bind(actor.tenant.as_ref().map(TenantId::as_str))
        .bind(actor.run.to_string())
        .bind(Json(detail));
        self.execute(query).await?;
        Ok(())
    }

    /// The changes of these subjects: the last `limit` entries, oldest first. Reads are left out: there may be many.
    pub async fn audit_about(&self, subjects: &[String], limit: u32) -> Result<Vec<AuditEntry>> {
        let query = sqlx::query_as(
            "SELECT * FROM (SELECT * FROM audit_log
                            WHERE md5(subject) = ANY (ARRAY (SELECT md5(unnest($1)))) AND subject = ANY ($1)
                              AND action <> ALL ($3)
                            ORDER BY id DESC LIMIT $2) AS newest
             ORDER BY id",
        )
        .bind(subjects)
        .bind(i64::from(limit))
        .bind([CONVERSATION_READ, DEAD_LETTER_READ]);
        self.values(query).await
    }

    /// The entries that match: the last `limit`, oldest first.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn audit_entries(&self, filter: &AuditFilter, limit: u32) -> Result<Vec<AuditEntry>> {
        let mut query = QueryBuilder::new(
            "SELECT * FROM (SELECT id, at, actor, action, tenant_id, subject, detail FROM audit_log WHERE id IS NOT NULL",
        );
        filter.push(&mut query);
        query.push(" ORDER BY at DESC, id DESC LIMIT ").push_bind(i64::from(limit));
        query.push(") AS newest ORDER BY at, id");
        self.values(query.build_query_as()).await
    }
}

impl AuditFilter {
    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        if let Some(subject) = &self.subject {
            // By the index, which has a hash of it.
            query.push(" AND md5(subject) = md5(").push_bind(subject.clone());
            query.push(") AND subject = ").push_bind(subject.clone());
        }
        for (condition, value) in
            [(" AND actor = ", &self.actor), (" AND tenant_id = ", &self.tenant)]
        {
            if let Some(value) = value {
                query.push(condition).push_bind(value.clone());
            }
        }
        if let Some(action) = &self.action {
            query.push(" AND (action = ").push_bind(action.clone());
            query.push(" OR starts_with(action, ").push_bind(format!("{action}.")).push("))");
        }
        for (condition, moment) in [(" AND at >= ", self.since), (" AND at < ", self.until)] {
            if let Some(moment) = moment {
                query.push(condition).push_bind(moment);
            }
        }
    }
}
