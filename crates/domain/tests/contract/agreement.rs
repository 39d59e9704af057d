//! The published schemas and the validator accept the same bodies.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use domain::action::{Action, ActionKind};
use domain::failure::Refusal;
use fixtures::decoded;
use fixtures::examples::{ACTIONS, example, malformed};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use serde_json::Value;

use crate::schemas::generated;
use crate::validator::faults;

/// The rules that a schema cannot express, each with the words of a refusal by it. The contract lists them:
/// `docs/contract/README.md`.
const BEYOND_SCHEMAS: [(&str, &str); 10] = [
    ("the reply address in a message among several", "is a field of the action"),
    ("the conversation of a message among several", "differs from that of the action"),
    ("the length of an id in bytes", "bytes long"),
    ("the length of a part of a state's key in bytes", "bytes without control"),
    ("U+0000 in a text or a name", "contains U+0000"),
    ("a name twice in one object", "occurs twice"),
    ("two values of one field", "differs from"),
    ("more than 127 levels", "is nested deeper"),
    ("the days of a month", "is not an RFC 3339 date"),
    ("the first and the last moment, with an offset", "is outside of the years"),
];

/// Values of every type, on both sides of every limit.
const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "4",
    "4.0",
    "4.5",
    "5",
    "5.0",
    "6",
    "40e-1",
    "1e3",
    "1000",
    "1001",
    "1e-7",
    "4294967295",
    "4294967296",
    "4294967295.0",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "1e19",
    "1e300",
    "\"\"",
    "\"a\"",
    "\" \"",
    "\"user\"",
    "\"assistant\"",
    "\"developer\"",
    "\"User\"",
    "\"bot\"",
    "\"tool\"",
    "\"asc\"",
    "\"up\"",
    "\"4\"",
    "\"a\\tb\"",
    "\"\\u0085\"",
    "\"\\u0000\"",
    "\"😀\"",
    "\"2026-11-20T10:00:00Z\"",
    "\"2026-11-20 10:00:00.123456789-23:59\"",
    "\"2026-11-20t10:00:60z\"",
    "\"2026-02-30T10:00:00Z\"",
    "\"2026-13-01T00:00:00Z\"",
    "\"2026-11-20T24:00:00Z\"",
    "\"2026-11-20T10:00:00+24:00\"",
    "\"2026-11-20T10:00:00−05:00\"",
    "\"2026-11-20T10:00\"",
    "\"2026-11-20 10:00 +0130\"",
    "\"2026-11-20T10:00:00.5 Z\"",
    "\"2026-11-20T10:00 \"",
    "\"2026-11-20T10:00:00  Z\"",
    "\"2026-11-20T10:00.5Z\"",
    "\"2026-11-20T10:00:00+01\"",
    "\"2026-11-20T10:00:00+0160\"",
    "\"2026-11-20T10:00:00Z00\"",
    "\"2026-11-20T1\"",
    "\"1795167000\"",
    "\"2026-11-20\"",
    "\"1969-12-31T23:59:59Z\"",
    "\"1969-12-31T23:59:59-00:01\"",
    "\"1969-01-01T00:00:00Z\"",
    "\"1968-12-31T23:59:59Z\"",
    "\"2199-12-31T23:59:59.999999Z\"",
    "\"2200-01-01T00:00:00Z\"",
    "\"2200-01-01T00:00:00+00:01\"",
    "\"2201-01-01T00:00:00Z\"",
    "[]",
    "[1]",
    "[\"a\"]",
    "[\"a\",1]",
    "[{}]",
    "[{\"type\":\"text\"}]",
    "[{\"type\":\"text\",\"text\":null}]",
    "[{\"type\":\"text\",\"text\":\"a\"}]",
    "[{\"type\":\"text\",\"text\":7}]",
    "[{\"type\":\"audio\",\"text\":7}]",
    "[{\"type\":null}]",
    "[{\"type\":7}]",
    "[{\"type\":null,\"text\":{\"value\":\"a\"}}]",
    "[{\"type\":null,\"text\":{\"value\":7}}]",
    "[{\"text\":null}]",
    "[{\"text\":[]}]",
    "[{\"type\":\"output_text\"}]",
    "[{\"type\":\"input_text\",\"text\":\"a\"}]",
    "[{\"type\":\"refusal\"}]",
    "[{\"type\":\"refusal\",\"refusal\":7}]",
    "[{\"type\":\"thinking\",\"thinking\":null}]",
    "[{\"type\":\"thinking\",\"thinking\":{}}]",
    "[{\"type\":\"tool_result\"}]",
    "[{\"type\":\"tool_result\",\"content\":\"a\"}]",
    "[{\"type\":\"tool_result\",\"content\":{}}]",
    "[{\"type\":\"tool_result\",\"content\":[\"a\",{\"type\":\"text\",\"text\":\"b\"}]}]",
    "[{\"type\":\"tool_result\",\"content\":[{\"type\":\"text\"}]}]",
    "[ ]",
    "[{\"text\":\"a\"}]",
    "{}",
    "{\"a\":\"b\"}",
    "{\"a\":\"\"}",
    "{\"a\":1}",
    "{\"a\":1e300}",
    "{\"a\":null}",
    "{\"a\":{\"b\":[1.50]}}",
    "{\"a\\u0000\":1}",
];

