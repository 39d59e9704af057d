//! `verbatim dead-letters list`: what could not be handled, and why.

use archive::{DeadLetterFilter, DeadLetterRow, OpenDeadLetters};
use broker::topology::WorkQueue;
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use domain::failure::DeadLetterReason;
use domain::ids::TenantId;
use serde::Serialize;
use service::settings::{DatabaseSettings, ReadReplicaSettings};
use uuid::Uuid;

use crate::exit::{Exit, Failure};
use crate::look::{Cell, Look, Screen, Side, Table, Tone, ago, count, excerpt, plural};
use crate::servers::Database;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters list
  verbatim dead-letters list --reason schema --tenant acme
  verbatim dead-letters list --json | jq -r '.[] | \"\\(.id) \\(.field) \\(.error)\"'

Reads the replica that DATABASE_READ_URL names, if it names one. A letter is here once a statistics-worker has
taken it from its queue; `verbatim queues` shows what still waits there.";

/// Lists dead letters, newest first
///
/// Begins with how many are open by queue and reason.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "verbatim dead-letters list [OPTIONS]")]
pub(crate) struct DeadLettersList {
    /// Only of this work queue
    #[arg(long, value_parser = queue)]
    queue: Option<&'static str>,

    /// Only with this reason: malformed_json, schema, too_large, unknown_action, conflict,
    /// attempts_exhausted, delivery_limit or expired
    #[arg(long, value_parser = reason)]
    reason: Option<DeadLetterReason>,

    /// Only of this tenant
    #[arg(long, value_parser = |text: &str| TenantId::new(text))]
    tenant: Option<TenantId>,

    /// Only those in this state
    #[arg(long, value_enum, default_value = "open")]
    status: Status,

    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    #[command(flatten)]
    database: DatabaseSettings,

    #[command(flatten)]
    replica: ReadReplicaSettings,
}

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Status {
    /// Nobody has decided yet
    Open,
    /// It was sent again
    Replayed,
    /// Somebody decided that it may stay dead
    Discarded,
    /// Any of them
    All,
}

/// A letter without its body, properties and headers.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    id: Uuid,
    queue: &'a str,
    reason: &'a str,
    field: Option<&'a str>,
    error: &'a str,
    tenant_id: Option<&'a str>,
    conversation_id: Option<&'a str>,
    session_id: Option<&'a str>,
    message_id: Option<&'a str>,
    action_type: Option<&'a str>,
    routing_key: &'a str,
    exchange: &'a str,
    body_bytes: usize,
    attempts: i32,
    replay_count: i32,
    first_failed_at: DateTime<Utc>,
    last_failed_at: DateTime<Utc>,
    stored_at: DateTime<Utc>,
    copies: i64,
    status: &'a str,
}

impl DeadLettersList {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let database = Database::open_for_lists(&self.database, &self.replica).await?;
        let status = match self.status {
            Status::Open => Some("open"),
            Status::Replayed => Some("replayed"),
            Status::Discarded => Some("discarded"),
            Status::All => None,
        };
        let filter = DeadLetterFilter {
            queue: self.queue.map(str::to_owned),
            reason: self.reason,
            tenant: self.tenant.as_ref().map(ToString::to_string),
            status: status.map(str::to_owned),
        };
        let (rows, open) = tokio::join!(
            database.archive.dead_letters(&filter, self.limit),
            database.archive.open_dead_letters()
        );
        let rows = rows.map_err(|error| database.failure(&error))?;
        let mut open = open.map_err(|error| database.failure(&error))?;
        open.retain(|group| self.queue.is_none_or(|queue| queue == group.queue));
        open.retain(|group| self.reason.is_none_or(|reason| reason.as_str() == group.reason));
        let listed: Vec<_> = rows.iter().map(listed).collect();
        screen.show(&listed, |look| text(&open, &listed, self.limit, look))?;
        Ok(Exit::Fine)
    }
}

fn queue(text: &str) -> Result<&'static str, String> {
    let names = WorkQueue::ALL.map(WorkQueue::name);
    let home = text.strip_suffix(".dlq").unwrap_or(text);
    names
        .into_iter()
        .find(|name| *name == home)
        .ok_or_else(|| format!("it must be one of {}", names.join(", ")))
}

fn reason(text: &str) -> Result<DeadLetterReason, String> {
    DeadLetterReason::parse(text).ok_or_else(|| {
        let all = DeadLetterReason::ALL.map(DeadLetterReason::as_str).join(", ");
        format!("it must be one of {all}")
    })
}

fn listed(row: &DeadLetterRow) -> Listed<'_> {
    Listed {
        id: row.id,
        queue: &row.queue,
        reason: &row.reason,
        field: row.field.as_deref(),
        error: &row.error,
        tenant_id: row.tenant_id.as_deref(),
        conversation_id: row.conversation_id.as_deref(),
        session_id: row.session_id.as_deref(),
        message_id: row.message_id.as_deref(),
        action_type: row.action_type.as_deref(),
        routing_key: &row.routing_key,
        exchange: &row.exchange,
        body_bytes: row.body.len(),
        attempts: row.attempts,
        replay_count: row.replay_count,
        first_failed_at: row.first_failed_at,
        last_failed_at: row.last_failed_at,
        stored_at: row.stored_at,
        copies: row.copies,
        status: &row.status,
    }
}

