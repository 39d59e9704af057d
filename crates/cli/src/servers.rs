//! The servers of a command.

pub(crate) use stores::{Broker, DatabaseServer, RedisServer};
