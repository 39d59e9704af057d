//! The contract as JSON Schemas (2020-12), generated from the types that decode and encode.
//!
//! One document for each action, each reply and each event. Decoding accepts what the schema of the action
//! accepts, except for the rules that a schema cannot express; the contract lists them. It refuses what the
//! schema refuses: a test compares the two on random values.

use domain::action::{ActionKind, state};
use domain::decode::INSTEAD_OF_CONTENT;
use domain::event::{DeadLettered, Erased, Migrated, Reopened};
use domain::{reply, wire};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Every document with its file name, such as `action.conversation.save_message.json`.
pub(crate) fn documents() -> Vec<(String, Schema)> {
    let actions = ActionKind::ALL.into_iter().map(|kind| (format!("action.{kind}"), action(kind)));
    let replies = ActionKind::ALL.into_iter().map(|kind| (format!("reply.{kind}"), reply(kind)));
    let events = [
        event::<Migrated>("conversation.migrated"),
        event::<Reopened>("conversation.reopened"),
        event::<DeadLettered>("conversation.dead_lettered"),
        event::<Erased>("conversation.erased"),
    ];
    actions.chain(replies).chain(events).map(|(name, schema)| (name + ".json", schema)).collect()
}

fn action(kind: ActionKind) -> Schema {
    match kind {
        ActionKind::SaveMessage => action_with::<wire::SaveMessage<'_>>(kind, vec![content()]),
        ActionKind::SaveMessages => action_with::<wire::SaveMessages<'_>>(kind, Vec::new()),
        ActionKind::SyncMessages => action_with::<wire::SyncMessages<'_>>(kind, Vec::new()),
        ActionKind::DeleteMessage => action_with::<wire::DeleteMessage>(kind, Vec::new()),
        ActionKind::SessionOpened => action_with::<wire::SessionOpened>(kind, Vec::new()),
        ActionKind::SessionClosed => action_with::<wire::SessionClosed>(kind, Vec::new()),
        ActionKind::GetContext => action_with::<wire::GetContext>(kind, Vec::new()),
        ActionKind::GetHistory => action_with::<wire::GetHistory>(kind, Vec::new()),
        ActionKind::Feedback => action_with::<wire::Feedback>(kind, Vec::new()),
        ActionKind::Erase => action_with::<wire::Erase>(kind, Vec::new()),
        ActionKind::StateLoad => action_with::<state::Load>(kind, Vec::new()),
        ActionKind::StateSave => action_with::<state::Save>(kind, Vec::new()),
        ActionKind::StatePatch => {
            action_with::<state::Patch>(kind, vec![anywhere(&["patch", "append", "increment"])])
        }
        ActionKind::StateTransition => action_with::<state::Transition>(kind, Vec::new()),
        ActionKind::StateClear => action_with::<state::Clear>(kind, Vec::new()),
        ActionKind::StateListActive => action_with::<state::ListActive>(kind, Vec::new()),
        ActionKind::StateStats => action_with::<state::Stats>(kind, Vec::new()),
    }
}

/// The schema of an action with the payload `P`, which has to meet further conditions.
fn action_with<P: JsonSchema>(kind: ActionKind, mut needed: Vec<Value>) -> Schema {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let Fields { mut properties, required, description } = fields::<P>(kind, &mut generator);
    needed.splice(0..0, required.iter().map(|name| anywhere(&[name])));
    // The one action in which this field selects what is erased.
    if kind == ActionKind::Erase {
        let description = "Erase ALL conversations of this user. To erase one conversation, leave it \
            out. With `conversation_id` it is refused.";
        properties["user_id"]["description"] = description.into();
        let both = [anywhere(&["user_id"]), anywhere(&["conversation_id"])];
        needed.push(json!({ "not": { "allOf": both } }));
    }
    let has_messages = [ActionKind::SaveMessages, ActionKind::SyncMessages].contains(&kind);
    let message = has_messages.then(|| {
        let message = fields::<wire::SaveMessage<'_>>(ActionKind::SaveMessage, &mut generator);
        let of_a_message: Vec<&str> = message
            .properties
            .keys()
            .map(String::as_str)
            .filter(|it| !properties.contains_key(*it))
            .collect();
        needed.push(json!({ "not": anywhere(&[&of_a_message[..], &["parts"], &INSTEAD_OF_CONTENT].concat()) }));
        properties["messages"]["anyOf"][0]["items"] = json!({ "$ref": "#/$defs/Message" });
        message.properties
    });
    let mut definitions = generator.take_definitions(true);
    if let Some(properties) = message {
        let description = "A message: the fields of `conversation.save_message`. A field of the action that it does not \
            have counts for it, too. Tenant, session and conversation are those of the action.";
        let mut message = object("MessageFields", &[anywhere(&["role"]), content()]);
        message["description"] = description.into();
        definitions.insert("Message".to_owned(), message);
        let fields = json!({ "type": "object", "properties": properties });
        definitions.insert("MessageFields".to_owned(), fields);
    }
    definitions.insert("Fields".to_owned(), json!({ "type": "object", "properties": properties }));
    document(kind.as_str(), description.as_ref(), definitions, object("Fields", &needed))
}

