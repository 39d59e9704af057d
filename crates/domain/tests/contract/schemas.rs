//! The published schemas are generated from the types and agree with decoding.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use domain::reply::{ErrorType, Reply, ReplyError, SaveMessageData};
use fixtures::examples::ACTIONS;
use serde_json::{Value, json};

use crate::documents::documents;
use crate::validator::faults;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/contract/schemas")
}

pub(crate) fn generated() -> BTreeMap<String, Value> {
    documents().into_iter().map(|(name, schema)| (name, schema.to_value())).collect()
}

fn stored() -> BTreeMap<String, String> {
    let Ok(files) = std::fs::read_dir(folder()) else { return BTreeMap::new() };
    files
        .map(|file| file.expect("a file").path())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).expect("a schema in UTF-8"))
        })
        .collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "UPDATE_SCHEMAS is an argument of the test run")]
fn the_stored_schemas_are_fresh() {
    let fresh: BTreeMap<String, String> =
        generated().into_iter().map(|(name, schema)| (name, format!("{schema:#}\n"))).collect();
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::create_dir_all(folder()).expect("a folder");
        for stale in stored().keys().filter(|name| !fresh.contains_key(*name)) {
            std::fs::remove_file(folder().join(stale)).expect("removing a stale schema");
        }
        for (name, schema) in &fresh {
            std::fs::write(folder().join(name), schema).expect("writing a schema");
        }
    }
    let stored = stored();
    let stale =
        fresh.keys().chain(stored.keys()).find(|name| fresh.get(*name) != stored.get(*name));
    assert_eq!(
        stale, None,
        "docs/contract/schemas is stale: run `UPDATE_SCHEMAS=1 cargo test -p domain` and commit it"
    );
}

#[test]
fn every_example_is_valid_under_its_schema() {
    let schemas = generated();
    for example in ACTIONS {
        let body: Value = serde_json::from_str(example.body).expect("JSON");
        let kind = body["action_type"].as_str().expect("an action type");
        let schema = &schemas[&format!("action.{kind}.json")];
        assert_eq!(faults(schema, &body), Vec::<String>::new(), "{}", example.name);
    }
}

#[test]
fn every_schema_has_a_title_and_every_field_a_description() {
    for (name, schema) in generated() {
        assert!(schema["title"].is_string(), "{name} has no title");
        assert!(schema["description"].is_string(), "{name} has no description");
        let fields = schema["$defs"]["Fields"]["properties"].as_object();
        for (field, schema) in fields.into_iter().flatten() {
            assert!(schema["description"].is_string(), "{name}: {field} has no description");
        }
    }
}

#[test]
fn replies_match_their_schema() {
    let schema = &generated()["reply.conversation.save_message.json"];
    let reply = |result| Reply { action_id: None, correlation_id: Some("c".to_owned()), result };
    let id = |text: &str| domain::ids::MessageId::new(text).expect("an id");
    let good = reply(Ok(SaveMessageData {
        conversation_id: domain::ids::ConversationId::new("c").expect("an id"),
        message_id: id("m"),
        duplicate: false,
    }));
    let bad = reply(Err(ReplyError {
        error_type: ErrorType::Schema,
        message: "`role` is missing".to_owned(),
        details: Some(
            domain::message::Json::parse(r#"{"field":"role"}"#.to_owned()).expect("JSON"),
        ),
    }));
    for (reply, wire) in [
        (
            good,
            json!({
                "action_id": null, "correlation_id": "c", "success": true,
                "data": {"conversation_id": "c", "message_id": "m", "duplicate": false},
            }),
        ),
        (
            bad,
            json!({
                "action_id": null, "correlation_id": "c", "success": false,
                "error": {
                    "error_type": "schema", "message": "`role` is missing",
                    "details": {"field": "role"},
                },
            }),
        ),
    ] {
        let text = serde_json::to_string(&reply).expect("a reply");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), wire);
        assert_eq!(faults(schema, &wire), Vec::<String>::new());
    }
    for neither in [
        r#"{"action_id":null,"correlation_id":null,"success":true}"#,
        r#"{"action_id":null,"correlation_id":null,"success":false,"data":{"conversation_id":"c","message_id":"m","duplicate":true}}"#,
    ] {
        let value = serde_json::from_str(neither).expect("JSON");
        assert!(!faults(schema, &value).is_empty(), "{neither}");
    }
}
