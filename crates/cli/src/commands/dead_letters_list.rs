//! `verbatim dead-letters list`: lists or groups dead letters. Read-only.

mod groups;

use groups::Groups;

use clap::Args;
use database::{DeadLetterStatus, DeadLetterSummary, OpenDeadLetters};
use serde::Serialize;
use service::settings::{DatabaseSettings, ReadReplicaSettings};
use stores::DatabaseServer;
use uuid::Uuid;

use super::dead_letters_selection::{Filters, Status};
use crate::exit::{Exit, Failure};
use crate::output::{Cell, ERROR, Output, Text, Tone, ago, count, excerpt, plural};

/// Lists dead letters, newest first
///
/// First prints the number of open dead letters by queue and reason.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim dead-letters list [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim dead-letters list --group
  verbatim dead-letters list --reason schema --tenant acme --since 2h
  verbatim dead-letters list --error 'must be a role' --limit 500
  verbatim dead-letters list --json | jq -r '.dead_letters[] | \"\\(.id) \\(.field) \\(.error)\"'

Reads the replica at DATABASE_READ_URL, if that is set. A dead letter is listed once a
dead-letter-worker has stored it; `verbatim queues` shows how many are still in their queues.")]
pub(crate) struct DeadLettersList {
    /// Only those with this status
    #[arg(long, value_enum, default_value = "open")]
    status: Status,

    /// List groups with the same queue, reason, field and error instead of each dead letter. Errors that
    /// differ only in quoted values, ids and numbers are the same
    #[arg(long, conflicts_with = "before")]
    group: bool,

    /// Number of rows, at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    /// Next page: only those older than the dead letter with this id
    #[arg(long, value_name = "ID")]
    before: Option<Uuid>,

    #[command(flatten)]
    filters: Filters,

    #[command(flatten)]
    database: DatabaseSettings,

    #[command(flatten)]
    replica: ReadReplicaSettings,
}

#[derive(Debug, Serialize)]
struct Page {
    /// Dead letters that match, on this and other pages.
    total: u64,
    /// All open dead letters by queue and reason, without the filters.
    open: Vec<OpenDeadLetters>,
    dead_letters: Vec<DeadLetterSummary>,
    /// The value of `--before` for the next page; `None` on the last page.
    next: Option<Uuid>,
}

impl DeadLettersList {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open_for_lists(&self.database, &self.replica).await?;
        let (database, status) = (&server.database, self.status.stored());
        let filter = self.filters.filter(output.now);
        let failure = |error| server.failure(&error);
        if self.group {
            let (total, groups) = tokio::try_join!(
                database.count_dead_letters(&filter, status),
                database.dead_letter_groups(&filter, status, self.limit)
            )
            .map_err(failure)?;
            let groups = Groups { total, groups };
            output.show(&groups, |out| groups::text(&groups, self.limit, out))?;
            return Ok(Exit::Success);
        }
        // One more row than the limit shows that there is a next page.
        let (total, mut dead_letters) = tokio::try_join!(
            database.count_dead_letters(&filter, status),
            database.dead_letters(&filter, status, self.before, self.limit.saturating_add(1))
        )
        .map_err(failure)?;
        let open = database.open_dead_letters().await.map_err(failure)?;
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = dead_letters.len() > limit;
        dead_letters.truncate(limit);
        let next = dead_letters.last().filter(|_| more).map(|it| it.dead_letter.id);
        let page = Page { total, open, dead_letters, next };
        output.show(&page, |out| text(&page, out))?;
        Ok(Exit::Success)
    }
}

fn text(page: &Page, out: &mut Text) {
    if page.open.is_empty() {
        out.line(Tone::Good, "no open dead letters");
    } else {
        let row = |group: &OpenDeadLetters| {
            let number = Cell::count(group.dead_letters).tone(Tone::Bad);
            [number, (&group.queue).into(), (&group.reason).into()]
        };
        out.table(["open", "queue", "reason"], page.open.iter().map(row));
    }
    if page.dead_letters.is_empty() {
        if !page.open.is_empty() {
            out.push("\nno dead letter matches the filters\n");
        }
        return;
    }
    let now = out.now;
    let row = |summary: &DeadLetterSummary| {
        let DeadLetterSummary { dead_letter, state, .. } = summary;
        let tone = if state.status == DeadLetterStatus::Open { Tone::Warn } else { Tone::Dim };
        [
            dead_letter.id.to_string().into(),
            ago(dead_letter.last_failed_at, now).into(),
            Cell::new(tone, status(summary)),
            Cell::optional(dead_letter.tenant_id.as_deref()),
            (&dead_letter.reason).into(),
            Cell::optional(dead_letter.field.as_deref()),
            excerpt(&dead_letter.error, ERROR).into(),
        ]
    };
    out.push("\n");
    let titles = ["id", "failed", "status", "tenant", "reason", "field", "error"];
    out.table(titles, page.dead_letters.iter().map(row));
    if let Some(next) = page.next {
        let shown = count(page.dead_letters.len() as i128);
        let total = plural(page.total, "dead letter");
        let hint = format!("{shown} of {total}; next page: --before {next}; groups: --group");
        out.line(Tone::Dim, hint);
    }
    out.line(Tone::Dim, "details: `verbatim dead-letters show ID`");
}

