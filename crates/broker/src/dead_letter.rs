//! A dead letter that was kept: what its properties and headers say once they are JSON, and the message
//! that sends it back.
//!
//! The headers were kept as they came, so the same rule holds as for a delivery: ours count only where
//! the message never came through an exchange to which agents publish. Nothing of what RabbitMQ or an
//! agent wrote goes back with it; a copied `x-death` would make a retry queue drop the message.

use domain::envelope::{Envelope, Resolved};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::Publication;
use crate::delivery::{
    MAX_TRACEPARENT_BYTES, MAX_TRACESTATE_BYTES, TRACEPARENT, TRACESTATE, dies_in_the_fleet,
};
use crate::fleet_headers::{FleetHeaders, Origin};

/// A kept dead letter.
#[derive(Debug, Clone, Copy)]
pub struct StoredDeadLetter<'a> {
    /// Its id.
    pub id: Uuid,
    /// The exchange to which it was first published.
    pub exchange: &'a str,
    /// The routing key with which it was first published.
    pub routing_key: &'a str,
    /// Its AMQP properties, by their names.
    pub properties: &'a Value,
    /// All its headers.
    pub headers: &'a Value,
}

impl<'a> StoredDeadLetter<'a> {
    /// Its way so far, as far as that is believed.
    #[must_use]
    pub fn fleet_headers(&self) -> FleetHeaders {
        let Some(headers) = self.headers.as_object() else { return FleetHeaders::default() };
        let deaths = headers.get("x-death").and_then(Value::as_array).into_iter().flatten();
        let mut ours = deaths.map(|death| {
            let [exchange, queue, reason] =
                ["exchange", "queue", "reason"].map(|name| death.get(name)?.as_str());
            dies_in_the_fleet(exchange?, queue?, reason?).then_some(())
        });
        if !ours.all(|it| it.is_some()) {
            return FleetHeaders::default();
        }
        let ours = headers.iter().filter(|(name, _)| FleetHeaders::owns(name));
        let ours: Map<_, _> = ours.map(|(name, value)| (name.clone(), value.clone())).collect();
        FleetHeaders::from_headers(&ours)
    }

    /// What its transport says about the action, without what an earlier attempt made of it.
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

    /// The message that sends it back to a queue, past all exchanges, as what it is resolved to.
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
        let fresh = Publication::to_queue(queue, body);
        Publication {
            message_id: owned(envelope.message_id).unwrap_or_else(|| fresh.message_id.clone()),
            content_type: owned(self.property("content_type")),
            timestamp: envelope.timestamp,
            correlation_id: owned(envelope.correlation_id),
            reply_to: owned(envelope.reply_to),
            traceparent: trace(TRACEPARENT, MAX_TRACEPARENT_BYTES),
            tracestate: trace(TRACESTATE, MAX_TRACESTATE_BYTES),
            fleet_headers,
            ..fresh
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

    /// A dead letter that RabbitMQ made of what an agent had published with headers of its own.
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
    fn nothing_that_others_wrote_goes_back_but_the_trace() {
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
    fn what_the_fleet_wrote_counts_also_after_a_retry() {
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