/// Ids about as long as the limit, in characters and in bytes.
fn long_id() -> impl Strategy<Value = String> {
    prop_oneof!["a{510,514}", "ñ{254,258}", "😀{126,130}"].prop_map(|id| format!("\"{id}\""))
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(VALUES).prop_map(str::to_owned),
        1 => long_id(),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => any::<f64>().prop_map(|number| Value::from(number).to_string()),
    ]
}

static SCHEMAS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(generated);

fn schema(kind: ActionKind) -> &'static Value {
    &SCHEMAS[&format!("action.{kind}.json")]
}

/// The fields that the schema of an action names.
fn names(kind: ActionKind) -> Vec<&'static str> {
    let fields = schema(kind)["$defs"]["Fields"]["properties"].as_object().expect("fields");
    fields.keys().map(String::as_str).collect()
}

/// A body in the making: the JSON of each field, at the top and under `data`.
#[derive(Clone, Default)]
struct Body([BTreeMap<&'static str, String>; 2]);

impl Body {
    fn of_example(name: &str) -> Self {
        let body: Value = serde_json::from_str(example(name).expect(name)).expect("JSON");
        let mut top = BTreeMap::new();
        for place in [&body, &body["data"]] {
            for (name, value) in place.as_object().into_iter().flatten() {
                top.insert(&*name.clone().leak(), value.to_string());
            }
        }
        top.remove("data");
        Self([top, BTreeMap::new()])
    }

    fn text(&self) -> String {
        let object = |fields: &BTreeMap<&str, String>| {
            let members = fields.iter().map(|(name, value)| format!("\"{name}\":{value}"));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        };
        let [mut top, data] = self.0.clone();
        if !data.is_empty() {
            top.insert("data", object(&data));
        }
        object(&top)
    }
}

/// Why schema and validator disagree about a body; `None` if they agree, or if its refusal is by a rule that a
/// schema cannot express.
fn disagreement(kind: ActionKind, body: &str) -> Option<String> {
    let value: Value = serde_json::from_str(body).expect("JSON");
    let by_schema = faults(schema(kind), &value);
    let decoded = accepted(body);
    match (&decoded, by_schema.is_empty()) {
        (Ok(_), true) | (Err(_), false) => None,
        (Ok(_), false) => Some(format!("only the schema refuses {body}: {by_schema:?}")),
        (Err(refusal), true) => {
            let beyond = |(_, words): &(&str, &str)| refusal.detail.contains(words);
            let is_known = BEYOND_SCHEMAS.iter().any(beyond);
            (!is_known).then(|| format!("only the validator refuses {body}: {refusal}"))
        }
    }
}

/// Whether a body and all messages in it are accepted.
fn accepted(body: &str) -> Result<Action, Refusal> {
    let action = decoded(body)?;
    let refused = action.refused_elements().next().cloned();
    refused.map_or(Ok(action), Err)
}

#[test]
fn schema_and_validator_agree_about_every_value_of_every_field_of_a_message_among_several() {
    let valid = Body::of_example("conversation.save_message");
    let several = Body::of_example("conversation.save_messages");
    let mut disagreements = Vec::new();
    for name in names(ActionKind::SaveMessage).into_iter().chain(["parts"]) {
        for value in VALUES {
            for (place, other) in [(0, "null"), (1, "")] {
                let mut message = valid.clone();
                message.0[0].remove(name);
                message.0[place].insert(name, (*value).to_owned());
                if !other.is_empty() {
                    message.0[1 - place].insert(name, other.to_owned());
                }
                let mut body = several.clone();
                body.0[0].insert("messages", format!("[{}]", message.text()));
                disagreements.extend(disagreement(ActionKind::SaveMessages, &body.text()));
            }
        }
    }
    assert!(disagreements.is_empty(), "{}: {}", disagreements.len(), disagreements.join("\n"));
}

#[test]
fn schema_and_validator_agree_about_every_value_of_every_field() {
    let common = names(ActionKind::SessionOpened);
    let (mut disagreements, mut accepted) = (Vec::new(), 0);
    for kind in ActionKind::ALL {
        let valid = Body::of_example(kind.as_str());
        for name in names(kind) {
            let is_common = common.contains(&name) && kind != ActionKind::Erase;
            if is_common && kind != ActionKind::SaveMessage {
                continue;
            }
            for value in VALUES.iter().filter(|_| name != "action_type") {
                for (place, other) in [(0, "null"), (1, "null"), (1, "")] {
                    let mut body = valid.clone();
                    body.0[0].remove(name);
                    body.0[place].insert(name, (*value).to_owned());
                    if !other.is_empty() {
                        body.0[1 - place].insert(name, other.to_owned());
                    }
                    let body = body.text();
                    accepted += u32::from(decoded(&body).is_ok());
                    disagreements.extend(disagreement(kind, &body));
                }
            }
        }
    }
    assert!(accepted > 1_000, "only {accepted} bodies are valid");
    assert!(disagreements.is_empty(), "{}: {}", disagreements.len(), disagreements.join("\n"));
}

#[test]
fn schema_and_validator_agree_about_every_bad_body() {
    for bad in malformed(1_000) {
        // serde_json cannot parse half characters and infinite numbers.
        let Ok(value) = serde_json::from_slice::<Value>(&bad.body) else { continue };
        let Some(kind) = value["action_type"].as_str().and_then(ActionKind::parse) else {
            continue;
        };
        // The size of a body is no rule of a schema.
        if bad.reason != "too_large" {
            let body = std::str::from_utf8(&bad.body).expect("UTF-8");
            assert_eq!(disagreement(kind, body), None, "{}", bad.name);
        }
    }
}

proptest! {
    // The same cases in every run: a new failure is caused by the change under test, not by chance.
    #![proptest_config(ProptestConfig {
        cases: 1_500,
        rng_seed: RngSeed::Fixed(0x5eed),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn schema_and_validator_agree_about_random_bodies(
        which in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), 0..5_u8, value()), 0..5),
    ) {
        let example = which.get(ACTIONS);
        let Ok(action) = decoded(example.body) else { panic!("{}", example.name) };
        let kind = action.kind();
        let mut body = Body::of_example(example.name);
        let mut names = names(kind);
        names.extend(["a_field_of_the_sender", "parts", "refusal"]);
        for (name, place, value) in changes {
            let name = *name.get(&names);
            let [top, data] = &mut body.0;
            let sent = top.remove(name).or_else(|| data.remove(name));
            match place {
                0 => drop(top.insert(name, value)),
                1 => drop(data.insert(name, value)),
                2 => {
                    top.insert(name, value.clone());
                    data.insert(name, value);
                }
                3 => {
                    top.extend(sent.map(|sent| (name, sent)));
                    data.insert(name, value);
                }
                _ => {}
            }
        }
        let disagreement = disagreement(kind, &body.text());
        prop_assert_eq!(disagreement, None);
    }
}
