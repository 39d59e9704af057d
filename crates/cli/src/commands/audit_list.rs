//! `verbatim audit list`: who read or changed what, and when.

use chrono::SecondsFormat;
use clap::Args;
use database::{AuditEntry, AuditFilter};
use domain::ids::TenantId;
use serde_json::Value;
use service::settings::DatabaseSettings;
use stores::DatabaseServer;

use crate::exit::{Exit, Failure};
use crate::output::{Cell, Output, Text, Tone, count, precise, shortened};
use crate::values::When;

/// Characters of the details in a table.
const DETAIL: usize = 80;

/// Lists the audit log: who read or changed what, and when
#[derive(Debug, Args)]
#[command(override_usage = "verbatim audit list [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim audit list --tenant acme --since 24h
  verbatim audit list --action conversation.read --subject c-1
  verbatim audit list --action anomaly
  verbatim audit list --by 'API key Ab3dEf9h' --json | jq -r '.[] | \"\\(.at) \\(.action)\"'

`conversation.read` and `dead_letter.read` are one entry for each answer of the API. Its other
requests are counted in `api.requests`, by key, endpoint (the subject), tenant and minute.")]
pub(crate) struct AuditList {
    /// Only entries about this tenant
    #[arg(long, value_name = "ID", value_parser = |text: &str| TenantId::new(text))]
    #[arg(allow_hyphen_values = true)]
    tenant: Option<TenantId>,

    /// Only what this actor did: an operator, or `API key ID`
    #[arg(long, value_name = "ACTOR", allow_hyphen_values = true)]
    by: Option<String>,

    /// Only this action, such as dead_letter.replay; `dead_letter` is every action on a dead letter
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,

    /// Only entries about this dead letter, run, API key, conversation or endpoint
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    subject: Option<String>,

    /// Only entries at or after this time: RFC 3339, or how long ago (24h, 7days)
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    since: Option<When>,

    /// Only entries before this time: RFC 3339, or how long ago
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    until: Option<When>,

    /// Number of entries, at most: the newest
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,

    #[command(flatten)]
    database: DatabaseSettings,
}

impl AuditList {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let time = |when: Option<When>| when.map(|when| when.before(output.now).into());
        let filter = AuditFilter {
            tenant: self.tenant.map(|tenant| tenant.to_string()),
            actor: self.by,
            action: self.action,
            subject: self.subject,
            since: time(self.since),
            until: time(self.until),
        };
        let entries = server.database.audit_entries(&filter, self.limit).await;
        let entries = entries.map_err(|error| server.failure(&error))?;
        output.show(&entries, |out| text(&entries, self.limit, out))?;
        Ok(Exit::Success)
    }
}

fn text(entries: &[AuditEntry], limit: u32, out: &mut Text) {
    if entries.is_empty() {
        return out.push("no entries match\n");
    }
    let rows = entries.iter().map(|entry| {
        let is_anomaly = entry.action.starts_with("anomaly.");
        [
            precise(entry.at).into(),
            Cell::new(if is_anomaly { Tone::Warn } else { Tone::Plain }, &entry.action),
            (&entry.actor).into(),
            Cell::optional(entry.tenant_id.as_deref()),
            Cell::optional(entry.subject.as_deref()),
            shortened(&details(entry.detail.as_ref()), DETAIL, "--json").into_owned().into(),
        ]
    });
    out.table(["at", "action", "actor", "tenant", "subject", "details"], rows);
    if entries.len() == limit as usize {
        let first = entries[0].at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let line = format!(
            "the newest {}; for earlier ones: --until {first}, or a higher --limit",
            count(entries.len() as i64)
        );
        out.line(Tone::Dim, line);
    }
}

/// Names and values of the details.
fn details(detail: Option<&Value>) -> String {
    let Some(Value::Object(fields)) = detail else { return String::new() };
    let fields = fields.iter().filter(|(_, value)| !value.is_null());
    let field = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name}={text}"),
        value => format!("{name}={value}"),
    };
    fields.map(field).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commands::conversation_list::tests::at;
    use crate::output::tests::plain;

    #[test]
    fn entries_are_listed_with_their_details() {
        let read = AuditEntry {
            id: 7,
            at: at("2026-11-20T11:00:00Z"),
            actor: "API key Ab3dEf9h".to_owned(),
            action: "conversation.read".to_owned(),
            tenant_id: Some("acme".to_owned()),
            subject: Some("c-1".to_owned()),
            detail: Some(json!({ "messages": 100, "address": "10.0.0.7", "request_id": "r-1" })),
        };
        let anomaly = AuditEntry {
            actor: "conversation-api".to_owned(),
            action: "anomaly.refused_keys".to_owned(),
            tenant_id: None,
            subject: Some("10.0.0.7".to_owned()),
            detail: Some(Value::Null),
            ..read.clone()
        };
        insta::assert_snapshot!(plain(|out| text(&[read, anomaly], 2, out)));
        assert_eq!(plain(|out| text(&[], 2, out)), "no entries match\n");
    }
}
