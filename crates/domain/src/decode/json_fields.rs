//! Reads the fields of a valid JSON object in one pass: the fast path of decoding.
//!
//! It accepts exactly the texts that a strict parser accepts (RFC 8259) and that can be stored (see
//! [`json_limits`](super::json_limits)). For any other text it returns `None`; then
//! [`diagnose`](super::diagnose) reads the text again and finds the fault.

use std::borrow::Cow;

use super::field::Field;
use super::json_limits::{MAX_DEPTH, number_end, number_fault, unit};

/// The fields of a text that is one object, in order, repetitions included. `place` is the
/// beginning of their paths.
pub(super) fn fields<'a>(text: &'a str, place: &'a str) -> Option<Vec<Field<'a>>> {
    // Most actions have fewer than 16.
    let mut fields = Vec::with_capacity(16);
    let mut reader = Reader { text, at: 0 };
    reader.object(1, |name, value| fields.push(Field::new(name, value, place)))?;
    reader.skip_white_space();
    (reader.at == text.len()).then_some(fields)
}

/// The text of the first value with a name in a text that is one object.
pub(super) fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    let mut reader = Reader { text, at: 0 };
    reader.object(1, |key, value| {
        if key == name {
            found.get_or_insert(value);
        }
    })?;
    found
}

/// The decoded value of a JSON string; `None` where the text is not a string.
pub(super) fn string(text: &str) -> Option<Cow<'_, str>> {
    let plain = text.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', plain.as_bytes()).is_some() {
        serde_json::from_str(text).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(plain))
    }
}

