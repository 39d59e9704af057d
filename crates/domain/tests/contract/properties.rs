//! Properties that hold for every input.

use std::collections::HashSet;

use domain::action::{Action, SaveMessage};
use domain::envelope::Envelope;
use domain::ids::{ConversationId, ConversationKey, MessageId, SessionId, TenantId, escape};
use domain::message::Position;
use domain::time::Timestamp;
use fixtures::examples::{ACTIONS, malformed};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Map, Value};

use fixtures::{decoded, decoded_with};

/// Ids, many of them made of separators and characters of escapes.
fn id() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c/:%{}\\-.2F]{1,6}", "[^\\p{Cc}]{1,32}"]
}

fn key() -> impl Strategy<Value = ConversationKey> {
    (id(), id()).prop_map(|(tenant, conversation)| ConversationKey {
        tenant: TenantId::new(tenant).expect("an id"),
        conversation: ConversationId::new(conversation).expect("an id"),
    })
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (0..7_258_118_400_000_000_i64)
        .prop_map(|micros| Timestamp::from_micros(micros).expect("in range"))
}

/// JSON objects as agents may send them: no name twice, every value storable.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Never a whole number: those are equal to integers.
        (-1e9..1e9_f64).prop_map(|x| Value::from(x.trunc() + 0.5)),
        "[^\0]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d\"\\\\é]{0,3}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A JSON text of equal meaning: members in another order, white space, escapes.
fn same_meaning(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members = members.iter().rev();
            let members = members.map(|(k, v)| {
                format!("\n {} :\t{}", same_meaning(&k.as_str().into()), same_meaning(v))
            });
            format!("{{{} }}", members.collect::<Vec<_>>().join(" ,"))
        }
        Value::Array(elements) => {
            format!("[ {}\r\n]", elements.iter().map(same_meaning).collect::<Vec<_>>().join(" , "))
        }
        Value::String(text) => {
            let escaped = text.encode_utf16().map(|unit| format!("\\u{unit:04X}"));
            format!("\"{}\"", escaped.collect::<String>())
        }
        // Beyond 2^53 an exponent would cost an integer its last digits.
        Value::Number(number) if number.as_f64().is_some_and(|x| x.abs() < 9e15) => {
            format!("{number}e0")
        }
        other => other.to_string(),
    }
}

fn saved(role: &str, content: &str, rest: &str) -> SaveMessage {
    let content = Value::from(content);
    let body = format!(
        r#"{{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","message_id":"m","role":"{role}","content":{content}{rest}}}"#
    );
    match decoded(&body) {
        Ok(Action::SaveMessage(save)) => *save,
        other => panic!("{body}: {other:?}"),
    }
}

