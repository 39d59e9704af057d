//! The settings of the store: address, timeouts, intervals and the expiry of hot copies.

use std::time::Duration;

use crate::address::Address;

/// How to reach Redis, and the times that bound every call. [`Settings::new`] fills in the
/// defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address of the server or the cluster.
    pub address: Address,
    /// The expiry of a hot copy after the last append or load. No message is lost when it expires.
    pub expiry: Duration,
    /// The timeout of an attempt to connect, TLS and authentication included.
    pub connect_timeout: Duration,
    /// The timeout of a reply. After it the call fails and the connection is discarded.
    pub response_timeout: Duration,
    /// The longest pause between two attempts to connect. During a pause calls fail at once.
    pub longest_pause: Duration,
    /// The interval of server identity checks. A check is valid for writes for two intervals.
    pub watch_every: Duration,
    /// The longest duration of a load, by Redis's clock. After it another load may begin.
    pub longest_load: Duration,
}

impl Settings {
    /// The defaults: expiry 24 h, connect timeout 2 s, response timeout 1 s, pauses of at most 1 s,
    /// an identity check every second, 5 s for a load.
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
