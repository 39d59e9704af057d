//! What the sender of a message set: its properties and headers, which all copies carry.
//!
//! A copy has properties and headers of its own, because those of a sender would act: an `expiration` drops
//! the copy, a `CC` routes it to further queues, an `x-death` ends its retries. So what the sender set is in one
//! fleet header of the copy, a table of its own, from the first copy to the last. It only informs: nothing of it
//! is applied again.
//!
//! Invariant: what does not fit is left out, and its names and their number are carried instead.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::{Value, json};

use crate::header_owner::{MAX_DEPTH, Owner, fits, is_shallow};
use crate::{lossless, properties, wire};

/// The properties and headers that the sender of a message set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SenderFields {
    /// Without its headers.
    properties: BasicProperties,
    headers: FieldTable,
    left_out: LeftOut,
}

/// The headers of a sender that are not carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct LeftOut {
    count: u64,
    /// The first of them.
    names: Vec<String>,
}

/// Who may have written RabbitMQ's own headers into a message: its counts of deliveries, and its history of
/// dead-lettering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Its sender wrote both: RabbitMQ delivers it for the first time, and by an exchange through which it does not
    /// dead-letter.
    BySender,
    /// RabbitMQ may have written the counts, because it redelivered the message. It did not dead-letter it.
    CountsByRabbitMq,
    /// RabbitMQ may have written both: it dead-lettered the message, perhaps after it had redelivered it.
    ByRabbitMq,
}

/// The most that a copy carries of the sender's properties and headers, in bytes as AMQP encodes them. The
/// fleet headers need up to 36 KiB, and together they must fit into the 64 KiB that a copy may have
/// (`MAX_HEADER_BYTES`). The properties alone need up to 3 KiB: each is shorter than 256 bytes.
const MAX_BYTES: usize = 20 << 10;
/// The most names of headers that were left out, in bytes as AMQP encodes them: about a hundred usual names.
const MAX_NAME_BYTES: usize = 2 << 10;
/// The most values, those in lists and tables included. Small values need little space in AMQP and far more
/// in memory and in JSON.
const MAX_VALUES: usize = 1024;
const PROPERTIES: &str = "properties";
const HEADERS: &str = "headers";
const LEFT_OUT: &str = "left_out";
const LEFT_OUT_COUNT: &str = "left_out_count";

impl SenderFields {
    /// What the sender set on a message that is no copy. Left out are headers that are nested too deep, and those
    /// that have the name of a fleet header or, if the sender wrote them, of one of RabbitMQ's.
    pub(crate) fn of(message: &BasicProperties, written: Written) -> Self {
        let mut fields = Self {
            properties: properties::from_table(&properties::to_table(message)),
            ..Self::default()
        };
        for (name, value) in message.headers().iter().flatten() {
            let name = name.as_str();
            match Owner::of(name) {
                Owner::Sender if is_shallow(value) => {
                    fields.headers.insert(name.into(), value.clone());
                }
                Owner::RabbitMqCounts if written != Written::BySender => {}
                Owner::RabbitMqDeaths if written == Written::ByRabbitMq => {}
                _ => fields.left_out.add(name),
            }
        }
        if fields.properties.expiration().is_none()
            && written == Written::ByRabbitMq
            && let Some(expiration) = message.headers().as_ref().and_then(original_expiration)
        {
            fields.properties = fields.properties.with_expiration(expiration.as_str().into());
        }
        fields
    }

    /// The encoding of the body, as its sender named it.
    pub(crate) fn content_encoding(&self) -> Option<&str> {
        self.properties.content_encoding().as_ref().map(ShortString::as_str)
    }

