//! The schema of a message's content. [`decode`](crate::decode()) reads the content from its text.

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

impl JsonSchema for Part {
    fn schema_name() -> Cow<'static, str> {
        "Part".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({ "anyOf": [
            { "type": "string" },
            {
                "type": "object",
                "properties": { "value": { "type": "string" } },
                "required": ["value"],
            },
        ] });
        let of_type = |types: &[&str]| json_schema!({ "properties": { "type": { "enum": types } }, "required": ["type"] });
        let optional_text =
            |name: &str| json_schema!({ "properties": { (name): { "type": ["string", "null"] } } });
        let content = json_schema!({ "properties": { "content": { "anyOf": [
            { "type": ["string", "null"] },
            { "type": "array", "items": generator.subschema_for::<Self>() },
        ] } } });
        json_schema!({
            "description": "A part of the content: a string, or an object. Its other fields are stored unchanged.",
            "type": ["string", "object"],
            "properties": {
                "type": {
                    "description": "The type of the part, such as `text` or `image_url`.",
                    "type": ["string", "null"],
                },
            },
            "allOf": [
                {
                    "description": "The text, required.",
                    "if": of_type(&["text", "output_text", "input_text"]),
                    "then": { "properties": { "text": text }, "required": ["text"] },
                },
                {
                    "description": "Without a type: the text, if it has any.",
                    "if": { "properties": { "type": { "type": "null" } } },
                    "then": { "properties": { "text": { "anyOf": [text, { "type": "null" }] } } },
                },
                { "if": of_type(&["refusal"]), "then": optional_text("refusal") },
                { "if": of_type(&["thinking"]), "then": optional_text("thinking") },
                {
                    "description": "The result of a tool: a text or parts.",
                    "if": of_type(&["tool_result"]),
                    "then": content,
                },
            ],
        })
    }
}
