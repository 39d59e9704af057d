//! `verbatim conversation list`: conversations, newest first.

use clap::Args;
use database::{ConversationFilter, ConversationView};
use domain::ids::{AgentId, SessionId, TenantId};
use domain::status::ConversationStatus;
use service::settings::{DatabaseSettings, ReadReplicaSettings};
use stores::DatabaseServer;

use crate::exit::{Exit, Failure};
use crate::output::{Cell, Output, Text, Tone, ago, count, plural};
use crate::values::one_of;

/// Lists conversations, newest first
#[derive(Debug, Args)]
#[command(override_usage = "verbatim conversation list [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim conversation list --tenant acme
  verbatim conversation list --status active --agent agent_xyz --limit 10
  verbatim conversation list --tenant acme --json | jq -r '.[].id'

Reads the replica at DATABASE_READ_URL, if that is set.")]
pub(crate) struct ConversationList {
    /// Only conversations of this tenant
    #[arg(long, value_parser = |text: &str| TenantId::new(text), allow_hyphen_values = true)]
    tenant: Option<TenantId>,

    /// Only conversations in this status: active, closing or archived
    #[arg(long, value_parser = status)]
    status: Option<ConversationStatus>,

    /// Only conversations with this agent
    #[arg(long, value_parser = |text: &str| AgentId::new(text), allow_hyphen_values = true)]
    agent: Option<AgentId>,

    /// Only conversations that this session began
    #[arg(long, value_parser = |text: &str| SessionId::new(text), allow_hyphen_values = true)]
    session: Option<SessionId>,

    /// Number of conversations, at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    #[command(flatten)]
    database: DatabaseSettings,

    #[command(flatten)]
    replica: ReadReplicaSettings,
}

impl ConversationList {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open_for_lists(&self.database, &self.replica).await?;
        let filter = ConversationFilter {
            tenant: self.tenant.map(|id| id.to_string()),
            status: self.status,
            agent: self.agent.map(|id| id.to_string()),
            session: self.session.map(|id| id.to_string()),
        };
        let rows = server.database.conversations(&filter, self.limit).await;
        let rows = rows.map_err(|error| server.failure(&error))?;
        output.show(&rows, |out| text(&rows, self.limit, out))?;
        Ok(Exit::Success)
    }
}

fn status(text: &str) -> Result<ConversationStatus, String> {
    one_of(text, ConversationStatus::ALL, ConversationStatus::as_str)
}

pub(crate) fn tone(status: ConversationStatus) -> Tone {
    match status {
        ConversationStatus::Active => Tone::Good,
        ConversationStatus::Closing => Tone::Warn,
        ConversationStatus::Archived => Tone::Plain,
    }
}

fn text(rows: &[ConversationView], limit: u32, out: &mut Text) {
    if rows.is_empty() {
        return out.push("no conversations\n");
    }
    let now = out.now;
    let columns = |row: &ConversationView| {
        // A close request of an active conversation is not part of its status.
        let status = match (row.status, row.close_requested_at) {
            (ConversationStatus::Active, Some(_)) => Cell::new(Tone::Warn, "active, closing soon"),
            (status, _) => Cell::new(tone(status), status.as_str()),
        };
        let last = row.last_message_at.map(|at| ago(at, now));
        [
            (&row.tenant_id).into(),
            (&row.id).into(),
            (&row.session_id).into(),
            status,
            Cell::count(row.message_count),
            Cell::optional(row.total_tokens.map(count).as_deref()).right(),
            ago(row.created_at, now).into(),
            Cell::optional(last.as_deref()),
            Cell::optional(row.agent_id.as_deref()),
        ]
    };
    let titles = [
        "tenant",
        "conversation",
        "session",
        "status",
        "messages",
        "tokens",
        "began",
        "last message",
        "agent",
    ];
    out.table(titles, rows.iter().map(columns));
    if rows.len() as u64 == u64::from(limit) {
        let newest = plural(limit, "conversation");
        out.line(Tone::Dim, format!("the newest {newest}; --limit shows more"));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use chrono::{DateTime, Utc};
    use domain::time::Timestamp;

    use super::*;
    use crate::output::tests::plain;

    pub(crate) fn at(text: &str) -> DateTime<Utc> {
        Timestamp::parse(text).unwrap().into()
    }

    pub(crate) fn archived() -> ConversationView {
        ConversationView {
            tenant_id: "acme".to_owned(),
            id: "c-1".to_owned(),
            session_id: "web-1".to_owned(),
            agent_id: Some("agent_xyz".to_owned()),
            user_id: Some("u-9".to_owned()),
            model_name: Some("llama3-70b-8192".to_owned()),
            status: ConversationStatus::Archived,
            message_count: 4,
            total_tokens: Some(12_345),
            created_at: at("2026-11-20T11:00:00Z"),
            last_message_at: Some(at("2026-11-20T11:05:00Z")),
            close_requested_at: Some(at("2026-11-20T11:05:10Z")),
            closed_at: Some(at("2026-11-20T11:05:40Z")),
            finalised_at: Some(at("2026-11-20T11:05:41Z")),
            close_reason: Some("user_left".to_owned()),
            satisfaction: Some(5),
        }
    }

    #[test]
    fn conversations_are_listed_with_status_counts_and_times() {
        let open = ConversationView {
            tenant_id: "日本".to_owned(),
            id: "4d1e6f3a-0d2b-5c8e-9b1a-7f1e2d3c4b5a".to_owned(),
            session_id: "whatsapp:+49 123".to_owned(),
            agent_id: None,
            status: ConversationStatus::Active,
            total_tokens: None,
            close_requested_at: None,
            last_message_at: None,
            message_count: 1,
            ..archived()
        };
        let soon = ConversationView {
            status: ConversationStatus::Active,
            id: "c-3".to_owned(),
            ..archived()
        };
        let rows = [open, soon, archived()];
        insta::assert_snapshot!(plain(|out| text(&rows, 3, out)));
        assert_eq!(plain(|out| text(&[], 3, out)), "no conversations\n");
    }
}
