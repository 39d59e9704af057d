//! Where Redis is and how long we wait for it.
//!
//! The address may hold a password, so it prints as host and port alone.

use std::fmt;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

/// How to reach Redis, and the times that bound every call. [`Settings::new`] fills in the defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the server is.
    pub address: Address,
    /// How long a hot copy lives after the last append or load. Nothing is lost when it goes.
    pub expiry: Duration,
    /// How long a connection may take to be made, TLS and authentication included.
    pub connect_timeout: Duration,
    /// How long a reply may take before the call fails and the connection is given up.
    pub response_timeout: Duration,
    /// The longest pause between two attempts to connect; calls fail at once meanwhile.
    pub longest_pause: Duration,
    /// How often the reign is compared. A write relies on a comparison for twice as long.
    pub watch_every: Duration,
    /// A load that has not finished after this, by Redis's clock, is taken for abandoned, and
    /// another may begin.
    pub longest_load: Duration,
}

/// The address of one Redis server, without a way to print its password.
#[derive(Clone)]
pub struct Address(ConnectionInfo);

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Several URLs mean Redis Cluster.
    #[error("{0} Redis URLs are given, which means Redis Cluster; one single server is supported")]
    Cluster(usize),
    /// The text is no Redis URL. It is not shown, since it may hold a password.
    #[error("the Redis URL is not of the form redis://[user:password@]host[:port][/database]: {0}")]
    Malformed(&'static str),
}

impl Settings {
    /// The defaults: 24 h of life, 2 s to connect, 1 s to reply, pauses of at most 1 s, a comparison
    /// every second, 5 s for a load.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            expiry: Duration::from_secs(24 * 60 * 60),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(1),
            longest_pause: Duration::from_secs(1),
            watch_every: Duration::from_secs(1),
            longest_load: Duration::from_secs(5),
        }
    }
}

impl Address {
    /// Parses `redis://…`, `rediss://…` (TLS) or `unix://…`. Several URLs, separated by commas, mean
    /// Redis Cluster and are refused.
    pub fn parse(urls: &str) -> Result<Self, InvalidAddress> {
        // A comma inside of a password is written %2C in a URL, so it cannot be mistaken.
        let mut urls = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let url = urls.next().ok_or(InvalidAddress::Malformed("it is empty"))?;
        match urls.count() {
            0 => {}
            more => return Err(InvalidAddress::Cluster(more + 1)),
        }
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
        // The replies are read as RESP2 has them, whatever the URL says. CLIENT SETINFO would cost a
        // round trip and is unknown before Redis 7.2.
        let redis = info.redis_settings().clone();
        let redis = redis.set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        // Off by default in the client: Nagle would hold small pipelines back for up to 40 ms.
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(Self(info.set_redis_settings(redis).set_tcp_settings(tcp)))
    }

    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.0
    }
}

impl fmt::Display for Address {
    /// Host, port and database; never a user or password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.addr(), self.0.redis_settings().db())
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

    #[test]
    fn a_password_is_never_printed() {
        let settings =
            Settings::new(Address::parse("redis://me:s3cret@cache.example:6380/2").unwrap());
        assert_eq!(settings.address.to_string(), "cache.example:6380/2");
        assert!(!format!("{settings:?}").contains("s3cret"));
        assert!(!format!("{settings:?}").contains("me:"));
    }

    #[test]
    fn an_error_does_not_repeat_the_url() {
        for bad in ["redis://me:s3cret@:port", "http://me:s3cret@host", "redis://:s3cret@h/x", ""] {
            let error = Address::parse(bad).unwrap_err();
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn several_urls_are_refused_as_a_cluster() {
        assert_eq!(
            Address::parse("redis://a:1, redis://b:1,redis://c:1").unwrap_err(),
            InvalidAddress::Cluster(3)
        );
    }

    #[test]
    fn tls_is_accepted_but_not_without_verification() {
        assert_eq!(Address::parse("rediss://a").unwrap().to_string(), "a:6379/0");
        assert!(Address::parse("rediss://a/#insecure").is_err());
    }

    #[test]
    fn nagle_is_off() {
        assert!(Address::parse("redis://a").unwrap().info().tcp_settings().nodelay());
    }
}