proptest! {
    // The same cases in every run: a new failure is caused by the change under test, not by chance.
    #![proptest_config(ProptestConfig {
        cases: 512,
        rng_seed: RngSeed::Fixed(0x5eed),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn escaped_ids_hold_nothing_that_separates_and_stay_different(ids in prop::collection::vec(id(), 2..8)) {
        let different: HashSet<&String> = ids.iter().collect();
        let escaped: HashSet<String> = ids.iter().map(|id| escape(id).into_owned()).collect();
        prop_assert_eq!(escaped.len(), different.len());
        for id in &escaped {
            prop_assert!(!id.contains(['{', '}', '/', ':', ' ', '?', '#']), "{}", id);
            let well_formed = id.split('%').skip(1).all(|rest| {
                rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit())
            });
            prop_assert!(well_formed, "{}", id);
        }
    }

    #[test]
    fn two_conversations_never_display_alike(a in key(), b in key()) {
        prop_assert_eq!(a == b, a.to_string() == b.to_string());
    }

    #[test]
    fn sessions_of_two_tenants_are_two_conversations(a in (id(), id()), b in (id(), id())) {
        let conversation = |(tenant, session): &(String, String)| {
            let session = SessionId::new(session).expect("an id");
            ConversationKey::of_session(TenantId::new(tenant).expect("an id"), &session)
        };
        prop_assert_eq!(a == b, conversation(&a).conversation == conversation(&b).conversation);
    }

    #[test]
    fn positions_sort_by_time_and_then_by_the_bytes_of_the_id(
        a in (0..3_i64, id()),
        b in (0..3_i64, id()),
    ) {
        let position = |(micros, id): &(i64, String)| Position {
            created_at: Timestamp::from_micros(*micros).expect("in range"),
            id: MessageId::new(id).expect("an id"),
        };
        let bytes = a.0.cmp(&b.0).then_with(|| a.1.as_bytes().cmp(b.1.as_bytes()));
        prop_assert_eq!(position(&a).cmp(&position(&b)), bytes);
    }

    #[test]
    fn a_timestamp_survives_its_text_and_finer_digits_are_cut_off(at in timestamp(), nanos in 0..1000_u32) {
        let text = at.to_string();
        prop_assert_eq!(text.len(), 27);
        prop_assert_eq!(Timestamp::parse(&text), Ok(at));
        let bare = text.strip_suffix('Z').expect("UTC");
        prop_assert_eq!(Timestamp::parse(&format!("{bare}{nanos:03}Z")), Ok(at));
        prop_assert_eq!(Timestamp::parse(bare), Ok(at));
        prop_assert_eq!(serde_json::from_str::<Timestamp>(&format!("\"{text}\"")).expect("JSON"), at);
    }

    #[test]
    fn decoding_refuses_random_bytes_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decoded_with(&bytes, &Envelope::default()).is_err());
    }

    #[test]
    fn decoding_a_mutated_body_does_not_panic(
        which in any::<prop::sample::Index>(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let bad = malformed(2_000);
        let all: Vec<&[u8]> =
            ACTIONS.iter().map(|e| e.body.as_bytes()).chain(bad.iter().map(|m| &*m.body)).collect();
        let mut body = which.get(&all).to_vec();
        for (at, byte, how) in cuts {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            match how {
                0 => body[at] = byte,
                1 => drop(body.remove(at)),
                2 => body.insert(at, b"{}[]\",:\\u0e9-"[usize::from(byte) % 13]),
                _ => body.truncate(at),
            }
        }
        // Any result is right; a panic is not.
        drop(decoded_with(&body, &Envelope::default()));
    }

    #[test]
    fn a_field_under_data_is_equal_to_one_at_the_top(
        which in any::<prop::sample::Index>(),
        nested in prop::collection::vec(any::<bool>(), 24),
        twice in prop::collection::vec(any::<bool>(), 24),
    ) {
        let example = which.get(ACTIONS);
        let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
        let mut all = fields(&serde_json::from_str(example.body).expect("JSON"));
        let data = all.remove("data");
        all.extend(data.iter().flat_map(fields));
        // An id that is derived from the raw body would differ.
        all.entry("action_id").or_insert("a".into());
        let (mut top, mut data) = (Map::new(), Map::new());
        for ((name, value), (nested, twice)) in all.clone().into_iter().zip(nested.into_iter().zip(twice)) {
            if nested || twice {
                data.insert(name.clone(), value.clone());
            }
            if !nested || twice {
                top.insert(name, value);
            }
        }
        top.insert("data".to_owned(), data.into());
        let flat = decoded(&Value::Object(all).to_string());
        let scattered = decoded(&Value::Object(top).to_string());
        prop_assert!(flat.is_ok());
        prop_assert_eq!(comparable(scattered), comparable(flat));
    }

    #[test]
    fn a_body_hash_ignores_all_but_role_content_and_tool_calls(
        text in "[^\0]{0,20}",
        at in timestamp(),
        metadata in json(),
        estimate in 0..i64::MAX,
    ) {
        let plain = saved("user", &text, "").body_hash();
        let more = format!(
            r#","timestamp":"{at}","metadata":{{"m":{metadata}}},"tokens_estimate":{estimate},"processing_time_ms":3,"agent_id":"a","model_name":"m","x":1"#
        );
        prop_assert_eq!(saved("user", &text, &more).body_hash(), plain);
        prop_assert_ne!(saved("assistant", &text, "").body_hash(), plain);
        prop_assert_ne!(saved("user", &format!("{text}."), "").body_hash(), plain);
        prop_assert_ne!(saved("user", &text, r#","tool_call_id":"c""#).body_hash(), plain);
        prop_assert_ne!(saved("user", &text, r#","tool_calls":[]"#).body_hash(), plain);
    }

    #[test]
    fn a_body_hash_is_of_what_tool_calls_mean(one in json(), other in json()) {
        let hash = |calls: &str| saved("assistant", "", &format!(r#","tool_calls":[{calls}]"#)).body_hash();
        prop_assert_eq!(hash(&one.to_string()), hash(&same_meaning(&one)));
        let alike = one == other;
        prop_assert_eq!(hash(&one.to_string()) == hash(&other.to_string()), alike, "{} {}", one, other);
    }
}

/// An action as text, without the order of its metadata, which depends on the place of the fields.
fn comparable(action: Result<Action, domain::failure::Refusal>) -> String {
    let mut action = action.expect("a good action");
    let mut metadata = None;
    if let Action::SaveMessage(save) = &mut action {
        metadata = save.message.metadata.take();
    }
    let metadata = metadata.or_else(|| action.common().metadata.clone());
    let metadata = metadata.map(|m| serde_json::from_str::<Value>(m.as_str()).expect("JSON"));
    format!("{action:?} {metadata:?}")
}
