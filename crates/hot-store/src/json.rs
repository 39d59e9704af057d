//! Writes JSON objects: the same bytes as serde_json, with half of its instructions.
//!
//! Every saved message passes here. The expensive part is the search for characters to escape. This
//! code searches 32 bytes at once; most pieces of a text need no escape.

use domain::message::Json;
use serde::Serialize;

/// The number of bytes that are searched at once; the compiler makes a few vector instructions of
/// it.
const PIECE: usize = 32;

/// An object that is being written, field by field.
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// A field with a string, if there is one.
    pub(crate) fn text<'t>(&mut self, name: &'static str, text: impl Into<Option<&'t str>>) {
        if let Some(text) = text.into() {
            self.name(name);
            write_string(text, self.out);
        }
    }

    /// A field with JSON, byte for byte, if there is any.
    pub(crate) fn json(&mut self, name: &'static str, json: Option<&Json>) {
        if let Some(json) = json {
            self.name(name);
            self.out.extend_from_slice(json.as_str().as_bytes());
        }
    }

    /// A field with a number, if there is one.
    pub(crate) fn number<N: Serialize>(&mut self, name: &'static str, number: Option<N>) {
        if let Some(number) = number {
            self.name(name);
            #[expect(clippy::expect_used, reason = "a Vec takes every write and a number is JSON")]
            serde_json::to_writer(&mut *self.out, &number).expect("a number is JSON");
        }
    }

    pub(crate) fn end(self) {
        self.out.push(b'}');
    }

    /// Names are our own and need no escaping.
    fn name(&mut self, name: &'static str) {
        self.out.extend_from_slice(if self.first { b"\"" } else { b",\"" });
        self.first = false;
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// A text in quotes.
fn write_string(text: &str, out: &mut Vec<u8>) {
    let text = text.as_bytes();
    out.reserve(text.len() + 2);
    out.push(b'"');
    // Bytes before `copied` are written. Bytes from `copied` to `seen` need no escape.
    let (mut copied, mut seen) = (0, 0);
    while seen < text.len() {
        if text[seen..].first_chunk::<PIECE>().is_some_and(is_plain) {
            seen += PIECE;
            continue;
        }
        let end = text.len().min(seen + PIECE);
        while seen < end {
            if !is_plain(&[text[seen]]) {
                out.extend_from_slice(&text[copied..seen]);
                write_escape(text[seen], out);
                copied = seen + 1;
            }
            seen += 1;
        }
    }
    out.extend_from_slice(&text[copied..]);
    out.push(b'"');
}

/// Whether no byte needs an escape. Without an early exit, which would prevent vectorisation.
fn is_plain<const N: usize>(piece: &[u8; N]) -> bool {
    piece
        .iter()
        .fold(true, |plain, &byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'))
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        write_string(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_character_is_written_as_serde_json_writes_it_wherever_it_stands() {
        for character in ('\0'..='\u{ff}').chain(['\u{2028}', '😀']) {
            for (before, after) in [(0, 0), (1, 40), (31, 1), (32, 0), (33, 100), (63, 64)] {
                let text = format!("{}{character}{}", "x".repeat(before), "y".repeat(after));
                assert_eq!(written(&text), serde_json::to_string(&text).unwrap());
            }
        }
    }

    #[test]
    fn an_object_is_what_its_fields_say() {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        object.text("a", "\"");
        object.text("none", None);
        object.number("b", Some(i64::MIN));
        object.number("c", Some(12.5));
        object.json("d", Some(&Json::parse("[ 1 ]".to_owned()).unwrap()));
        object.end();
        assert_eq!(out, br#"{"a":"\"","b":-9223372036854775808,"c":12.5,"d":[ 1 ]}"#);
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_serde_json_writes_it(text in "([a-zé😀]{0,50}|\\PC|[\\x00-\\x7f]{0,3}){0,20}") {
            prop_assert_eq!(written(&text), serde_json::to_string(&text).unwrap());
        }
    }
}
