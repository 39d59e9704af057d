//! Nothing of an action is thrown away unsaid: each field of each action is stored where the contract says, or
//! the contract says that it is not stored, or the whole action is refused.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use conversation::{Deleted, SyncOutcome, ToSync};
use domain::action::{Action, ActionKind, SyncMessages};
use domain::failure::{DeadLetterReason, Failure};
use fixtures::{Replica, action, applied, decoded, duplicate, saving, sql, stores};
use serde_json::{Map, Value, json};
use testkit::TestEnv;

/// A field that the contract does not define.
const UNKNOWN: &str = "a_field_of_the_sender";

fn docs(path: &str) -> String {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/contract");
    std::fs::read_to_string(docs.join(path)).unwrap()
}

/// The column in which the contract's table says that a field is stored: of a message, and of session events
/// and feedback, and of deletions. `None` where it says that the field is not stored.
fn places() -> BTreeMap<String, [Option<String>; 3]> {
    let contract = docs("README.md");
    let (_, section) = contract.split_once("### Where each field is stored").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let rows =
        section.lines().filter(|line| line.starts_with("| `") || line.contains("unknown fields"));
    let quoted = |cell: &str| {
        let (_, rest) = cell.split_once('`')?;
        Some(rest.split_once('`')?.0.to_owned())
    };
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let field = quoted(cells[0]).unwrap_or_else(|| UNKNOWN.to_owned());
        let place = |cell: &str| quoted(cell).filter(|_| !cell.starts_with('–'));
        (field, [place(cells[1]), place(cells[2]), place(cells[3])])
    })
    .collect()
}

/// A body with every field that the JSON Schema of the action has, and one that it does not have. Texts contain
/// the name of their field, so that they can be found.
fn full_body(kind: ActionKind) -> Value {
    let schema: Value =
        serde_json::from_str(&docs(&format!("schemas/action.{}.json", kind.as_str()))).unwrap();
    let fields = schema["$defs"]["Fields"]["properties"].as_object().unwrap();
    let value = |name: &String| match name.as_str() {
        "action_type" => json!(kind.as_str()),
        "timestamp" => json!("2031-05-06T07:08:09.123456Z"),
        "role" => json!("assistant"),
        "tokens_estimate" | "processing_time_ms" => json!(8_642_097),
        "satisfaction" => json!(4),
        "metadata" => json!({"sent": "value of metadata"}),
        "content" => json!([{"type": "text", "text": "value of content"}]),
        "tool_calls" => json!([{"id": "value of tool_calls"}]),
        "item" => json!({"sent": "value of item"}),
        "usage" => json!({"sent": "value of usage"}),
        other => json!(format!("value of {other}")),
    };
    let mut body: Map<String, Value> = fields
        .keys()
        // The payload may be nested; this body is flat.
        .filter(|name| *name != "data")
        .map(|name| (name.clone(), value(name)))
        .collect();
    body.insert(UNKNOWN.to_owned(), json!(format!("value of {UNKNOWN}")));
    Value::Object(body)
}

/// How a value that was sent looks in a column.
fn stored_form(sent: &Value) -> String {
    match sent {
        Value::String(text) if text.starts_with("2031-") => "2031-05-06 07:08:09.123456".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(object) => object["sent"].as_str().unwrap().to_owned(),
        Value::Array(parts) => ["text", "id"]
            .into_iter()
            .find_map(|name| parts[0].get(name)?.as_str())
            .unwrap()
            .to_owned(),
        other => other.to_string(),
    }
}

async fn assert_stored(env: &TestEnv, body: &Value, place: usize) {
    let places = places();
    for (field, sent) in body.as_object().unwrap() {
        let known = places.get(field);
        let known =
            known.unwrap_or_else(|| panic!("the contract does not say where {field} is stored"));
        let form = stored_form(sent);
        match &known[place] {
            Some(column) => {
                let (table, column) = column.split_once('.').unwrap();
                let query = format!(
                    "SELECT count(*) > 0 AND bool_and(strpos({column}::text, '{form}') > 0) FROM {table}"
                );
                assert_eq!(sql(env, &query).await, "t", "{field} is not in {table}.{column}");
            }
            None => {
                let tables = [
                    "conversations",
                    "messages",
                    "session_events",
                    "sessions",
                    "deleted_messages",
                ]
                .map(|table| {
                    format!(
                        "SELECT '{table}' FROM {table} AS r WHERE strpos(r::text, '{form}') > 0"
                    )
                });
                let found = sql(env, &tables.join(" UNION ")).await;
                assert_eq!(found, "", "the contract says that {field} is not stored");
            }
        }
    }
}

/// An action of one message with all fields, and that message.
fn body_with_a_message(kind: ActionKind) -> (Value, Value) {
    let mut message = full_body(ActionKind::SaveMessage);
    let mut body = message.clone();
    // Fields of the action alone.
    for name in ["correlation_id", "callback_queue_name"] {
        message.as_object_mut().unwrap().remove(name);
    }
    let of_a_message = [
        "role",
        "content",
        "message_id",
        "tokens_estimate",
        "processing_time_ms",
        "tool_call_id",
        "tool_calls",
        "item",
        "usage",
        "finish_reason",
        "response_id",
        "parent_message_id",
        "context_hash",
    ];
    for name in of_a_message {
        body.as_object_mut().unwrap().remove(name);
    }
    body["action_type"] = kind.as_str().into();
    body["messages"] = json!([message]);
    (body, message)
}

