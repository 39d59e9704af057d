//! The rules that hold for every text.

use std::collections::HashSet;

use proptest::prelude::*;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::faults::MAX_DEPTH;
use super::tokens::tokens;
use super::*;

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
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
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
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
    let end = prop::sample::select(vec!["", "}", "\"}", "]}"]);
    (prop::collection::vec(piece, 0..12), end)
        .prop_map(|(pieces, end)| format!("{{\"k\":{}{end}", pieces.concat()))
}

/// The members of a text that is an object and can be stored.
fn storable(text: &str) -> Option<Vec<(String, String)>> {
    let members = members(text).ok()?;
    let can_be_stored = first_fault(text).is_none();
    assert_eq!(is_storable(text, &members), can_be_stored, "{text}");
    Some(members).filter(|_| can_be_stored).map(|members| {
        members.into_iter().map(|(name, value)| (name.into(), value.to_owned())).collect()
    })
}

/// Whether serde_json reads a text as an object that repeats no name and holds no U+0000.
fn is_storable_object(text: &str) -> bool {
    struct Pairs(Vec<(String, Box<RawValue>)>);
    impl<'de> Deserialize<'de> for Pairs {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct All;
            impl<'de> Visitor<'de> for All {
                type Value = Pairs;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some(pair) = map.next_entry()? {
                        pairs.push(pair);
                    }
                    Ok(Pairs(pairs))
                }
            }
            deserializer.deserialize_map(All)
        }
    }
    fn within(text: &str) -> bool {
        match text.trim_start().as_bytes().first() {
            Some(b'{') => serde_json::from_str(text).is_ok_and(|Pairs(pairs)| {
                let names: HashSet<&String> = pairs.iter().map(|(name, _)| name).collect();
                names.len() == pairs.len()
                    && !names.iter().any(|name| name.contains('\0'))
                    && pairs.iter().all(|(_, value)| within(value.get()))
            }),
            Some(b'[') => serde_json::from_str::<Vec<Box<RawValue>>>(text)
                .is_ok_and(|elements| elements.iter().all(|element| within(element.get()))),
            Some(b'"') => {
                serde_json::from_str::<String>(text).is_ok_and(|text| !text.contains('\0'))
            }
            _ => serde_json::from_str::<IgnoredAny>(text).is_ok(),
        }
    }
    text.trim_start().starts_with('{') && within(text)
}

#[test]
fn names_and_values_are_kept_byte_for_byte() {
    let text = " {\"a\" : [ 1 , {\"b\":2} ] ,\n\"\\u00e9\\n\":\"x\\\"y\",\"b\":1e400}\r\t";
    let expected = [("a", "[ 1 , {\"b\":2} ]"), ("é\n", "\"x\\\"y\""), ("b", "1e400")];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(storable(text).unwrap(), expected);
}

#[test]
fn a_text_that_is_no_object_or_cannot_be_stored_is_refused() {
    let deep = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    assert!(storable(&deep(MAX_DEPTH - 1)).is_some());
    assert_eq!(storable(&deep(MAX_DEPTH)), None);
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
        "{\"b\":1,\"b\":1}",
        "1,\"a\":2",
        "NaN",
    ] {
        let text = format!("{{\"a\":{value}}}");
        assert_eq!(storable(&text), None, "{text}");
    }
    for text in ["", " ", "[]", "{", "{}{}", "{} x", "\u{feff}{}", "{\"a\":1}}", "\"{}\""] {
        assert_eq!(storable(text), None, "{text}");
    }
}

#[test]
fn text_that_is_not_json_causes_no_panic() {
    for text in ["\"", "\"\\", "\"\\u", "\"\\ud800", "\"\\ud800\\", "-", "}]", "1e", "\"é\\", "é"]
    {
        if let Some(fault) = first_fault(text) {
            path_to(text, fault.at);
        }
    }
}

proptest! {
    #[test]
    fn an_object_can_be_stored_exactly_if_all_its_values_are_within_the_limits(
        value in any_json(),
        cut in any::<prop::sample::Index>(),
        put in prop::option::of(any::<char>()),
    ) {
        for text in [value.to_string(), format!("{{ \"k\" : {value:#} }}")] {
            prop_assert_eq!(storable(&text).is_some(), is_storable_object(&text), "{}", text);
            // With one character added or removed.
            let mut changed: Vec<char> = text.chars().collect();
            let at = cut.index(changed.len());
            match put {
                Some(character) => changed.insert(at, character),
                None => drop(changed.remove(at)),
            }
            let changed: String = changed.into_iter().collect();
            prop_assert_eq!(storable(&changed).is_some(), is_storable_object(&changed), "{}", changed);
        }
    }

    #[test]
    fn pieces_of_json_can_be_stored_exactly_if_they_are_within_the_limits(text in pieces()) {
        prop_assert_eq!(storable(&text).is_some(), is_storable_object(&text));
    }

    #[test]
    fn the_tokens_of_json_are_the_text_without_its_white_space(value in any_json()) {
        let compact = value.to_string();
        for text in [format!(" {value:#}\t"), compact.clone()] {
            let joined: String = tokens(&text).map(|token| token.text).collect();
            prop_assert_eq!(&joined, &compact);
            for token in tokens(&text) {
                prop_assert_eq!(&text[token.at..][..token.text.len()], token.text);
            }
        }
    }

    #[test]
    fn a_string_ends_at_its_closing_quote(text: String, behind: String) {
        let quoted = serde_json::to_string(&text).unwrap();
        let both = format!("{quoted}{behind}");
        prop_assert_eq!(tokens(&both).next().unwrap().text, quoted.as_str());
        prop_assert_eq!(string(&quoted), Some(text.into()));
    }

    #[test]
    fn no_text_makes_a_walk_panic(text in pieces(), any: String, offset in 0..40_usize) {
        for text in [text, any] {
            let fault = first_fault(&text);
            path_to(&text, fault.map_or(offset, |fault| fault.at));
        }
    }

    #[test]
    fn white_space_changes_no_canonical_form_and_a_form_is_its_own_form(value in any_json()) {
        let canonical = |text: String| Json::parse(text).unwrap().canonical().into_owned();
        let form = canonical(value.to_string());
        prop_assert_eq!(canonical(format!("{value:#}")), form.as_str());
        prop_assert_eq!(canonical(form.clone()), form.as_str());
    }
}
