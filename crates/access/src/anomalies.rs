//! What an honest caller hardly does: many refused keys from one address, tenants that are not the key's own, and far more
//! reading than usual.
//!
//! Each replica counts for itself, in memory, and forgets at its restart. So a threshold is a number of one replica. What
//! was found is not found again for the length of the window, so that one caller gives one anomaly at a time.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::refusals::network;

/// The thresholds.
#[derive(Debug, Clone, Copy)]
pub struct AnomalySettings {
    /// Of refused keys and of foreign tenants: within which time they are counted.
    pub window: Duration,
    /// More refused keys than these from one address are an anomaly.
    pub refused: usize,
    /// So many requests of one key that name a foreign tenant are an anomaly.
    pub foreign_tenants: usize,
    /// More messages in an hour than this many times the median hour of a key are an anomaly.
    pub reads_factor: u64,
    /// Fewer messages in an hour than these are none.
    pub reads_minimum: u64,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anomaly {
    /// An address sends keys that are refused.
    RefusedKeys,
    /// A key names tenants that are not its own.
    ForeignTenants,
    /// A key reads far more than usual.
    Reads,
}

/// How many addresses or keys are remembered. Beyond that those of which nothing was seen for a window are forgotten, and
/// further ones are not counted.
const REMEMBERED: usize = 10_000;

/// How many hours of a key the median is of.
const HOURS: usize = 24 * 7;

const HOUR: Duration = Duration::from_secs(3600);

/// Counts. Shared by all requests of a process.
pub struct Anomalies {
    settings: AnomalySettings,
    refused: Mutex<Counts<IpAddr>>,
    foreign_tenants: Mutex<Counts<String>>,
    reads: Mutex<HashMap<String, Hours>>,
}

/// When something was seen, by who did it.
struct Counts<K>(HashMap<K, Seen>);

#[derive(Default)]
struct Seen {
    at: VecDeque<Instant>,
    found_at: Option<Instant>,
}

/// How many messages a key read in each hour in which it read any.
struct Hours {
    began: Instant,
    messages: u64,
    before: VecDeque<u64>,
    is_found: bool,
}

impl Anomalies {
    /// Has seen nothing yet.
    #[must_use]
    pub fn new(settings: AnomalySettings) -> Self {
        Self {
            settings,
            refused: Mutex::new(Counts(HashMap::new())),
            foreign_tenants: Mutex::new(Counts(HashMap::new())),
            reads: Mutex::default(),
        }
    }

    /// A key from this address was refused. An IPv6 address counts for its /64.
    pub fn refused(&self, address: IpAddr) -> Option<Anomaly> {
        let mut counts = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let is_found =
            counts.see(network(address), self.settings.refused + 1, self.settings.window);
        is_found.then_some(Anomaly::RefusedKeys)
    }

    /// A request with this key named a tenant that is not the key's own.
    pub fn foreign_tenant(&self, key: &str) -> Option<Anomaly> {
        let mut counts = self.foreign_tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let is_found =
            counts.see(key.to_owned(), self.settings.foreign_tenants, self.settings.window);
        is_found.then_some(Anomaly::ForeignTenants)
    }

    /// A request with this key read so many messages.
    pub fn read(&self, key: &str, messages: u64) -> Option<Anomaly> {
        let now = Instant::now();
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let hours = reads.entry(key.to_owned()).or_insert_with(|| Hours::new(now));
        hours.read(messages, now, &self.settings).then_some(Anomaly::Reads)
    }
}

impl<K: Eq + Hash> Counts<K> {
    /// Sees it once more; returns whether it was seen `enough` times within the window, for the first time in a window.
    fn see(&mut self, who: K, enough: usize, window: Duration) -> bool {
        let now = Instant::now();
        let is_over = |at: Instant| now.duration_since(at) >= window;
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, seen| seen.at.back().is_some_and(|at| !is_over(*at)));
            if self.0.len() >= REMEMBERED && !self.0.contains_key(&who) {
                return false;
            }
        }
        let seen = self.0.entry(who).or_default();
        seen.at.push_back(now);
        // Older ones than are enough change nothing.
        while seen.at.len() > enough.max(1) || seen.at.front().is_some_and(|at| is_over(*at)) {
            seen.at.pop_front();
        }
        let is_new = seen.found_at.is_none_or(is_over);
        if seen.at.len() < enough.max(1) || !is_new {
            return false;
        }
        seen.found_at = Some(now);
        true
    }
}

impl Hours {
    fn new(now: Instant) -> Self {
        Self { began: now, messages: 0, before: VecDeque::new(), is_found: false }
    }

