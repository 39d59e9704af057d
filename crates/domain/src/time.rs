//! Time as it is stored: whole microseconds since 1970, UTC.
//!
//! PostgreSQL's `timestamptz` has microseconds. A Redis score is a double, which holds every
//! microsecond up to the year 2200 exactly. So a valid time is equal in both.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment between 1970 and 2200, in whole microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 2200-01-01T00:00:00Z in microseconds: the end of the range, not included.
const END: i64 = 7_258_118_400_000_000;

/// Why a text or number is not a timestamp.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTimestamp {
    /// The text is not RFC 3339.
    #[error("is not an RFC 3339 date and time such as 2026-01-31T09:30:00.250Z: {0:?}")]
    Format(String),
    /// The time is before 1970 or after 2199.
    #[error("is outside of the years 1970 to 2199: {0}")]
    Range(String),
}

/// A valid time in the form that most agents send: `2026-01-31T09:30:00Z`, with up to six digits of a fraction. Everything
/// else is left to chrono. It saves a hundredth of the instructions of a saved message (`cargo xtask bench save`).
fn usual(text: &[u8]) -> Option<Timestamp> {
    let (date_and_time, rest) = text.split_at_checked(19)?;
    let fraction = match rest {
        b"Z" => &[][..],
        [b'.', digits @ .., b'Z'] if (1..=6).contains(&digits.len()) => digits,
        _ => return None,
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.into_iter().any(|(at, byte)| date_and_time[at] != byte) {
        return None;
    }
    let number = |digits: &[u8]| {
        let digit = |byte: &u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
        digits.iter().try_fold(0, |number, byte| Some(number * 10 + digit(byte)?))
    };
    let part = |range: std::ops::Range<usize>| number(&date_and_time[range]);
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // The number of days since 1970: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let since_0000 = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    let seconds = ((since_0000 - 719_468) * 24 + hour) * 3_600 + minute * 60 + second;
    let micros = fraction.iter().chain(b"000000").take(6);
    let micros = micros.fold(0, |micros, byte| micros * 10 + i64::from(byte & 0x0f));
    // A digit of the fraction that is none is not read as one.
    number(fraction)?;
    Timestamp::from_micros(seconds * 1_000_000 + micros).ok()
}

impl Timestamp {
    /// The earliest valid time.
    pub const EARLIEST: Self = Self(0);
    /// The latest valid time.
    pub const LATEST: Self = Self(END - 1);

    /// A time in microseconds since 1970.
    pub fn from_micros(micros: i64) -> Result<Self, InvalidTimestamp> {
        if (0..END).contains(&micros) {
            Ok(Self(micros))
        } else {
            Err(InvalidTimestamp::Range(format!("{micros} µs")))
        }
    }

    /// A time in seconds since 1970, the unit of AMQP's `timestamp` property.
    pub fn from_seconds(seconds: u64) -> Result<Self, InvalidTimestamp> {
        let range = || InvalidTimestamp::Range(format!("{seconds} s"));
        let micros = i64::try_from(seconds).ok().and_then(|s| s.checked_mul(1_000_000));
        Self::from_micros(micros.ok_or_else(range)?).map_err(|_| range())
    }

    /// A time within a second, so many microseconds after its start.
    pub fn in_second(seconds: u64, micros: u32) -> Result<Self, InvalidTimestamp> {
        Self::from_micros(Self::from_seconds(seconds)?.0 + i64::from(micros))
    }

    /// Parses RFC 3339. A text without an offset is UTC; digits after the microseconds are cut off. The seconds may be
    /// absent, a space may stand before the offset, and the offset may be written without a colon or minutes.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        usual(text.as_bytes()).map_or_else(|| Self::parse_any(text), Ok)
    }

    fn parse_any(text: &str) -> Result<Self, InvalidTimestamp> {
        // chrono also takes U+2212, the typographic minus, before an offset; the published schemas do not.
        if !text.is_ascii() {
            return Err(InvalidTimestamp::Format(excerpt(text)));
        }
        let moment = DateTime::parse_from_rfc3339(text)
            .ok()
            .or_else(|| DateTime::parse_from_rfc3339(&complete(text)?).ok())
            .ok_or_else(|| InvalidTimestamp::Format(excerpt(text)))?
            .to_utc();
        Self::try_from(moment).map_err(|_| InvalidTimestamp::Range(excerpt(text)))
    }

    /// The time so many microseconds later, but none after the latest one.
    #[must_use]
    pub fn later_by(self, micros: usize) -> Self {
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros).min(END - 1))
    }

    /// The time so many microseconds earlier, but none before 1970.
    #[must_use]
    pub fn earlier_by(self, micros: usize) -> Self {
        Self(self.0.saturating_sub(i64::try_from(micros).unwrap_or(i64::MAX)).max(0))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Its second, counted since 1970.
    #[must_use]
    pub fn second(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }
}

