//! `verbatim setup`: the database schema and the RabbitMQ topology.
//!
//! Both are looked at and made independently, so that one that fails does not hide the other.

use std::time::Duration;

use broker::topology::{self, TopologyError};
use clap::Args;
use conversation::RandomSource;
use database::SchemaError;
use serde::Serialize;
use service::settings::{AmqpSettings, DatabaseSettings};

use crate::actor::ActorArgs;
use crate::cli::print_error;
use crate::exit::{Exit, Failure};
use crate::output::{Screen, TextStyle, Tone};
use crate::servers::{Broker, DatabaseServer};

const EXAMPLES: &str = "\
Examples:
  verbatim setup
  verbatim setup --config fleet.yaml
  verbatim setup --restored

What a deployment runs first. Workers verify both when they start.";

/// For looking at the schema.
const LOOK: Duration = Duration::from_secs(10);
/// For one migration: an index over hundreds of millions of rows takes its time.
const MIGRATION: Duration = Duration::from_secs(6 * 3600);

/// Creates or upgrades the database schema and the RabbitMQ topology
///
/// Idempotent: what is there already stays as it is. Says what it made. A queue or exchange that
/// exists with other arguments is never changed but reported, since changing it would cost its
/// messages.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "verbatim setup [OPTIONS]")]
pub(crate) struct Setup {
    /// PostgreSQL was restored from a backup, or failed over to a standby that lacked commits: hot
    /// copies may hold more than it, so all are voided; readers load them anew. With the workers stopped
    #[arg(long)]
    restored: bool,

    #[command(flatten)]
    actor: ActorArgs,
    #[command(flatten)]
    amqp: AmqpSettings,
    #[command(flatten)]
    database: DatabaseSettings,
}

/// What was done; what failed is null.
#[derive(Debug, Serialize)]
struct Report {
    schema: Option<Schema>,
    topology: Option<Topology>,
    /// Whether no hot copy counts any more.
    hot_copies_voided: bool,
}

#[derive(Debug, Serialize)]
struct Schema {
    /// `created`, `upgraded` or `already_there`.
    state: &'static str,
    /// The version that it has now; null where it was there already, which may be a newer one than
    /// this program knows.
    version: Option<i64>,
    /// The version that it had, where it was upgraded.
    from: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Topology {
    /// Exchanges and queues that were made.
    created: Vec<String>,
    /// How many were there already.
    already_there: usize,
}

impl Setup {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let (schema, topology) = tokio::join!(schema(&self.database), topology(&self.amqp));
        let mut failures = Vec::new();
        let mut keep = |failure| failures.push(failure);
        let schema = schema.map_err(&mut keep).ok();
        let hot_copies_voided = self.restored
            && schema.is_some()
            && self.invalidate_hot_copies().await.map_err(&mut keep).is_ok();
        let topology = topology.map_err(&mut keep).ok();
        let report = Report { schema, topology, hot_copies_voided };
        screen.show(&report, |style| text(&report, style))?;
        let Some(last) = failures.pop() else { return Ok(Exit::Fine) };
        failures.iter().for_each(print_error);
        Err(last)
    }

    async fn invalidate_hot_copies(&self) -> Result<(), Failure> {
        let server = DatabaseServer::at(&self.database.database_url, "DATABASE_URL", LOOK).await?;
        let (actor, random) = (self.actor.actor(), RandomSource::random().next());
        let voided = server.database.invalidate_hot_copies(&actor, random).await;
        voided.map_err(|error| server.failure(&error))
    }
}

