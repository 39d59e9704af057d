//! A stored dead letter: its properties and headers, read from JSON, and the message that replays it.
//!
//! The headers are stored as they were received. So the rule for deliveries applies: our headers are
//! trusted only if the message never passed an exchange to which agents publish. A replay carries no
//! header of RabbitMQ or of an agent except the trace; a copied `x-death` would make a retry queue drop
//! the message.

use domain::envelope::{Envelope, Resolved};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::Publication;
use crate::delivery::{
    MAX_TRACEPARENT_BYTES, MAX_TRACESTATE_BYTES, TRACEPARENT, TRACESTATE, is_fleet_death,
};
use crate::fleet_headers::{FleetHeaders, Origin};

/// A stored dead letter.
#[derive(Debug, Clone, Copy)]
pub struct StoredDeadLetter<'a> {
    /// Its id.
    pub id: Uuid,
    /// The exchange to which it was first published.
    pub exchange: &'a str,
    /// The routing key with which it was first published.
    pub routing_key: &'a str,
    /// Its AMQP properties, as a JSON object by their names.
    pub properties: &'a Value,
    /// All its headers, as a JSON object.
    pub headers: &'a Value,
}

impl<'a> StoredDeadLetter<'a> {
    /// Its fleet headers; the default when they are not trusted.
    #[must_use]
    pub fn fleet_headers(&self) -> FleetHeaders {
        let Some(headers) = self.headers.as_object() else { return FleetHeaders::default() };
        let deaths = headers.get("x-death").and_then(Value::as_array).into_iter().flatten();
        let mut by_fleet = deaths.map(|death| {
            let [exchange, queue, reason] =
                ["exchange", "queue", "reason"].map(|name| death.get(name)?.as_str());
            is_fleet_death(exchange?, queue?, reason?).then_some(())
        });
        if !by_fleet.all(|it| it.is_some()) {
            return FleetHeaders::default();
        }
        let ours = headers.iter().filter(|(name, _)| FleetHeaders::owns(name));
        let ours: Map<_, _> = ours.map(|(name, value)| (name.clone(), value.clone())).collect();
        FleetHeaders::from_headers(&ours)
    }

    /// Its AMQP properties as an envelope, without the identity resolved by an earlier attempt.
    #[must_use]
    pub fn envelope(&self) -> Envelope<'a> {
        Envelope {
            message_id: self.property("message_id"),
            timestamp: self.properties.get("timestamp").and_then(Value::as_u64),
            correlation_id: self.property("correlation_id"),
            reply_to: self.property("reply_to"),
            user_id: self.property("user_id"),
            resolved: None,
        }
    }

    /// The message that replays it to a queue through the default exchange, with the resolved identity.
    #[must_use]
    pub fn replay(&self, body: Vec<u8>, queue: &str, resolved: Option<Resolved>) -> Publication {
        let envelope = self.envelope();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let trace = |name: &str, longest: usize| {
            owned(self.headers.get(name).and_then(Value::as_str).filter(|it| it.len() <= longest))
        };
        let fleet_headers = FleetHeaders {
            resolved,
            origin: Some(Origin {
                exchange: self.exchange.to_owned(),
                routing_key: self.routing_key.to_owned(),
            }),
            validated_user: owned(envelope.user_id),
            anonymous: envelope.message_id.is_none(),
            ..self.fleet_headers().replayed(self.id)
        };
        let new = Publication::to_queue(queue, body);
        Publication {
            message_id: owned(envelope.message_id).unwrap_or_else(|| new.message_id.clone()),
            content_type: owned(self.property("content_type")),
            timestamp: envelope.timestamp,
            correlation_id: owned(envelope.correlation_id),
            reply_to: owned(envelope.reply_to),
            traceparent: trace(TRACEPARENT, MAX_TRACEPARENT_BYTES),
            tracestate: trace(TRACESTATE, MAX_TRACESTATE_BYTES),
            fleet_headers,
            ..new
        }
    }

    fn property(&self, name: &str) -> Option<&'a str> {
        self.properties.get(name).and_then(Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The replay of a dead letter with these properties and headers.
    fn replayed(properties: &Value, headers: &Value) -> Publication {
        let dead_letter = StoredDeadLetter {
            id: Uuid::from_u128(7),
            exchange: "domain.actions",
            routing_key: "conversation.save_message",
            properties,
            headers,
        };
        dead_letter.replay(b"{}".to_vec(), "conversation.save_message", None)
    }

    #[test]
    fn a_replay_carries_no_foreign_header_but_the_trace() {
        let headers = json!({
            "x-death": [{"queue": "q", "exchange": "domain.actions", "reason": "delivery_limit"}],
            "x-first-death-queue": "q", "x-delivery-count": 100, "CC": ["elsewhere"],
            "x-verbatim-id": "forged", "x-verbatim-user": "forged", "x-verbatim-replays": 9,
            "traceparent": "00-trace", "tracestate": "x".repeat(600),
        });
        let properties = json!({"message_id": "m-1", "expiration": "1", "user_id": "agent",
                                "timestamp": 1_700_000_000, "reply_to": null});
        let publication = replayed(&properties, &headers);
        assert_eq!((publication.exchange.as_str(), publication.message_id.as_str()), ("", "m-1"));
        assert_eq!(publication.timestamp, Some(1_700_000_000));
        assert_eq!(publication.traceparent.as_deref(), Some("00-trace"));
        assert_eq!(publication.tracestate, None);
        let fleet_headers = FleetHeaders {
            origin: Some(Origin {
                exchange: "domain.actions".to_owned(),
                routing_key: "conversation.save_message".to_owned(),
            }),
            validated_user: Some("agent".to_owned()),
            replay_count: 1,
            replay_of: Some(Uuid::from_u128(7)),
            ..FleetHeaders::default()
        };
        assert_eq!(publication.fleet_headers, fleet_headers);
    }

    #[test]
    fn fleet_headers_are_trusted_after_a_retry() {
        let headers = json!({
            "x-death": [{"queue": "domain.retry.1000", "exchange": "domain.retry.1000", "reason": "expired"}],
            "x-verbatim-replays": 1, "x-verbatim-attempt": 4, "x-verbatim-reasons": ["broken"],
        });
        let publication = replayed(&json!({}), &headers);
        assert_eq!(
            (publication.fleet_headers.replay_count, publication.fleet_headers.attempt),
            (2, 1)
        );
        assert!(publication.fleet_headers.history.reasons.is_empty());
        assert!(publication.fleet_headers.anonymous && !publication.message_id.is_empty());
    }
}
