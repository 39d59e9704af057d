//! How many requests a key may make of this replica.
//!
//! Each replica counts for itself: with three replicas a key may make three times as many. The answers say what is left
//! (draft-ietf-httpapi-ratelimit-headers-10).

use std::num::NonZeroU32;
use std::time::Duration;

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
        Self { limiter, clock: DefaultClock::default(), rate: rate.get(), burst: burst.get() }
    }

    /// Counts a request of this key.
    pub(crate) fn take(&self, key: &str) -> Result<Allowance, Exceeded> {
        let allowance = |remaining| Allowance { remaining, rate: self.rate, burst: self.burst };
        match self.limiter.check_key(&key.to_owned()) {
            Ok(state) => Ok(allowance(state.remaining_burst_capacity())),
            Err(refused) => Err(Exceeded {
                wait: refused.wait_time_from(self.clock.now()),
                allowance: allowance(0),
            }),
        }
    }

    /// Forgets keys that made no request lately.
    pub(crate) fn forget_idle(&self) {
        self.limiter.retain_recent();
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
        let mut headers = HeaderMap::new();
        exceeded.allowance.write(&mut headers);
        assert_eq!(headers["ratelimit"], "\"key\";r=0;t=3");
        assert_eq!(headers["ratelimit-policy"], "\"key\";q=3;w=3");
    }
}
