//! `verbatim setup`: the database schema and the RabbitMQ topology.
//!
//! Both are checked and created independently, so that a failure of one does not hide the other.

use std::time::Duration;

use broker::topology::{self, TopologyError};
use clap::Args;
use conversation::RandomSource;
use database::{AdvancedSequence, ApiRoleChange, SchemaError};
use serde::Serialize;
use service::settings::{AmqpSettings, ApiRoleSettings, DatabaseSettings, DurabilitySettings};
use stores::{ApiDatabaseServer, Broker, COMMAND_TIMEOUT, DatabaseServer};

use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Text, Tone, print_error};

/// Time limit for one migration: an index over hundreds of millions of rows takes hours.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// Creates or upgrades the database schema and the RabbitMQ topology
///
/// Idempotent: what exists already stays unchanged. Reports what it created. A queue or exchange that
/// exists with other arguments is reported and not changed, because a change would delete its messages.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim setup [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim setup
  verbatim setup --config fleet.yaml
  verbatim setup --restored

Run it first in every deployment. Workers verify schema and topology when they start.")]
pub(crate) struct Setup {
    /// Invalidate all hot copies in Redis, and refuse requests that were signed before: use it after a disk snapshot of PostgreSQL was restored, or rows
    /// into tables that were kept. Stop the workers first. Readers load the hot copies again. After
    /// pg_restore --clean, a point-in-time recovery or a failover the workers and the API do this by themselves
    #[arg(long)]
    restored: bool,

    #[command(flatten)]
    actor: ActorArgs,
    #[command(flatten)]
    amqp: AmqpSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    durability: DurabilitySettings,
    #[command(flatten)]
    api: ApiRoleSettings,
}

/// What was done. A part that failed is null.
#[derive(Debug, Serialize)]
struct Report {
    schema: Option<Schema>,
    topology: Option<Topology>,
    /// The roles of the conversation-api; empty where API_DATABASE_URL is not set.
    api_roles: Option<Vec<Role>>,
    /// Whether all hot copies were invalidated.
    hot_copies_invalidated: bool,
}

#[derive(Debug, Serialize)]
struct Schema {
    /// `created`, `upgraded` or `already_there`.
    state: &'static str,
    /// The version after the upgrade; null if the schema was there already, perhaps in a version newer
    /// than this program.
    version: Option<i64>,
    /// The version before the upgrade.
    from: Option<i64>,
    /// Sequences that lagged behind their tables, as after a logical restore, and were advanced.
    advanced_sequences: Vec<AdvancedSequence>,
}

#[derive(Debug, Serialize)]
struct Role {
    name: String,
    /// `created`, `updated` or `already_there`.
    state: &'static str,
}

#[derive(Debug, Serialize)]
struct Topology {
    /// Exchanges and queues that were created.
    created: Vec<String>,
    /// How many were there already.
    already_there: usize,
}

impl Setup {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let (schema, topology) =
            tokio::join!(schema(&self.database, &self.durability), topology(&self.amqp));
        let mut failures = Vec::new();
        let mut collect = |failure| failures.push(failure);
        let schema = schema.map_err(&mut collect).ok();
        let hot_copies_invalidated = self.restored
            && schema.is_some()
            && self.invalidate_hot_copies().await.map_err(&mut collect).is_ok();
        let api_roles = match &schema {
            Some(_) => self.api_roles().await.map_err(&mut collect).ok(),
            None => None,
        };
        let topology = topology.map_err(&mut collect).ok();
        let report = Report { schema, topology, api_roles, hot_copies_invalidated };
        output.show(&report, |out| text(&report, out))?;
        let Some(last) = failures.pop() else { return Ok(Exit::Success) };
        for failure in failures {
            print_error(&failure);
        }
        Err(last)
    }

    /// Sets up the roles, and connects with each to see that it is as the API needs it.
    async fn api_roles(&self) -> Result<Vec<Role>, Failure> {
        let Some((api, roles)) = ApiDatabaseServer::of_setup(&self.api)? else {
            return Ok(Vec::new());
        };
        let owner = DatabaseServer::of_command(&self.database, COMMAND_TIMEOUT)?;
        let mut done = Vec::new();
        for role in roles {
            let change = owner.database.set_up_api_role(&role, &api.secrets.tenant_keys()).await;
            let state = match change.map_err(|error| owner.schema_failure(&error))? {
                ApiRoleChange::Created => "created",
                ApiRoleChange::Updated => "updated",
                ApiRoleChange::AlreadyThere => "already_there",
            };
            done.push(Role { name: role.name, state });
        }
        api.verify().await?;
        Ok(done)
    }

    async fn invalidate_hot_copies(&self) -> Result<(), Failure> {
        let server = DatabaseServer::of_command(&self.database, COMMAND_TIMEOUT)?;
        let (actor, random) = (self.actor.actor(), RandomSource::random().next());
        let invalidated = server.database.invalidate_hot_copies(&actor, random).await;
        Ok(invalidated.map_err(|error| server.failure(&error))?)
    }
}

async fn schema(
    settings: &DatabaseSettings,
    durability: &DurabilitySettings,
) -> Result<Schema, Failure> {
    let server = DatabaseServer::of_command(settings, COMMAND_TIMEOUT)?.reachable().await?;
    server.verify_server(durability).await?;
    let (state, from) = match server.database.verify_schema().await {
        Ok(()) => {
            let advanced = server.database.advance_sequences().await;
            return Ok(Schema {
                state: "already_there",
                version: None,
                from: None,
                advanced_sequences: advanced.map_err(|error| server.failure(&error))?,
            });
        }
        Err(SchemaError::Missing) => ("created", None),
        Err(SchemaError::TooOld { found, .. }) => ("upgraded", Some(found)),
        Err(error) => return Err(server.schema_failure(&error).into()),
    };
    let server = DatabaseServer::of_command(settings, MIGRATION_TIMEOUT)?;
    let waits = || eprintln!("another `verbatim setup` is upgrading the schema; waiting");
    let version = server.database.migrate(waits).await;
    let version = version.map_err(|error| server.schema_failure(&error))?;
    let advanced = server.database.advance_sequences().await;
    let advanced_sequences = advanced.map_err(|error| server.failure(&error))?;
    Ok(Schema { state, version: Some(version), from, advanced_sequences })
}

