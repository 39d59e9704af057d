//! The environment of one test: an empty virtual host, database and Redis that no other test uses.
//!
//! RabbitMQ and PostgreSQL start slowly, so tests share one server of each: those that `cargo xtask test`
//! has started and described in a file, or, under plain `cargo test`, one pair for each test process. A
//! Redis starts in 30 ms, so each test has its own and may flush it, stop it, or read all of its keys.
//! With [`REDIS_CLUSTER`] it is a Redis Cluster, which starts in 2 s.
//!
//! A test that breaks RabbitMQ or PostgreSQL starts its own server: [`crate::servers::Servers`].

use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::management::Management;
use crate::servers::{Kind, Server, Servers, postgresql::client, postgresql::psql};
pub use crate::spares::{REDIS_CLUSTER, own_redis, redis};

/// The environment variable with the path of a file that describes [`SharedServers`].
pub const SHARED: &str = "VERBATIM_TEST_SERVERS";

/// The environment variable that `cargo xtask test --deep` sets.
pub const DEEP: &str = "VERBATIM_TEST_DEEP";

/// Whether tests should use larger loads and more rounds, which takes minutes.
#[must_use]
pub fn deep() -> bool {
    std::env::var_os(DEEP).is_some()
}

/// The servers that tests share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharedServers {
    amqp_url: String,
    management: Management,
    database_url: String,
}

impl SharedServers {
    /// The kinds of server that are shared.
    pub const KINDS: [Kind; 2] = [Kind::RabbitMq, Kind::PostgreSql];

    /// The description of running servers.
    #[must_use]
    pub fn of(servers: &Servers) -> Self {
        let rabbitmq = servers.get(Kind::RabbitMq);
        Self {
            amqp_url: rabbitmq.url(),
            management: rabbitmq.management(),
            database_url: servers.get(Kind::PostgreSql).url(),
        }
    }

    /// Writes the description to a file, which test processes read ([`SHARED`]).
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

/// One test's virtual host, database and Redis. They are removed when this is dropped.
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
    /// Creates an environment. Takes 100 ms; under plain `cargo test` the first of a process takes some 6 s.
    ///
    /// # Panics
    /// When the servers cannot be started or reached; with the reason.
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

    /// The name of a role that the test may create, for the conversation-api: roles belong to the server. It is removed
    /// with the database.
    #[must_use]
    pub fn api_role(&self) -> String {
        format!("{}_api", self.name)
    }

    /// As [`Self::api_role`], for operators.
    #[must_use]
    pub fn operator_role(&self) -> String {
        format!("{}_operator", self.name)
    }

    /// Its Redis, which the test may stop, freeze and restart.
    #[must_use]
    pub fn redis(&self) -> &Server {
        self.redis.redis()
    }

    /// The HTTP interface of the shared RabbitMQ. Use it for the test's own virtual host only.
    #[must_use]
    pub fn management(&self) -> &Management {
        &self.shared.management
    }

    /// Runs SQL on its database with `psql`; returns unaligned text, one line per row.
    ///
    /// # Errors
    /// When the statement fails; with its message.
    pub async fn psql(&self, sql: &str) -> Result<String> {
        psql(&self.database_url, &self.name, sql).await
    }

    /// Writes a backup of its database to this file with `pg_dump`.
    ///
    /// # Errors
    /// When that fails; with its message.
    pub async fn dump(&self, file: &Path) -> Result<()> {
        let file = file.to_str().context("a path in UTF-8")?;
        let arguments = ["--format=custom", "--file", file];
        client("pg_dump", &self.database_url, &self.name, &arguments).await.map(drop)
    }

    /// Restores a backup over its database with `pg_restore --clean`, while clients are connected.
    ///
    /// # Errors
    /// When that fails; with its message.
    pub async fn restore(&self, file: &Path) -> Result<()> {
        let file = file.to_str().context("a path in UTF-8")?;
        let arguments = ["--clean", "--if-exists", "--single-transaction", file];
        client("pg_restore", &self.database_url, &self.name, &arguments).await.map(drop)
    }

    /// A directory for files of the test, which is removed with its Redis.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.redis.dir()
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        let (shared, name) = (self.shared.clone(), self.name.clone());
        // In the background. An error is ignored: the data is removed with the server anyway.
        drop(thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                shared.management.delete_virtual_host(&name).await.ok();
                for sql in [
                    format!("DROP DATABASE {name} WITH (FORCE)"),
                    format!("DROP ROLE IF EXISTS {name}_api, {name}_operator"),
                ] {
                    psql(&shared.database_url, "postgres", &sql).await.ok();
                }
            });
            Some(())
        }));
    }
}

async fn shared() -> Result<SharedServers> {
    // Never dropped: the guard ends the servers with this process.
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
