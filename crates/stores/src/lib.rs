//! Opening the three servers: connections, verification, readiness, and errors that name the address.
//!
//! A worker opens all of them ([`Stores`]) and waits for those that are unavailable. A command opens the ones that
//! it needs, and fails within seconds if one is unreachable.

mod addresses;
mod api_postgresql;
mod api_read_replica;
mod fault;
mod postgresql;
mod rabbitmq;
mod redis;
mod stores;
mod watch;

pub use api_postgresql::{ApiDatabaseServer, ApiLimits};
pub use api_read_replica::ReadReplicaServer;
pub use fault::{Fault, Unavailable};
pub use postgresql::{COMMAND_TIMEOUT, DatabaseServer};
pub use rabbitmq::Broker;
pub use redis::RedisServer;
pub use stores::Stores;
