//! `verbatim keys list`: API keys, without their secrets.

use clap::Args;
use database::{ApiKeyView, EVERY_TENANT};
use domain::ids::TenantId;
use domain::time::Timestamp;
use service::settings::DatabaseSettings;
use stores::DatabaseServer;

use crate::exit::{Exit, Failure};
use crate::output::{Cell, Output, Text, Tone, ago, moment};

/// Lists API keys, without their secrets
#[derive(Debug, Args)]
#[command(override_usage = "verbatim keys list [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim keys list --tenant acme
  verbatim keys list --json | jq -r '.[] | select(.last_used_at == null) | .id'")]
pub(crate) struct KeysList {
    /// Only keys of this tenant; * lists those for every tenant
    #[arg(long, value_name = "ID", value_parser = |text: &str| TenantId::new(text))]
    #[arg(allow_hyphen_values = true)]
    tenant: Option<TenantId>,

    #[command(flatten)]
    database: DatabaseSettings,
}

impl KeysList {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let tenant = self.tenant.as_ref().map(TenantId::as_str);
        let keys = server.database.api_keys(tenant).await;
        let keys = keys.map_err(|error| server.failure(&error))?;
        output.show(&keys, |out| text(&keys, out))?;
        Ok(Exit::Success)
    }
}

fn state(key: &ApiKeyView, now: Timestamp) -> Cell {
    let is_past = |at| Timestamp::try_from(at).is_ok_and(|at| at <= now);
    match (key.revoked_at, key.expires_at, key.previous_until) {
        (Some(at), ..) => Cell::new(Tone::Bad, format!("revoked {}", ago(at, now))),
        (None, Some(at), _) if is_past(at) => {
            Cell::new(Tone::Bad, format!("expired {}", ago(at, now)))
        }
        (None, _, Some(at)) if !is_past(at) => {
            Cell::new(Tone::Warn, format!("rotated; old secret until {}", moment(at)))
        }
        (None, Some(at), _) => Cell::new(Tone::Good, format!("until {}", moment(at))),
        (None, None, _) => Cell::new(Tone::Good, "valid"),
    }
}

fn text(keys: &[ApiKeyView], out: &mut Text) {
    if keys.is_empty() {
        return out.push("no keys; `verbatim keys create --help` shows how to create one\n");
    }
    let now = out.now;
    let rows = keys.iter().map(|key| {
        let tenant = match key.tenant_id.as_str() {
            EVERY_TENANT => Cell::new(Tone::Warn, "every tenant"),
            tenant => tenant.into(),
        };
        let networks = Some(key.networks.join(", ")).filter(|networks| !networks.is_empty());
        let used = key.last_used_at.map(|at| ago(at, now));
        [
            (&key.id).into(),
            tenant,
            (&key.name).into(),
            key.scopes.join(", ").into(),
            Cell::optional(networks.as_deref()),
            state(key, now),
            ago(key.created_at, now).into(),
            Cell::optional(used.as_deref()),
        ]
    });
    let titles = ["key", "tenant", "name", "scopes", "networks", "state", "created", "last used"];
    out.table(titles, rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::conversation_list::tests::at;
    use crate::output::tests::plain;

    #[test]
    fn keys_are_listed_with_their_state() {
        let valid = ApiKeyView {
            id: "Ab3dEf9h".to_owned(),
            tenant_id: "acme".to_owned(),
            name: "CRM".to_owned(),
            scopes: vec!["read".to_owned(), "write".to_owned()],
            networks: vec!["10.0.0.0/8".to_owned()],
            created_at: at("2026-11-20T11:00:00Z"),
            expires_at: None,
            previous_until: None,
            revoked_at: None,
            last_used_at: Some(at("2026-11-20T11:30:00Z")),
        };
        let rotated = ApiKeyView {
            id: "Cd4eFg0i".to_owned(),
            previous_until: Some(at("2036-11-21T11:00:00Z")),
            networks: vec![],
            ..valid.clone()
        };
        let expired =
            ApiKeyView { expires_at: Some(at("2026-11-20T11:10:00Z")), ..rotated.clone() };
        let revoked = ApiKeyView {
            tenant_id: "*".to_owned(),
            revoked_at: Some(at("2026-11-20T11:20:00Z")),
            last_used_at: None,
            ..expired.clone()
        };
        let until = ApiKeyView { expires_at: Some(at("2036-11-20T11:10:00Z")), ..valid.clone() };
        let keys = [valid, rotated, expired, revoked, until];
        insta::assert_snapshot!(plain(|out| text(&keys, out)));
        assert!(plain(|out| text(&[], out)).starts_with("no keys"));
    }
}
