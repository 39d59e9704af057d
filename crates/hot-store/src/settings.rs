//! How long we wait for Redis, and how long a hot copy lives.

use std::time::Duration;

use crate::address::Address;

/// How to reach Redis, and the times that bound every call. [`Settings::new`] fills in the defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the server is, or the cluster.
    pub address: Address,
    /// How long a hot copy lives after the last append or load. Nothing is lost when it goes.
    pub expiry: Duration,
    /// How long a connection may take to be made, TLS and authentication included.
    pub connect_timeout: Duration,
    /// How long a reply may take before the call fails and the connection is given up.
    pub response_timeout: Duration,
    /// The longest pause between two attempts to connect; calls fail at once meanwhile.
    pub longest_pause: Duration,
    /// How often the server identity is compared. A write relies on a comparison for twice as long.
    pub watch_every: Duration,
    /// A load that has not finished after this, by Redis's clock, is taken for abandoned, and
    /// another may begin.
    pub longest_load: Duration,
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
