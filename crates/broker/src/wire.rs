//! Between AMQP's typed tables and JSON: how headers are read, stored and written.
//!
//! Only what our own headers are made of is written (texts, numbers, lists of texts); everything that
//! RabbitMQ and agents write can be read.

use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Value};

/// How AMQP writes the length of a table, a list or a long text.
const LENGTH_BYTES: usize = 4;

/// A table as JSON. Bytes that are no UTF-8 are replaced, times are seconds since 1970.
pub(crate) fn to_json(table: &FieldTable) -> Map<String, Value> {
    table.into_iter().map(|(name, value)| (name.to_string(), value_to_json(value))).collect()
}

/// JSON as a table. Null and nested objects have no use in our headers and are left out; so is a
/// name longer than AMQP allows (255 bytes).
pub(crate) fn to_table(headers: &Map<String, Value>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        if let (Ok(name), Some(value)) = (ShortString::try_new(name), value_to_amqp(value)) {
            table.insert(name, value);
        }
    }
    table
}

/// A header that is a text.
pub(crate) fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// What a table takes on the wire, in bytes (AMQP 0-9-1, 4.2.5.5), at least: values other than those
/// that our own headers are made of count as nothing.
pub(crate) fn encoded_bytes(table: &FieldTable) -> usize {
    let fields =
        table.into_iter().map(|(name, value)| 1 + name.as_str().len() + value_bytes(value));
    LENGTH_BYTES + fields.sum::<usize>()
}

/// A header that is a number, whichever of AMQP's integers it came as.
pub(crate) fn number(table: &FieldTable, name: &str) -> Option<i64> {
    value_to_json(table.inner().get(name)?).as_i64()
}

/// A value with the octet that names its type.
fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Boolean(_) => 1,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) => 8,
        AMQPValue::LongString(text) => LENGTH_BYTES + text.as_bytes().len(),
        AMQPValue::FieldArray(values) => {
            LENGTH_BYTES + values.as_slice().iter().map(value_bytes).sum::<usize>()
        }
        _ => 0,
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

fn value_to_amqp(value: &Value) -> Option<AMQPValue> {
    match value {
        Value::Bool(value) => Some(AMQPValue::Boolean(*value)),
        Value::Number(number) => Some(match number.as_i64() {
            Some(number) => AMQPValue::LongLongInt(number),
            None => AMQPValue::Double(number.as_f64()?),
        }),
        Value::String(text) => Some(AMQPValue::LongString(text.as_str().into())),
        Value::Array(values) => {
            let values: Vec<AMQPValue> = values.iter().filter_map(value_to_amqp).collect();
            Some(AMQPValue::FieldArray(FieldArray::from(values)))
        }
        Value::Null | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_our_headers_are_made_of_survives_the_wire() {
        let Value::Object(headers) = json!({"text": "ä", "number": -7, "list": ["a", "b"]}) else {
            unreachable!()
        };
        assert_eq!(to_json(&to_table(&headers)), headers);
    }

    #[test]
    fn the_encoded_size_is_that_of_the_wire() {
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