    fn read(&mut self, messages: u64, now: Instant, settings: &AnomalySettings) -> bool {
        if now.duration_since(self.began) >= HOUR {
            self.before.push_back(self.messages);
            if self.before.len() > HOURS {
                self.before.pop_front();
            }
            *self = Self { before: std::mem::take(&mut self.before), ..Self::new(now) };
        }
        self.messages += messages;
        let is_new = !self.is_found && self.messages > self.threshold(settings);
        self.is_found |= is_new;
        is_new
    }

    /// As long as nothing is known of a key, as after a restart, a usual hour is taken to have the minimum.
    fn threshold(&self, settings: &AnomalySettings) -> u64 {
        let mut hours: Vec<u64> = self.before.iter().copied().collect();
        hours.sort_unstable();
        let median = hours.get(hours.len() / 2).copied().unwrap_or(settings.reads_minimum);
        median.saturating_mul(settings.reads_factor).max(settings.reads_minimum)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn anomalies() -> Anomalies {
        Anomalies::new(AnomalySettings {
            window: Duration::from_secs(300),
            refused: 10,
            foreign_tenants: 3,
            reads_factor: 10,
            reads_minimum: 10_000,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_ten_refused_keys_of_an_address_in_five_minutes_are_one_anomaly() {
        let anomalies = anomalies();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|it| it.parse().unwrap());
        let found: Vec<usize> = (1..=30).filter(|_| anomalies.refused(one).is_some()).collect();
        assert_eq!(found, [11]);
        assert_eq!(anomalies.refused(other), None);
        // It goes on: again after the window.
        advance(Duration::from_secs(300)).await;
        let found: Vec<usize> = (1..=30).filter(|_| anomalies.refused(one).is_some()).collect();
        assert_eq!(found, [11]);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_ipv6_network_count_together_and_many_networks_are_not_remembered() {
        let anomalies = anomalies();
        let address = |network: usize, host: usize| {
            format!("2001:db8:0:{network:x}::{host:x}").parse().unwrap()
        };
        let found: Vec<usize> =
            (1..=30).filter(|host| anomalies.refused(address(1, *host)).is_some()).collect();
        assert_eq!(found, [11]);
        for network in 2..=2 * REMEMBERED {
            assert_eq!(anomalies.refused(address(network, 1)), None);
        }
        assert_eq!(anomalies.refused.lock().unwrap().0.len(), REMEMBERED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_key_every_minute_is_normal() {
        let anomalies = anomalies();
        let address = "192.0.2.1".parse().unwrap();
        for _ in 0..1_000 {
            assert_eq!(anomalies.refused(address), None);
            advance(Duration::from_secs(60)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn three_foreign_tenants_of_a_key_in_five_minutes_are_an_anomaly() {
        let anomalies = anomalies();
        assert_eq!(
            [(); 4].map(|()| anomalies.foreign_tenant("k")),
            [None, None, Some(Anomaly::ForeignTenants), None]
        );
        for _ in 0..10 {
            assert_eq!(anomalies.foreign_tenant("slow"), None);
            advance(Duration::from_secs(151)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_times_the_median_hour_of_a_key_is_an_anomaly_and_growth_is_none() {
        let anomalies = anomalies();
        // Nothing is known of it yet.
        assert_eq!(anomalies.read("k", 100_000), None);
        for hour in 0..10 {
            advance(HOUR).await;
            assert_eq!(anomalies.read("k", 5_000 + hour * 100), None);
        }
        advance(HOUR).await;
        assert_eq!(anomalies.read("k", 54_000), None);
        assert_eq!(anomalies.read("k", 10_000), Some(Anomaly::Reads));
        assert_eq!(anomalies.read("k", 10_000), None);
        // A key that reads little may read up to the minimum.
        for _ in 0..5 {
            advance(HOUR).await;
            assert_eq!(anomalies.read("small", 3), None);
        }
        advance(HOUR).await;
        assert_eq!(anomalies.read("small", 10_000), None);
        assert_eq!(anomalies.read("small", 1), Some(Anomaly::Reads));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_not_seen_for_long_is_forgotten() {
        let anomalies = anomalies();
        for n in 0..REMEMBERED {
            let address = IpAddr::from(std::net::Ipv4Addr::from(u32::try_from(n).unwrap()));
            anomalies.refused(address);
        }
        advance(Duration::from_secs(300)).await;
        anomalies.refused("192.0.2.1".parse().unwrap());
        assert_eq!(anomalies.refused.lock().unwrap().0.len(), 1);
    }
}
