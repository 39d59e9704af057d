//! JSON Schemas as HTML.

use serde_json::Value;

use super::html::{escaped, put, text};

/// The fields of the objects in a schema, closed at first.
pub(super) fn json(html: &mut String, document: &Value, schema: &Value) {
    fields(html, document, schema, &mut Vec::new());
}

/// Without those that are open already, around it.
fn fields<'a>(html: &mut String, document: &'a Value, schema: &'a Value, open: &mut Vec<&'a str>) {
    for object in objects(document, schema) {
        let known = object.schema["properties"].as_object();
        let is_open = open.contains(&object.name);
        let Some(known) = known.filter(|_| !is_open) else { continue };
        let about = text(&object.schema["description"]);
        put(
            html,
            format_args!(
                "<details><summary><code>{}</code> {about}</summary><dl>",
                escaped(object.name)
            ),
        );
        open.push(object.name);
        let required = object.schema["required"].as_array().map_or(&[][..], Vec::as_slice);
        for (field, schema) in known {
            let is_required = required.iter().any(|it| it == field);
            put(
                html,
                format_args!(
                    "<dt><code>{}</code> <small>{}{}</small></dt><dd>{}",
                    escaped(field),
                    kind(document, schema),
                    if is_required { "" } else { ", optional" },
                    text(&schema["description"])
                ),
            );
            fields(html, document, schema, open);
            html.push_str("</dd>");
        }
        open.pop();
        html.push_str("</dl></details>");
    }
}

/// A schema with a name.
pub(super) struct Named<'a> {
    name: &'a str,
    pub(super) schema: &'a Value,
}

/// The objects that a schema names, in itself, in its alternatives and in its items.
pub(super) fn objects<'a>(document: &'a Value, schema: &'a Value) -> Vec<Named<'a>> {
    if let Some((name, target)) = referenced(document, schema) {
        return match target["properties"].is_object() {
            true => vec![Named { name, schema: target }],
            false => objects(document, target),
        };
    }
    let mut found: Vec<Named<'a>> = Vec::new();
    let alternatives = ["anyOf", "oneOf"].iter().filter_map(|key| schema[key].as_array()).flatten();
    for part in alternatives.chain(schema.get("items")) {
        for object in objects(document, part) {
            if found.iter().all(|it| it.name != object.name) {
                found.push(object);
            }
        }
    }
    found
}

fn referenced<'a>(document: &'a Value, schema: &'a Value) -> Option<(&'a str, &'a Value)> {
    let pointer = schema["$ref"].as_str()?.strip_prefix('#')?;
    let (_, name) = pointer.rsplit_once('/')?;
    Some((name, document.pointer(pointer)?))
}

/// The type of a value with its limits, as HTML.
pub(super) fn kind(document: &Value, schema: &Value) -> String {
    if let Some((name, target)) = referenced(document, schema) {
        return match target["properties"].is_object() {
            true => format!("object <code>{}</code>", escaped(name)),
            false => kind(document, target),
        };
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(parts) = schema[key].as_array() {
            let parts: Vec<String> = parts.iter().map(|part| kind(document, part)).collect();
            return parts.join(" or ");
        }
    }
    if let Some(value) = schema.get("const") {
        return format!("<code>{}</code>", escaped(&plain(value)));
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> =
            values.iter().map(|value| format!("<code>{}</code>", escaped(&plain(value)))).collect();
        return values.join(" or ");
    }
    let types: Vec<String> = match &schema["type"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(several) => several.iter().map(plain).collect(),
        _ => return "any JSON value".to_owned(),
    };
    let named: Vec<String> = types
        .iter()
        .map(|name| match name.as_str() {
            "array" => format!("array of {}", kind(document, &schema["items"])),
            "string" => schema["format"].as_str().map_or("string", format).to_owned(),
            name => escaped(name),
        })
        .collect();
    let mut kind = named.join(" or ");
    kind.push_str(&limits(schema));
    kind
}

/// A format of a string.
fn format(name: &str) -> &'static str {
    match name {
        "date-time" => "time (RFC 3339)",
        "date" => "day (2026-01-31)",
        "uuid" => "UUID",
        _ => "string",
    }
}

fn limits(schema: &Value) -> String {
    let mut limits = String::new();
    for (least, most, of) in [("minimum", "maximum", ""), ("minLength", "maxLength", " characters")]
    {
        match (schema[least].as_u64(), schema[most].as_u64()) {
            (Some(least), Some(most)) => put(&mut limits, format_args!(", {least} to {most}{of}")),
            (None, Some(most)) => put(&mut limits, format_args!(", at most {most}{of}")),
            (Some(least), None) => put(&mut limits, format_args!(", at least {least}{of}")),
            (None, None) => {}
        }
    }
    if let Some(default) = schema.get("default").filter(|it| !it.is_null()) {
        put(&mut limits, format_args!(", default <code>{}</code>", escaped(&plain(default))));
    }
    limits
}

/// A value without the quotes of a string.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