/// Its status, whether it is edited, how often it failed again, and whether a replay failed.
fn status(summary: &DeadLetterSummary) -> String {
    let DeadLetterSummary { dead_letter, state, .. } = summary;
    let mut status = state.status.to_string();
    if summary.edited {
        status.push_str(", edited");
    }
    if dead_letter.replay_count > 0 {
        status.push_str(&format!(", failed again ×{}", dead_letter.replay_count));
    }
    if state.status == DeadLetterStatus::Open && state.replay_fault.is_some() {
        status.push_str(", replay failed");
    }
    status
}

#[cfg(test)]
pub(crate) mod tests {
    use database::{DeadLetter, DeadLetterDetail, DeadLetterEdit, DeadLetterState, FailedMessage};
    use serde_json::json;

    use super::*;
    use crate::commands::conversation_list::tests::at;
    use crate::output::tests::plain;

    pub(crate) fn detail() -> DeadLetterDetail {
        let body = r#"{"action_type":"conversation.save_message","tenant_id":"acme","session_id":"web-1","role":"bot","content":"hi"}"#;
        let DeadLetterSummary { dead_letter, state, .. } = summary();
        DeadLetterDetail {
            dead_letter,
            message: FailedMessage {
                body: body.into(),
                properties: json!({"content_type": "application/json", "message_id": "m-1"}),
                headers: json!({"x-custom": "own"}),
                left_out: Some(json!({"headers": 1, "names": ["x-large"]})),
                delivery: json!({"headers": {"x-verbatim-reason": "schema"}}),
            },
            state,
            edit: DeadLetterEdit::default(),
        }
    }

    pub(crate) fn summary() -> DeadLetterSummary {
        DeadLetterSummary {
            dead_letter: DeadLetter {
                id: Uuid::from_u128(0x4d1e_6f3a_0d2b_5c8e_9b1a_7f1e_2d3c_4b5a),
                queue: "conversation.save_message".to_owned(),
                reason: "schema".to_owned(),
                field: Some("role".to_owned()),
                error: "`role` must be a role, but is \"bot\"; did you mean `assistant`?"
                    .to_owned(),
                tenant_id: Some("acme".to_owned()),
                conversation_id: None,
                session_id: Some("web-1".to_owned()),
                message_id: Some("m-1".to_owned()),
                action_type: Some("conversation.save_message".to_owned()),
                routing_key: "conversation.save_message".to_owned(),
                exchange: "domain.actions".to_owned(),
                attempts: 1,
                replay_count: 0,
                replay_of: None,
                first_failed_at: at("2026-11-20T11:59:00Z"),
                last_failed_at: at("2026-11-20T11:59:00Z"),
            },
            state: DeadLetterState {
                stored_at: at("2026-11-20T11:59:01Z"),
                not_stored: None,
                copies: 1,
                status: DeadLetterStatus::Open,
                status_changed_at: None,
                status_reason: None,
                replay_tried_at: None,
                replay_fault: None,
            },
            body_bytes: 112,
            edited: false,
        }
    }

    #[test]
    fn open_counts_come_first_and_then_each_dead_letter() {
        let mut foreign = summary();
        foreign.dead_letter = DeadLetter {
            id: Uuid::from_u128(7),
            reason: "malformed_json".to_owned(),
            error: "x".repeat(200),
            field: None,
            tenant_id: None,
            ..foreign.dead_letter
        };
        foreign.state.status = DeadLetterStatus::Discarded;
        let mut failed_again = DeadLetterSummary { edited: true, ..summary() };
        failed_again.dead_letter.id = Uuid::from_u128(8);
        failed_again.dead_letter.replay_count = 1;
        failed_again.state.replay_fault = Some("no queue".to_owned());
        let group = |reason: &str, dead_letters| OpenDeadLetters {
            queue: "conversation.save_message".to_owned(),
            reason: reason.to_owned(),
            dead_letters,
        };
        let page = Page {
            total: 1_235,
            open: vec![group("malformed_json", 1), group("schema", 1_234)],
            dead_letters: vec![summary(), failed_again, foreign],
            next: Some(Uuid::from_u128(7)),
        };
        insta::assert_snapshot!(plain(|out| text(&page, out)));
        let nothing = Page { total: 0, open: Vec::new(), dead_letters: Vec::new(), next: None };
        assert_eq!(plain(|out| text(&nothing, out)), "no open dead letters\n");
    }

    #[test]
    fn its_json_has_the_dead_letter_its_state_and_the_size_of_its_body() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&summary()).unwrap());
    }
}
