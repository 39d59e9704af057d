//! Reads JSON with serde_json: the members of an object, the value of a string.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A member of an object: its name, and its value as it is written.
pub type Member<'a> = (Cow<'a, str>, &'a str);

/// The value of a string, borrowed if it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// Most actions have fewer members.
const USUAL_MEMBERS: usize = 16;

/// The members of a text that is one object, in order, repetitions included.
///
/// # Errors
/// The text is not one JSON object, or half of a surrogate pair is in a name.
pub fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    plain_members(text).map_or_else(|| any_members(text), Ok)
}

/// The members of an object without escapes and control characters, where a string ends at the next quote. `None`:
/// the text has some, or is not one object.
///
/// It saves 3 % of the instructions of a saved message (`cargo xtask bench save`).
fn plain_members(text: &str) -> Option<Vec<Member<'_>>> {
    let bytes = text.as_bytes();
    if memchr::memchr(b'\\', bytes).is_some() || bytes.iter().any(|byte| *byte < b' ') {
        return None;
    }
    let after_spaces = |mut at| {
        while bytes.get(at) == Some(&b' ') {
            at += 1;
        }
        at
    };
    let after = |at, byte| {
        let at = after_spaces(at);
        (bytes.get(at) == Some(&byte)).then_some(at + 1)
    };
    let mut members = Vec::with_capacity(USUAL_MEMBERS);
    let mut at = after(0, b'{')?;
    loop {
        let name = after(at, b'"')?;
        let name_end = name + memchr::memchr(b'"', bytes.get(name..)?)?;
        let value = after_spaces(after(name_end + 1, b':')?);
        let value_end = value + length_of_value(text.get(value..)?)?;
        members.push((Cow::Borrowed(text.get(name..name_end)?), text.get(value..value_end)?));
        if let Some(next) = after(value_end, b',') {
            at = next;
        } else {
            let end = after_spaces(after(value_end, b'}')?);
            return (end == bytes.len()).then_some(members);
        }
    }
}

/// The length of the value at the beginning of a text without escapes.
fn length_of_value(text: &str) -> Option<usize> {
    if let Some(string) = text.strip_prefix('"') {
        return Some(memchr::memchr(b'"', string.as_bytes())? + 2);
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    values.next()?.ok()?;
    Some(values.byte_offset())
}

/// The members of any object, by serde_json.
fn any_members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    struct Members;
    impl<'a> Visitor<'a> for Members {
        type Value = Vec<Member<'a>>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("one JSON object")
        }
        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::with_capacity(USUAL_MEMBERS);
            while let Some((Text(name), value)) = map.next_entry::<_, &RawValue>()? {
                members.push((name, value.get()));
            }
            Ok(members)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(Members)?;
    deserializer.end()?;
    Ok(members)
}

/// The value of a text that is one JSON string. `None` where it is not, or has half of a surrogate
/// pair.
pub(crate) fn string(text: &str) -> Option<Cow<'_, str>> {
    let plain = text.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', plain.as_bytes()).is_none() {
        return Some(Cow::Borrowed(plain));
    }
    serde_json::from_str(text).ok().map(|Text(text)| text)
}

/// The type of a value by its first character, with its article.
pub(crate) fn type_name(text: &str) -> &'static str {
    match text.trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts that are objects, or nearly.
    fn text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "  ",
            "\"",
            "\"a\"",
            "\"bc\"",
            "\"é\"",
            "\"\"",
            "1",
            "-0.5e3",
            "01",
            "null",
            "true",
            "nul",
            "{}",
            "[1, 2]",
            "{\"a\":[{}]}",
            "\\",
            "\n",
            "\"\\n\"",
            "\u{1}",
        ]);
        let pieces = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
        let pair = (
            "[a-c \"]{0,3}",
            prop::sample::select(vec!["1", "null", "\"x\"", "[]", "{\"y\":2}", "1e", "\"\\\"\""]),
        );
        let object = prop::collection::vec(pair, 0..5).prop_map(|pairs| {
            let members: Vec<_> =
                pairs.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
            format!(" {{{}}} ", members.join(" ,"))
        });
        prop_oneof![pieces, object]
    }

    proptest! {
        #[test]
        fn plain_members_are_those_that_serde_json_reads(text in text()) {
            if let Some(plain) = plain_members(&text) {
                prop_assert_eq!(plain, any_members(&text).unwrap());
            }
        }
    }

    #[test]
    fn a_compact_object_without_escapes_is_plain() {
        let text = r#"{"a":"é", "b" : [1,{"c":null}],"d":-1.5e3,"e":true,"a":""}"#;
        assert_eq!(plain_members(text).unwrap(), any_members(text).unwrap());
        for other in [
            "{}",
            "{\"a\":\"\\n\"}",
            "{\"a\":1}x",
            "{\"a\":01}",
            "{\"a\":\"b\",}",
            "{\n\"a\":1}",
            "[]",
            "",
        ] {
            assert!(plain_members(other).is_none(), "{other}");
        }
    }
}