    /// The encoding of the body in the header of a copy.
    pub(crate) fn content_encoding_in(header: &AMQPValue) -> Option<&str> {
        let AMQPValue::FieldTable(fields) = header else { return None };
        let AMQPValue::FieldTable(properties) = fields.inner().get(PROPERTIES)? else {
            return None;
        };
        match properties.inner().get("content_encoding")? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            _ => None,
        }
    }

    /// What a copy carries: without the headers that are too large together, or have too many values.
    pub(crate) fn bounded(self) -> Self {
        let Self { properties, headers, mut left_out } = self;
        let mut bytes = wire::encoded_bytes(&properties::to_table(&properties));
        let mut values = MAX_VALUES;
        let mut kept = FieldTable::default();
        for (name, value) in &headers {
            let mut values_then = values;
            if fits(value, MAX_DEPTH, &mut values_then) {
                let field = wire::field_bytes(name.as_str(), value);
                if bytes + field <= MAX_BYTES {
                    (bytes, values) = (bytes + field, values_then);
                    kept.insert(name.clone(), value.clone());
                    continue;
                }
            }
            left_out.add(name.as_str());
        }
        Self { properties, headers: kept, left_out: left_out.bounded() }
    }

    /// As the value of a header.
    pub(crate) fn to_header(&self) -> AMQPValue {
        let mut table = FieldTable::default();
        let mut insert = |name: &str, value| {
            table.insert(name.into(), value);
        };
        insert(PROPERTIES, AMQPValue::FieldTable(properties::to_table(&self.properties)));
        insert(HEADERS, AMQPValue::FieldTable(self.headers.clone()));
        let LeftOut { count, names } = &self.left_out;
        if *count > 0 {
            let names = names.iter().map(|name| AMQPValue::LongString(name.as_str().into()));
            insert(LEFT_OUT, AMQPValue::FieldArray(FieldArray::from(names.collect::<Vec<_>>())));
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            insert(LEFT_OUT_COUNT, AMQPValue::LongLongInt(count));
        }
        AMQPValue::FieldTable(table)
    }

    /// From the header of a copy.
    pub(crate) fn from_header(header: &AMQPValue) -> Self {
        let AMQPValue::FieldTable(table) = header else { return Self::default() };
        let inner = |name: &str| match table.inner().get(name) {
            Some(AMQPValue::FieldTable(table)) => Some(table),
            _ => None,
        };
        let names = match table.inner().get(LEFT_OUT) {
            Some(AMQPValue::FieldArray(names)) => names.as_slice(),
            _ => &[],
        };
        let names = names.iter().filter_map(|name| match name {
            AMQPValue::LongString(name) => Some(name.to_string()),
            _ => None,
        });
        let names: Vec<_> = names.collect();
        let count = wire::number(table, LEFT_OUT_COUNT).and_then(|it| u64::try_from(it).ok());
        let count = count.unwrap_or(0).max(names.len() as u64);
        let mut fields = Self {
            properties: inner(PROPERTIES).map(properties::from_table).unwrap_or_default(),
            headers: FieldTable::default(),
            left_out: LeftOut { count, names },
        };
        for (name, value) in inner(HEADERS).into_iter().flatten() {
            // The fleet carries no other. One that is nested too deep was forged.
            if is_shallow(value) {
                fields.headers.insert(name.clone(), value.clone());
            } else {
                fields.left_out.add(name.as_str());
            }
        }
        fields
    }

    /// The properties, without the headers.
    pub(crate) fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// The headers.
    pub(crate) fn headers(&self) -> &FieldTable {
        &self.headers
    }

    /// Which headers were left out, as JSON for storing and displaying: their number and the first names. `None`
    /// if there are none.
    pub(crate) fn left_out(&self) -> Option<Value> {
        let LeftOut { count, names } = &self.left_out;
        let names: Vec<_> = names.iter().map(|it| lossless::text_to_json(it.as_bytes())).collect();
        (*count > 0).then(|| json!({"headers": count, "names": names}))
    }

    /// From what was stored of it.
    pub(crate) fn from_stored(
        properties: &Value,
        headers: &Value,
        left_out: Option<&Value>,
    ) -> Self {
        let left = |name: &str| left_out.and_then(|it| it.get(name));
        let names = left("names").and_then(Value::as_array).into_iter().flatten();
        let names = names.filter_map(|name| match lossless::from_json(name) {
            AMQPValue::LongString(name) => Some(name.to_string()),
            _ => None,
        });
        let count = left("headers").and_then(Value::as_u64).unwrap_or(0);
        Self {
            properties: properties::from_json(properties),
            headers: lossless::table_from_json(headers),
            left_out: LeftOut { count, names: names.collect() },
        }
    }
}

impl LeftOut {
    fn add(&mut self, name: &str) {
        self.count += 1;
        self.names.push(name.to_owned());
    }

    fn bounded(mut self) -> Self {
        let mut bytes = 0;
        self.names.retain(|name| {
            // One octet for the type of the value, four for its length.
            bytes += 1 + 4 + name.len();
            bytes <= MAX_NAME_BYTES
        });
        self
    }
}

