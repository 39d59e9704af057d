//! The system's clock, as the [`Clock`] value that the libraries take.

use std::time::{SystemTime, UNIX_EPOCH};

use domain::clock::Clock;
use domain::time::Timestamp;

/// The system's clock in microseconds. If it is set to a time before 1970 or after 2199 it reads 1970
/// instead of panicking.
#[must_use]
pub fn system() -> Clock {
    Clock::new(|| read().unwrap_or(Timestamp::EARLIEST))
}

#[expect(
    clippy::disallowed_methods,
    reason = "domain::clock::Clock, the replacement of the disallowed method, is built here"
)]
fn read() -> Option<Timestamp> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Timestamp::from_micros(i64::try_from(since.as_micros()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_reads_a_time_after_2025_began() {
        let year_2025 = Timestamp::parse("2025-01-01T00:00:00Z").expect("valid");
        assert!(system().now() > year_2025);
    }
}
