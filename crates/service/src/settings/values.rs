//! Parsers of durations, sizes and shares.

use std::time::Duration;

/// A duration such as `250ms`, `30s`, `5min` or `1h 30min`. A number needs its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    humantime::parse_duration(text).map_err(|_| {
        if text.parse::<f64>().is_ok() {
            format!("a duration needs a unit, such as {text}s or {text}ms")
        } else {
            "it is not a duration, such as 250ms, 30s, 5min or 1h".to_owned()
        }
    })
}

/// A duration of at least one millisecond: for intervals, for which 0 would be a busy loop.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_millis(1) {
        return Err("it must be at least 1ms".to_owned());
    }
    Ok(duration)
}

/// A share: 0.01 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(share) if (0.01..=1.0).contains(&share) => Ok(share),
        Ok(_) => Err("it must be 0.01 to 1".to_owned()),
        Err(_) => Err("it is not a number, such as 0.25 or 1".to_owned()),
    }
}

/// A size in bytes: `1048576`, `512KiB`, `64MiB` or `2GiB`.
pub fn bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: usize = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => {
            return Err(format!("unknown unit {other}; use B, KiB, MiB or GiB"));
        }
    };
    let number: usize = digits
        .trim_end()
        .parse()
        .map_err(|_| "it is not a size, such as 1048576, 512KiB or 64MiB".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "it is larger than this machine can address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("25s"), Ok(Duration::from_secs(25)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h 30min"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("30"), Err("a duration needs a unit, such as 30s or 30ms".to_owned()));
        assert!(duration("soon").is_err_and(|error| error.contains("not a duration")));
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn shares_are_0_01_to_1() {
        assert_eq!(share("0.25"), Ok(0.25));
        assert_eq!(share("1"), Ok(1.0));
        for text in ["0", "0.009", "-0.1", "1.01", "NaN"] {
            assert!(share(text).is_err_and(|error| error.contains("0.01 to 1")), "{text}");
        }
        assert!(share("25%").is_err_and(|error| error.contains("0.25")));
    }

    #[test]
    fn sizes_may_have_binary_units() {
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("1 KiB"), Ok(1024));
        assert!(bytes("64MB").is_err_and(|error| error.contains("MiB")));
        assert!(bytes("MiB").is_err());
        assert!(bytes("-1").is_err());
        assert!(bytes("99999999999GiB").is_err());
    }
}