/// A position in a text. Every read skips the white space before it.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads an object at nesting level `depth`; calls `member` with each name and the text of its
    /// value.
    fn object(
        &mut self,
        depth: usize,
        mut member: impl FnMut(Cow<'a, str>, &'a str),
    ) -> Option<()> {
        (depth <= MAX_DEPTH && self.takes(b'{')).then_some(())?;
        if self.takes(b'}') {
            return Some(());
        }
        loop {
            let name = self.name()?;
            self.takes(b':').then_some(())?;
            let value = self.token(|reader| reader.value(depth))?;
            member(name, value);
            if self.takes(b'}') {
                return Some(());
            }
            self.takes(b',').then_some(())?;
        }
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        (depth <= MAX_DEPTH && self.takes(b'[')).then_some(())?;
        if self.takes(b']') {
            return Some(());
        }
        loop {
            self.token(|reader| reader.value(depth))?;
            if self.takes(b']') {
                return Some(());
            }
            self.takes(b',').then_some(())?;
        }
    }

    /// The name of a member. Names without escapes are borrowed.
    fn name(&mut self) -> Option<Cow<'a, str>> {
        self.skip_white_space();
        let inside = self.text[self.at..].strip_prefix('"')?;
        let plain = plain_bytes(inside.as_bytes());
        if inside.as_bytes().get(plain) == Some(&b'"') {
            self.at += plain + 2;
            return Some(Cow::Borrowed(&inside[..plain]));
        }
        string(self.token(Self::string)?)
    }

    /// The text that `read` consumes.
    fn token(&mut self, read: impl FnOnce(&mut Self) -> Option<()>) -> Option<&'a str> {
        self.skip_white_space();
        let start = self.at;
        read(self)?;
        Some(&self.text[start..self.at])
    }

    fn takes(&mut self, byte: u8) -> bool {
        self.skip_white_space();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'"' => self.string(),
            b'{' => self.object(depth + 1, |_, _| ()),
            b'[' => self.array(depth + 1),
            b'-' | b'0'..=b'9' => self.number(),
            _ => ["true", "false", "null"].into_iter().find_map(|word| self.word(word)),
        }
    }

    fn string(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        self.peek().filter(|byte| *byte == b'"')?;
        let mut at = self.at + 1;
        loop {
            at += plain_bytes(bytes.get(at..)?);
            match bytes.get(at)? {
                b'"' => {
                    self.at = at + 1;
                    return Some(());
                }
                b'\\' => at += escape(bytes, at)?,
                // A control character.
                _ => return None,
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        let end = number_end(self.text.as_bytes(), self.at);
        let token = &self.text[self.at..end];
        let unsigned = token.strip_prefix('-').unwrap_or(token);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                (mantissa, exponent.strip_prefix(['+', '-']).or(Some(exponent)))
            }
            None => (unsigned, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let legal = digits(whole)
            && (whole.len() == 1 || !whole.starts_with('0'))
            && fraction.is_none_or(digits)
            && exponent.is_none_or(digits);
        self.at = end;
        (legal && number_fault(token).is_none()).then_some(())
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn skip_white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

/// The number of bytes before the first quote, backslash or control character. It reads eight bytes
/// at a time, because nearly all bytes of a body pass here.
fn plain_bytes(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let special = specials(u64::from_le_bytes(*word));
        if special != 0 {
            return 8 * n + special.trailing_zeros() as usize / 8;
        }
    }
    let special = |b: &u8| matches!(b, b'"' | b'\\' | 0..b' ');
    8 * words.len() + rest.iter().position(special).unwrap_or(rest.len())
}

/// Sets the high bit of each special byte. Only the lowest set bit is reliable: the subtraction
/// borrows from the bytes above it.
fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xFF;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (equal(b'"') | equal(b'\\') | below(word, b' ')) & (ONES << 7)
}

/// The length in bytes of the escape at `at`; `None` for an invalid escape or a character that
/// cannot be stored.
fn escape(bytes: &[u8], at: usize) -> Option<usize> {
    match (bytes.get(at + 1)?, unit(bytes, at)) {
        (b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', _) => Some(2),
        (_, Some(0xD800..=0xDBFF)) => {
            matches!(unit(bytes, at + 6), Some(0xDC00..=0xDFFF)).then_some(12)
        }
        (_, None | Some(0 | 0xDC00..=0xDFFF)) => None,
        (_, Some(_)) => Some(6),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::json_limits::first_fault;
    use super::super::strict_fields::strict_fields;
    use super::*;

    /// The fields by the slow path.
    fn by_slow_path(text: &str) -> Option<Vec<Field<'_>>> {
        strict_fields(text, "").ok().filter(|_| first_fault(text).is_none())
    }

    fn members(text: &str) -> Option<Vec<Field<'_>>> {
        fields(text, "")
    }

    #[test]
    fn names_and_values_are_kept_byte_for_byte() {
        let text = " {\"a\" : [ 1 , {\"b\":2} ] ,\n\"\\u00e9\\n\":\"x\\\"y\",\"a\":null}\r\t";
        let found = members(text).unwrap();
        let expected = [("a", "[ 1 , {\"b\":2} ]"), ("é\n", "\"x\\\"y\""), ("a", "null")];
        assert_eq!(found, expected.map(|(name, value)| Field::new(name.into(), value, "")));
    }

    #[test]
    fn a_text_that_is_no_object_or_cannot_be_stored_is_not_read() {
        let deep =
            |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(members(&deep(MAX_DEPTH - 1)).is_some());
        assert_eq!(members(&deep(MAX_DEPTH)), None);
        for value in [
            "",
            "x",
            "nul",
            "truefalse",
            "1 2",
            "[1,]",
            "[,]",
            "[1",
            "{\"b\"}",
            "{\"b\":}",
            "{b:1}",
            "{\"b\":1,}",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\t\"",
            "\"\\u00g0\"",
            "\"\\u0000\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\udc00\"",
            "-",
            "+1",
            "01",
            "1.",
            ".1",
            "1e",
            "1e+",
            "1-1",
            "0x1",
            "1e999",
            "9223372036854775808",
            "-9223372036854775809",
            "NaN",
        ] {
            let text = format!("{{\"a\":{value}}}");
            assert_eq!(members(&text), None, "{text}");
            assert_eq!(by_slow_path(&text), None, "{text}");
        }
        for text in ["", " ", "[]", "{", "{}{}", "{} x", "\u{feff}{}", "{\"a\":1}}", "\"{}\""] {
            assert_eq!(members(text), None, "{text}");
        }
    }

    /// Pieces of JSON one after the other: often valid, often not.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "\n",
            "\"",
            "\"a\"",
            "\"é\"",
            "\"a\":",
            "\"\\",
            "\\u00e9",
            "\\ud83d\\ude00",
            "\\ud83d",
            "\\u0000",
            "\\n",
            "\\",
            "null",
            "true",
            "false",
            "0",
            "-0",
            "1.5e-3",
            "9223372036854775807",
            "9223372036854775808",
            "1e308",
            "1e309",
            "00",
            "\u{1}",
            "\u{7f}",
            "12345678\"",
            "{\"a\":1}",
            "[1,[]]",
        ]);
        prop::collection::vec(piece, 0..12)
            .prop_map(|pieces| format!("{{\"k\":{}", pieces.concat()))
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_read_as_the_slow_path_reads_it(
            value in json(),
            cut in any::<prop::sample::Index>(),
            put in prop::option::of(any::<char>()),
        ) {
            for text in [value.to_string(), format!("{{ \"k\" : {value:#} }}")] {
                prop_assert_eq!(members(&text), by_slow_path(&text));
                // With one character added or removed.
                let mut changed: Vec<char> = text.chars().collect();
                let at = cut.index(changed.len());
                match put {
                    Some(character) => changed.insert(at, character),
                    None => drop(changed.remove(at)),
                }
                let changed: String = changed.into_iter().collect();
                prop_assert_eq!(members(&changed), by_slow_path(&changed), "{}", changed);
            }
        }

        #[test]
        fn pieces_of_json_are_read_as_the_slow_path_reads_them(
            open in pieces(),
            closed in prop::sample::select(vec!["", "}", "\"}", "]}"]),
        ) {
            let text = open + closed;
            prop_assert_eq!(members(&text), by_slow_path(&text));
        }

        #[test]
        fn a_special_byte_is_found_wherever_it_stands(
            before in "[ !#-\\[\\]-~é]{0,40}",
            special in prop::sample::select(vec!['"', '\\', '\0', '\u{1f}', '\n']),
            behind in any::<String>(),
        ) {
            let text = format!("{before}{special}{behind}");
            prop_assert_eq!(plain_bytes(text.as_bytes()), before.len());
            prop_assert_eq!(plain_bytes(before.as_bytes()), before.len());
        }
    }
}
