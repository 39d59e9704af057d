//! Finds valid JSON that cannot be stored.
//!
//! serde_json checks some of these limits only for values that it builds, and reports others as
//! syntax errors. A text that passes here can be stored as PostgreSQL's `json`, and every parser reads
//! the same members from it. Numbers have no limits here: PostgreSQL stores their text, and a field that is
//! read as a number has its own range. For text that is not JSON the result is meaningless: the caller
//! reports the syntax error instead.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr;

use super::members::{Member, string};
use super::tokens::tokens;

/// The deepest nesting that is accepted: the limit of serde_json, which all readers use.
pub(crate) const MAX_DEPTH: usize = 127;

/// A value that cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What is wrong with it.
    pub(crate) kind: FaultKind,
    /// The offset in bytes of the escape or bracket; of a repeated name, within that name.
    pub(crate) at: usize,
}

/// What is wrong with a value that cannot be stored; printed with the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// U+0000 in a text.
    Nul,
    /// Half of a surrogate pair in a text.
    Surrogate,
    /// A second member of the same name in one object: parsers differ in which of them they read.
    Repeated,
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
            Self::Repeated => f.write_str("occurs twice; send it once"),
            Self::Depth => {
                write!(f, "is nested deeper than {MAX_DEPTH} levels; send it with fewer levels")
            }
        }
    }
}

/// The first fault of a JSON text.
pub(crate) fn first_fault(text: &str) -> Option<Fault> {
    fault_within(text, 0, &mut Names::default(), string_fault)
}

/// Whether a text that is one object with these members has no fault. Faster than [`first_fault`],
/// because most members are strings, and a valid text has backslashes only in strings.
pub(crate) fn is_storable(text: &str, members: &[Member<'_>]) -> bool {
    let mut names = Names::default();
    string_fault(text).is_none()
        && !has_equal_names(members)
        && members.iter().all(|(_, value)| {
            // The strings were searched in the whole text, which is faster than one by one.
            value.starts_with('"') || fault_within(value, 1, &mut names, |_| None).is_none()
        })
}

fn has_equal_names(members: &[Member<'_>]) -> bool {
    if members.len() <= FEW {
        let repeats = |n: usize| members[..n].iter().any(|(earlier, _)| *earlier == members[n].0);
        return (1..members.len()).any(repeats);
    }
    let mut names: Vec<&str> = members.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// The first fault of a value that is inside of `depth` objects and arrays. `string_fault` finds that of a string.
fn fault_within<'a>(
    text: &'a str,
    depth: usize,
    names: &mut Names<'a>,
    string_fault: impl Fn(&str) -> Option<(FaultKind, usize)>,
) -> Option<Fault> {
    // For each open object the number of names before its own; `None` for an array.
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut expects_name = false;
    for token in tokens(text) {
        let fault = match token.first() {
            b'"' => {
                let is_name = std::mem::take(&mut expects_name);
                let object = open.last().copied().flatten().filter(|_| is_name);
                // Its path is found from an offset within the name.
                let add = |start| names.add(start, string(token.text)?, token.at + 1);
                string_fault(token.text)
                    .map(|(kind, offset)| (kind, token.at + offset))
                    .or_else(|| object.and_then(add).map(repeated))
            }
            bracket @ (b'{' | b'[') => {
                expects_name = bracket == b'{';
                open.push(expects_name.then_some(names.0.len()));
                (depth + open.len() > MAX_DEPTH).then_some((FaultKind::Depth, token.at))
            }
            b'}' | b']' => {
                expects_name = false;
                open.pop().flatten().and_then(|start| names.end(start)).map(repeated)
            }
            b',' => {
                expects_name = matches!(open.last(), Some(Some(_)));
                None
            }
            _ => None,
        };
        if let Some((kind, at)) = fault {
            return Some(Fault { kind, at });
        }
    }
    None
}

fn repeated(at: usize) -> (FaultKind, usize) {
    (FaultKind::Repeated, at)
}

/// The names in the objects that are open, those of the innermost object last, each with its offset.
#[derive(Default)]
struct Names<'a>(Vec<(Cow<'a, str>, usize)>);

/// Up to this number of members, each name is compared with the earlier ones: faster than sorting them.
const FEW: usize = 32;

impl<'a> Names<'a> {
    /// Adds a name to the innermost object, whose own names begin at `start`. Returns the offset if an earlier
    /// one is equal; in a large object that is found at its [end](Self::end).
    fn add(&mut self, start: usize, name: Cow<'a, str>, at: usize) -> Option<usize> {
        let own = &self.0[start..];
        let is_repeated = own.len() < FEW && own.iter().any(|(earlier, _)| *earlier == name);
        self.0.push((name, at));
        is_repeated.then_some(at)
    }

