//! The OpenAPI 3.1 document, from the table of endpoints.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::{HeaderName, Method};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::after::AFTER;
use crate::endpoint::{Conditional, Endpoint, Handler, Publishes};
use crate::endpoints::ENDPOINTS;
use crate::parameters::{Declared, Place};
use crate::problem::{Kind, ProblemView};
use crate::stale_reads::{LAG, SERVED_BY};

/// The document.
pub(crate) static VALUE: LazyLock<Value> = LazyLock::new(document);

/// The document, as JSON.
pub(crate) static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string_pretty(&*VALUE).unwrap_or_default());

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    generator.subschema_for::<ProblemView<'_>>();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for endpoint in &ENDPOINTS {
        let answer = (endpoint.answer)(&mut generator);
        let body = endpoint.body.map(|body| json!(body(&mut generator)));
        let operation = operation(endpoint, &json!(answer), body);
        let method = endpoint.method.as_str().to_lowercase();
        paths.entry(endpoint.path).or_default().insert(method, operation);
    }
    let schemas: Map<String, Value> = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Verbatim",
            "version": service::VERSION,
            "summary": "Conversations of AI agents and their users: reads them and their statistics, publishes actions, handles dead letters",
            "description": "Times are RFC 3339 in UTC with microseconds. The tenant of a request is that of its key. What \
                            belongs to another tenant is answered as what does not exist. Errors are RFC 9457 problems.",
        },
        "security": [{ "key": [] }, { "signature": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, as `verbatim keys create` prints it",
                },
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Verbatim-HMAC-SHA256 key=ID, timestamp=SECONDS, nonce=NONCE, digest=HEX, signature=HEX`: \
                                    a request that is signed with an API key, in place of sending the key (docs/api.md)",
                },
            },
            "schemas": schemas,
        },
    })
}

/// Whether an endpoint may answer with this kind of error.
pub(crate) fn may_answer(endpoint: &Endpoint, kind: Kind) -> bool {
    let is_of_dead_letters = endpoint.path.starts_with("/api/dead-letters");
    let is_post = endpoint.method == Method::POST;
    match kind {
        // An operator's key may leave the tenant of dead letters out.
        Kind::TenantRequired => !is_of_dead_letters,
        Kind::NotSetUp => is_of_dead_letters,
        Kind::Conflict => is_of_dead_letters && is_post,
        Kind::NotPublished => is_post,
        Kind::TooLarge => endpoint.body.is_some(),
        Kind::Refused => endpoint.publishes == Publishes::Yes,
        _ => true,
    }
}

fn operation(endpoint: &Endpoint, answer: &Value, body: Option<Value>) -> Value {
    let parameters: Vec<Value> = endpoint.parameters.iter().map(|it| parameter(*it)).collect();
    let mut answers = Map::new();
    let mut headers = Map::new();
    if endpoint.conditional == Conditional::Yes {
        headers.insert("ETag".to_owned(), json!({ "schema": { "type": "string" } }));
        let about = "If-None-Match names the current answer";
        answers.insert("304".to_owned(), json!({ "description": about }));
    }
    if let Handler::MayBeStale(_) = endpoint.handler {
        let server = json!({ "type": "string", "enum": ["primary", "replica"] });
        let about = "Which PostgreSQL was read";
        headers.insert(named(&SERVED_BY), json!({ "description": about, "schema": server }));
        let lag = json!({ "type": "integer", "minimum": 0 });
        let about =
            "How many milliseconds old the answer is at most. Only where a read replica was read";
        headers.insert(named(&LAG), json!({ "description": about, "schema": lag }));
    }
    if endpoint.publishes == Publishes::Yes {
        let about = "With `wait=durable` and a read replica: a position behind what was written. In a later request it asks \
                     for an answer that has it";
        let after = json!({ "description": about, "schema": { "type": "string" } });
        headers.insert(named(&AFTER), after);
    }
    let ok = json!({
        "description": endpoint.summary,
        "headers": headers,
        "content": { "application/json": { "schema": answer } },
    });
    answers.insert("200".to_owned(), ok);
    for kind in Kind::ALL.into_iter().filter(|kind| may_answer(endpoint, *kind)) {
        let (status, name, title) = kind.parts();
        let problem = json!({ "$ref": "#/components/schemas/Problem" });
        let entry = answers.entry(status.as_str().to_owned()).or_insert_with(|| {
            json!({ "description": "", "content": { "application/problem+json": { "schema": problem } } })
        });
        let before = entry["description"].as_str().unwrap_or_default();
        let separator = if before.is_empty() { "" } else { ". " };
        entry["description"] =
            json!(format!("{before}{separator}{title} (`urn:verbatim:problem:{name}`)"));
    }
    let mut operation = json!({
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "description": format!("{}\n\nScope: `{}`.", endpoint.about, endpoint.scope.as_str()),
        "parameters": parameters,
        "responses": answers,
    });
    if let Some(body) = body {
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": body } } });
    }
    if endpoint.publishes == Publishes::Yes {
        answers_of_publishing(&mut operation);
    }
    if let Handler::MayBeStale(_) = endpoint.handler {
        let after = json!({
            "name": named(&AFTER),
            "in": "header",
            "description": "The value of this header in an answer of `POST /api/actions?wait=durable`: the answer has what was \
                            written there. It is from the read replica if that has it within 100 ms \
                            (VERBATIM_REPLICA_WAIT), else from the primary",
            "schema": { "type": "string" },
        });
        if let Some(list) = operation["parameters"].as_array_mut() {
            list.push(after);
        }
    }
    if endpoint.conditional == Conditional::Yes {
        let known = json!({
            "name": "If-None-Match",
            "in": "header",
            "description": "The ETag of an answer that the client has: 304 if it is still current",
            "schema": { "type": "string" },
        });
        if let Some(list) = operation["parameters"].as_array_mut() {
            list.push(known);
        }
    }
    operation
}

/// What an endpoint has that publishes actions.
fn answers_of_publishing(operation: &mut Value) {
    operation["responses"]["202"] = operation["responses"]["200"].clone();
    let key = json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Becomes the `action_id` of an action that has none: repeated with the same key it takes effect once",
        "schema": { "type": "string", "minLength": 1, "maxLength": 512 },
    });
    if let Some(list) = operation["parameters"].as_array_mut() {
        list.push(key);
    }
}

/// The name of a header, as documents write it: each part begins with a capital.
fn named(header: &HeaderName) -> String {
    let capital = |part: &str| {
        let (first, rest) = part.split_at(1);
        format!("{}{rest}", first.to_uppercase())
    };
    header.as_str().split('-').map(capital).collect::<Vec<_>>().join("-")
}

fn parameter(it: &dyn Declared) -> Value {
    let place = match it.place() {
        Place::Path => "path",
        Place::Query => "query",
    };
    json!({
        "name": it.name(),
        "in": place,
        "required": it.place() == Place::Path,
        "description": it.about(),
        "schema": it.schema(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients are generated from it, so each change is looked at.
    #[test]
    fn the_document_is_its_snapshot() {
        insta::assert_snapshot!(*DOCUMENT);
    }

    #[test]
    fn a_problem_need_not_name_faults() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        let required = &document["components"]["schemas"]["Problem"]["required"];
        let required: Vec<_> =
            required.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(required, ["type", "title", "status", "detail", "request_id"]);
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        let text = DOCUMENT.as_str();
        let references =
            text.split("\"$ref\": \"#").skip(1).map(|it| it.split('"').next().unwrap());
        let mut count = 0;
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
            count += 1;
        }
        assert!(count > 20, "{count}");
    }
}
