//! AMQP values as JSON and back without loss, for storing what a sender set.
//!
//! A value that JSON has is written as such. Every other one is an object with the field `$type`:
//!
//! | AMQP | JSON |
//! |---|---|
//! | bytes | `{"$type": "bytes", "hex": "00ff"}` |
//! | a text that is not UTF-8, or has U+0000, which PostgreSQL's operators on JSON refuse | `{"$type": "text", "hex": "00ff"}` |
//! | a timestamp, in seconds since 1970 | `{"$type": "timestamp", "seconds": 1700000000}` |
//! | a decimal, here 1.25 | `{"$type": "decimal", "value": 125, "scale": 2}` |
//! | a number that JSON does not have or does not keep exactly, as the bits of a double | `{"$type": "double", "bits": "7ff8000000000000"}` |
//! | a table with a field `$type`, or with a name that has U+0000 | `{"$type": "table", "entries": [["name", "value"]]}` |
//!
//! An integer keeps its value and not its width; a `float` becomes the `double` with its value.
//!
//! Invariant: what was written is read back as a value that is written in the same way.

use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Map, Value, json};

const TYPE: &str = "$type";

/// A table as JSON.
pub(crate) fn table_to_json(table: &FieldTable) -> Value {
    let plain = |name: &ShortString| name.as_str() != TYPE && !name.as_str().contains('\0');
    if table.inner().keys().all(plain) {
        let fields = table.into_iter().map(|(name, value)| (name.to_string(), to_json(value)));
        return Value::Object(fields.collect());
    }
    let entry = |(name, value): (&ShortString, &AMQPValue)| {
        Value::from(vec![text_to_json(name.as_str().as_bytes()), to_json(value)])
    };
    json!({TYPE: "table", "entries": table.into_iter().map(entry).collect::<Vec<_>>()})
}

/// JSON from [`table_to_json`] as a table. Names longer than 255 bytes, AMQP's limit, are left out.
pub(crate) fn table_from_json(json: &Value) -> FieldTable {
    match from_json(json) {
        AMQPValue::FieldTable(table) => table,
        _ => FieldTable::default(),
    }
}

/// A text as JSON.
pub(crate) fn text_to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text.into(),
        _ => json!({TYPE: "text", "hex": hex(bytes)}),
    }
}

/// Bytes as JSON.
pub(crate) fn bytes_to_json(bytes: &[u8]) -> Value {
    json!({TYPE: "bytes", "hex": hex(bytes)})
}

/// JSON from [`bytes_to_json`] as bytes.
pub(crate) fn bytes_from_json(json: &Value) -> Option<Vec<u8>> {
    match typed(json.as_object()?)? {
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice().to_vec()),
        _ => None,
    }
}

/// A value as JSON.
pub(crate) fn to_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => double_to_json(f64::from(*value)),
        AMQPValue::Double(value) => double_to_json(*value),
        AMQPValue::DecimalValue(DecimalValue { scale, value }) => {
            json!({TYPE: "decimal", "value": value, "scale": scale})
        }
        AMQPValue::ShortString(text) => text_to_json(text.as_str().as_bytes()),
        AMQPValue::LongString(text) => text_to_json(text.as_bytes()),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(to_json).collect(),
        AMQPValue::Timestamp(seconds) => json!({TYPE: "timestamp", "seconds": seconds}),
        AMQPValue::FieldTable(table) => table_to_json(table),
        AMQPValue::ByteArray(bytes) => bytes_to_json(bytes.as_slice()),
        AMQPValue::Void => Value::Null,
    }
}

/// JSON from [`to_json`] as a value. An object whose `$type` is unknown is a table.
pub(crate) fn from_json(json: &Value) -> AMQPValue {
    match json {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => AMQPValue::LongLongInt(number),
            None => AMQPValue::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(values) => {
            let values: Vec<AMQPValue> = values.iter().map(from_json).collect();
            AMQPValue::FieldArray(FieldArray::from(values))
        }
        Value::Object(fields) => typed(fields).unwrap_or_else(|| {
            let fields = fields.iter().map(|(name, value)| (Some(name.clone()), value));
            AMQPValue::FieldTable(table(fields))
        }),
    }
}

/// A value whose type JSON does not have.
fn typed(fields: &Map<String, Value>) -> Option<AMQPValue> {
    let number = |name: &str| fields.get(name)?.as_u64();
    let bytes = |name: &str| unhex(fields.get(name)?.as_str()?);
    match fields.get(TYPE)?.as_str()? {
        "text" => Some(AMQPValue::LongString(LongString::from(bytes("hex")?))),
        "bytes" => Some(AMQPValue::ByteArray(bytes("hex")?.into())),
        "timestamp" => number("seconds").map(AMQPValue::Timestamp),
        "decimal" => Some(AMQPValue::DecimalValue(DecimalValue {
            scale: number("scale")?.try_into().ok()?,
            value: number("value")?.try_into().ok()?,
        })),
        "double" => {
            let bits = <[u8; 8]>::try_from(bytes("bits")?).ok()?;
            Some(AMQPValue::Double(f64::from_be_bytes(bits)))
        }
        "table" => {
            let entries = fields.get("entries")?.as_array()?.iter().filter_map(|entry| {
                let [name, value] = entry.as_array()?.as_slice() else { return None };
                let name = match from_json(name) {
                    AMQPValue::LongString(name) => String::from_utf8(name.as_bytes().into()).ok(),
                    _ => None,
                };
                Some((name, value))
            });
            Some(AMQPValue::FieldTable(table(entries)))
        }
        _ => None,
    }
}