fn text(open: &[OpenDeadLetters], rows: &[Listed<'_>], limit: u32, look: &Look) -> String {
    /// What a list shows of an error; `show` has all of it.
    const ERROR: usize = 120;
    let paint = look.paint;
    let mut out = String::new();
    if open.is_empty() {
        out.push_str(&paint.text(Tone::Good, "no open dead letters"));
        out.push('\n');
    } else {
        let mut table =
            Table::new([("open", Side::Right), ("queue", Side::Left), ("reason", Side::Left)]);
        for group in open {
            table.row([
                Cell::new(Tone::Bad, count(group.letters)),
                (&group.queue).into(),
                (&group.reason).into(),
            ]);
        }
        out.push_str(&table.render(paint));
    }
    if rows.is_empty() {
        if !open.is_empty() {
            out.push_str("\nnone of them matches\n");
        }
        return out;
    }
    let mut table = Table::new([
        ("id", Side::Left),
        ("died", Side::Left),
        ("status", Side::Left),
        ("tenant", Side::Left),
        ("reason", Side::Left),
        ("field", Side::Left),
        ("what was wrong", Side::Left),
    ]);
    for row in rows {
        let tone = if row.status == "open" { Tone::Warn } else { Tone::Dim };
        table.row([
            row.id.to_string().into(),
            ago(row.last_failed_at, look.now).into(),
            Cell::new(tone, row.status),
            Cell::optional(row.tenant_id),
            row.reason.into(),
            Cell::optional(row.field),
            excerpt(row.error, ERROR).into(),
        ]);
    }
    out.push('\n');
    out.push_str(&table.render(paint));
    if rows.len() as u64 == u64::from(limit) {
        let newest = plural(limit, "letter");
        out.push_str(&paint.text(Tone::Dim, &format!("the newest {newest}; --limit shows more\n")));
    }
    out.push_str(&paint.text(Tone::Dim, "`verbatim dead-letters show ID` tells all about one\n"));
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use domain::time::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::commands::conversation_list::tests::at;
    use crate::look::Paint;

    pub(crate) fn row() -> DeadLetterRow {
        let body = r#"{"action_type":"conversation.save_message","tenant_id":"acme","session_id":"web-1","role":"bot","content":"hi"}"#;
        DeadLetterRow {
            id: Uuid::from_u128(0x4d1e_6f3a_0d2b_5c8e_9b1a_7f1e_2d3c_4b5a),
            queue: "conversation.save_message".to_owned(),
            reason: "schema".to_owned(),
            field: Some("role".to_owned()),
            error: "`role` must be a role, but is \"bot\"; did you mean `assistant`?".to_owned(),
            tenant_id: Some("acme".to_owned()),
            conversation_id: None,
            session_id: Some("web-1".to_owned()),
            message_id: Some("m-1".to_owned()),
            action_type: Some("conversation.save_message".to_owned()),
            routing_key: "conversation.save_message".to_owned(),
            exchange: "domain.actions".to_owned(),
            body: body.as_bytes().to_vec(),
            properties: json!({"content_type": "application/json", "message_id": "m-1", "reply_to": null}),
            headers: json!({"x-verbatim-reason": "schema"}),
            attempts: 1,
            replay_count: 0,
            first_failed_at: at("2026-11-20T11:59:00Z"),
            last_failed_at: at("2026-11-20T11:59:00Z"),
            stored_at: at("2026-11-20T11:59:01Z"),
            copies: 1,
            status: "open".to_owned(),
        }
    }

    pub(crate) fn look() -> Look {
        let now = Timestamp::parse("2026-11-20T12:00:00Z").unwrap();
        Look { paint: Paint::Plain, now }
    }

    #[test]
    fn the_overview_comes_first_and_then_each_letter() {
        let foreign = DeadLetterRow {
            id: Uuid::from_u128(7),
            reason: "malformed_json".to_owned(),
            error: "x".repeat(200),
            field: None,
            tenant_id: None,
            status: "discarded".to_owned(),
            ..row()
        };
        let group = |reason: &str, letters| OpenDeadLetters {
            queue: "conversation.save_message".to_owned(),
            reason: reason.to_owned(),
            letters,
        };
        let open = [group("malformed_json", 1), group("schema", 1_234)];
        let rows = [row(), foreign];
        let listed: Vec<_> = rows.iter().map(listed).collect();
        insta::assert_snapshot!(text(&open, &listed, 2, &look()));
        assert_eq!(text(&[], &[], 2, &look()), "no open dead letters\n");
    }

    #[test]
    fn a_queue_may_be_named_by_its_dead_letter_queue() {
        assert_eq!(queue("conversation.session.dlq"), Ok("conversation.session"));
        assert!(queue("conversation").is_err_and(|error| error.contains("bot.state")));
    }
}
