//! Conversion between AMQP field tables and JSON, for reading and writing the fleet headers, and the sizes of
//! tables.
//!
//! Every AMQP type can be read. What was read is written again in the types that JSON has: texts, numbers,
//! booleans, lists, tables and null. What a sender set is converted without loss (`lossless.rs`).

use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Value};

/// The size of the length of a table, a list or a long string, in bytes.
const LENGTH_BYTES: usize = 4;

/// A table as JSON. Bytes that are not UTF-8 are replaced; timestamps become seconds since 1970.
pub(crate) fn to_json(table: &FieldTable) -> Map<String, Value> {
    to_json_where(table, |_| true)
}

/// The fields of a table with these names as JSON, as [`to_json`] writes it.
pub(crate) fn to_json_where(
    table: &FieldTable,
    wanted: impl Fn(&str) -> bool,
) -> Map<String, Value> {
    let fields = table.into_iter().filter(|(name, _)| wanted(name.as_str()));
    fields.map(|(name, value)| (name.to_string(), value_to_json(value))).collect()
}

/// JSON as a table. Names longer than 255 bytes, AMQP's limit, are left out; our headers have none of them.
pub(crate) fn to_table(headers: &Map<String, Value>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        if let Ok(name) = ShortString::try_new(name) {
            table.insert(name, value_to_amqp(value));
        }
    }
    table
}

pub(crate) fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// The encoded size of a table, in bytes (AMQP 0-9-1, 4.2.5.5).
pub(crate) fn encoded_bytes(table: &FieldTable) -> usize {
    let fields = table.into_iter().map(|(name, value)| field_bytes(name.as_str(), value));
    LENGTH_BYTES + fields.sum::<usize>()
}

/// The encoded size of a field of a table, in bytes.
pub(crate) fn field_bytes(name: &str, value: &AMQPValue) -> usize {
    1 + name.len() + value_bytes(value)
}

/// A header that is an integer, of any of AMQP's integer types.
pub(crate) fn number(table: &FieldTable, name: &str) -> Option<i64> {
    value_to_json(table.inner().get(name)?).as_i64()
}

/// The encoded size of a value with its type octet, in bytes.
fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => LENGTH_BYTES + bytes.len(),
        AMQPValue::LongString(text) => LENGTH_BYTES + text.as_bytes().len(),
        AMQPValue::FieldArray(values) => {
            LENGTH_BYTES + values.as_slice().iter().map(value_bytes).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => encoded_bytes(table),
    }
}

fn value_to_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::DecimalValue(value) => format!("{}e-{}", value.value, value.scale).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => text.to_string().into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(value_to_json).collect(),
        AMQPValue::Timestamp(seconds) => (*seconds).into(),
        AMQPValue::FieldTable(table) => to_json(table).into(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into(),
        AMQPValue::Void => Value::Null,
    }
}

fn value_to_amqp(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => AMQPValue::LongLongInt(number),
            None => AMQPValue::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(values) => {
            let values: Vec<AMQPValue> = values.iter().map(value_to_amqp).collect();
            AMQPValue::FieldArray(FieldArray::from(values))
        }
        Value::Object(fields) => AMQPValue::FieldTable(to_table(fields)),
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::DecimalValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_json_has_is_read_back_as_written() {
        let Value::Object(headers) = json!({
            "text": "ä", "number": -7, "part": 0.5, "list": ["a", {"deep": [null, true]}], "table": {"a": {}},
        }) else {
            unreachable!()
        };
        assert_eq!(to_json(&to_table(&headers)), headers);
    }

    #[test]
    fn the_encoded_size_follows_the_amqp_encoding() {
        let Value::Object(headers) =
            json!({"text": "ä", "number": -7, "list": ["a", "b"], "flag": true})
        else {
            unreachable!()
        };
        let text = 1 + 4 + 1 + 4 + 2;
        let number = 1 + 6 + 1 + 8;
        let list = 1 + 4 + 1 + 4 + 2 * (1 + 4 + 1);
        let flag = 1 + 4 + 1 + 1;
        assert_eq!(encoded_bytes(&to_table(&headers)), 4 + text + number + list + flag);
    }

    #[test]
    fn the_encoded_size_of_every_type_is_known() {
        let sizes = [
            (AMQPValue::Void, 0),
            (AMQPValue::ShortShortInt(1), 1),
            (AMQPValue::ShortShortUInt(1), 1),
            (AMQPValue::ShortInt(1), 2),
            (AMQPValue::ShortUInt(1), 2),
            (AMQPValue::LongInt(1), 4),
            (AMQPValue::LongUInt(1), 4),
            (AMQPValue::Float(1.0), 4),
            (AMQPValue::DecimalValue(DecimalValue { scale: 1, value: 1 }), 5),
            (AMQPValue::Double(1.0), 8),
            (AMQPValue::Timestamp(1), 8),
            (AMQPValue::ByteArray(vec![1, 2].into()), 4 + 2),
        ];
        for (value, size) in sizes {
            assert_eq!(value_bytes(&value), 1 + size, "{value:?}");
        }
    }

    #[test]
    fn a_number_is_read_from_any_integer_type() {
        let mut table = FieldTable::default();
        table.insert("small".into(), AMQPValue::ShortShortUInt(3));
        table.insert("large".into(), AMQPValue::LongLongInt(3));
        table.insert("text".into(), AMQPValue::LongString("3".into()));
        assert_eq!(number(&table, "small"), Some(3));
        assert_eq!(number(&table, "large"), Some(3));
        assert_eq!(number(&table, "text"), None);
    }
}
