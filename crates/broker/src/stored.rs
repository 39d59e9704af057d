//! What is stored of a delivery, and the delivery made from it again.
//!
//! What the sender set comes first, because operators look for it, and it is in the same place for a message that
//! arrived as it was sent and for a copy by the fleet. How the delivery arrived is beside it: so fleet headers are
//! trusted on what was stored exactly if they were trusted on the delivery.

use domain::time::Timestamp;
use lapin::types::ShortString;
use serde_json::{Map, Value};

use crate::header_owner::{self, Copied};
use crate::raw_message::{RawAddress, RawMessage};
use crate::sender_fields::SenderFields;
use crate::{Delivery, lossless, properties};

/// What is stored of a delivery besides its body, as JSON without loss: a value that JSON does not have is an
/// object with the field `$type`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoredDelivery {
    /// The properties that the sender set, by their AMQP names.
    pub properties: Value,
    /// The headers that the sender set.
    pub headers: Value,
    /// Which headers of the sender are missing: `{"headers": 2, "names": ["x-large", …]}`. `None` if none is.
    pub left_out: Option<Value>,
    /// How it was delivered: `exchange`, unless that was the default exchange; `headers`, those of RabbitMQ and of
    /// the fleet; of a copy its own `properties`; and `raw`, what the client library could not read, as bytes:
    /// `properties`, and `exchange` and `routing_key` where one of them is not UTF-8.
    pub delivery: Value,
}

const EXCHANGE: &str = "exchange";
const PROPERTIES: &str = "properties";
const HEADERS: &str = "headers";
const RAW: &str = "raw";
const ROUTING_KEY: &str = "routing_key";

impl Delivery {
    /// What is to be stored of it besides its body.
    #[must_use]
    pub fn stored(&self) -> StoredDelivery {
        let sender = self.sender_fields();
        let mut delivery = Map::new();
        let mut add = |name: &str, value| delivery.insert(name.to_owned(), value);
        if !self.exchange().is_empty() {
            add(EXCHANGE, self.exchange().into());
        }
        if self.copied() == Copied::ByFleet {
            add(PROPERTIES, Value::Object(properties::to_json(self.amqp_properties())));
        }
        if let Some(headers) = self.amqp_properties().headers() {
            let headers = header_owner::not_of_the_sender(headers, self.copied());
            if !headers.inner().is_empty() {
                add(HEADERS, lossless::table_to_json(&headers));
            }
        }
        if let Some(raw) = self.raw() {
            add(RAW, raw_to_json(raw));
        }
        StoredDelivery {
            properties: Value::Object(properties::to_json(sender.properties())),
            headers: lossless::table_to_json(sender.headers()),
            left_out: sender.left_out(),
            delivery: Value::Object(delivery),
        }
    }

    /// The delivery of which this was stored, with this body. Envelope, fleet headers, trace, reason and what the
    /// sender set are those of that delivery; a property that is longer than 255 bytes, AMQP's limit, is left out.
    #[must_use]
    pub fn from_stored(body: Vec<u8>, stored: &StoredDelivery, received_at: Timestamp) -> Self {
        let StoredDelivery { properties, headers, left_out, delivery } = stored;
        let sender = SenderFields::from_stored(properties, headers, left_out.as_ref());
        let exchange = delivery.get(EXCHANGE).and_then(Value::as_str).unwrap_or_default();
        let exchange = ShortString::try_new(exchange).unwrap_or_default();
        let mut headers = delivery.get(HEADERS).map(lossless::table_from_json).unwrap_or_default();
        let own = if let Some(own) = delivery.get(PROPERTIES) {
            properties::from_json(own)
        } else {
            for (name, value) in sender.headers() {
                headers.insert(name.clone(), value.clone());
            }
            sender.properties().clone()
        };
        let raw = delivery.get(RAW).and_then(raw_from_json);
        Self::restored(body, received_at, exchange, own.with_headers(headers), sender, raw)
    }
}

fn raw_to_json(raw: &RawMessage) -> Value {
    let bytes = |bytes: &[u8]| lossless::bytes_to_json(bytes);
    let mut json = Map::new();
    json.insert(PROPERTIES.into(), bytes(&raw.properties));
    if let Some(RawAddress { exchange, routing_key }) = &raw.address {
        json.insert(EXCHANGE.into(), bytes(exchange));
        json.insert(ROUTING_KEY.into(), bytes(routing_key));
    }
    Value::Object(json)
}

