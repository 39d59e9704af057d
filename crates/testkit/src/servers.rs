//! Private RabbitMQ, Redis and PostgreSQL servers: on free ports, with their data under `target/`.
//!
//! Fault tests kill, freeze, stop and restart them; the demo and ordinary tests only use them. They never
//! listen on a standard port, accept connections from this machine only, and require a random password.
//! None of them outlives its [`Servers`], nor the process that owns it (see [`crate::guard`]).
//!
//! RabbitMQ starts in some 6 s on two cores, Redis in 30 ms, PostgreSQL in 1 s. A master of a Redis Cluster
//! accepts no command in its first 2 s.

pub(crate) mod binaries;
mod disk;
mod files;
mod kind;
mod node;
mod pgbouncer;
pub(crate) mod postgresql;
mod rabbitmq;
mod redis;
mod redis_cluster;
mod server;
mod user;

use std::path::Path;

use anyhow::{Context, Result};

pub use self::binaries::{RABBITMQ, missing, package};
pub use self::kind::{ALLOW_FSYNC_OFF, Durability, Kind};
use self::node::Launch;
pub use self::node::Node;
pub use self::pgbouncer::PgBouncer;
pub use self::postgresql::BaseBackup;
use self::postgresql::PostgreSql;
use self::rabbitmq::RabbitMq;
use self::redis::Redis;
pub use self::redis_cluster::Replicas;
pub use self::server::Server;
use crate::guard::{Guard, Mark};

/// Options of a set of servers.
#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    durability: Durability,
    replicas: Replicas,
    postgresql_disk_mebibytes: Option<u32>,
}

/// A set of private servers.
#[derive(Debug)]
pub struct Servers {
    // Dropped first: it ends the processes, which the servers then reap.
    guard: Guard,
    servers: Vec<Server>,
}

impl Servers {
    /// Starts one server of each of `kinds`, all at once, and waits until each answers.
    ///
    /// # Errors
    /// When a program is not installed, or a server does not start: then with the last lines of its log.
    pub async fn start(kinds: &[Kind]) -> Result<Self> {
        Self::start_with(kinds, Durability::Fast).await
    }

    /// [`Self::start`] with a durability.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(kinds: &[Kind], durability: Durability) -> Result<Self> {
        Self::start_all(kinds, Shape { durability, ..Shape::default() }).await
    }

    /// Starts a Redis Cluster, with or without replicas.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_redis_cluster(replicas: Replicas) -> Result<Self> {
        let shape = Shape { replicas, ..Shape::default() };
        Self::start_all(&[Kind::RedisCluster], shape).await
    }

    /// Starts a PostgreSQL whose data is on its own disk of this size in MiB; an empty database needs 40.
    ///
    /// # Errors
    /// As [`Self::start`]; also when the machine does not allow mount namespaces.
    pub async fn start_postgresql_on_a_disk_of(mebibytes: u32) -> Result<Self> {
        let shape = Shape { postgresql_disk_mebibytes: Some(mebibytes), ..Shape::default() };
        Self::start_all(&[Kind::PostgreSql], shape).await
    }

    async fn start_all(kinds: &[Kind], shape: Shape) -> Result<Self> {
        let Shape { durability, replicas, postgresql_disk_mebibytes: disk } = shape;
        let as_user = kinds.contains(&Kind::PostgreSql).then(user::user).transpose()?.flatten();
        let guard = Guard::new(as_user.map(|user| user.id))
            .context("cannot create a directory for the servers")?;
        let mut servers = Vec::new();
        for kind in kinds {
            let dir = guard.dir().join(kind.as_str());
            std::fs::create_dir_all(&dir)?;
            let launches = match kind {
                Kind::RabbitMq => {
                    RabbitMq::prepare(&guard, dir)?.into_iter().map(Launch::RabbitMq).collect()
                }
                Kind::RabbitMqCluster => RabbitMq::prepare_cluster(&guard, &dir)?
                    .into_iter()
                    .map(Launch::RabbitMq)
                    .collect(),
                Kind::Redis => vec![Launch::Redis(Redis::prepare(&guard, dir, durability)?)],
                Kind::RedisCluster => redis_cluster::prepare(&guard, &dir, durability, replicas)?
                    .into_iter()
                    .map(Launch::Redis)
                    .collect(),
                Kind::PostgreSql => {
                    let postgresql = PostgreSql::prepare(&guard, dir, durability, as_user, disk)?;
                    vec![Launch::PostgreSql(postgresql)]
                }
            };
            servers.push(Server::new(*kind, launches));
        }
        // Every server is spawned before the first is waited for.
        for server in &servers {
            server.spawn()?;
        }
        for server in &servers {
            server.ready().await?;
        }
        Ok(Self { guard, servers })
    }

    /// Their directory, which is removed with them.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.guard.dir()
    }

    /// The mark of their processes. Another process with this mark ends with them.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        self.guard.mark()
    }

    /// The Redis, single or a cluster.
    ///
    /// # Panics
    /// When none was started.
    #[must_use]
    pub fn redis(&self) -> &Server {
        let redis = |server: &&Server| matches!(server.kind(), Kind::Redis | Kind::RedisCluster);
        self.servers
            .iter()
            .find(redis)
            .unwrap_or_else(|| panic!("no Redis was started in this set"))
    }

    /// One of the servers.
    ///
    /// # Panics
    /// When it was not among the kinds that were started.
    #[must_use]
    pub fn get(&self, kind: Kind) -> &Server {
        self.find(kind).unwrap_or_else(|| panic!("no {kind} was started in this set"))
    }

    /// One of the servers, if it was among the kinds that were started.
    #[must_use]
    pub fn find(&self, kind: Kind) -> Option<&Server> {
        self.servers.iter().find(|server| server.kind() == kind)
    }
}