/// The fields of an action.
struct Fields {
    properties: Map<String, Value>,
    required: Vec<String>,
    description: Option<Value>,
}

fn fields<P: JsonSchema>(kind: ActionKind, generator: &mut SchemaGenerator) -> Fields {
    let common = wire::Common::<'_>::json_schema(generator);
    let payload = P::json_schema(generator);
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for schema in [&common, &payload] {
        if let Some(Value::Object(own)) = schema.get("properties") {
            properties.extend(own.clone());
        }
        if let Some(Value::Array(own)) = schema.get("required") {
            required.extend(own.iter().filter_map(Value::as_str).map(str::to_owned));
        }
    }
    // A field that is null counts as absent: it may be null in one place and have its value in the other.
    for (name, property) in &mut properties {
        match name.as_str() {
            "action_type" => property["enum"] = json!([kind.as_str(), null]),
            _ => {
                or_empty_array(property);
                or_null(property);
            }
        }
    }
    if let Some(action_type) = properties.get_mut("action_type").and_then(Value::as_object_mut) {
        action_type.remove("type");
    }
    Fields { properties, required, description: payload.get("description").cloned() }
}

/// An object whose fields have this definition, at its top or under `data`.
fn object(fields: &str, needed: &[Value]) -> Value {
    let fields = format!("#/$defs/{fields}");
    json!({
        "type": "object",
        "$ref": fields,
        "properties": {
            "data": {
                "description": "Any field may be here instead of at the top level. A field in both places must \
                    have the same value in both.",
                "anyOf": [{ "$ref": fields }, { "type": "array", "maxItems": 0 }, { "type": "null" }],
            },
        },
        "allOf": needed,
    })
}

/// A message has content, or tool calls, or an assistant says something else, such as a refusal.
fn content() -> Value {
    let assistant = somewhere("role", &json!({ "const": "assistant" }));
    let without_content = json!({ "allOf": [
        { "anyOf": [anywhere(&["tool_calls"]), assistant] },
        { "not": anywhere(&["parts"]) },
    ] });
    json!({ "anyOf": [anywhere(&["content"]), without_content] })
}

/// At least one of these fields has a value, at the top level or under `data`.
fn anywhere(names: &[&str]) -> Value {
    let has_value = json!({ "not": { "type": "null" } });
    let fields: Vec<Value> = names.iter().map(|name| somewhere(name, &has_value)).collect();
    if fields.len() == 1 { fields[0].clone() } else { json!({ "anyOf": fields }) }
}

/// A field has a value of this schema, at the top level or under `data`.
fn somewhere(name: &str, schema: &Value) -> Value {
    let at_top = json!({ "type": "object", "required": [name], "properties": { (name): schema } });
    let nested = json!({ "required": ["data"], "properties": { "data": at_top } });
    json!({ "anyOf": [at_top, nested] })
}

/// Makes the schema of a property that is an object accept an empty array, too.
fn or_empty_array(property: &mut Value) {
    if has_type(property, "object") {
        or(property, json!({ "type": "array", "maxItems": 0 }));
    }
}

fn has_type(schema: &Value, wanted: &str) -> bool {
    match &schema["type"] {
        Value::Array(types) => types.contains(&wanted.into()),
        name => name == wanted,
    }
}