/// A time with what RFC 3339 demands and its senders leave out: the seconds, the offset, the colon of the offset.
fn complete(text: &str) -> Option<String> {
    // Date and separator.
    let (start, rest) = text.split_at_checked(11)?;
    let (time, offset) = rest.split_at(rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len()));
    let time = if offset.is_empty() { time } else { time.strip_suffix(' ').unwrap_or(time) };
    let seconds = if time.len() == "09:30".len() { ":00" } else { "" };
    let offset = match offset.split_at_checked(3) {
        Some((hours, minutes)) if minutes.len() == 2 => format!("{hours}:{minutes}"),
        Some((hours, "")) => format!("{hours}:00"),
        _ if offset.is_empty() => "Z".to_owned(),
        _ => offset.to_owned(),
    };
    Some([start, time, seconds, &offset].concat())
}

/// The time that a number of seconds, milliseconds, microseconds or nanoseconds since 1970 means, for a hint. The
/// number of its digits tells the unit: each unit has its own from 2001 to 2199.
pub(crate) fn since_1970(number: &str) -> Option<Timestamp> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    // The digits that are kept, and how many more make them microseconds.
    let (kept, more) = match whole.len() {
        9 | 10 => (whole, 6),
        12 | 13 => (whole, 3),
        15 | 16 => (whole, 0),
        18 | 19 => (&whole[..whole.len() - 3], 0),
        _ => return None,
    };
    // As digits, because a double would change the microseconds.
    let micros = kept.chars().chain(fraction.chars().chain("000000".chars()).take(more));
    Timestamp::from_micros(micros.collect::<String>().parse().ok()?).ok()
}

/// The part of a text that an error repeats: 40 characters, more than any date has.
fn excerpt(text: &str) -> String {
    crate::excerpt::excerpt(text, 40).into_owned()
}

impl TryFrom<DateTime<Utc>> for Timestamp {
    type Error = InvalidTimestamp;
    fn try_from(moment: DateTime<Utc>) -> Result<Self, InvalidTimestamp> {
        Self::from_micros(moment.timestamp_micros())
    }
}

impl From<Timestamp> for DateTime<Utc> {
    fn from(timestamp: Timestamp) -> Self {
        // Every value of the type is within chrono's range, which spans 262 000 years.
        DateTime::from_timestamp_micros(timestamp.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds, always 27 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&DateTime::<Utc>::from(*self).to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 string such as \"2026-01-31T09:30:00.250Z\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                Timestamp::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl schemars::JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // Those that are sent.
        if !generator.contract().is_deserialize() {
            return schemars::json_schema!({
                "type": "string",
                "pattern": concat!(
                    "^(19[7-9][0-9]|2[01][0-9]{2})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T",
                    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\\.[0-9]{6}Z$",
                ),
                "description": "RFC 3339 in UTC with microseconds, from 1970 to 2199.",
            });
        }
        schemars::json_schema!({
            "type": "string",
            // Not `"format": "date-time"`, which demands an offset. An offset may carry a time of 1969 or 2200 into
            // the range. The pattern does not know how many days a month has.
            "pattern": concat!(
                "^(1969|19[7-9][0-9]|2[01][0-9]{2}|2200)-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]",
                "([01][0-9]|2[0-3]):[0-5][0-9](:([0-5][0-9]|60)(\\.[0-9]+)?)?",
                "( ?([Zz]|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?))?$",
            ),
            "description": "RFC 3339, from 1970 to 2199. Without an offset it is UTC. Digits after the microseconds are cut \
                off. The seconds, and the colon and the minutes of the offset, may be absent.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_the_usual_form_is_the_one_that_chrono_reads() {
        let agrees = |text: &str| {
            if let Some(time) = usual(text.as_bytes()) {
                assert_eq!(Timestamp::parse_any(text), Ok(time), "{text}");
            }
        };
        for day in -2..84_010_i64 {
            let moment =
                DateTime::<Utc>::from_timestamp(day * 86_400 + 86_399 - day % 7, 0).unwrap();
            let text = moment.format("%Y-%m-%dT%H:%M:%SZ").to_string();
            agrees(&text);
            let is_in_range = Timestamp::parse_any(&text).is_ok();
            assert_eq!(usual(text.as_bytes()).is_some(), is_in_range, "{text}");
        }
        for text in
            ["2026-02-28T23:59:59.123456Z", "2100-03-01T00:00:00.5Z", "2000-12-31T10:20:30Z"]
        {
            assert!(usual(text.as_bytes()).is_some(), "{text}");
            for at in 0..text.len() {
                for byte in b' '..=b'~' {
                    let mut other = text.as_bytes().to_vec();
                    other[at] = byte;
                    agrees(std::str::from_utf8(&other).unwrap());
                }
                agrees(&text[..at]);
                agrees(&text[at..]);
                agrees(&format!("{}0{}", &text[..at], &text[at..]));
            }
        }
    }
}