async fn schema(settings: &DatabaseSettings) -> Result<Schema, Failure> {
    let url = &settings.database_url;
    let server = DatabaseServer::at(url, "DATABASE_URL", LOOK).await?;
    let (state, from) = match server.database.verify_schema().await {
        Ok(()) => return Ok(Schema { state: "already_there", version: None, from: None }),
        Err(SchemaError::Missing) => ("created", None),
        Err(SchemaError::TooOld { found, .. }) => ("upgraded", Some(found)),
        Err(error) => return Err(server.schema_failure(&error)),
    };
    let patient = DatabaseServer::at(url, "DATABASE_URL", MIGRATION).await?;
    let version =
        patient.database.migrate().await.map_err(|error| patient.schema_failure(&error))?;
    Ok(Schema { state, version: Some(version), from })
}

async fn topology(settings: &AmqpSettings) -> Result<Topology, Failure> {
    let broker = Broker::of(settings)?;
    let failure = |error: TopologyError| match error {
        TopologyError::Unavailable(error) => broker.failure(&error),
        TopologyError::Differs(differences) => {
            let told = differences.iter().map(|it| format!("- {it}")).collect::<Vec<_>>();
            Failure::problem("RabbitMQ's topology is not the fleet's:", told.join("\n"))
        }
    };
    // Whatever differs now and not after the declaration was missing.
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

fn text(report: &Report, style: &TextStyle) -> String {
    let line = |name: &str, tone: Tone, what: &str| {
        format!("{name:<20}{}\n", style.paint.text(tone, what))
    };
    const SCHEMA: &str = "database schema";
    let mut out = match &report.schema {
        None => line(SCHEMA, Tone::Bad, "not made"),
        Some(Schema { version: None, .. }) => line(SCHEMA, Tone::Plain, "already there"),
        Some(Schema { version: Some(version), from: None, .. }) => {
            line(SCHEMA, Tone::Good, &format!("made, version {version}"))
        }
        Some(Schema { version: Some(version), from: Some(from), .. }) => {
            line(SCHEMA, Tone::Good, &format!("upgraded from version {from} to {version}"))
        }
    };
    const TOPOLOGY: &str = "RabbitMQ topology";
    out += &match &report.topology {
        None => line(TOPOLOGY, Tone::Bad, "not made"),
        Some(Topology { created, .. }) if created.is_empty() => {
            line(TOPOLOGY, Tone::Plain, "already there")
        }
        Some(Topology { created, already_there: 0 }) => {
            line(TOPOLOGY, Tone::Good, &format!("made, {} exchanges and queues", created.len()))
        }
        // A part was missing: that is worth knowing by name.
        Some(Topology { created, already_there }) => {
            let what = format!("{} made, {already_there} already there", created.len());
            let names = created.iter().map(|name| format!("  {name}\n"));
            line(TOPOLOGY, Tone::Good, &what) + &names.collect::<String>()
        }
    };
    if report.hot_copies_voided {
        out += &line("hot copies", Tone::Good, "voided; readers load them anew");
    }
    out
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;
    use crate::output::Paint;

    #[test]
    fn it_says_what_it_made() {
        let style = TextStyle { paint: Paint::Plain, now: Timestamp::EARLIEST };
        let made = Report {
            schema: Some(Schema { state: "created", version: Some(1), from: None }),
            topology: Some(Topology { created: vec![String::new(); 25], already_there: 0 }),
            hot_copies_voided: false,
        };
        let mended = Report {
            schema: Some(Schema { state: "upgraded", version: Some(3), from: Some(1) }),
            topology: Some(Topology {
                created: vec!["queue bot.state".to_owned()],
                already_there: 24,
            }),
            hot_copies_voided: true,
        };
        let half = Report {
            schema: None,
            topology: Some(Topology { created: Vec::new(), already_there: 25 }),
            hot_copies_voided: false,
        };
        let told = [made, mended, half].map(|report| text(&report, &style));
        insta::assert_snapshot!(told.join("\n"), @r"
        database schema     made, version 1
        RabbitMQ topology   made, 25 exchanges and queues

        database schema     upgraded from version 1 to 3
        RabbitMQ topology   1 made, 24 already there
          queue bot.state
        hot copies          voided; readers load them anew

        database schema     not made
        RabbitMQ topology   already there
        ");
    }
}