async fn sync(replica: &Replica, list: &SyncMessages, body: &Value) {
    let body = body.to_string();
    let to_sync = ToSync { action: list, body: body.as_bytes(), is_tried: &AtomicBool::new(false) };
    let synced = replica.saver.sync(&[to_sync]).await.unwrap().pop().unwrap();
    assert!(matches!(synced, Ok(SyncOutcome::Stored(_))), "{synced:?}");
}

async fn recorded(replica: &Replica, action: Action) -> Result<(), Failure> {
    let outcome = replica.sessions.record(&[action]).await.unwrap().pop().unwrap();
    outcome.map(|done| assert_eq!(Ok(done), applied()))
}

#[tokio::test]
async fn every_field_of_every_action_is_stored_where_the_contract_says() {
    for kind in ActionKind::ALL {
        let body = full_body(kind);
        match kind {
            ActionKind::SaveMessage => {
                let (env, replica) = stores().await;
                assert_eq!(replica.save(&[saving(action(&body))]).await, [applied()]);
                assert_stored(&env, &body, 0).await;
            }
            ActionKind::SaveMessages | ActionKind::SyncMessages => {
                let (env, replica) = stores().await;
                let (body, message) = body_with_a_message(kind);
                match action(&body) {
                    Action::SyncMessages(list) => sync(&replica, &list, &body).await,
                    action => {
                        let saves: Vec<_> = action.messages().cloned().collect();
                        assert_eq!(replica.save(&saves).await, [applied()]);
                    }
                }
                assert_stored(&env, &message, 0).await;
            }
            ActionKind::SessionOpened | ActionKind::SessionClosed | ActionKind::Feedback => {
                let (env, replica) = stores().await;
                recorded(&replica, action(&body)).await.unwrap();
                assert_stored(&env, &body, 1).await;
            }
            ActionKind::DeleteMessage => {
                let (env, replica) = stores().await;
                let Action::DeleteMessage(common, payload) = action(&body) else {
                    panic!("{kind}")
                };
                let deleted = replica.deletions.delete(&[(&common, &payload.message_id)]).await;
                assert!(matches!(deleted.unwrap()[..], [Ok(Deleted::Now)]));
                assert_stored(&env, &body, 2).await;
            }
            // Refused whole: its dead letter has the body.
            ActionKind::Erase => {
                let (_env, replica) = stores().await;
                let mut body = body;
                body.as_object_mut().unwrap().remove("user_id");
                let Err(Failure::DeadLetter(refusal)) = recorded(&replica, action(&body)).await
                else {
                    panic!("{kind} is handled: say in the contract where its fields are stored");
                };
                assert_eq!(refusal.reason, DeadLetterReason::UnknownAction);
            }
            // Nothing of a request is stored, and no worker of this version takes writes of state from their
            // queue.
            ActionKind::GetContext
            | ActionKind::GetHistory
            | ActionKind::StateLoad
            | ActionKind::StateListActive
            | ActionKind::StateStats
            | ActionKind::StateSave
            | ActionKind::StatePatch
            | ActionKind::StateTransition
            | ActionKind::StateClear => {}
        }
    }
}

#[tokio::test]
async fn session_events_with_one_id_are_stored_once_if_they_say_the_same_and_each_if_not() {
    let (env, replica) = stores().await;
    let feedback = |extra: Value| {
        let mut body = json!({
            "action_type": "conversation.feedback", "tenant_id": "acme", "session_id": "s",
            "action_id": "one id", "satisfaction": 3,
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        action(&body)
    };
    for extra in [json!({}), json!({}), json!({"comment": "slow"}), json!({"comment": "rude"})] {
        recorded(&replica, feedback(extra)).await.unwrap();
    }
    let stored =
        "SELECT count(*), string_agg(metadata ->> 'comment', ',' ORDER BY metadata ->> 'comment')
                  FROM session_events";
    assert_eq!(sql(&env, stored).await, "3|rude,slow");
}

#[tokio::test]
async fn numbers_in_free_fields_are_stored_and_read_as_they_were_written() {
    let (env, replica) = stores().await;
    let numbers = "[1e400,123456789012345678901234567890,-0,1.0,1]";
    let body = format!(
        r#"{{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","message_id":"m","role":"assistant",
            "timestamp":"2026-11-20T10:00:00Z","metadata":{{"n":{numbers}}},"tool_calls":[{numbers}]}}"#
    );
    let save = saving(decoded(&body).unwrap());
    assert_eq!(replica.save(std::slice::from_ref(&save)).await, [applied()]);
    let stored = sql(&env, "SELECT concat(metadata->'n', tool_calls->0) FROM messages").await;
    assert_eq!(stored, numbers.repeat(2));
    // From PostgreSQL and from the hot copy in Redis.
    let messages = replica.read_both(&save.common.key, 10).await;
    assert_eq!(messages, std::slice::from_ref(&save.message));
    assert_eq!(replica.save(&[save]).await, [duplicate()]);
}
