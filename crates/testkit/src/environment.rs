//! What one test owns: a virtual host, a database and a Redis, all empty and all its own.
//!
//! RabbitMQ and PostgreSQL take their time to start, so tests share one of each: the ones that
//! `cargo xtask test` started and described in a file, else, under plain `cargo test`, one pair for each
//! test process. A Redis starts in 30 ms, so each test has its own: it may flush it, stop it, or look
//! at everything in it. With [`REDIS_CLUSTER`] that is a Redis Cluster, which starts in 2 s, mostly
//! waiting.
//!
//! A test that breaks RabbitMQ or PostgreSQL starts its own: [`crate::servers::Servers`].

use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::management::Management;
use crate::servers::{Kind, Server, Servers, postgresql::psql};
pub use crate::spares::own_redis;

/// The environment variable with the path of a file that describes [`SharedServers`].
pub const SHARED: &str = "VERBATIM_TEST_SERVERS";

/// The environment variable that `cargo xtask test --deep` sets.
pub const DEEP: &str = "VERBATIM_TEST_DEEP";

/// The environment variable that `cargo xtask test --redis-cluster` sets.
pub const REDIS_CLUSTER: &str = "VERBATIM_TEST_REDIS_CLUSTER";

/// What tests that say just "Redis" run on: a single server, or with [`REDIS_CLUSTER`] a cluster.
#[must_use]
pub fn redis() -> Kind {
    if std::env::var_os(REDIS_CLUSTER).is_some() { Kind::RedisCluster } else { Kind::Redis }
}

/// Whether tests should use larger loads and more rounds, at the price of minutes.
#[must_use]
pub fn deep() -> bool {
    std::env::var_os(DEEP).is_some()
}

/// The servers that many tests use at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharedServers {
    amqp_url: String,
    management: Management,
    database_url: String,
}

impl SharedServers {
    /// The kinds of server that are shared.
    pub const KINDS: [Kind; 2] = [Kind::RabbitMq, Kind::PostgreSql];

    /// Describes servers that are running.
    #[must_use]
    pub fn of(servers: &Servers) -> Self {
        let rabbitmq = servers.get(Kind::RabbitMq);
        Self {
            amqp_url: rabbitmq.url(),
            management: rabbitmq.management(),
            database_url: servers.get(Kind::PostgreSql).url(),
        }
    }

    /// Writes the description to a file, for the test processes to come.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        Ok(std::fs::write(file, serde_json::to_vec(self)?)?)
    }

    fn load(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("{SHARED}={}", file.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

/// One test's own virtual host, database and Redis. They are removed when it is dropped.
#[derive(Debug)]
pub struct TestEnv {
    /// The URL of its virtual host on the shared RabbitMQ.
    pub amqp_url: String,
    /// The URL of its own Redis; several, if that is a cluster.
    pub redis_url: String,
    /// The URL of its database on the shared PostgreSQL.
    pub database_url: String,
    /// The name of the virtual host and of the database.
    pub name: String,
    shared: SharedServers,
    redis: Servers,
}

impl TestEnv {
    /// Makes an environment: 100 ms, and the first of a process under plain `cargo test` some 6 s.
    ///
    /// # Panics
    /// When the servers are not to be had; the message says why.
    pub async fn new() -> Self {
        match Self::try_new().await {
            Ok(env) => env,
            Err(error) => panic!("no servers for this test: {error:#}"),
        }
    }

    async fn try_new() -> Result<Self> {
        let shared = shared().await?;
        let name = format!("test_{}", Uuid::new_v4().simple());
        let create = format!("CREATE DATABASE {name}");
        let (host, database, redis) = tokio::join!(
            shared.management.create_virtual_host(&name),
            psql(&shared.database_url, "postgres", &create),
            own_redis(),
        );
        let (redis, ()) = (redis?, host?);
        database?;
        Ok(Self {
            amqp_url: replace_last_segment(&shared.amqp_url, &name),
            redis_url: redis.redis().url(),
            database_url: replace_last_segment(&shared.database_url, &name),
            name,
            shared,
            redis,
        })
    }

    /// Its Redis, to be stopped, frozen and restarted at will.
    #[must_use]
    pub fn redis(&self) -> &Server {
        self.redis.redis()
    }

    /// The shared RabbitMQ's HTTP interface. A test keeps to its own virtual host.
    #[must_use]
    pub fn management(&self) -> &Management {
        &self.shared.management
    }

    /// Runs SQL on its database, from outside of the product; unaligned text, a line for each row.
    ///
    /// # Errors
    /// When the statement fails; with its message.
    pub async fn psql(&self, sql: &str) -> Result<String> {
        psql(&self.database_url, &self.name, sql).await
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        let (shared, name) = (self.shared.clone(), self.name.clone());
        // Beside the test, not in its way. Whatever goes wrong here, the servers' end mends.
        drop(thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                shared.management.delete_virtual_host(&name).await.ok();
                let sql = format!("DROP DATABASE {name} WITH (FORCE)");
                psql(&shared.database_url, "postgres", &sql).await.ok();
            });
            Some(())
        }));
    }
}

async fn shared() -> Result<SharedServers> {
    // Never dropped: the guard notices the end of this process.
    static OWN: OnceCell<Servers> = OnceCell::const_new();
    if let Some(file) = std::env::var_os(SHARED) {
        return SharedServers::load(Path::new(&file));
    }
    let servers = OWN.get_or_try_init(|| Servers::start(&SharedServers::KINDS)).await?;
    Ok(SharedServers::of(servers))
}

fn replace_last_segment(url: &str, name: &str) -> String {
    let (head, _) = url.rsplit_once('/').unwrap_or((url, ""));
    format!("{head}/{name}")
}
