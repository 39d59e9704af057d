//! The audit log: who did what to which dead letters or conversations, and when. Never a word of a
//! conversation.
//!
//! What changes a row writes its line in the same statement, so neither is there without the other.
//! Lines of one run over many dead letters share its id (`run` in their detail); the run has a line of its
//! own, whose subject is that id.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::FromRow;
use uuid::Uuid;

use crate::{Database, Result};

/// Who does something, and in the course of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The operator, as the audit log names them.
    pub name: String,
    /// The run: one command over any number of dead letters.
    pub run: Uuid,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, FromRow, Serialize)]
pub struct AuditEntry {
    /// Its number.
    pub id: i64,
    /// When it was done.
    pub at: DateTime<Utc>,
    /// By whom.
    pub actor: String,
    /// What, such as `dead_letter.discard`.
    pub action: String,
    /// Whose data it was.
    pub tenant_id: Option<String>,
    /// To what: a dead letter's id, or that of a run; of repairs a conversation, or a day and its agent.
    pub subject: Option<String>,
    /// Its particulars.
    pub detail: Option<Value>,
}

impl Database {
    /// Notes what a run as a whole is about, or what came of it.
    pub async fn record_run(&self, actor: &Actor, action: &str, detail: &Value) -> Result<()> {
        self.within(async |connection| {
            sqlx::query(
                "INSERT INTO audit_log (actor, action, subject, detail) VALUES ($1, $2, $3, $4)",
            )
            .bind(&actor.name)
            .bind(action)
            .bind(actor.run.to_string())
            .bind(sqlx::types::Json(detail))
            .execute(connection)
            .await?;
            Ok(())
        })
        .await
    }

    /// What was done to a subject, the first line first.
    pub async fn audit_of(&self, subject: &str) -> Result<Vec<AuditEntry>> {
        self.within(async |connection| {
            Ok(sqlx::query_as("SELECT * FROM audit_log WHERE subject = $1 ORDER BY id")
                .bind(subject)
                .fetch_all(connection)
                .await?)
        })
        .await
    }
}
