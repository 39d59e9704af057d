//! Limits the questions to PostgreSQL about credentials that it refuses, by the address of the client.
//!
//! A key that this process does not remember, and each signed request, cost PostgreSQL a question. Each question that ends
//! without an accepted credential counts for its address, an IPv6 address for its /64. An address may have a burst of them,
//! and then a number per second. Beyond that PostgreSQL is not asked.
//!
//! A question counts when it has ended: many valid keys may come from one address at once, as after a restart. So there may
//! be more than a burst, as many as requests are under way. Whatever their number, an address waits no longer than after a
//! burst.
//!
//! Several clients may share an address. A request with a remembered key asks nothing, so it is not stopped. A key that
//! signed a request lately from an address has an allowance of its own there, so other credentials do not stop it. Only who
//! knows its id and has its address can use that up.
//!
//! Each replica counts for itself, in memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many refused credentials of one address PostgreSQL is asked about.
#[derive(Debug, Clone, Copy)]
pub struct RefusalLimits {
    /// Per second, on average.
    pub rate: NonZeroU32,
    /// At once.
    pub burst: NonZeroU32,
}

/// How long a key that signed a request from an address has an allowance of its own there.
const SIGNED_LATELY: Duration = Duration::from_secs(3600);

/// How many addresses, and how many keys with their addresses, are remembered. Beyond that further ones are not: such an
/// address is not limited, and such a key shares the allowance of its address.
const REMEMBERED: usize = 10_000;

/// What has an allowance: an address, or a key that signed lately from that address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    network: IpAddr,
    signer: Option<String>,
}

/// Counts refused credentials. Shared by all requests of a process.
pub(crate) struct Refusals {
    limits: RefusalLimits,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// When the allowance of a source is whole again.
    whole_at: Until<Source>,
    /// Until when a key counts as a signer.
    signers: Until<Source>,
}

/// A question to PostgreSQL about a credential. It counts as refused when this is dropped, unless it is [`Self::settled`]:
/// a client that closes its connection before the answer has asked, too.
pub(crate) struct Question<'a> {
    refusals: &'a Refusals,
    source: Source,
    is_settled: bool,
}

impl Refusals {
    pub(crate) fn new(limits: RefusalLimits) -> Self {
        Self { limits, seen: Mutex::default() }
    }

    /// Permits a question about a credential from this address; for a signed request with the key that it names.
    ///
    /// # Errors
    /// Too many were refused: after this time one is permitted.
    pub(crate) fn ask(
        &self,
        address: IpAddr,
        signer: Option<&str>,
    ) -> Result<Question<'_>, Duration> {
        let now = Instant::now();
        let seen = self.seen();
        let mut source = source(address, signer);
        if seen.signers.get(&source, now).is_none() {
            source.signer = None;
        }
        let debt = seen.whole_at.get(&source, now).map_or(Duration::ZERO, |at| at - now);
        match debt.checked_sub(self.interval() * (self.limits.burst.get() - 1)) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => Ok(Question { refusals: self, source, is_settled: false }),
        }
    }

    /// A request that this key signed was accepted from this address.
    pub(crate) fn signed(&self, address: IpAddr, key: &str) {
        let now = Instant::now();
        self.seen().signers.set(source(address, Some(key)), now + SIGNED_LATELY, now);
    }

    fn count(&self, source: Source) {
        let now = Instant::now();
        let mut seen = self.seen();
        let whole_at = seen.whole_at.get(&source, now).unwrap_or(now) + self.interval();
        let whole_at = whole_at.min(now + self.interval() * self.limits.burst.get());
        seen.whole_at.set(source, whole_at, now);
    }

    /// In which time one more is permitted.
    fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.limits.rate.get()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question<'_> {
    /// The credential was accepted, or PostgreSQL did not answer.
    pub(crate) fn settled(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.refusals.count(self.source.clone());
        }
    }
}

fn source(address: IpAddr, signer: Option<&str>) -> Source {
    Source { network: network(address), signer: signer.map(str::to_owned) }
}

/// What counts as one address: usually one client has all addresses of an IPv6 /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// Times to come. Those that have passed are forgotten.
struct Until<K>(HashMap<K, Instant>);

