//! A canonical form of JSON: texts of equal meaning have equal forms and so equal hashes.
//!
//! Hashes of this form are stored in PostgreSQL and compared for ever: the form must never change.
//! So it is written here, where no feature or version of a library can change it: no white space;
//! members sorted by key in byte order; strings with the fewest escapes; numbers by value (`1`,
//! `1.0` and `10e-1` are one); integers of 64 bits exact.

use std::borrow::Cow;
use std::fmt::Write;

use crate::decode::json_limits::{MAX_DEPTH, number_end, string_end};

/// The canonical form of a JSON text. A text that is not JSON, or is nested deeper than any action
/// may be, is returned unchanged.
pub(super) fn canonical(text: &str) -> Cow<'_, str> {
    let mut writer = Writer { text, at: 0, depth: 0, out: String::with_capacity(text.len()) };
    match writer.value() {
        Some(()) => Cow::Owned(writer.out),
        None => Cow::Borrowed(text),
    }
}

struct Writer<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    out: String,
}

impl<'a> Writer<'a> {
    fn value(&mut self) -> Option<()> {
        match self.peek()? {
            b'{' => self.nested(Self::object),
            b'[' => self.nested(Self::array),
            b'"' => {
                let string = self.string()?;
                self.write_string(&string);
                Some(())
            }
            b'-' | b'0'..=b'9' => self.number(),
            _ => ["null", "true", "false"].into_iter().find(|word| self.take(word)).map(|word| {
                self.out.push_str(word);
            }),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Option<()>) -> Option<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.at += 1;
        read(self)?;
        self.depth -= 1;
        Some(())
    }

    fn array(&mut self) -> Option<()> {
        self.out.push('[');
        if !self.took(b']') {
            loop {
                self.value()?;
                if self.took(b']') {
                    break;
                }
                self.expect(b',')?;
                self.out.push(',');
            }
        }
        self.out.push(']');
        Some(())
    }

    fn object(&mut self) -> Option<()> {
        let mut members: Vec<(Cow<'a, str>, String)> = Vec::new();
        // Each member is written to its own text, to be sorted afterwards.
        let outer = std::mem::take(&mut self.out);
        if !self.took(b'}') {
            loop {
                self.peek()?;
                let key = self.string()?;
                self.expect(b':')?;
                self.value()?;
                members.push((key, std::mem::take(&mut self.out)));
                if self.took(b'}') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        self.out = outer;
        // Stable: repeated keys keep their order, because readers may use the first or the last.
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.out.push('{');
        for (index, (key, value)) in members.iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            self.write_string(key);
            self.out.push(':');
            self.out.push_str(value);
        }
        self.out.push('}');
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        let end = number_end(self.text.as_bytes(), self.at);
        let token = self.text.get(self.at..end)?;
        self.at = end;
        if let Ok(integer) = token.parse::<i64>() {
            return write!(self.out, "{integer}").ok();
        }
        let number: f64 = token.parse().ok()?;
        // Rust prints the shortest digits that read back as the same double, and a whole number
        // without a point, just as an integer. Without exponents 1e300 would take 301 digits.
        match number.abs() {
            0.0 => write!(self.out, "0").ok(),
            1e-6..9.3e18 => write!(self.out, "{number}").ok(),
            _ => write!(self.out, "{number:e}").ok(),
        }
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let end = string_end(self.text.as_bytes(), self.at);
        let token = self.text.get(self.at..end)?;
        self.at = end;
        let plain = token.strip_prefix('"')?.strip_suffix('"')?;
        if plain.contains('\\') {
            serde_json::from_str(token).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(plain))
        }
    }

    fn write_string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => self.out.extend(['\\', character]),
                // Writing to a string cannot fail.
                '\0'..='\u{1f}' => {
                    write!(self.out, "\\u{:04x}", u32::from(character)).unwrap_or_default();
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at)?, b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
        Some(bytes[self.at])
    }

    fn took(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.took(byte).then_some(())
    }

    fn take(&mut self, word: &str) -> bool {
        let is_there = self.text[self.at..].starts_with(word);
        self.at += if is_there { word.len() } else { 0 };
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn texts_that_mean_the_same_have_one_form() {
        let cases = [
            (
                r#" { "b" : [ 1 , 2.0 , { } , [ ] ] , "a" : null } "#,
                r#"{"a":null,"b":[1,2,{},[]]}"#,
            ),
            (r#"["\u00e9\/\n\u0001\"\\","é"]"#, "[\"é/\\u000a\\u0001\\\"\\\\\",\"é\"]"),
            ("[1,1.0,10e-1,-0,-0.0,0e5]", "[1,1,1,0,0,0]"),
            (
                "[9223372036854775807,0.1,15e299,-2.50,1E-09]",
                "[9223372036854775807,0.1,1.5e300,-2.5,1e-9]",
            ),
            (r#"{"\u0061":1,"A":true,"é":false}"#, r#"{"A":true,"a":1,"é":false}"#),
            (r#"{"a":2,"a":1}"#, r#"{"a":2,"a":1}"#),
        ];
        for (text, form) in cases {
            assert_eq!(canonical(text), form, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_json_or_too_deep_is_unchanged() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        for text in ["", "{", "[1 2]", "{\"a\" 1}", "nul", "\"\\", deep.as_str()] {
            assert_eq!(canonical(text), text);
        }
    }
}