fn table<'a>(fields: impl Iterator<Item = (Option<String>, &'a Value)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        if let Some(name) = name.and_then(|name| ShortString::try_new(name).ok()) {
            table.insert(name, from_json(value));
        }
    }
    table
}

/// A double as a number of JSON, if that is read back as the same double.
fn double_to_json(value: f64) -> Value {
    let number = Value::from(value);
    let read: Option<f64> = serde_json::from_str(&number.to_string()).ok();
    match read {
        Some(read) if read.to_bits() == value.to_bits() => number,
        _ => json!({TYPE: "double", "bits": hex(&value.to_be_bytes())}),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any value that RabbitMQ can deliver, a few levels deep.
    pub(crate) fn any_value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<f32>().prop_map(AMQPValue::Float),
            any::<u64>().prop_map(|bits| AMQPValue::Double(f64::from_bits(bits))),
            (any::<u8>(), any::<u32>())
                .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::LongString(bytes.into())),
            "[a-z\0]{0,3}".prop_map(|text| AMQPValue::LongString(text.as_str().into())),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|values| AMQPValue::FieldArray(values.into())),
                any_table_of(inner).prop_map(AMQPValue::FieldTable),
            ]
        })
    }

    /// A table of any values.
    pub(crate) fn any_table() -> impl Strategy<Value = FieldTable> {
        any_table_of(any_value())
    }

    fn any_table_of(value: impl Strategy<Value = AMQPValue>) -> impl Strategy<Value = FieldTable> {
        let name = prop_oneof![9 => "[a-z$\0]{1,4}", 1 => Just(TYPE.to_owned())];
        prop::collection::vec((name, value), 0..4).prop_map(|fields| {
            let mut table = FieldTable::default();
            for (name, value) in fields {
                table.insert(name.into(), value);
            }
            table
        })
    }

    /// The same value with the types that are read back.
    fn widened(value: AMQPValue) -> AMQPValue {
        match value {
            AMQPValue::ShortShortInt(value) => AMQPValue::LongLongInt(value.into()),
            AMQPValue::LongUInt(value) => AMQPValue::LongLongInt(value.into()),
            AMQPValue::Float(value) => AMQPValue::Double(value.into()),
            AMQPValue::FieldArray(values) => {
                let values: Vec<_> = values.as_slice().iter().cloned().map(widened).collect();
                AMQPValue::FieldArray(values.into())
            }
            AMQPValue::FieldTable(fields) => {
                let mut table = FieldTable::default();
                for (name, value) in &fields {
                    table.insert(name.clone(), widened(value.clone()));
                }
                AMQPValue::FieldTable(table)
            }
            other => other,
        }
    }

    proptest! {
        #[test]
        fn every_value_is_read_back_as_it_was(value in any_value()) {
            let written = to_json(&value);
            let stored: Value = serde_json::from_str(&written.to_string()).unwrap();
            let read = from_json(&stored);
            // As text, because a NaN equals no NaN.
            prop_assert_eq!(format!("{read:?}"), format!("{:?}", widened(value)));
            prop_assert_eq!(to_json(&read), written);
        }

        #[test]
        fn no_json_has_the_character_that_postgresql_refuses(table in any_table()) {
            prop_assert!(!table_to_json(&table).to_string().contains("\\u0000"));
        }
    }

    #[test]
    fn the_stored_format_is_the_same_in_every_version() {
        let mut nested = FieldTable::default();
        nested.insert(TYPE.into(), AMQPValue::LongString("own".into()));
        let mut table = FieldTable::default();
        for (name, value) in [
            ("text", AMQPValue::LongString("ä".into())),
            ("number", AMQPValue::ShortInt(-7)),
            ("part", AMQPValue::Double(0.5)),
            ("zero", AMQPValue::LongString("a\0".into())),
            ("latin1", AMQPValue::LongString(vec![0xe4].into())),
            ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
            ("at", AMQPValue::Timestamp(1_700_000_000)),
            ("price", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 125 })),
            ("none", AMQPValue::Double(f64::INFINITY)),
            ("nested", AMQPValue::FieldTable(nested)),
            ("list", AMQPValue::FieldArray(vec![AMQPValue::Void].into())),
        ] {
            table.insert(name.into(), value);
        }
        let expected = json!({
            "text": "ä", "number": -7, "part": 0.5,
            "zero": {"$type": "text", "hex": "6100"},
            "latin1": {"$type": "text", "hex": "e4"},
            "bytes": {"$type": "bytes", "hex": "00ff"},
            "at": {"$type": "timestamp", "seconds": 1_700_000_000},
            "price": {"$type": "decimal", "value": 125, "scale": 2},
            "none": {"$type": "double", "bits": "7ff0000000000000"},
            "nested": {"$type": "table", "entries": [["$type", "own"]]},
            "list": [null],
        });
        assert_eq!(table_to_json(&table), expected);
    }

    #[test]
    fn an_object_that_is_no_stored_value_is_a_table() {
        for json in [json!({"$type": "bytes", "hex": "0"}), json!({"$type": "unknown"}), json!({})]
        {
            assert!(matches!(from_json(&json), AMQPValue::FieldTable(_)), "{json}");
        }
    }
}
