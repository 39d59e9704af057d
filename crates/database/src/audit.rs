//! The audit log: who did what to which dead letters or conversations, and when. It never holds content
//! of a conversation.
//!
//! A statement that changes a row also inserts the audit entry, so neither exists without the other.
//! The entries of one run over many dead letters share the run's id (`run` in their detail). The run
//! has an entry of its own, whose subject is that id.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::rows::from_row;
use crate::{Database, Result};

/// Who changes something, and in which run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The operator, as the audit log names them.
    pub name: String,
    /// The run: one command over any number of dead letters.
    pub run: Uuid,
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
    /// The tenant whose data was changed.
    pub tenant_id: Option<String>,
    /// What it was done to: the id of a dead letter or of a run; for a repair the conversation, or the day
    /// and its agent.
    pub subject: Option<String>,
    /// Details, as JSON.
    pub detail: Option<Value>,
}

from_row! { AuditEntry: id, at, actor, action, tenant_id, subject, detail }

impl Database {
    /// Records the start or the result of a run. `detail` must hold no content of a conversation.
    pub async fn record_run(&self, actor: &Actor, action: &str, detail: &Value) -> Result<()> {
        let query = sqlx::query(
            "INSERT INTO audit_log (actor, action, subject, detail) VALUES ($1, $2, $3, $4)",
        )
        .bind(&actor.name)
        .bind(action)
        .bind(actor.run.to_string())
        .bind(Json(detail));
        self.execute(query).await?;
        Ok(())
    }

    /// The entries about these subjects: the last `limit`, oldest first.
    pub async fn audit_about(&self, subjects: &[String], limit: u32) -> Result<Vec<AuditEntry>> {
        let query = sqlx::query_as(
            "SELECT * FROM (SELECT * FROM audit_log
                            WHERE md5(subject) = ANY (ARRAY (SELECT md5(unnest($1)))) AND subject = ANY ($1)
                            ORDER BY id DESC LIMIT $2) AS newest
             ORDER BY id",
        )
        .bind(subjects)
        .bind(i64::from(limit));
        self.values(query).await
    }
}
