//! What a body is that is no JSON object in UTF-8: the mistakes of publishers that can be recognised. The refusal
//! names the mistake and the remedy.

use std::fmt;

use serde_json::value::RawValue;

use crate::failure::Hint;
use crate::json::members;

/// What a body is instead of a JSON object in UTF-8. Printed as a sentence with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BodyFormat<'a> {
    /// Compressed by this method.
    Compressed(&'static str),
    /// Text in this encoding, with or without a byte order mark.
    Unicode(&'static str),
    /// Text in UTF-8 behind a byte order mark.
    ByteOrderMark,
    /// In the encoding that the AMQP property `content_encoding` names.
    Encoded(&'a str),
    /// The fields of a form of the Web, such as those of a webhook.
    Form,
    /// A task of Celery: its arguments, its named arguments, and what Celery adds.
    CeleryTask,
    /// Serialised by a program for its like, in this format.
    Serialised(&'static str),
}

/// The first bytes of compressed data: gzip (RFC 1952, 2.3.1), Zstandard (RFC 8878, 3.1.1), bzip2, xz, LZ4 frames.
const MAGIC: [(&[u8], &str); 5] = [
    (b"\x1F\x8B", "gzip"),
    (b"\x28\xB5\x2F\xFD", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xFD7zXZ\0", "xz"),
    (b"\x04\x22\x4D\x18", "lz4"),
];

/// Values of `content_encoding` that change nothing: names of UTF-8, which Celery and kombu send, and of no encoding.
const NO_ENCODING: [&str; 7] = ["", "utf-8", "utf8", "identity", "8bit", "binary", "us-ascii"];

impl<'a> BodyFormat<'a> {
    /// What a body is that could not be read. `None` if nothing is recognised.
    pub(super) fn of(body: &[u8], content_encoding: Option<&'a str>) -> Option<Self> {
        let magic = MAGIC.into_iter().find(|(magic, _)| body.starts_with(magic));
        if let Some((_, method)) = magic {
            return Some(Self::Compressed(method));
        }
        if is_zlib(body) {
            return Some(Self::Compressed("zlib"));
        }
        if let Some(encoding) = unicode(body) {
            return Some(Self::Unicode(encoding));
        }
        if body.starts_with(b"\xEF\xBB\xBF") {
            return Some(Self::ByteOrderMark);
        }
        let encoded = content_encoding
            .filter(|sent| !NO_ENCODING.iter().any(|none| sent.eq_ignore_ascii_case(none)));
        encoded
            .map(Self::Encoded)
            .or_else(|| is_form(body).then_some(Self::Form))
            .or_else(|| is_celery_task(body).then_some(Self::CeleryTask))
            .or_else(|| serialised(body).map(Self::Serialised))
    }

    /// The correction that an operator can make in a dead letter, if there is one.
    pub(super) fn hint(&self) -> Option<Hint> {
        match self {
            Self::ByteOrderMark => Some(Hint::ToUtf8),
            Self::Unicode(encoding) => (*encoding != UTF_32).then_some(Hint::ToUtf8),
            Self::Compressed(_)
            | Self::Encoded(_)
            | Self::Form
            | Self::CeleryTask
            | Self::Serialised(_) => None,
        }
    }
}

impl fmt::Display for BodyFormat<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compressed(method) => write!(
                f,
                "the body is compressed ({method}); publish it uncompressed, as one JSON object in UTF-8"
            ),
            Self::Unicode(encoding) => {
                write!(f, "the body is {encoding} text; publish it in UTF-8")
            }
            Self::ByteOrderMark => {
                f.write_str("the body begins with a byte order mark; send UTF-8 without it")
            }
            Self::Encoded(encoding) => write!(
                f,
                "the body is no JSON object, and its content_encoding is {encoding:?}; publish it without an \
                 encoding, as one JSON object in UTF-8"
            ),
            Self::Form => f.write_str(
                "the body is form data (name=value&name=value); publish an action as one JSON object in UTF-8",
            ),
            Self::CeleryTask => f.write_str(
                "the body is that of a Celery task ([args, kwargs, embed]); publish the action itself as the \
                 body, with a client such as kombu or pika and without calling a task",
            ),
            Self::Serialised(format) => {
                write!(f, "the body is {format}; publish it as one JSON object in UTF-8")
            }
        }
    }
}

/// The usual headers of zlib (RFC 1950, 2.2). The second one is readable text, too.
fn is_zlib(body: &[u8]) -> bool {
    match body {
        [0x78, 0x01 | 0x9C | 0xDA, ..] => true,
        [0x78, 0x5E, ..] => std::str::from_utf8(body).is_err(),
        _ => false,
    }
}

const UTF_32: &str = "UTF-32";

/// Python's pickle from protocol 2 on, which begins with PROTO and ends with STOP (CPython, `Lib/pickletools.py`), and a
/// map of MessagePack (its specification, "map format family").
fn serialised(body: &[u8]) -> Option<&'static str> {
    match body {
        [0x80, 2..=5, .., b'.'] => Some("a Python pickle"),
        [0x81..=0x8F | 0xDE | 0xDF, _, ..] if std::str::from_utf8(body).is_err() => {
            Some("MessagePack")
        }
        _ => None,
    }
}