fn raw_from_json(json: &Value) -> Option<RawMessage> {
    let bytes = |name: &str| lossless::bytes_from_json(json.get(name)?);
    let address = bytes(EXCHANGE).zip(bytes(ROUTING_KEY));
    Some(RawMessage {
        address: address.map(|(exchange, routing_key)| RawAddress { exchange, routing_key }),
        properties: bytes(PROPERTIES)?,
    })
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, FieldArray, FieldTable};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::Publication;
    use crate::delivery::tests::{delivered, died_in, forged, with_properties};
    use crate::lossless::tests::any_table;
    use crate::properties::tests::all;
    use crate::topology::RetryQueue;

    fn at() -> Timestamp {
        Timestamp::from_micros(1).unwrap()
    }

    /// Stores a delivery, reads it back, and compares all that is asked of a delivery.
    fn is_read_back(sent: &Delivery) {
        let stored = sent.stored();
        let text = |value: &Value| serde_json::from_str(&value.to_string()).unwrap();
        let from_database = StoredDelivery {
            properties: text(&stored.properties),
            headers: text(&stored.headers),
            left_out: stored.left_out.as_ref().map(text),
            delivery: text(&stored.delivery),
        };
        let read = Delivery::from_stored(sent.body.to_vec(), &from_database, sent.received_at);
        assert_eq!(read.fleet_headers(), sent.fleet_headers());
        assert_eq!(read.envelope(), sent.envelope());
        assert_eq!(read.dead_letter_info(), sent.dead_letter_info());
        assert_eq!(read.deaths(), sent.deaths());
        assert_eq!(read.traceparent(), sent.traceparent());
        assert_eq!(read.content_type(), sent.content_type());
        assert_eq!(read.copied(), sent.copied());
        assert_eq!(read.stored(), stored);
        let copied = |of: &Delivery| delivered(&Publication::copy(of, "q")).stored();
        let (once, again) = (copied(sent), copied(&read));
        assert_eq!((once.properties, once.headers), (again.properties, again.headers));
        assert_eq!(once.left_out, again.left_out);
    }

    fn died(entry: AMQPValue) -> AMQPValue {
        AMQPValue::FieldArray(FieldArray::from(vec![entry]))
    }

    #[test]
    fn a_stored_delivery_is_read_back_as_it_was() {
        let retry = RetryQueue::Second.name();
        let dlq = "conversation.save_message";
        let deaths = [
            died_in(retry, "expired", retry, dlq),
            died_in(dlq, "delivery_limit", "domain.actions", "k"),
            died_in(dlq, "delivery_limit", "", "k"),
        ];
        // Somebody bound the dead-letter queue to the exchange of the agents.
        for exchange in ["", "domain.actions"] {
            for death in deaths.clone() {
                for mut headers in [forged(), FieldTable::default()] {
                    headers.insert("x-death".into(), died(death.clone()));
                    headers.insert("nested".into(), AMQPValue::FieldTable(forged()));
                    headers.insert("traceparent".into(), AMQPValue::LongString("00-trace".into()));
                    let sent = with_properties(exchange, all().with_headers(headers));
                    is_read_back(&sent);
                    is_read_back(&delivered(&Publication::copy(&sent, "q")));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_stored_delivery_is_read_back_as_it_was(headers in any_table(), fleet: bool) {
            let mut headers = headers;
            if fleet {
                headers.insert("x-verbatim-attempt".into(), AMQPValue::LongLongInt(2));
            }
            let sent = with_properties(if fleet { "" } else { "domain.actions" },
                                       all().with_headers(headers));
            is_read_back(&sent);
            is_read_back(&delivered(&Publication::copy(&sent, "q")));
        }
    }

    #[test]
    fn what_the_sender_set_is_in_one_place_however_often_it_was_copied() {
        let mut headers = FieldTable::default();
        headers.insert("x-custom".into(), AMQPValue::ByteArray(vec![1, 255].into()));
        headers.insert("traceparent".into(), AMQPValue::LongString("00-trace".into()));
        let sent = with_properties("domain.actions", all().with_headers(headers));
        let stored = sent.stored();
        assert_eq!(stored.headers["x-custom"], json!({"$type": "bytes", "hex": "01ff"}));
        let mut copy = sent;
        for _ in 0..3 {
            copy = delivered(&Publication::copy(&copy, "q"));
            let again = copy.stored();
            assert_eq!((&again.properties, &again.headers), (&stored.properties, &stored.headers));
            assert_eq!(again.left_out, None);
            assert!(again.delivery["headers"].get("x-verbatim-sent").is_none(), "{again:?}");
        }
    }

    #[test]
    fn the_stored_format_is_the_same_in_every_version() {
        let mut headers = forged();
        headers.insert("x-custom".into(), AMQPValue::LongString("own".into()));
        let properties = lapin::BasicProperties::default()
            .with_message_id("m".into())
            .with_priority(3)
            .with_timestamp(1_700_000_000)
            .with_headers(headers);
        let sent = with_properties("domain.actions", properties).stored();
        let expected = StoredDelivery {
            properties: json!({"message_id": "m", "priority": 3, "timestamp": 1_700_000_000}),
            headers: json!({"x-custom": "own"}),
            left_out: Some(json!({
                "headers": 2, "names": ["x-verbatim-attempt", "x-verbatim-user"],
            })),
            delivery: json!({
                "exchange": "domain.actions",
                "headers": {"x-verbatim-attempt": 3, "x-verbatim-user": "somebody"},
            }),
        };
        assert_eq!(sent, expected);
        let delivery = Delivery::from_stored(b"{}".to_vec(), &sent, at());
        let copy = delivered(&Publication::copy(&delivery, "q")).stored();
        let expected = StoredDelivery {
            delivery: json!({
                "headers": {"x-verbatim-exchange": "domain.actions", "x-verbatim-routing-key": ""},
                "properties": {"delivery_mode": 2, "message_id": "m", "timestamp": 1_700_000_000},
            }),
            ..expected
        };
        assert_eq!(copy, expected);
    }
}