impl<K> Default for Until<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Until<K> {
    fn get(&self, key: &K, now: Instant) -> Option<Instant> {
        self.0.get(key).copied().filter(|at| *at > now)
    }

    fn set(&mut self, key: K, at: Instant, now: Instant) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&key) {
            self.0.retain(|_, at| *at > now);
            if self.0.len() >= REMEMBERED {
                return;
            }
        }
        self.0.insert(key, at);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    fn refusals() -> Refusals {
        let [rate, burst] = [10, 50].map(|number| NonZeroU32::new(number).unwrap());
        Refusals::new(RefusalLimits { rate, burst })
    }

    /// Of so many questions at once that are all refused: how many are asked.
    fn asked(refusals: &Refusals, address: &str, signer: Option<&str>, questions: usize) -> usize {
        let address = address.parse().unwrap();
        (0..questions).filter(|_| refusals.ask(address, signer).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_asks_in_vain_a_burst_and_then_at_the_rate() {
        let refusals = refusals();
        assert_eq!(asked(&refusals, "192.0.2.1", None, 100), 50);
        let wait = refusals.ask("192.0.2.1".parse().unwrap(), None).err();
        assert_eq!(wait, Some(Duration::from_millis(100)));
        advance(Duration::from_millis(100)).await;
        assert_eq!(asked(&refusals, "192.0.2.1", None, 100), 1);
        assert_eq!(asked(&refusals, "192.0.2.2", None, 100), 50);
        advance(Duration::from_secs(60)).await;
        assert_eq!(asked(&refusals, "::ffff:192.0.2.1", None, 100), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_accepted_does_not_count_and_what_is_asked_at_once_counts_afterwards() {
        let refusals = refusals();
        let address = "192.0.2.1".parse().unwrap();
        for _ in 0..1_000 {
            refusals.ask(address, None).ok().unwrap().settled();
        }
        let questions: Vec<_> = (0..100).map(|_| refusals.ask(address, None)).collect();
        assert!(questions.iter().all(Result::is_ok));
        drop(questions);
        assert_eq!(refusals.ask(address, None).err(), Some(Duration::from_millis(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_a_64_count_together() {
        let refusals = refusals();
        let of_one: usize =
            (0..100).map(|n| asked(&refusals, &format!("2001:db8:0:1:{n}::{n}"), None, 1)).sum();
        assert_eq!(of_one, 50);
        assert_eq!(asked(&refusals, "2001:db8:0:2::1", None, 100), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_signed_lately_from_an_address_has_an_allowance_of_its_own_there() {
        let refusals = refusals();
        refusals.signed("192.0.2.1".parse().unwrap(), "known");
        assert_eq!(asked(&refusals, "192.0.2.1", Some("other"), 100), 50);
        assert_eq!(asked(&refusals, "192.0.2.1", None, 100), 0);
        assert_eq!(asked(&refusals, "192.0.2.1", Some("known"), 100), 50);
        // Elsewhere it has none.
        assert_eq!(asked(&refusals, "192.0.2.2", None, 100), 50);
        assert_eq!(asked(&refusals, "192.0.2.2", Some("known"), 100), 0);
        advance(SIGNED_LATELY).await;
        assert_eq!(asked(&refusals, "192.0.2.1", None, 100), 50);
        assert_eq!(asked(&refusals, "192.0.2.1", Some("known"), 100), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_number_of_addresses_and_keys_takes_memory_without_bound() {
        let refusals = refusals();
        for n in 0..u32::try_from(2 * REMEMBERED).unwrap() {
            let address = IpAddr::from(Ipv4Addr::from(n));
            drop(refusals.ask(address, None));
            refusals.signed(address, "key");
        }
        let numbers = || {
            let seen = refusals.seen();
            (seen.whole_at.0.len(), seen.signers.0.len())
        };
        assert_eq!(numbers(), (REMEMBERED, REMEMBERED));
        advance(SIGNED_LATELY).await;
        asked(&refusals, "192.0.2.1", None, 1);
        refusals.signed("192.0.2.1".parse().unwrap(), "key");
        assert_eq!(numbers(), (1, 1));
    }
}