/// The encoding of a text that is not UTF-8: by its byte order mark, else by the zeros beside its first character
/// (RFC 4627, 3).
fn unicode(body: &[u8]) -> Option<&'static str> {
    let begins_json = |byte: &u8| b"{[\" \t\r\n".contains(byte);
    match body {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => Some(UTF_32),
        [0xFF, 0xFE, ..] => Some("UTF-16 (little-endian)"),
        [0xFE, 0xFF, ..] => Some("UTF-16 (big-endian)"),
        [first, 0, 0, 0, ..] | [0, 0, 0, first, ..] if begins_json(first) => Some(UTF_32),
        [first, 0, ..] if begins_json(first) => Some("UTF-16 (little-endian)"),
        [0, first, ..] if begins_json(first) => Some("UTF-16 (big-endian)"),
        _ => None,
    }
}

/// Whether a body is form data (URL Standard, `application/x-www-form-urlencoded`).
fn is_form(body: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"*-._+%[]".contains(byte);
    let is_pair = |pair: &[u8]| {
        let mut sides = pair.splitn(2, |byte| *byte == b'=');
        let side =
            |side: Option<&[u8]>| side.map(|side| (!side.is_empty(), side.iter().all(is_plain)));
        (side(sides.next()), side(sides.next()))
    };
    let mut pairs = body.split(|byte| *byte == b'&').map(is_pair).peekable();
    // "YQ==", a text in base64, is none.
    let has_a_value = matches!(pairs.peek(), Some((_, Some((true, true)))));
    has_a_value && pairs.all(|pair| matches!(pair, (Some((true, true)), Some((_, true)))))
}

/// Whether a body is a message of Celery's protocol 2: a list of arguments, an object of named arguments, and an
/// object with the fields of a workflow
/// (<https://docs.celeryq.dev/en/stable/internals/protocol.html#version-2>).
fn is_celery_task(body: &[u8]) -> bool {
    let Ok([args, kwargs, embed]) = serde_json::from_slice::<[&RawValue; 3]>(body) else {
        return false;
    };
    let embedded = members(embed.get()).unwrap_or_default();
    let has = |wanted: &str| embedded.iter().any(|(name, _)| name == wanted);
    let starts_with = |value: &RawValue, bracket: char| value.get().starts_with(bracket);
    starts_with(args, '[') && starts_with(kwargs, '{') && has("callbacks") && has("errbacks")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &[u8], content_encoding: Option<&str>) -> Option<String> {
        BodyFormat::of(body, content_encoding).map(|format| format.to_string())
    }

    #[test]
    fn a_mistake_is_named_by_the_first_bytes_or_by_the_content_encoding() {
        let utf16 = |text: &str, unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(unit).collect()
        };
        let utf32: Vec<u8> = "{}".chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
        let celery =
            br#"[[{"a":1}], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#;
        for (body, content_encoding, words) in [
            (&b"\x1f\x8b\x08\0"[..], None, "compressed (gzip)"),
            (b"\x28\xb5\x2f\xfd\x04", None, "compressed (zstd)"),
            (b"\x78\x9c\xab", None, "compressed (zlib)"),
            (b"\x78\x5e\xab", None, "compressed (zlib)"),
            (b"\x78\x01", Some("deflate"), "compressed (zlib)"),
            (b"BZh91AY", None, "compressed (bzip2)"),
            (&utf16("{\"a\":1}", u16::to_le_bytes), None, "UTF-16 (little-endian)"),
            (&utf16(" {\"a\":1}", u16::to_be_bytes), None, "UTF-16 (big-endian)"),
            (&utf16("\u{feff}ñ", u16::to_le_bytes), None, "UTF-16 (little-endian)"),
            (&utf16("\u{feff}ñ", u16::to_be_bytes), None, "UTF-16 (big-endian)"),
            (&utf32, None, "UTF-32"),
            (b"\xef\xbb\xbf{}", Some("utf-8"), "begins with a byte order mark"),
            (b"\x0b\x02", Some("br"), "content_encoding is \"br\""),
            (b"\x1f\x8b", Some("identity"), "compressed (gzip)"),
            (celery, Some("utf-8"), "Celery task"),
            (b"Body=hi&From=%2B15550001&Empty=", None, "form data"),
            (
                b"\x80\x04\x95\x0f\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s.",
                Some("binary"),
                "a Python pickle",
            ),
            (b"\x82\xa1a\x01\xa1b\x02", None, "MessagePack"),
        ] {
            let said = said(body, content_encoding).unwrap_or_default();
            assert!(said.contains(words), "{body:?}: {said}");
        }
    }

    #[test]
    fn only_what_an_operator_can_correct_has_a_hint() {
        let hint = |body: &[u8]| BodyFormat::of(body, None).and_then(|format| format.hint());
        for body in [&b"\xef\xbb\xbf{}"[..], b"{\0}\0", b"\0{\0}"] {
            assert_eq!(hint(body), Some(Hint::ToUtf8), "{body:?}");
        }
        for body in [&b"\0\0\0{\0\0\0}"[..], b"\xff\xfe\0\0", b"\x1f\x8b", b"\x82\xa1a\x01"] {
            assert_eq!(hint(body), None, "{body:?}");
        }
    }

    #[test]
    fn other_bodies_are_named_nothing() {
        for body in [
            &b""[..],
            b"hello",
            b"x^2",
            b"aGk=",
            b"YQ==",
            b"a=b=c",
            b"a = b",
            b"[]",
            b"[[],{},{}]",
            b"[1,2,3]",
            b"\xff",
            b"\0",
        ] {
            assert_eq!(said(body, Some("UTF-8")), None, "{body:?}");
        }
    }
}
