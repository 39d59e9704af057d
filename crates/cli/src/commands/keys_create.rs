//! `verbatim keys create`: an API key.

use access::{ApiKey, Scope};
use chrono::{DateTime, Utc};
use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args};
use database::{EVERY_TENANT, NewApiKey};
use domain::ids::TenantId;
use domain::time::Timestamp;
use ipnet::IpNet;
use serde::Serialize;
use service::settings::DatabaseSettings;
use stores::DatabaseServer;

use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Text, Tone, moment};
use crate::values::{After, one_of};

/// Creates an API key, and prints it once
#[derive(Debug, Args)]
#[command(
    override_usage = "verbatim keys create <--tenant <ID>|--every-tenant> --name <TEXT> --scope <SCOPE>... [OPTIONS]"
)]
#[command(group = ArgGroup::new("whose").args(["tenant", "every_tenant"]).required(true))]
#[command(after_help = "\
Examples:
  verbatim keys create --tenant acme --name CRM --scope read
  verbatim keys create --tenant acme --name backend --scope read,write --network 10.0.0.0/8
  verbatim keys create --every-tenant --name on-call --scope read,operate --expires 90d

Scopes: read (conversations, statistics), write (publish actions), operate (dead letters), erase
(with write: publish conversation.erase), export (nothing in this version). The key is not stored
and cannot be shown again: keep it where your program reads secrets. Its id in lists, logs and the
audit log are the 8 characters after vbt_.")]
pub(crate) struct KeysCreate {
    /// The tenant whose data the key is for
    #[arg(long, value_name = "ID", value_parser = tenant, allow_hyphen_values = true)]
    tenant: Option<TenantId>,

    /// For every tenant: the key of an operator. Each request says of which tenant it is
    #[arg(long)]
    every_tenant: bool,

    /// What the key is for, as lists show it
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    name: String,

    /// What it may do: read, write, operate, erase or export. Several are separated by commas
    #[arg(long, required = true, value_delimiter = ',', value_parser = scope)]
    scope: Vec<Scope>,

    /// From which networks it is accepted, such as 10.0.0.0/8; several are separated by commas.
    /// Without it: from everywhere
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    network: Vec<IpNet>,

    /// Until when it is accepted: a moment such as 2027-01-31T00:00:00Z, or a duration from now such as
    /// 90d. Without it: until it is revoked
    #[arg(long, value_name = "WHEN", value_parser = After::parse)]
    expires: Option<After>,

    #[command(flatten)]
    actor: ActorArgs,
    #[command(flatten)]
    database: DatabaseSettings,
}

/// What was created. The only place where the key is shown.
#[derive(Debug, Serialize)]
struct Created<'a> {
    id: &'a str,
    key: &'a str,
    tenant_id: &'a str,
    name: &'a str,
    scopes: &'a [String],
    networks: &'a [String],
    expires_at: Option<DateTime<Utc>>,
}

impl KeysCreate {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let expires_at = self.expires.map(|when| when.from(output.now));
        if expires_at.is_some_and(|at| at <= output.now) {
            return Err(Failure::usage("--expires is in the past; give a later moment"));
        }
        let server = DatabaseServer::open(&self.database).await?;
        let key = new_key(ApiKey::generate())?;
        let tenant = self.tenant.as_ref().map_or(EVERY_TENANT, TenantId::as_str);
        let mut scopes = self.scope.clone();
        scopes.sort();
        scopes.dedup();
        let new = NewApiKey {
            id: key.id().to_owned(),
            tenant: tenant.to_owned(),
            name: self.name,
            scopes: scopes.into_iter().map(|scope| scope.as_str().to_owned()).collect(),
            networks: self.network.iter().map(IpNet::to_string).collect(),
            secret_hash: key.secret_hash(),
            expires_at: expires_at.map(DateTime::from),
        };
        let created = server.database.create_api_key(&new, &self.actor.actor()).await;
        created.map_err(|error| server.failure(&error))?;
        let created = Created {
            id: &new.id,
            key: key.expose(),
            tenant_id: &new.tenant,
            name: &new.name,
            scopes: &new.scopes,
            networks: &new.networks,
            expires_at: new.expires_at,
        };
        output.show(&created, |out| text(&created, expires_at, out))?;
        Ok(Exit::Success)
    }
}

/// The key, or why there is none.
pub(crate) fn new_key<E: std::fmt::Display>(
    generated: Result<ApiKey, E>,
) -> Result<ApiKey, Failure> {
    generated.map_err(|error| Failure::plain(format!("the system gives no random bytes: {error}")))
}

/// What is said wherever a key is printed.
pub(crate) fn show_once(out: &mut Text, key: &str) {
    out.field("key", Tone::Good, key);
    out.line(Tone::Dim, "Keep it now: it is not stored and cannot be shown again.");
}

fn text(created: &Created<'_>, expires_at: Option<Timestamp>, out: &mut Text) {
    let whose = match created.tenant_id {
        EVERY_TENANT => "every tenant".to_owned(),
        tenant => format!("tenant {tenant}"),
    };
    out.line(Tone::Plain, format!("created key {} for {whose}", created.id));
    out.field("name", Tone::Plain, created.name);
    out.field("scopes", Tone::Plain, created.scopes.join(", "));
    if !created.networks.is_empty() {
        out.field("networks", Tone::Plain, created.networks.join(", "));
    }
    if let Some(at) = expires_at {
        out.field("expires", Tone::Plain, moment(at.into()));
    }
    show_once(out, created.key);
}

fn tenant(text: &str) -> Result<TenantId, String> {
    if text == EVERY_TENANT {
        return Err("it stands for every tenant; use --every-tenant".to_owned());
    }
    TenantId::new(text).map_err(|fault| fault.to_string())
}

/// The id of a key, also where it is written with the prefix of the key.
pub(crate) fn key_id(text: &str) -> Result<String, String> {
    let id = text.strip_prefix("vbt_").unwrap_or(text);
    if id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(id.to_owned());
    }
    // Not quoted: it may be a whole key.
    Err("an id has 8 characters, those after vbt_; `verbatim keys list` shows it".to_owned())
}

fn scope(text: &str) -> Result<Scope, String> {
    one_of(text, Scope::ALL, Scope::as_str)
}

fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok();
    network
        .or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
        .map(|network| network.trunc())
        .ok_or_else(|| "it is neither a network such as 10.0.0.0/8 nor an address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::plain;

    #[test]
    fn a_new_key_is_shown_once_with_what_it_may_do() {
        let scopes = ["read".to_owned(), "write".to_owned()];
        let networks = ["10.0.0.0/8".to_owned()];
        let created = Created {
            id: "Ab3dEf9h",
            key: "vbt_Ab3dEf9h_…",
            tenant_id: "acme",
            name: "CRM",
            scopes: &scopes,
            networks: &networks,
            expires_at: None,
        };
        let expires = Timestamp::parse("2027-01-31T00:00:00Z").unwrap();
        insta::assert_snapshot!(plain(|out| text(&created, Some(expires), out)), @r"
        created key Ab3dEf9h for tenant acme
          name          CRM
          scopes        read, write
          networks      10.0.0.0/8
          expires       2027-01-31 00:00:00 UTC
          key           vbt_Ab3dEf9h_…
        Keep it now: it is not stored and cannot be shown again.
        ");
    }

    #[test]
    fn a_network_is_a_prefix_or_an_address() {
        assert_eq!(network("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("::1").unwrap().to_string(), "::1/128");
        assert!(network("10.0.0.0/33").is_err());
        assert!(network("example.com").is_err());
    }
}
