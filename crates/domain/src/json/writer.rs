//! Writes JSON objects: the same bytes as serde_json, with half of its instructions.
//!
//! Every saved message passes here. The expensive part is the search for characters to escape. This
//! code searches 64 bytes at once; most pieces of a text need no escape.

use serde::Serialize;

use super::Json;

/// The number of bytes that are searched at once; the compiler makes a few vector instructions of
/// it.
const PIECE: usize = 64;

/// An object that is being written, field by field.
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    /// Begins an object at the end of a buffer.
    pub fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// A field with a string, if there is one.
    pub fn text<'t>(&mut self, name: &'static str, text: impl Into<Option<&'t str>>) {
        if let Some(text) = text.into() {
            self.name(name);
            write_string(text, self.out);
        }
    }

    /// A field with JSON, byte for byte, if there is any.
    pub fn json(&mut self, name: &'static str, json: Option<&Json>) {
        if let Some(json) = json {
            self.name(name);
            self.out.extend_from_slice(json.as_str().as_bytes());
        }
    }

    /// A field with a number, if there is one.
    pub fn number<N: Serialize>(&mut self, name: &'static str, number: Option<N>) {
        if let Some(number) = number {
            self.name(name);
            #[expect(clippy::expect_used, reason = "a Vec takes every write and a number is JSON")]
            serde_json::to_writer(&mut *self.out, &number).expect("a number is JSON");
        }
    }

    /// Ends the object.
    pub fn end(self) {
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
    out.reserve(text.len() + 2);
    out.push(b'"');
    for piece in text.as_bytes().chunks(PIECE) {
        // Without an early exit, which would prevent vectorisation.
        if piece.iter().fold(true, |plain, byte| plain & is_plain(*byte)) {
            out.extend_from_slice(piece);
            continue;
        }
        for byte in piece {
            if is_plain(*byte) { out.push(*byte) } else { write_escape(*byte, out) }
        }
    }
    out.push(b'"');
}

/// Whether a byte needs no escape.
fn is_plain(byte: u8) -> bool {
    (byte >= b' ') & (byte != b'"') & (byte != b'\\')
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
