//! The kinds of server, and how durable they are.

use std::fmt;

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// RabbitMQ with the management plugin.
    RabbitMq,
    /// RabbitMQ with the management plugin, as a cluster of three nodes.
    RabbitMqCluster,
    /// A single Redis.
    Redis,
    /// A Redis Cluster of three masters.
    RedisCluster,
    /// PostgreSQL.
    PostgreSql,
}

impl Kind {
    /// The servers that a fleet needs.
    pub const ALL: [Self; 3] = [Self::RabbitMq, Self::Redis, Self::PostgreSql];

    /// Its name in file names and error messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::RabbitMqCluster => "rabbitmq-cluster",
            Self::Redis => "redis",
            Self::RedisCluster => "redis-cluster",
            Self::PostgreSql => "postgresql",
        }
    }
}

impl Kind {
    /// Its usual spelling.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::RabbitMq => "RabbitMQ",
            Self::RabbitMqCluster => "RabbitMQ cluster",
            Self::Redis => "Redis",
            Self::RedisCluster => "Redis Cluster",
            Self::PostgreSql => "PostgreSQL",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The environment variable, with its value, by which the product's processes accept a PostgreSQL of
/// [`Durability::Fast`].
pub const ALLOW_FSYNC_OFF: (&str, &str) = ("VERBATIM_ALLOW_FSYNC_OFF", "true");

/// Which failures a server's data survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// PostgreSQL survives its own end, including `kill -9`, but not that of the machine: it runs without
    /// `fsync`. Redis writes nothing to disk. The choice of most tests.
    #[default]
    Fast,
    /// As in production: PostgreSQL with `fsync`, Redis with an append-only file.
    Durable,
}