    /// Ends the innermost object, whose own names begin at `start`. Returns the offset of the first name that
    /// repeats another.
    fn end(&mut self, start: usize) -> Option<usize> {
        let own = &mut self.0[start..];
        let mut first = None;
        if own.len() > FEW {
            own.sort_unstable();
            let equal = own.windows(2).filter(|pair| pair[0].0 == pair[1].0);
            first = equal.map(|pair| pair[1].1).min();
        }
        self.0.truncate(start);
        first
    }
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

/// The first word that programs write for a number that JSON does not have, with its offset. JSON has no such word, so
/// the text is not JSON.
pub(crate) fn not_a_number(text: &str) -> Option<(usize, &str)> {
    tokens(text).find(|token| is_no_number(token.text)).map(|token| (token.at, token.text))
}

fn is_no_number(word: &str) -> bool {
    matches!(word, "NaN" | "Infinity" | "-Infinity")
}

/// A JSON text with each U+0000 and each half of a surrogate pair replaced by a text, and each `NaN`, `Infinity` and
/// `-Infinity` by null.
#[must_use]
pub fn replace_unstorable(text: &str, replacement: &str) -> String {
    /// The bytes of an escape such as `\u0000`.
    const ESCAPE: usize = 6;
    let quoted = serde_json::Value::from(replacement).to_string();
    let written = &quoted[1..quoted.len() - 1];
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for token in tokens(text) {
        out.push_str(&text[copied..token.at]);
        copied = token.at + token.text.len();
        let mut rest = if is_no_number(token.text) { "null" } else { token.text };
        while let Some((_, at)) = string_fault(rest) {
            out.push_str(&rest[..at]);
            out.push_str(written);
            rest = &rest[at + ESCAPE..];
        }
        out.push_str(rest);
    }
    out.push_str(&text[copied..]);
    // Where it is not even escaped, the text is not JSON.
    out.replace('\0', written)
}

/// The UTF-16 unit of the escape at `at`, such as `\u00e9`; `None` if there is none.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    escape.iter().try_fold(0_u16, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
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
            (r#"{"a":1,"b":2,"a":3}"#, FaultKind::Repeated, "a"),
            (r#"{"m":[{"a":"a","b":{"a":[]},"a":{}}]}"#, FaultKind::Repeated, "m[0].a"),
            (r#"{"m":{"a":1,"\u0061":2}}"#, FaultKind::Repeated, r"m.\u0061"),
            (r#"{"m":{"\u00e9":1,"é":2}}"#, FaultKind::Repeated, "m.é"),
        ];
        for (text, kind, path) in cases {
            assert_eq!(fault(text), Some((kind, path.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_can_be_stored_is_no_fault() {
        for text in [
            r#"{"a":"\\u0000","b":"\u0001","c":"\ud83d\ude00","d":"\u00e9\n\"\\"}"#,
            r#"{"a":[9223372036854775808,-123456789012345678901234567890,1e999,1e-999,-0,0.1]}"#,
            r#"{"a":{"a":{"a":"a"}},"b":[{"a":1},{"a":1}],"c":["a","a",{}],"A":"c"}"#,
        ] {
            assert_eq!(fault(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_that_occurs_twice_is_found_however_many_members_the_object_has() {
        for members in [2, FEW, FEW + 1, FEW + 2, 1_000, 100_000] {
            let object = |last: usize| {
                let names = (1..members).chain([last]).map(|n| format!("\"n{n}\":0"));
                format!("{{\"m\":{{{}}}}}", names.collect::<Vec<_>>().join(","))
            };
            assert_eq!(fault(&object(members)), None, "{members}");
            let first = Some((FaultKind::Repeated, "m.n1".to_owned()));
            assert_eq!(fault(&object(1)), first, "{members}");
        }
    }

    #[test]
    fn what_cannot_be_stored_is_replaced_and_nothing_else_is_changed() {
        let text = r#" { "NaN" : [NaN ,-Infinity,"NaN","a\u0000b\ud83d" ],"\ud800":Infinity, "é":"\ud83d\ude00" } "#;
        let replaced = r#" { "NaN" : [null ,null,"NaN","a?b?" ],"?":null, "é":"\ud83d\ude00" } "#;
        assert_eq!(replace_unstorable(text, "?"), replaced);
        assert_eq!(not_a_number(text), Some((text.find("NaN ").unwrap(), "NaN")));
        assert_eq!(not_a_number(replaced), None);
    }

    #[test]
    fn nesting_is_legal_up_to_the_limit() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(fault(&nested(MAX_DEPTH)), None);
        assert!(serde_json::from_str::<serde_json::Value>(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(fault(&nested(MAX_DEPTH + 1)).map(|(kind, _)| kind), Some(FaultKind::Depth));
    }
}
