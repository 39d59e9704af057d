//! How many requests a key may make of this replica.
//!
//! Each replica counts for itself: with three replicas a key may make three times as many. The answers say what is left
//! (draft-ietf-httpapi-ratelimit-headers-10).

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue};
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

type Limiter =
    RateLimiter<String, DefaultKeyedStateStore<String>, DefaultClock, StateInformationMiddleware>;

/// The rates of all keys.
pub(crate) struct Rates {
    limiter: Limiter,
    /// Until when keys that made too many requests may make none.
    exhausted: Mutex<HashMap<String, Instant>>,
    clock: DefaultClock,
    rate: u32,
    burst: u32,
}

/// What is left for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Requests that it may make at once.
    remaining: u32,
    rate: u32,
    burst: u32,
}

/// A key made too many requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// After which time the next one is accepted.
    pub(crate) wait: Duration,
    pub(crate) allowance: Allowance,
}

impl Rates {
    pub(crate) fn new(rate: NonZeroU32, burst: NonZeroU32) -> Self {
        let quota = Quota::per_second(rate).allow_burst(burst);
        let limiter = RateLimiter::keyed(quota).with_middleware::<StateInformationMiddleware>();
        Self {
            limiter,
            exhausted: Mutex::default(),
            clock: DefaultClock::default(),
            rate: rate.get(),
            burst: burst.get(),
        }
    }

    /// Counts a request of this key.
    pub(crate) fn take(&self, key: &str) -> Result<Allowance, Exceeded> {
        match self.limiter.check_key(&key.to_owned()) {
            Ok(state) => Ok(self.allowance(state.remaining_burst_capacity())),
            Err(refused) => {
                let wait = refused.wait_time_from(self.clock.now());
                self.until().insert(key.to_owned(), Instant::now() + wait);
                Err(Exceeded { wait, allowance: self.allowance(0) })
            }
        }
    }

    /// Fails while the key made too many requests. Counts nothing, so it needs no proof that the caller has the key.
    pub(crate) fn check(&self, key: &str) -> Result<(), Exceeded> {
        let until = self.until().get(key).copied();
        match until.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(wait) if !wait.is_zero() => Err(Exceeded { wait, allowance: self.allowance(0) }),
            _ => Ok(()),
        }
    }

    /// Forgets keys that made no request lately.
    pub(crate) fn forget_idle(&self) {
        self.limiter.retain_recent();
        let now = Instant::now();
        self.until().retain(|_, at| *at > now);
    }

    fn allowance(&self, remaining: u32) -> Allowance {
        Allowance { remaining, rate: self.rate, burst: self.burst }
    }

    fn until(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.exhausted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, burst, .. } = self;
        write!(
            f,
            "the key may make {rate} requests a second (VERBATIM_KEY_RATE), and up to {burst} at once (VERBATIM_KEY_BURST)"
        )
    }
}

impl Allowance {
    /// The headers that say it.
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        // Until all of the burst may be made again.
        let refill = (self.burst - self.remaining.min(self.burst)).div_ceil(self.rate);
        let window = self.burst.div_ceil(self.rate);
        for (name, text) in [
            ("ratelimit-policy", format!("\"key\";q={};w={window}", self.burst)),
            ("ratelimit", format!("\"key\";r={};t={refill}", self.remaining)),
        ] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_make_its_burst_and_then_waits_and_others_are_not_affected() {
        let rates = Rates::new(NonZeroU32::new(1).unwrap(), NonZeroU32::new(3).unwrap());
        let left: Vec<u32> = (0..3).map(|_| rates.take("a").unwrap().remaining).collect();
        assert_eq!(left, [2, 1, 0]);
        let exceeded = rates.take("a").unwrap_err();
        assert!(exceeded.wait > Duration::ZERO && exceeded.wait <= Duration::from_secs(1));
        assert_eq!(rates.take("b").unwrap().remaining, 2);
        assert!(rates.check("a").unwrap_err().wait <= exceeded.wait);
        for _ in 0..10 {
            assert_eq!(rates.check("b"), Ok(()));
        }
        assert_eq!(rates.take("b").unwrap().remaining, 1);
        let mut headers = HeaderMap::new();
        exceeded.allowance.write(&mut headers);
        assert_eq!(headers["ratelimit"], "\"key\";r=0;t=3");
        assert_eq!(headers["ratelimit-policy"], "\"key\";q=3;w=3");
    }
}
