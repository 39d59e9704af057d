//! Finds valid JSON that cannot be stored.
//!
//! serde_json checks some of these limits only for values that it builds, and reports others as
//! syntax errors. A text that passes here can be stored as PostgreSQL's `json` and read by any
//! parser; its numbers fit a double or an i64. For text that is not JSON the result is meaningless:
//! the caller reports the syntax error instead.

use std::fmt;

use memchr::memchr2;

/// The deepest nesting that is accepted: the limit of serde_json, which all readers use.
pub(crate) const MAX_DEPTH: usize = 127;

/// A value that cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    /// The offset in bytes of the escape, number or bracket.
    pub(super) at: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultKind {
    Nul,
    Surrogate,
    Integer,
    Number,
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
pub(super) fn first_fault(text: &str) -> Option<Fault> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut depth = 0_usize;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => match string_fault(bytes, at) {
                Ok(end) => at = end,
                Err(fault) => return Some(fault),
            },
            b'-' | b'0'..=b'9' => {
                let end = number_end(bytes, at);
                if let Some(kind) = number_fault(&text[at..end]) {
                    return Some(Fault { kind, at });
                }
                at = end;
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(Fault { kind: FaultKind::Depth, at });
                }
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    None
}

/// The path to an offset in a JSON text, such as `metadata.a[3].b`. For an offset within a key the
/// path ends with that key, as it is written.
pub(super) fn path_to(text: &str, offset: usize) -> String {
    enum Frame<'a> {
        Object { key: &'a str, expects_key: bool },
        Array { index: usize },
    }
    let bytes = text.as_bytes();
    let mut stack: Vec<Frame<'_>> = Vec::new();
    let mut at = 0;
    while at < offset {
        match bytes[at] {
            b'"' => {
                let end = string_end(bytes, at);
                if let Some(Frame::Object { key, expects_key: expects_key @ true }) =
                    stack.last_mut()
                {
                    *key = text[at + 1..end].trim_end_matches('"');
                    *expects_key = false;
                }
                at = end;
                continue;
            }
            b'{' => stack.push(Frame::Object { key: "", expects_key: true }),
            b'[' => stack.push(Frame::Array { index: 0 }),
            b'}' | b']' => drop(stack.pop()),
            b',' => match stack.last_mut() {
                Some(Frame::Object { expects_key, .. }) => *expects_key = true,
                Some(Frame::Array { index }) => *index += 1,
                None => {}
            },
            _ => {}
        }
        at += 1;
    }
    let mut path = String::new();
    for frame in &stack {
        match frame {
            Frame::Object { key, .. } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Frame::Array { index } => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

/// The end of the string that begins at `start`, behind its closing quote.
pub(crate) fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(skip) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += skip;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// The end of the number that begins at `start`.
pub(crate) fn number_end(bytes: &[u8], start: usize) -> usize {
    let part = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    bytes[start..].iter().position(|b| !part(b)).map_or(bytes.len(), |len| start + len)
}

/// Like [`string_end`], but fails at an escape that is not a character or cannot be stored.
fn string_fault(bytes: &[u8], start: usize) -> Result<usize, Fault> {
    let mut at = start + 1;
    while let Some(skip) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += skip;
        if bytes[at] == b'"' {
            return Ok(at + 1);
        }
        let fault = |kind| Err(Fault { kind, at });
        match unit(bytes, at) {
            Some(0) => return fault(FaultKind::Nul),
            Some(0xD800..=0xDBFF) => match unit(bytes, at + 6) {
                Some(0xDC00..=0xDFFF) => at += 12,
                _ => return fault(FaultKind::Surrogate),
            },
            Some(0xDC00..=0xDFFF) => return fault(FaultKind::Surrogate),
            _ => at += 2,
        }
    }
    Ok(bytes.len())
}

/// The UTF-16 unit of the escape at `at`, such as `\u00e9`; `None` if there is none.
pub(super) fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    escape.iter().try_fold(0_u16, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

/// Why a number cannot be stored; `None` if it can.
pub(super) fn number_fault(token: &str) -> Option<FaultKind> {
    if token.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        // 18 digits and a sign always fit.
        let digits = token.strip_prefix('-').unwrap_or(token);
        let too_large = digits.len() > 18
            && digits.bytes().all(|b| b.is_ascii_digit())
            && token.parse::<i64>().is_err();
        return too_large.then_some(FaultKind::Integer);
    }
    token.parse::<f64>().is_ok_and(f64::is_infinite).then_some(FaultKind::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn text_that_is_not_json_causes_no_panic() {
        for text in ["\"", "\"\\", "\"\\u", "\"\\ud800", "\"\\ud800\\", "-", "}]", "1e", "\"é\\"] {
            if let Some(fault) = first_fault(text) {
                path_to(text, fault.at);
            }
        }
    }
}