/// Makes the schema of a property accept what another schema accepts.
fn or(property: &mut Value, other: Value) {
    if let Some(Value::Array(alternatives)) = property.get_mut("anyOf") {
        alternatives.push(other);
        return;
    }
    let mut schema = property.take();
    let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
    *property = json!({ "description": description, "anyOf": [schema, other] });
}

/// Makes the schema of a property accept null, too.
fn or_null(property: &mut Value) {
    let alternatives = property["anyOf"].as_array().into_iter().flatten();
    if !alternatives.chain([&*property]).any(|schema| has_type(schema, "null")) {
        or(property, json!({ "type": "null" }));
    }
}

/// The schema of the reply to an action, if it has one.
fn reply(kind: ActionKind) -> Schema {
    match kind {
        ActionKind::SaveMessage => reply_with::<reply::SaveMessageData>(kind),
        ActionKind::SaveMessages => reply_with::<reply::SaveMessagesData>(kind),
        ActionKind::SyncMessages => reply_with::<reply::SyncMessagesData>(kind),
        ActionKind::DeleteMessage => reply_with::<reply::DeleteMessageData>(kind),
        ActionKind::GetContext => reply_with::<reply::ContextData>(kind),
        ActionKind::GetHistory => reply_with::<reply::HistoryData>(kind),
        ActionKind::Erase => reply_with::<reply::EraseData>(kind),
        ActionKind::StateLoad
        | ActionKind::StateSave
        | ActionKind::StatePatch
        | ActionKind::StateTransition
        | ActionKind::StateClear => reply_with::<reply::StateData>(kind),
        ActionKind::StateListActive => reply_with::<reply::StateListData>(kind),
        ActionKind::StateStats => reply_with::<reply::StateStatsData>(kind),
        ActionKind::SessionOpened | ActionKind::SessionClosed | ActionKind::Feedback => {
            reply_with::<reply::NoData>(kind)
        }
    }
}

fn reply_with<T: JsonSchema>(kind: ActionKind) -> Schema {
    let mut generator = sent();
    let body = reply::Reply::<T>::json_schema(&mut generator);
    let definitions = generator.take_definitions(true);
    let data = definitions.get(T::schema_name().as_ref());
    let description = data.and_then(|data| data.get("description")).cloned();
    document(&format!("reply to {kind}"), description.as_ref(), definitions, body.to_value())
}

fn event<T: JsonSchema>(event_type: &str) -> (String, Schema) {
    let mut generator = sent();
    let mut body = T::json_schema(&mut generator);
    let description = body.remove("description");
    body.ensure_object();
    if let Some(Value::Object(properties)) = body.get_mut("properties") {
        let schema = json!({
            "description": "The type of the event; also its routing key.",
            "const": event_type,
        });
        properties.insert("event_type".to_owned(), schema);
    }
    if let Some(Value::Array(required)) = body.get_mut("required") {
        required.insert(0, "event_type".into());
    }
    let definitions = generator.take_definitions(true);
    let schema = document(event_type, description.as_ref(), definitions, body.to_value());
    (format!("event.{event_type}"), schema)
}

fn document(
    title: &str,
    description: Option<&Value>,
    definitions: Map<String, Value>,
    body: Value,
) -> Schema {
    let mut document = schemars::json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
    });
    if let Value::Object(body) = body {
        for (keyword, value) in body {
            document.insert(keyword, value);
        }
    }
    document.insert("title".to_owned(), title.into());
    if let Some(description) = description {
        document.insert("description".to_owned(), description.clone());
    }
    if !definitions.is_empty() {
        document.insert("$defs".to_owned(), definitions.into());
    }
    unwrap_lines(document.ensure_object().values_mut());
    document
}

/// Joins the lines of descriptions: doc comments are wrapped at the margin of their source.
fn unwrap_lines<'a>(values: impl Iterator<Item = &'a mut Value>) {
    for value in values {
        match value {
            Value::String(text) if text.contains('\n') => *text = text.replace('\n', " "),
            Value::Object(members) => unwrap_lines(members.values_mut()),
            Value::Array(elements) => unwrap_lines(elements.iter_mut()),
            _ => {}
        }
    }
}

/// For what the workers send.
fn sent() -> SchemaGenerator {
    SchemaSettings::draft2020_12().for_serialize().into_generator()
}
