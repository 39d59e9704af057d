//! The schema of a message's content. [`decode`](mod@crate::decode) reads the content from its text.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// The content of a message: text, or an array of parts.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Content {
    /// Plain text; may be empty.
    Text(String),
    /// Text, images and other parts that a model accepts.
    Parts(Vec<Part>),
}

/// A part of the content.
#[derive(Debug)]
pub struct Part;

/// A part of the result of a tool within the content.
#[derive(Debug)]
struct ResultPart;

impl JsonSchema for Part {
    fn schema_name() -> Cow<'static, str> {
        "Part".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let result = json_schema!({
            "description": "The result of a tool: a text or parts.",
            "if": of_type(&["tool_result"]),
            "then": { "properties": { "content": { "anyOf": [
                { "type": ["string", "null"] },
                { "type": "array", "items": generator.subschema_for::<ResultPart>() },
            ] } } },
        });
        let description =
            "A part of the content: a string, or an object. Its other fields are stored unchanged.";
        part(description, Some(result))
    }
}

impl JsonSchema for ResultPart {
    fn schema_name() -> Cow<'static, str> {
        "ResultPart".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        part(
            "A part of the result of a tool: as a part of the content, without results in it.",
            None,
        )
    }
}

fn of_type(types: &[&str]) -> Schema {
    json_schema!({ "properties": { "type": { "enum": types } }, "required": ["type"] })
}

fn part(description: &str, result: Option<Schema>) -> Schema {
    let text = json_schema!({ "anyOf": [
        { "type": "string" },
        {
            "type": "object",
            "properties": { "value": { "type": "string" } },
            "required": ["value"],
        },
    ] });
    let optional =
        |name: &str| json_schema!({ "properties": { (name): { "type": ["string", "null"] } } });
    let rules = [
        json_schema!({
            "description": "The text, required.",
            "if": of_type(&["text", "output_text", "input_text"]),
            "then": { "properties": { "text": text }, "required": ["text"] },
        }),
        json_schema!({
            "description": "Without a type: the text, if it has any.",
            "if": { "properties": { "type": { "type": "null" } } },
            "then": { "properties": { "text": { "anyOf": [text, { "type": "null" }] } } },
        }),
        json_schema!({ "if": of_type(&["refusal"]), "then": optional("refusal") }),
        json_schema!({ "if": of_type(&["thinking"]), "then": optional("thinking") }),
    ];
    let rules: Vec<Schema> = rules.into_iter().chain(result).collect();
    json_schema!({
        "description": description,
        "type": ["string", "object"],
        "properties": {
            "type": {
                "description": "The type of the part, such as `text` or `image_url`.",
                "type": ["string", "null"],
            },
        },
        "allOf": rules,
    })
}
