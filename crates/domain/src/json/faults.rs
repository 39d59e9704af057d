//! Finds valid JSON that cannot be stored.
//!
//! serde_json checks some of these limits only for values that it builds, and reports others as
//! syntax errors. A text that passes here can be stored as PostgreSQL's `json` and read by any
//! parser; its numbers fit a double or an i64. For text that is not JSON the result is meaningless:
//! the caller reports the syntax error instead.

use std::fmt;

use memchr::memchr;

use super::members::Member;
use super::tokens::tokens;

/// The deepest nesting that is accepted: the limit of serde_json, which all readers use.
pub(crate) const MAX_DEPTH: usize = 127;

/// A value that cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What is wrong with it.
    pub(crate) kind: FaultKind,
    /// The offset in bytes of the escape, number or bracket.
    pub(crate) at: usize,
}

/// What is wrong with a value that cannot be stored; printed with the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// U+0000 in a text.
    Nul,
    /// Half of a surrogate pair in a text.
    Surrogate,
    /// An integer of more than 64 bits.
    Integer,
    /// A number beyond the range of a double.
    Number,
    /// Nesting deeper than [`MAX_DEPTH`].
    Depth,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nul => f.write_str("contains U+0000, which PostgreSQL cannot store; remove it"),
            Self::Surrogate => f.write_str(
                "contains one half of a UTF-16 surrogate pair; send both halves or remove it",
            ),
            Self::Integer => f.write_str(
                "is an integer that does not fit into 64 bits; send one from -2^63 to 2^63 - 1",
            ),
            Self::Number => f.write_str(
                "is a number that does not fit into a double; send one from -1.7e308 to 1.7e308",
            ),
            Self::Depth => {
                write!(f, "is nested deeper than {MAX_DEPTH} levels; send it with fewer levels")
            }
        }
    }
}

/// The first fault of a JSON text.
pub(crate) fn first_fault(text: &str) -> Option<Fault> {
    fault_within(text, 0)
}

/// Whether a text that is one object with these members has no fault. Faster than [`first_fault`],
/// because most members are strings, and a valid text has backslashes only in strings.
pub(crate) fn is_storable(text: &str, members: &[Member<'_>]) -> bool {
    let is_storable = |value: &str| value.starts_with('"') || fault_within(value, 1).is_none();
    string_fault(text).is_none() && members.iter().all(|(_, value)| is_storable(value))
}

/// The first fault of a value at nesting level `depth`.
fn fault_within(text: &str, mut depth: usize) -> Option<Fault> {
    tokens(text).find_map(|token| {
        let (kind, offset) = match token.first() {
            b'"' => string_fault(token.text)?,
            b'-' | b'0'..=b'9' => (number_fault(token.text)?, 0),
            b'{' | b'[' => {
                depth += 1;
                (depth > MAX_DEPTH).then_some((FaultKind::Depth, 0))?
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                None?
            }
            _ => None?,
        };
        Some(Fault { kind, at: token.at + offset })
    })
}

/// The first escape that is not a character or cannot be stored, with its offset.
fn string_fault(token: &str) -> Option<(FaultKind, usize)> {
    let bytes = token.as_bytes();
    let mut at = 0;
    loop {
        at += memchr(b'\\', bytes.get(at..)?)?;
        at += match (unit(bytes, at), unit(bytes, at + 6)) {
            (Some(0), _) => return Some((FaultKind::Nul, at)),
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => return Some((FaultKind::Surrogate, at)),
            _ => 2,
        };
    }
}

/// The UTF-16 unit of the escape at `at`, such as `\u00e9`; `None` if there is none.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    escape.iter().try_fold(0_u16, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

/// Why a number cannot be stored; `None` if it can.
fn number_fault(token: &str) -> Option<FaultKind> {
    if token.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        // 18 digits and a sign always fit.
        let too_large = token.len() > 18 && token.parse::<i64>().is_err();
        return too_large.then_some(FaultKind::Integer);
    }
    token.parse::<f64>().is_ok_and(f64::is_infinite).then_some(FaultKind::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::path_to;

    fn fault(text: &str) -> Option<(FaultKind, String)> {
        first_fault(text).map(|fault| (fault.kind, path_to(text, fault.at)))
    }

    #[test]
    fn faults_are_found_and_named_by_path() {
        let cases = [
            (r#"{"a":"\u0000"}"#, FaultKind::Nul, "a"),
            (r#"{"a":{"b\u0000":1}}"#, FaultKind::Nul, r"a.b\u0000"),
            (r#"{"m":{"a":[0,"x",{},{"k":1,"b":"\ud800"}]}}"#, FaultKind::Surrogate, "m.a[3].b"),
            (r#"{"a":"\ud800A"}"#, FaultKind::Surrogate, "a"),
            (r#"{"a":"\udc00"}"#, FaultKind::Surrogate, "a"),
            (r#"{"a":[[1],[2,9223372036854775808]]}"#, FaultKind::Integer, "a[1][1]"),
            (r#"{"a":-9223372036854775809}"#, FaultKind::Integer, "a"),
            (r#"{"a":1,"b":1e999}"#, FaultKind::Number, "b"),
            (r#"{"a":"\\","b":-1e999}"#, FaultKind::Number, "b"),
        ];
        for (text, kind, path) in cases {
            assert_eq!(fault(text), Some((kind, path.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_can_be_stored_is_no_fault() {
        for text in [
            r#"{"a":"\\u0000","b":"\u0001","c":"\ud83d\ude00","d":"\u00e9\n\"\\"}"#,
            r#"{"a":[9223372036854775807,-9223372036854775808,1e308,1e-999,-0,0.1]}"#,
            r#"{"a":"1e999 99999999999999999999"}"#,
        ] {
            assert_eq!(fault(text), None, "{text}");
        }
    }

    #[test]
    fn nesting_is_legal_up_to_the_limit() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(fault(&nested(MAX_DEPTH)), None);
        assert!(serde_json::from_str::<serde_json::Value>(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(fault(&nested(MAX_DEPTH + 1)).map(|(kind, _)| kind), Some(FaultKind::Depth));
    }
}
