//! Times in text: how long ago, or the moment in UTC. JSON has RFC 3339 instead.

use chrono::{DateTime, Utc};
use domain::time::Timestamp;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// How long ago a moment was; its date if that is more than a day. A moment in the future (clocks
/// differ) is shown as it is.
pub(crate) fn ago(then: DateTime<Utc>, now: Timestamp) -> String {
    let passed = now.micros() - then.timestamp_micros();
    match passed {
        _ if passed <= -SECOND => moment(then),
        _ if passed < SECOND => "now".to_owned(),
        _ if passed < MINUTE => format!("{} s ago", passed / SECOND),
        _ if passed < HOUR => format!("{} min ago", passed / MINUTE),
        _ if passed < DAY => format!("{} h ago", passed / HOUR),
        _ => then.format("%Y-%m-%d").to_string(),
    }
}

/// A moment to the second, in UTC.
pub(crate) fn moment(then: DateTime<Utc>) -> String {
    then.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A moment to the millisecond, in UTC, without the zone: for lists whose heading names it.
pub(crate) fn precise(then: DateTime<Utc>) -> String {
    then.format("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// A duration in its two largest units.
pub(crate) fn span(seconds: f64) -> String {
    // NaN, negative and more than ten thousand years count as 0.
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
    let whole = if (0.0..3e11).contains(&seconds) { seconds.round() as i64 } else { 0 };
    match whole {
        ..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3_600 => two((whole / 60, "min"), (whole % 60, "s")),
        3_600..86_400 => two((whole / 3_600, "h"), (whole % 3_600 / 60, "min")),
        _ => two((whole / 86_400, "d"), (whole % 86_400 / 3_600, "h")),
    }
}

/// A value in two units; the smaller one is omitted if it is 0.
fn two((large, large_unit): (i64, &str), (small, small_unit): (i64, &str)) -> String {
    match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        Timestamp::parse(text).unwrap().into()
    }

    #[test]
    fn a_moment_is_shown_as_time_ago_or_as_a_date() {
        let now = Timestamp::parse("2026-11-20T12:00:00Z").unwrap();
        for (then, expected) in [
            ("2026-11-20T12:00:00.9Z", "now"),
            ("2026-11-20T11:59:48Z", "12 s ago"),
            ("2026-11-20T11:57:00Z", "3 min ago"),
            ("2026-11-20T09:59:00Z", "2 h ago"),
            ("2026-11-18T09:59:00Z", "2026-11-18"),
            ("2026-11-20T12:01:00Z", "2026-11-20 12:01:00 UTC"),
        ] {
            assert_eq!(ago(at(then), now), expected);
        }
        assert_eq!(precise(at("2026-11-20T12:01:00.2509Z")), "2026-11-20 12:01:00.250");
    }

    #[test]
    fn a_duration_has_its_two_largest_units() {
        for (seconds, expected) in [
            (0.0, "0.0 s"),
            (1.26, "1.3 s"),
            (59.2, "59 s"),
            (245.0, "4 min 5 s"),
            (300.0, "5 min"),
            (7_260.0, "2 h 1 min"),
            (180_000.0, "2 d 2 h"),
        ] {
            assert_eq!(span(seconds), expected);
        }
    }
}