/// The `expiration` with which a message was published that then expired: RabbitMQ removes the property and
/// writes it into `x-death`, whose last entry is the oldest.
fn original_expiration(headers: &FieldTable) -> Option<String> {
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { return None };
    let oldest = deaths.as_slice().last()?;
    let AMQPValue::FieldTable(oldest) = oldest else { return None };
    wire::text(oldest, "original-expiration").filter(|it| it.len() <= 255)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delivery::tests::died_in;
    use crate::fleet_headers::SENT;
    use crate::lossless::tests::any_table;
    use crate::properties::tests::all;

    fn text(bytes: usize) -> AMQPValue {
        AMQPValue::LongString("x".repeat(bytes).into())
    }

    fn with(fields: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in fields {
            headers.insert((*name).into(), value.clone());
        }
        all().with_headers(headers)
    }

    fn nested(depth: usize) -> AMQPValue {
        let wrap = |inner, _| AMQPValue::FieldArray(vec![inner].into());
        (1..depth).fold(AMQPValue::Boolean(true), wrap)
    }

    fn names(fields: &SenderFields) -> (Vec<&str>, u64, Vec<&str>) {
        let kept = fields.headers.inner().keys().map(lapin::types::ShortString::as_str).collect();
        let LeftOut { count, names } = &fields.left_out;
        (kept, *count, names.iter().map(String::as_str).collect())
    }

    proptest! {
        #[test]
        fn what_a_copy_carries_is_read_back_as_written_and_stays_within_its_limits(
            headers in any_table(), large in prop::collection::vec(0_usize..30_000, 0..4),
        ) {
            let mut headers = headers;
            for (n, bytes) in large.iter().enumerate() {
                headers.insert(format!("large {n}").into(), text(*bytes));
            }
            let sent = headers.inner().len() as u64;
            let message = all().with_headers(headers);
            let carried = SenderFields::of(&message, Written::BySender).bounded();
            let header = carried.to_header();
            prop_assert!(wire::field_bytes(SENT, &header) <= MAX_BYTES + MAX_NAME_BYTES + 256);
            prop_assert_eq!(carried.headers.inner().len() as u64 + carried.left_out.count, sent);
            prop_assert_eq!(&carried.properties, &all());
            // As text, because a NaN equals no NaN.
            let read = SenderFields::from_header(&header);
            prop_assert_eq!(format!("{read:?}"), format!("{carried:?}"));
            prop_assert_eq!(format!("{:?}", read.bounded()), format!("{carried:?}"));
        }
    }

    #[test]
    fn a_header_that_does_not_fit_is_named_and_the_others_are_carried() {
        let message = with(&[
            ("a", text(10)),
            ("deep", nested(MAX_DEPTH + 1)),
            ("just deep enough", nested(MAX_DEPTH)),
            ("large", text(MAX_BYTES)),
            ("many", AMQPValue::FieldArray(vec![AMQPValue::Boolean(true); MAX_VALUES].into())),
            ("z", text(10)),
        ]);
        let carried = SenderFields::of(&message, Written::BySender).bounded();
        let kept = vec!["a", "just deep enough", "z"];
        assert_eq!(names(&carried), (kept, 3, vec!["deep", "large", "many"]));
        let shown = json!({"headers": 3, "names": ["deep", "large", "many"]});
        assert_eq!(carried.left_out(), Some(shown));
    }

    #[test]
    fn of_very_many_headers_the_number_and_the_first_names_are_carried() {
        let many: Vec<_> = (0..2_000).map(|n| (format!("header {n:04}"), text(300))).collect();
        let many: Vec<_> =
            many.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let carried = SenderFields::of(&with(&many), Written::BySender).bounded();
        let (kept, left_out, names) = names(&carried);
        assert_eq!(kept.len() as u64 + left_out, 2_000);
        assert!(kept.len() > 50 && names.len() > 100, "{} {}", kept.len(), names.len());
    }

    #[test]
    fn headers_of_rabbitmq_and_of_the_fleet_are_not_the_senders() {
        let deaths = AMQPValue::FieldArray(vec![died_in("q", "expired", "", "k")].into());
        let message = with(&[
            ("x-acquired-count", text(1)),
            ("x-custom", text(1)),
            ("x-death", deaths),
            ("x-delivery-count", text(1)),
            ("x-first-death-queue", text(1)),
            ("x-last-death-queue", text(1)),
            ("x-verbatim-sent", text(1)),
            ("x-verbatim-user", text(1)),
        ]);
        let forged = vec!["x-verbatim-sent", "x-verbatim-user"];
        let by_rabbitmq = SenderFields::of(&message, Written::ByRabbitMq);
        assert_eq!(names(&by_rabbitmq), (vec!["x-custom"], 2, forged));
        for (written, left_out) in [(Written::CountsByRabbitMq, 5), (Written::BySender, 7)] {
            let fields = SenderFields::of(&message, written);
            assert_eq!((names(&fields).0, names(&fields).1), (vec!["x-custom"], left_out));
        }
    }

    #[test]
    fn the_expiration_that_rabbitmq_removed_is_the_senders() {
        let AMQPValue::FieldTable(mut death) = died_in("q", "expired", "domain.actions", "k")
        else {
            unreachable!()
        };
        death.insert("original-expiration".into(), AMQPValue::LongString("250".into()));
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), deaths);
        let message = BasicProperties::default().with_headers(headers);
        let expiration = |written| {
            let sender = SenderFields::of(&message, written);
            sender.properties.expiration().as_ref().map(ToString::to_string)
        };
        assert_eq!(expiration(Written::ByRabbitMq).as_deref(), Some("250"));
        assert_eq!(expiration(Written::BySender), None);
    }

    #[test]
    fn a_header_that_is_no_table_is_as_if_the_sender_had_set_nothing() {
        for header in
            [AMQPValue::Boolean(true), text(5), AMQPValue::FieldTable(FieldTable::default())]
        {
            assert_eq!(SenderFields::from_header(&header), SenderFields::default());
        }
    }

    #[test]
    fn a_header_of_a_forged_copy_that_is_nested_too_deep_is_named_and_not_kept() {
        let mut headers = FieldTable::default();
        headers.insert("x-deep".into(), nested(MAX_DEPTH + 1));
        headers.insert("x-flat".into(), nested(MAX_DEPTH));
        let mut header = FieldTable::default();
        header.insert(HEADERS.into(), AMQPValue::FieldTable(headers));
        let fields = SenderFields::from_header(&AMQPValue::FieldTable(header));
        assert_eq!(names(&fields), (vec!["x-flat"], 1, vec!["x-deep"]));
    }
}
