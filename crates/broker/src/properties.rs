//! The properties of a message by their AMQP names: as a table, and as JSON.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value};

use crate::lossless;

/// All properties that are set, but not the headers, by name (AMQP 0-9-1, 1.8.1).
pub(crate) fn to_table(properties: &BasicProperties) -> FieldTable {
    let text = |text: &Option<ShortString>| {
        text.as_ref().map(|text| AMQPValue::LongString(text.as_str().into()))
    };
    let octet = |octet: &Option<u8>| octet.map(AMQPValue::ShortShortUInt);
    let all = [
        ("content_type", text(properties.content_type())),
        ("content_encoding", text(properties.content_encoding())),
        ("delivery_mode", octet(properties.delivery_mode())),
        ("priority", octet(properties.priority())),
        ("correlation_id", text(properties.correlation_id())),
        ("reply_to", text(properties.reply_to())),
        ("expiration", text(properties.expiration())),
        ("message_id", text(properties.message_id())),
        ("timestamp", properties.timestamp().map(AMQPValue::Timestamp)),
        ("type", text(properties.kind())),
        ("user_id", text(properties.user_id())),
        ("app_id", text(properties.app_id())),
        ("cluster_id", text(properties.cluster_id())),
    ];
    let mut table = FieldTable::default();
    for (name, value) in all {
        if let Some(value) = value {
            table.insert(name.into(), value);
        }
    }
    table
}

/// The properties of a table; what is none, or has the wrong type, is left out.
pub(crate) fn from_table(table: &FieldTable) -> BasicProperties {
    let mut properties = BasicProperties::default();
    for (name, value) in table {
        properties = match value {
            AMQPValue::LongString(text) => {
                let text = std::str::from_utf8(text.as_bytes()).ok();
                match text.and_then(|text| ShortString::try_new(text).ok()) {
                    Some(text) => with_text(properties, name.as_str(), text),
                    None => properties,
                }
            }
            AMQPValue::ShortShortUInt(octet) => match name.as_str() {
                "delivery_mode" => properties.with_delivery_mode(*octet),
                "priority" => properties.with_priority(*octet),
                _ => properties,
            },
            AMQPValue::Timestamp(seconds) if name.as_str() == "timestamp" => {
                properties.with_timestamp(*seconds)
            }
            _ => properties,
        };
    }
    properties
}

/// The properties that are set, as JSON for storing and displaying: numbers as numbers, also the timestamp.
pub(crate) fn to_json(properties: &BasicProperties) -> Map<String, Value> {
    let value = |value: &AMQPValue| match value {
        AMQPValue::Timestamp(seconds) => (*seconds).into(),
        other => lossless::to_json(other),
    };
    let table = to_table(properties);
    table.into_iter().map(|(name, property)| (name.to_string(), value(property))).collect()
}

/// JSON from [`to_json`] as properties.
pub(crate) fn from_json(json: &Value) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in json.as_object().into_iter().flatten() {
        let property = match (name.as_str(), value.as_u64()) {
            ("timestamp", Some(seconds)) => Some(AMQPValue::Timestamp(seconds)),
            (_, Some(number)) => u8::try_from(number).ok().map(AMQPValue::ShortShortUInt),
            (_, None) => Some(lossless::from_json(value)),
        };
        if let (Some(property), Ok(name)) = (property, ShortString::try_new(name)) {
            table.insert(name, property);
        }
    }
    from_table(&table)
}

fn with_text(properties: BasicProperties, name: &str, text: ShortString) -> BasicProperties {
    match name {
        "content_type" => properties.with_content_type(text),
        "content_encoding" => properties.with_content_encoding(text),
        "correlation_id" => properties.with_correlation_id(text),
        "reply_to" => properties.with_reply_to(text),
        "expiration" => properties.with_expiration(text),
        "message_id" => properties.with_message_id(text),
        "type" => properties.with_type(text),
        "user_id" => properties.with_user_id(text),
        "app_id" => properties.with_app_id(text),
        "cluster_id" => properties.with_cluster_id(text),
        _ => properties,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every property, each with a value of its own.
    pub(crate) fn all() -> BasicProperties {
        BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("gzip".into())
            .with_delivery_mode(1)
            .with_priority(3)
            .with_correlation_id("correlation".into())
            .with_reply_to("replies".into())
            .with_expiration("60000".into())
            .with_message_id("m\0".into())
            .with_timestamp(u64::MAX)
            .with_type("chat".into())
            .with_user_id("agent".into())
            .with_app_id("booking".into())
            .with_cluster_id("eu".into())
    }

    #[test]
    fn every_property_is_read_back_from_a_table_and_from_json() {
        assert_eq!(to_table(&all()).inner().len(), 13);
        assert_eq!(from_table(&to_table(&all())), all());
        let stored = Value::Object(to_json(&all()));
        assert_eq!(from_json(&stored), all());
        assert_eq!(stored["timestamp"], u64::MAX);
        assert_eq!(stored["message_id"], serde_json::json!({"$type": "text", "hex": "6d00"}));
    }

    #[test]
    fn what_is_no_property_is_left_out() {
        let json = serde_json::json!({
            "exchange": "domain.actions", "priority": 300, "timestamp": "now",
            "message_id": "x".repeat(256), "app_id": 3, "type": null, "user_id": "agent",
        });
        assert_eq!(from_json(&json), BasicProperties::default().with_user_id("agent".into()));
    }
}
