//! JSON numbers by their digits: without a double, which holds 15 digits and no number beyond 1.8e308.

/// A JSON number, exactly.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    /// Whether it is below 0.
    pub(super) negative: bool,
    /// Its digits, without zeros at either end. Empty for 0.
    pub(super) digits: String,
    /// The power of ten of the first digit: 2 for `150`, -1 for `0.25`.
    pub(super) exponent: i128,
}

impl Decimal {
    /// Reads a number as JSON writes it. `None` for other text, and for an exponent beyond 128 bits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let unsigned = mantissa.strip_prefix('-').unwrap_or(mantissa);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let digits = [whole, fraction].concat();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let significant = digits.trim_start_matches('0');
        let leading_zeros = digits.len() - significant.len();
        let first = i128::try_from(whole.len()).ok()? - 1 - i128::try_from(leading_zeros).ok()?;
        Some(Self {
            negative: mantissa.len() > unsigned.len() && !significant.is_empty(),
            exponent: exponent.parse::<i128>().ok()?.checked_add(first)?,
            digits: significant.trim_end_matches('0').to_owned(),
        })
    }

    /// The number in digits, if it is an integer of at most `most` of them.
    fn integer(&self, most: usize) -> Option<String> {
        if self.digits.is_empty() {
            return Some("0".to_owned());
        }
        let places = usize::try_from(self.exponent).ok().filter(|places| *places < most)? + 1;
        let has_fraction = self.digits.len() > places;
        let sign = if self.negative { "-" } else { "" };
        (!has_fraction).then(|| format!("{sign}{:0<places$}", self.digits))
    }
}

/// The integer of 64 bits that a JSON number is equal to: 4 for `4`, `4.0` and `40e-1`. `None` for every other
/// value.
pub(crate) fn integer(text: &str) -> Option<i64> {
    // An i64 has up to 19 digits.
    text.parse().ok().or_else(|| decimal_digits(text, 19)?.parse().ok())
}

/// The digits of a JSON number that is an integer of at most `most` of them, however it is written: `-1500` for
/// `-1.5e3`. `None` for every other value.
pub(crate) fn decimal_digits(text: &str, most: usize) -> Option<String> {
    Decimal::parse(text)?.integer(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_fraction_is_an_integer_however_it_is_written() {
        for (text, number) in [
            ("4", 4),
            ("4.0", 4),
            ("40e-1", 4),
            ("0.04E2", 4),
            ("1e2", 100),
            ("-0", 0),
            ("-0.0e5", 0),
            ("0e999999999999999999999", 0),
            ("-2.50e1", -25),
            ("9223372036854775807.0", i64::MAX),
            ("9.223372036854775807e18", i64::MAX),
            ("-9223372036854775808", i64::MIN),
            ("-9223372036854775808.000", i64::MIN),
            ("9007199254740993.0", 9_007_199_254_740_993),
        ] {
            assert_eq!(integer(text), Some(number), "{text}");
        }
    }

    #[test]
    fn an_integer_is_written_in_as_many_digits_as_are_allowed() {
        for (text, digits) in [
            ("-1001234567890", Some("-1001234567890")),
            ("1e3", Some("1000")),
            ("1e4", None),
            ("12340", None),
            ("-0.0", Some("0")),
            ("0.5", None),
            ("\"5\"", None),
        ] {
            let most = if text.starts_with("-1001") { 13 } else { 4 };
            assert_eq!(decimal_digits(text, most).as_deref(), digits, "{text}");
        }
    }

    #[test]
    fn every_other_value_is_no_integer() {
        for text in [
            "4.5",
            "1e-1",
            "9223372036854775808",
            "9223372036854775808.0",
            "1e19",
            "1e999",
            "1e99999999999999999999999999999999999999999",
            "-1e400",
            "\"4\"",
            "null",
            "true",
            "[4]",
            "",
            ".",
            "-",
        ] {
            assert_eq!(integer(text), None, "{text}");
        }
    }
}