async fn topology(settings: &AmqpSettings) -> Result<Topology, Failure> {
    let broker = Broker::of(settings)?;
    let failure = |error: TopologyError| match error {
        TopologyError::Unavailable(error) => broker.failure(&error).into(),
        TopologyError::Differs(differences) => {
            let list = differences.iter().map(|it| format!("- {it}")).collect::<Vec<_>>();
            Failure::problem("the topology in RabbitMQ differs:", list.join("\n"))
        }
    };
    // What differs now and no longer differs after the declaration was missing.
    let missing = match topology::verify(&broker.endpoints).await {
        Ok(()) => Vec::new(),
        Err(TopologyError::Differs(differences)) => differences,
        Err(error) => return Err(failure(error)),
    };
    topology::declare(&broker.endpoints).await.map_err(failure)?;
    let created: Vec<String> =
        missing.iter().map(|it| format!("{} {}", it.kind, it.name)).collect();
    let all = topology::EXCHANGES.len() + topology::queues().len();
    Ok(Topology { already_there: all - created.len(), created })
}

fn text(report: &Report, out: &mut Text) {
    let line = |out: &mut Text, name: &str, tone, what: &str| {
        out.push(format!("{name:<20}"));
        out.line(tone, what);
    };
    let (tone, schema) = match &report.schema {
        None => (Tone::Bad, "failed".to_owned()),
        Some(Schema { version: None, .. }) => (Tone::Plain, "already there".to_owned()),
        Some(Schema { version: Some(version), from: None, .. }) => {
            (Tone::Good, format!("created, version {version}"))
        }
        Some(Schema { version: Some(version), from: Some(from), .. }) => {
            (Tone::Good, format!("upgraded from version {from} to {version}"))
        }
    };
    line(out, "database schema", tone, &schema);
    for sequence in report.schema.iter().flat_map(|schema| &schema.advanced_sequences) {
        out.push(format!("  {sequence}: it lagged behind its table, as after a logical restore\n"));
    }
    let (tone, topology, named) = match &report.topology {
        None => (Tone::Bad, "failed".to_owned(), &[][..]),
        Some(Topology { created, .. }) if created.is_empty() => {
            (Tone::Plain, "already there".to_owned(), &[][..])
        }
        Some(Topology { created, already_there: 0 }) => {
            (Tone::Good, format!("created, {} exchanges and queues", created.len()), &[][..])
        }
        // Only a part was missing: it is named.
        Some(Topology { created, already_there }) => {
            let what = format!("{} created, {already_there} already there", created.len());
            (Tone::Good, what, created.as_slice())
        }
    };
    line(out, "RabbitMQ topology", tone, &topology);
    named.iter().for_each(|name| out.push(format!("  {name}\n")));
    for Role { name, state } in report.api_roles.iter().flatten() {
        let (tone, done) = match *state {
            "already_there" => (Tone::Plain, "already there"),
            state => (Tone::Good, state),
        };
        line(out, "role of the API", tone, &format!("{name}: {done}"));
    }
    if report.hot_copies_invalidated {
        line(out, "hot copies", Tone::Good, "invalidated; readers load them again");
    }
    if let (Some(_), Some(_)) = (&report.schema, &report.topology) {
        line(out, "next", Tone::Dim, "start the workers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::plain;

    #[test]
    fn it_reports_what_it_created() {
        let created = Report {
            schema: Some(Schema {
                state: "created",
                version: Some(1),
                from: None,
                advanced_sequences: vec![],
            }),
            topology: Some(Topology { created: vec![String::new(); 25], already_there: 0 }),
            api_roles: Some(vec![]),
            hot_copies_invalidated: false,
        };
        let upgraded = Report {
            schema: Some(Schema {
                state: "upgraded",
                version: Some(3),
                from: Some(1),
                advanced_sequences: vec![AdvancedSequence {
                    sequence: "conversations_number_seq".to_owned(),
                    from: 1,
                    to: 41,
                }],
            }),
            topology: Some(Topology {
                created: vec!["queue bot.state".to_owned()],
                already_there: 24,
            }),
            api_roles: Some(vec![Role { name: "verbatim_api".to_owned(), state: "created" }]),
            hot_copies_invalidated: true,
        };
        let failed = Report {
            schema: None,
            topology: Some(Topology { created: Vec::new(), already_there: 25 }),
            api_roles: None,
            hot_copies_invalidated: false,
        };
        let texts = [created, upgraded, failed].map(|report| plain(|out| text(&report, out)));
        insta::assert_snapshot!(texts.join("\n"), @r"
        database schema     created, version 1
        RabbitMQ topology   created, 25 exchanges and queues
        next                start the workers

        database schema     upgraded from version 1 to 3
          sequence conversations_number_seq advanced from 1 to 41: it lagged behind its table, as after a logical restore
        RabbitMQ topology   1 created, 24 already there
          queue bot.state
        role of the API     verbatim_api: created
        hot copies          invalidated; readers load them again
        next                start the workers

        database schema     failed
        RabbitMQ topology   already there
        ");
    }
}
