//! The three servers that the fleet needs: named by URL, or private ones.

use std::time::Instant;

use anyhow::Result;
use testkit::servers::{Durability, Kind, Servers};

use crate::{packages, say};

/// Servers that are running already. The ones that are not named are started, privately.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Named {
    /// RabbitMQ that is running already; without it, a private one is started
    #[arg(long, env = "AMQP_URL", hide_env_values = true, value_name = "URL")]
    amqp_url: Option<String>,
    /// Redis that is running already; without it, a private one is started
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    /// PostgreSQL that is running already; without it, a private one is started
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
}

/// Where the three are. Private ones stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Stores {
    pub(crate) amqp_url: String,
    pub(crate) redis_url: String,
    pub(crate) database_url: String,
    _private: Option<Servers>,
}

impl Stores {
    /// Starts those that are not named, after installing their packages if they are missing.
    pub(crate) async fn open(named: Named) -> Result<Self> {
        let wanted = [
            (Kind::RabbitMq, named.amqp_url.is_none()),
            (Kind::Redis, named.redis_url.is_none()),
            (Kind::PostgreSql, named.database_url.is_none()),
        ];
        let kinds: Vec<_> =
            wanted.into_iter().filter_map(|(kind, it)| it.then_some(kind)).collect();
        let private = if kinds.is_empty() { None } else { Some(start(&kinds).await?) };
        let url = |kind, named: Option<String>| match (named, &private) {
            (Some(url), _) => url,
            (None, Some(servers)) => servers.get(kind).url(),
            (None, None) => String::new(),
        };
        Ok(Self {
            amqp_url: url(Kind::RabbitMq, named.amqp_url),
            redis_url: url(Kind::Redis, named.redis_url),
            database_url: url(Kind::PostgreSql, named.database_url),
            _private: private,
        })
    }
}

/// Starts private servers, and says so.
pub(crate) async fn start(kinds: &[Kind]) -> Result<Servers> {
    packages::ensure_servers(kinds).await?;
    let names: Vec<_> = kinds.iter().map(|kind| kind.title()).collect();
    say::line(&format!("starting private servers: {}", names.join(", ")));
    let began = Instant::now();
    let servers = Servers::start_with(kinds, Durability::Fast).await?;
    let places: Vec<_> = kinds
        .iter()
        .map(|kind| format!("{} on port {}", kind.title(), servers.get(*kind).port()))
        .collect();
    say::aside(&format!("{} ({:.1} s)", places.join(", "), began.elapsed().as_secs_f64()));
    Ok(servers)
}
