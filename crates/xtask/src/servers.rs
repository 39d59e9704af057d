//! The three servers that the fleet needs: existing ones, given by URL, or private ones.

use std::time::Instant;

use anyhow::Result;
use testkit::servers::{ALLOW_FSYNC_OFF, Durability, Kind, Servers};

use crate::{packages, say};

/// URLs of existing servers. Servers without a URL are started as private ones.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ServerOptions {
    /// URL of an existing RabbitMQ; without it a private one is started
    #[arg(long, env = "AMQP_URL", hide_env_values = true, value_name = "URL")]
    amqp_url: Option<String>,
    /// URL of an existing Redis; without it a private one is started
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    /// URL of an existing PostgreSQL; without it a private one is started
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// URL of an existing PostgreSQL with the role of the API; without it the API is started on a private one only
    #[arg(long, env = "API_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    api_database_url: Option<String>,
    /// URL of the same PostgreSQL with the role of the API for operators; without it a private one has that role
    #[arg(long, env = "API_OPERATOR_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    api_operator_database_url: Option<String>,
}

/// The URLs of the three servers. Private servers stop when this is dropped.
#[derive(Debug)]
pub(crate) struct LocalServers {
    pub(crate) amqp_url: String,
    pub(crate) redis_url: String,
    pub(crate) database_url: String,
    /// PostgreSQL with the role of the API, which is created if it is missing; `None`: there is to be no API.
    pub(crate) api_database_url: Option<String>,
    /// PostgreSQL with the role of the API for operators; `None`: its endpoints for dead letters are not set up.
    pub(crate) api_operator_database_url: Option<String>,
    /// Further environment variables for the processes that use these servers.
    pub(crate) settings: Vec<(&'static str, &'static str)>,
    _private: Option<Servers>,
}

impl LocalServers {
    /// Starts the servers without a URL; installs their packages if they are missing.
    pub(crate) async fn open(options: ServerOptions) -> Result<Self> {
        let wanted = [
            (Kind::RabbitMq, options.amqp_url.is_none()),
            (Kind::Redis, options.redis_url.is_none()),
            (Kind::PostgreSql, options.database_url.is_none()),
        ];
        let kinds: Vec<_> = wanted
            .into_iter()
            .filter_map(|(kind, is_private)| is_private.then_some(kind))
            .collect();
        let private = if kinds.is_empty() { None } else { Some(start(&kinds).await?) };
        // A server of the user has to be durable.
        let settings =
            if kinds.contains(&Kind::PostgreSql) { vec![ALLOW_FSYNC_OFF] } else { vec![] };
        let url = |kind, given: Option<String>| match (given, &private) {
            (Some(url), _) => url,
            (None, Some(servers)) => servers.get(kind).url(),
            (None, None) => String::new(),
        };
        let of_private = private.as_ref().filter(|_| kinds.contains(&Kind::PostgreSql));
        let of_private = |role: &str| {
            let url = of_private?.get(Kind::PostgreSql).url();
            let (_, address) = url.rsplit_once('@')?;
            Some(format!("postgres://{role}:private@{address}"))
        };
        Ok(Self {
            api_database_url: options.api_database_url.or_else(|| of_private("verbatim_api")),
            api_operator_database_url: options
                .api_operator_database_url
                .or_else(|| of_private("verbatim_api_operator")),
            amqp_url: url(Kind::RabbitMq, options.amqp_url),
            redis_url: url(Kind::Redis, options.redis_url),
            database_url: url(Kind::PostgreSql, options.database_url),
            settings,
            _private: private,
        })
    }
}

/// Starts private servers, and prints their names and ports.
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
