//! `verbatim trace`: what an id belongs to, where that is now, and what happened to it.

mod text;

use clap::Args;
use domain::ids::{MAX_ID_BYTES, TenantId};
use inspect::{TraceReport, Tracer};
use service::settings::{AmqpSettings, DatabaseSettings, ServerUrl};
use stores::{Broker, DatabaseServer, RedisServer};

use crate::exit::{Exit, Failure};
use crate::output::{Output, count, spinner};
use crate::values::OptionalRedis;

/// Traces a message or conversation: what happened to it, and where it is now
///
/// When it was published, received and saved, and by which worker; closed, archived, reopened;
/// dead-lettered, replayed, discarded; and whether readers find it in Redis.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim trace [OPTIONS] <ID>")]
#[command(after_help = "\
Examples:
  verbatim trace m-4711
  verbatim trace --tenant acme 4d1e6f3a-0d2b-5c8e-9b1a-7f1e2d3c4b5a
  verbatim trace m-4711 --json | jq -r '.items[].timeline[] | \"\\(.at) \\(.what) \\(.text)\"'

The id may be that of a message, a conversation, a session or a dead letter; all matches of all
tenants are shown. A message id is searched in one conversation after another, newest first,
which takes long in a large database. Without REDIS_URL hot copies are not checked; without
AMQP_URL queues are not checked.

Exit code 1: nothing has this id.")]
pub(crate) struct Trace {
    /// The id of a message, a conversation, a session or a dead letter
    #[arg(value_name = "ID", value_parser = id, allow_hyphen_values = true)]
    id: String,

    /// Only of this tenant
    #[arg(long, value_parser = |text: &str| TenantId::new(text), allow_hyphen_values = true)]
    tenant: Option<TenantId>,

    #[command(flatten)]
    database: DatabaseSettings,

    #[command(flatten)]
    redis: OptionalRedis,

    /// RabbitMQ; several nodes of one cluster are separated by commas.
    /// AMQP_URL_FILE may name a file that holds it
    #[arg(long, env = "AMQP_URL", value_name = "amqp://user:password@host:5672/vhost")]
    #[arg(value_delimiter = ',', value_parser = ServerUrl::amqp, help_heading = "Servers")]
    amqp_url: Vec<ServerUrl>,
}

impl Trace {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let hot = match self.redis.redis_url.as_slice() {
            [] => None,
            urls => Some(RedisServer::reading(urls, &server.database)?.hot),
        };
        let endpoints = match self.amqp_url.as_slice() {
            [] => None,
            urls => Some(Broker::of(&AmqpSettings { amqp_url: urls.to_vec() })?.endpoints),
        };
        let tracer = Tracer::new(server.database.clone(), hot, endpoints);
        let progress = spinner("{spinner} {msg}");
        let traced = tracer
            .trace(&self.id, self.tenant.as_ref(), &mut |searched| {
                let searched = count(i128::from(searched));
                progress.set_message(format!("searched {searched} conversations"));
                progress.tick();
            })
            .await;
        progress.finish_and_clear();
        let traced: TraceReport = traced.map_err(|error| server.failure(&error))?;
        output.show(&traced, |out| text::write(&self.id, &traced, out))?;
        Ok(if traced.items.is_empty() { Exit::Problems } else { Exit::Success })
    }
}

fn id(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_ID_BYTES => Ok(text.to_owned()),
        _ => Err(format!("an id has 1 to {MAX_ID_BYTES} bytes")),
    }
}
