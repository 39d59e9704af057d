//! The address of Redis: one server, or some nodes of a cluster.
//!
//! An address may contain a password, so only hosts and ports are printed. An invalid address is
//! refused here, where the caller can still name its setting.

use std::fmt;

use redis::io::tcp::TcpSettings;
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

/// The address of one Redis server or of a Redis Cluster, without a way to print its password.
#[derive(Clone)]
pub struct Address(Target);

#[derive(Clone)]
pub(crate) enum Target {
    Server(Box<ConnectionInfo>),
    /// Some nodes of a cluster; the other nodes are discovered through them.
    Cluster(Vec<ConnectionInfo>),
}

/// Why a text is not an address. The text is not shown, since it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// A URL that is not a Redis URL.
    #[error("the Redis URL must have the form redis://[user:password@]host[:port][/database]: {0}")]
    Malformed(&'static str),
    /// Nodes of one cluster, with TLS and without.
    #[error("several Redis URLs mean Redis Cluster: all must be redis:// or all rediss://")]
    MixedTls,
    /// A cluster's nodes find each other by host and port.
    #[error(
        "several Redis URLs mean Redis Cluster: each must have a host and a port, not a socket"
    )]
    Socket,
    /// A cluster has one database.
    #[error("several Redis URLs mean Redis Cluster: it has only database 0, so remove /{0}")]
    Database(i64),
    /// The discovered nodes get the same credentials as the named ones.
    #[error("several Redis URLs mean Redis Cluster: all must have the same user and password")]
    Credentials,
}

impl Address {
    /// Parses `redis://…`, `rediss://…` (TLS) or `unix://…`. Several URLs, separated by commas, are
    /// nodes of one Redis Cluster.
    pub fn parse(urls: &str) -> Result<Self, InvalidAddress> {
        // A comma within a password is written %2C in a URL, so the separator is unambiguous.
        let urls = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let mut nodes = urls.map(node).collect::<Result<Vec<_>, _>>()?;
        match (nodes.pop(), nodes.is_empty()) {
            (None, _) => Err(InvalidAddress::Malformed("it is empty")),
            (Some(server), true) => Ok(Self(Target::Server(Box::new(server)))),
            (Some(last), false) => {
                nodes.push(last);
                cluster(&nodes)?;
                Ok(Self(Target::Cluster(nodes)))
            }
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.0
    }
}

fn node(url: &str) -> Result<ConnectionInfo, InvalidAddress> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("redis" | "rediss" | "unix" | "redis+unix")) {
        return Err(InvalidAddress::Malformed("the scheme is not redis, rediss or unix"));
    }
    let info = url
        .into_connection_info()
        .map_err(|_| InvalidAddress::Malformed("host, port or database cannot be read"))?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(InvalidAddress::Malformed("TLS without verification is not supported"));
    }
    // This crate reads RESP2 replies, so the protocol of the URL is ignored. CLIENT SETINFO would
    // cost a round trip, and Redis before 7.2 does not know it.
    let redis = info.redis_settings().clone();
    let redis = redis.set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    // Off by default in the client: Nagle's algorithm would delay small pipelines by up to 40 ms.
    let tcp = TcpSettings::default().set_nodelay(true);
    let info = info.set_redis_settings(redis).set_tcp_settings(tcp);
    Client::open(info.clone())
        .map_err(|_| InvalidAddress::Malformed("the client library does not accept it"))?;
    Ok(info)
}

fn cluster(nodes: &[ConnectionInfo]) -> Result<(), InvalidAddress> {
    let tls = |node: &ConnectionInfo| matches!(node.addr(), ConnectionAddr::TcpTls { .. });
    let credentials = |node: &ConnectionInfo| {
        let redis = node.redis_settings();
        (redis.username().map(str::to_owned), redis.password().map(str::to_owned))
    };
    if nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::Unix(_))) {
        return Err(InvalidAddress::Socket);
    }
    if let Some(other) = nodes.iter().map(|node| node.redis_settings().db()).find(|db| *db != 0) {
        return Err(InvalidAddress::Database(other));
    }
    if nodes.windows(2).any(|pair| tls(&pair[0]) != tls(&pair[1])) {
        return Err(InvalidAddress::MixedTls);
    }
    if nodes.windows(2).any(|pair| credentials(&pair[0]) != credentials(&pair[1])) {
        return Err(InvalidAddress::Credentials);
    }
    Ok(())
}

impl fmt::Display for Address {
    /// `host:port/database`, or each node's `host:port`; never a user or password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Server(server) => {
                write!(f, "{}/{}", server.addr(), server.redis_settings().db())
            }
            Target::Cluster(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(|node| node.addr().to_string()).collect();
                f.write_str(&nodes.join(", "))
            }
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(urls: &str) -> InvalidAddress {
        Address::parse(urls).unwrap_err()
    }

    #[test]
    fn a_password_is_never_printed() {
        for (urls, shown) in [
            ("redis://me:s3cret@cache.example:6380/2", "cache.example:6380/2"),
            ("redis://me:s3cret@a:6380/0, redis://me:s3cret@b", "a:6380, b:6379"),
        ] {
            let address = Address::parse(urls).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(format!("{address:?}"), shown);
        }
    }

    #[test]
    fn an_error_does_not_repeat_the_url() {
        for bad in [
            "redis://me:s3cret@:port",
            "http://me:s3cret@host",
            "redis://:s3cret@h/x",
            "redis://:s3cret@a/0,rediss://:s3cret@b/0",
            "redis://:s3cret@a/0,redis://:other-s3cret@b/0",
            "",
            ",",
        ] {
            let error = refused(bad);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn one_url_is_a_server_and_several_are_a_cluster() {
        let target = |urls| Address::parse(urls).unwrap().0;
        assert!(matches!(target("redis://a:1,"), Target::Server(_)));
        let three = target("redis://a:1, redis://b:1/0,redis://c:1");
        assert!(matches!(three, Target::Cluster(nodes) if nodes.len() == 3));
        // A cluster of which only one node is known: its URL is given twice.
        assert!(matches!(target("rediss://a,rediss://a"), Target::Cluster(_)));
    }

    #[test]
    fn what_cannot_be_one_cluster_is_refused_with_the_fault() {
        assert_eq!(refused("redis://a,rediss://b"), InvalidAddress::MixedTls);
        assert_eq!(refused("redis://a/0,redis://b/3"), InvalidAddress::Database(3));
        assert_eq!(refused("redis://a,unix:///run/redis"), InvalidAddress::Socket);
        assert_eq!(refused("redis://:one@a,redis://:two@b"), InvalidAddress::Credentials);
        assert_eq!(refused("redis://me:one@a,redis://:one@b"), InvalidAddress::Credentials);
    }

    #[test]
    fn tls_is_accepted_but_not_without_verification() {
        assert_eq!(Address::parse("rediss://a").unwrap().to_string(), "a:6379/0");
        assert!(Address::parse("rediss://a/#insecure").is_err());
    }

    #[test]
    fn nagle_is_off() {
        assert!(node("redis://a").unwrap().tcp_settings().nodelay());
    }
}
