//! Messages to publish: actions, events, and copies of deliveries.
//!
//! A copy carries the body, its content type, the identifying properties, the fleet headers and the trace.
//! One fleet header has everything that the sender set ([`SenderFields`]). As properties and headers of its own a
//! copy never has RabbitMQ's headers, `CC`, `BCC`, `expiration` or `user_id` (RabbitMQ refuses a `user_id` that
//! is not the publisher's).

use std::borrow::Cow;

use bytes::Bytes;
use domain::envelope::Resolved;
use domain::failure::Refusal;
use domain::time::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use uuid::Uuid;

use crate::Delivery;
use crate::dead_letter_id::mint;
use crate::delivery::{TRACEPARENT, TRACESTATE};
use crate::fleet_headers::{DeadLetterInfo, FleetHeaders, RAW_BYTES, SENT};
use crate::raw_message::RawMessage;
use crate::sender_fields::SenderFields;
use crate::topology::{ACTIONS, EVENTS, RetryQueue, WorkQueue};
use crate::wire;

/// A message to publish: always persistent, mandatory and with a message id.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// The exchange. The empty name is the default exchange: it routes to the queue that the routing key
    /// names.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The body.
    pub body: Bytes,
    /// The `message_id` property.
    pub message_id: String,
    /// The media type of the body.
    pub content_type: Option<String>,
    /// The `timestamp` property, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// The `correlation_id` property.
    pub correlation_id: Option<String>,
    /// The `reply_to` property.
    pub reply_to: Option<String>,
    /// The `user_id` property. RabbitMQ refuses one that is not the user of the connection. A copy has none.
    pub user_id: Option<String>,
    /// The W3C `traceparent`.
    pub traceparent: Option<String>,
    /// The W3C `tracestate`.
    pub tracestate: Option<String>,
    /// The fleet headers.
    pub fleet_headers: FleetHeaders,
    /// Of a copy: what the sender of the message set.
    pub sender: Option<Box<SenderFields>>,
    /// Of a copy: what the client library could not read of the message. It is sent in front of the body.
    pub raw: Option<Box<RawMessage>>,
}

/// The delivery mode that makes RabbitMQ write a message to disk (AMQP 0-9-1, `basic.publish`).
const PERSISTENT: u8 = 2;

/// The largest headers of a message, in bytes: half of RabbitMQ's default `frame_max` (128 KiB). All
/// properties are sent in one frame, and RabbitMQ closes the whole connection when a frame is longer.
const MAX_HEADER_BYTES: usize = 64 << 10;

const JSON: &str = "application/json";

impl Publication {
    /// An action, as agents publish it. The message id is generated unless the caller sets one.
    #[must_use]
    pub fn action(action_type: &str, body: Vec<u8>) -> Self {
        Self::new(ACTIONS, action_type, body.into())
    }

    /// An event of the fleet.
    #[must_use]
    pub fn event(event_type: &str, body: Vec<u8>) -> Self {
        Self::new(EVENTS, event_type, body.into())
    }

    /// A message to one queue, through the default exchange.
    #[must_use]
    pub fn to_queue(queue: &str, body: Vec<u8>) -> Self {
        Self::new("", queue, body.into())
    }

    /// A copy of a delivery to one queue, through the default exchange.
    #[must_use]
    pub fn copy(delivery: &Delivery, queue: &str) -> Self {
        let envelope = delivery.envelope();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let fleet_headers = FleetHeaders {
            origin: Some(delivery.origin()),
            validated_user: owned(envelope.user_id),
            anonymous: envelope.message_id.is_none(),
            ..delivery.fleet_headers().clone().not_dead_lettered()
        };
        Self {
            message_id: owned(envelope.message_id).unwrap_or_else(new_message_id),
            content_type: owned(delivery.content_type()),
            timestamp: envelope.timestamp,
            correlation_id: owned(envelope.correlation_id),
            reply_to: owned(envelope.reply_to),
            traceparent: delivery.traceparent(),
            tracestate: delivery.tracestate(),
            fleet_headers,
            sender: Some(Box::new(delivery.sender_fields().bounded())),
            raw: delivery.raw().cloned().map(Box::new),
            ..Self::new("", queue, delivery.body.clone())
        }
    }

    /// With the identity that an attempt resolved; `None` keeps an earlier one.
    #[must_use]
    pub fn resolved(mut self, resolved: Option<Resolved>) -> Self {
        self.fleet_headers.resolved = resolved.or(self.fleet_headers.resolved);
        self
    }

    /// As the same dead letter of `queue` that the delivery is. A reason that RabbitMQ gave is in `x-death`, which
    /// is not copied, and an id that follows from what was sent would differ for the copy.
    pub(crate) fn same_dead_letter(mut self, delivery: &Delivery, queue: WorkQueue) -> Self {
        self.fleet_headers.dead_letter_info = delivery.dead_letter_info().map(Cow::into_owned);
        self.fleet_headers.dead_letter = Some(delivery.dead_letter_id(queue));
        self
    }

    /// As the replay of a dead letter: identity and origin stay; attempts, history and the reason are reset. What
    /// could not be read is not sent again.
    #[must_use]
    pub fn replaying(mut self, dead_letter: Uuid) -> Self {
        self.raw = None;
        self.fleet_headers = self.fleet_headers.replayed(dead_letter);
        self
    }

    /// As an action that was not in the queue of its action. That is done once.
    pub(crate) fn rerouted(mut self) -> Self {
        self.fleet_headers.rerouted = true;
        self
    }

    /// With one more failed attempt in its history.
    pub(crate) fn with_failed_attempt(mut self, error: &str, at: Timestamp) -> Self {
        self.fleet_headers.history.record(error, at);
        self
    }

    /// As a message of a slow queue, which gets the longer time limit of this number, from 1.
    pub(crate) fn slow(mut self, level: u32) -> Self {
        self.fleet_headers.slow_level = level;
        self
    }

    /// Routed to its queue after the delay of `retry`.
    pub(crate) fn after(mut self, retry: RetryQueue) -> Self {
        retry.name().clone_into(&mut self.exchange);
        self
    }

    /// As the next attempt: routed to its own queue after the delay of `retry`.
    #[must_use]
    pub fn delayed(self, retry: RetryQueue) -> Self {
        let mut delayed = self.after(retry);
        delayed.fleet_headers.attempt = delayed.fleet_headers.attempt.saturating_add(1);
        delayed
    }

    /// As a dead letter of the queue `own_queue`, with the id that is minted here.
    #[must_use]
    pub fn dead_lettered(mut self, own_queue: &str, refusal: Refusal, at: Timestamp) -> Self {
        let history = &mut self.fleet_headers.history;
        history.first_failed_at.get_or_insert(at);
        history.last_failed_at = Some(at);
        let message_id = (!self.fleet_headers.anonymous).then_some(self.message_id.as_str());
        let id = mint(own_queue, refusal.reason, &self.fleet_headers, message_id, &self.body);
        self.fleet_headers.dead_letter = Some(id);
        self.fleet_headers.dead_letter_info =
            Some(DeadLetterInfo { queue: own_queue.to_owned(), refusal, by_rabbitmq: false });
        self
    }

    /// The same message without optional properties, so that no property is too long for AMQP. A message
    /// id that is too long was set by no AMQP client; it is replaced. `None` if it is that already.
    pub(crate) fn minimal(&self) -> Option<Self> {
        let optional = [
            &self.correlation_id,
            &self.reply_to,
            &self.content_type,
            &self.traceparent,
            &self.tracestate,
        ];
        let long_id = short("message_id", &self.message_id).is_err();
        if !long_id && optional.iter().all(|property| property.is_none()) {
            return None;
        }
        let mut minimal = Self {
            correlation_id: None,
            reply_to: None,
            content_type: None,
            traceparent: None,
            tracestate: None,
            ..self.clone()
        };
        if long_id {
            minimal.message_id = new_message_id();
            minimal.fleet_headers.anonymous = true;
        }
        Some(minimal)
    }

    /// The headers as sent. If they are too long, the trace is left out, then the errors of the oldest
    /// attempts. All other headers are bounded.
    fn headers(&self) -> FieldTable {
        let mut headers = self.without_trace(&self.fleet_headers);
        let size = wire::encoded_bytes(&headers);
        let traces = [(TRACEPARENT, &self.traceparent), (TRACESTATE, &self.tracestate)];
        let trace = traces.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let trace: Vec<_> =
            trace.map(|(name, value)| (name, AMQPValue::LongString(value.into()))).collect();
        let trace_bytes = trace.iter().map(|(name, value)| wire::field_bytes(name, value));
        if size + trace_bytes.sum::<usize>() <= MAX_HEADER_BYTES {
            for (name, value) in trace {
                headers.insert(name.into(), value);
            }
        }
        let mut fleet_headers = Cow::Borrowed(&self.fleet_headers);
        while wire::encoded_bytes(&headers) > MAX_HEADER_BYTES
            && !fleet_headers.history.reasons.is_empty()
        {
            fleet_headers.to_mut().history.reasons.remove(0);
            headers = self.without_trace(&fleet_headers);
        }
        headers
    }

    fn without_trace(&self, fleet_headers: &FleetHeaders) -> FieldTable {
        let mut headers = wire::to_table(&fleet_headers.to_headers());
        if let Some(sender) = &self.sender {
            headers.insert(SENT.into(), sender.to_header());
        }
        if let Some(raw) = &self.raw {
            let bytes = i64::try_from(raw.encode().len()).unwrap_or(i64::MAX);
            headers.insert(RAW_BYTES.into(), AMQPValue::LongLongInt(bytes));
        }
        headers
    }

    /// The body as sent.
    pub(crate) fn payload(&self) -> Cow<'_, [u8]> {
        match &self.raw {
            Some(raw) => Cow::Owned([&raw.encode(), &self.body[..]].concat()),
            None => Cow::Borrowed(&self.body),
        }
    }

    /// The properties as sent, if none is longer than 255 bytes, AMQP's limit.
    pub(crate) fn properties(&self) -> Result<BasicProperties, TooLong> {
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(short("message_id", &self.message_id)?)
            .with_headers(self.headers());
        if let Some(content_type) = &self.content_type {
            properties = properties.with_content_type(short("content_type", content_type)?);
        }
        if let Some(timestamp) = self.timestamp {
            properties = properties.with_timestamp(timestamp);
        }
        if let Some(id) = &self.correlation_id {
            properties = properties.with_correlation_id(short("correlation_id", id)?);
        }
        if let Some(queue) = &self.reply_to {
            properties = properties.with_reply_to(short("reply_to", queue)?);
        }
        if let Some(user) = &self.user_id {
            properties = properties.with_user_id(short("user_id", user)?);
        }
        Ok(properties)
    }

    fn new(exchange: &str, routing_key: &str, body: Bytes) -> Self {
        Self {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            body,
            message_id: new_message_id(),
            content_type: Some(JSON.to_owned()),
            timestamp: None,
            correlation_id: None,
            reply_to: None,
            user_id: None,
            traceparent: None,
            tracestate: None,
            fleet_headers: FleetHeaders::default(),
            sender: None,
            raw: None,
        }
    }
}

/// A text that is longer than 255 bytes, AMQP's limit for a short string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {bytes} bytes long; AMQP allows at most 255")]
pub struct TooLong {
    /// The name of the property.
    pub what: &'static str,
    /// Its length in bytes.
    pub bytes: usize,
}

/// A text as AMQP's short string.
pub(crate) fn short(what: &'static str, text: &str) -> Result<ShortString, TooLong> {
    ShortString::try_new(text).map_err(|_| TooLong { what, bytes: text.len() })
}

fn new_message_id() -> String {
    Uuid::now_v7().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::tests::died_in;
    use crate::delivery::tests::{delivered, with_properties};
    use crate::fleet_headers::{History, Origin};
    use crate::properties::tests::all as all_properties;
    use crate::sender_fields::Written;
    use domain::envelope::Envelope;
    use domain::failure::DeadLetterReason;
    use domain::ids::{ConversationId, MessageId};
    use serde_json::{Map, Value, json};

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    fn delivery() -> Delivery {
        with_properties("domain.actions", BasicProperties::default().with_user_id("agent".into()))
    }

    fn table(headers: &Value) -> FieldTable {
        wire::to_table(headers.as_object().unwrap())
    }

    #[test]
    fn a_retry_is_the_same_action_with_the_next_attempt_number() {
        let retry = Publication::copy(&delivery(), "conversation.save_message")
            .with_failed_attempt("broken", at(5))
            .delayed(RetryQueue::Second);
        assert_eq!(retry.exchange, "domain.retry.1000");
        let again = delivered(&retry);
        let first = delivery();
        assert_eq!(again.envelope(), Envelope { redelivered: true, ..first.envelope() });
        assert_eq!(again.fleet_headers().attempt, 2);
        assert_eq!(again.fleet_headers().history.reasons, ["broken"]);
        assert_eq!(again.origin(), delivery().origin());
    }

    #[test]
    fn a_copy_of_a_message_without_an_id_has_no_id() {
        let copy = Publication::copy(&delivery(), "conversation.save_message.suspect");
        assert!(!copy.message_id.is_empty());
        let moved = delivered(&copy);
        assert_eq!(moved.envelope().message_id, None);
        let twice = delivered(&Publication::copy(&moved, "conversation.save_message"));
        assert_eq!(twice.envelope().message_id, None);
    }

    #[test]
    fn a_dead_letter_carries_its_reason_and_time() {
        let refusal = Refusal {
            reason: DeadLetterReason::Schema,
            hint: None,
            field: Some("role".to_owned()),
            detail: "role is missing".to_owned(),
        };
        let dead_letter = Publication::copy(&delivery(), "conversation.save_message.dlq")
            .dead_lettered("conversation.save_message", refusal.clone(), at(7));
        let dead_letter = delivered(&dead_letter);
        let dead_letter_info = dead_letter.fleet_headers().dead_letter_info.clone().unwrap();
        assert_eq!(
            (dead_letter_info.queue.as_str(), dead_letter_info.refusal),
            ("conversation.save_message", refusal)
        );
        assert_eq!(dead_letter.fleet_headers().history.first_failed_at, Some(at(7)));
    }

    #[test]
    fn a_replay_carries_no_foreign_header_but_the_trace() {
        let headers = json!({
            "x-death": [{"queue": "q", "exchange": "domain.actions", "reason": "delivery_limit",
                         "routing-keys": ["conversation.save_message"]}],
            "x-first-death-queue": "q", "x-delivery-count": 100, "CC": ["elsewhere"],
            "x-verbatim-id": "forged", "x-verbatim-user": "forged", "x-verbatim-replays": 9,
            "traceparent": "00-trace", "tracestate": "x".repeat(600),
        });
        let properties = BasicProperties::default()
            .with_message_id("m-1".into())
            .with_expiration("1".into())
            .with_user_id("agent".into())
            .with_timestamp(1_700_000_000)
            .with_headers(table(&headers));
        let dead_letter = with_properties("", properties);
        let replay = Publication::copy(&dead_letter, "conversation.save_message");
        let replay = replay.replaying(Uuid::from_u128(7));
        assert_eq!((replay.exchange.as_str(), replay.message_id.as_str()), ("", "m-1"));
        assert_eq!(replay.timestamp, Some(1_700_000_000));
        assert_eq!(replay.traceparent.as_deref(), Some("00-trace"));
        assert_eq!(replay.tracestate, None);
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
        assert_eq!(replay.fleet_headers, fleet_headers);
    }

    #[test]
    fn a_replay_keeps_the_fleet_headers_of_a_dead_letter_that_was_retried() {
        let headers = json!({
            "x-death": [{"queue": "domain.retry.1000", "exchange": "domain.retry.1000", "reason": "expired"}],
            "x-verbatim-replays": 1, "x-verbatim-attempt": 4, "x-verbatim-reasons": ["broken"],
        });
        let properties = BasicProperties::default().with_headers(table(&headers));
        let dead_letter = with_properties("", properties);
        let replay = Publication::copy(&dead_letter, "q").replaying(Uuid::from_u128(7));
        assert_eq!((replay.fleet_headers.replay_count, replay.fleet_headers.attempt), (2, 1));
        assert!(replay.fleet_headers.history.reasons.is_empty());
        assert!(replay.fleet_headers.anonymous && !replay.message_id.is_empty());
    }

    #[test]
    fn headers_are_cut_to_fit_into_a_frame() {
        let mut publication = Publication::to_queue("queue", Vec::new());
        publication.traceparent = Some("00-trace".to_owned());
        publication.tracestate = Some("x".repeat(200_000));
        let headers = publication.headers();
        assert!(headers.inner().is_empty(), "the trace is left out");

        publication.tracestate = None;
        publication.fleet_headers.history.reasons =
            (0..100).map(|n| format!("{n} {}", "x".repeat(5_000))).collect();
        let headers = publication.headers();
        assert!(wire::encoded_bytes(&headers) <= MAX_HEADER_BYTES);
        let kept = FleetHeaders::from_headers(&wire::to_json(&headers)).history.reasons;
        assert!(kept.len() > 20 && kept.last().unwrap().starts_with("99 "), "{}", kept.len());
        assert!(!headers.inner().contains_key(TRACEPARENT));
    }

    #[test]
    fn the_largest_copy_fits_into_a_frame_with_all_that_it_carries() {
        let text = || "x".repeat(10_000);
        let mut history = History::default();
        (0..20).for_each(|n| history.record(&text(), at(n)));
        let refusal = Refusal {
            reason: DeadLetterReason::AttemptsExhausted,
            hint: None,
            field: Some(text()),
            detail: text(),
        };
        let sent: Map<String, Value> = (0..2_000)
            .map(|n| (format!("{n}"), "x".repeat(n).into()))
            .chain((0..300).map(|n| (format!("{n}-{}", "y".repeat(200)), Value::Null)))
            .collect();
        let properties = all_properties().with_headers(wire::to_table(&sent));
        let mut copy = Publication::copy(&with_properties("domain.actions", properties), "q");
        copy.fleet_headers = FleetHeaders {
            resolved: Some(Resolved {
                id: MessageId::new("x".repeat(128)).unwrap(),
                conversation: ConversationId::new("x".repeat(128)).unwrap(),
                timestamp: at(1),
                received_at: at(2),
            }),
            history,
            origin: Some(Origin { exchange: text(), routing_key: text() }),
            validated_user: Some(text()),
            replay_of: Some(Uuid::from_u128(1)),
            ..copy.fleet_headers
        };
        copy = copy.dead_lettered(&text(), refusal, at(3));
        copy.traceparent = Some("x".repeat(128));
        copy.tracestate = Some("x".repeat(512));
        let headers = copy.headers();
        assert!(wire::encoded_bytes(&headers) <= MAX_HEADER_BYTES);
        assert!(headers.inner().contains_key(SENT) && headers.inner().contains_key(TRACESTATE));
        let fleet_headers = FleetHeaders::from_headers(&wire::to_json(&headers));
        assert_eq!(fleet_headers.history.reasons.len(), 8);
    }

    #[test]
    fn what_an_agent_calls_the_fields_of_a_sender_is_not_trusted() {
        let forged = SenderFields::of(&all_properties(), Written::BySender).to_header();
        let mut headers = FieldTable::default();
        headers.insert(SENT.into(), forged);
        let properties = BasicProperties::default().with_app_id("own".into()).with_headers(headers);
        let retry = RetryQueue::Second.name();
        // Through the exchange of the agents; and when RabbitMQ dead-lettered it from there.
        let death = died_in("conversation.session", "delivery_limit", "domain.actions", "k");
        let mut dead = properties.clone();
        let mut headers = properties.headers().clone().unwrap();
        headers.insert("x-death".into(), AMQPValue::FieldArray(vec![death].into()));
        dead = dead.with_headers(headers);
        for (exchange, properties) in [("domain.actions", properties), ("", dead)] {
            let copy = Publication::copy(&with_properties(exchange, properties), retry);
            let stored = delivered(&copy).stored();
            assert_eq!(stored.properties, json!({"app_id": "own"}));
            assert_eq!(stored.left_out, Some(json!({"headers": 1, "names": [SENT]})));
        }
    }

    #[test]
    fn a_minimal_publication_has_no_property_too_long_for_amqp() {
        let long = || Some("x".repeat(256));
        let mut publication =
            Publication::copy(&delivery(), "queue").with_failed_attempt("broken", at(5));
        publication.message_id = "x".repeat(256);
        publication.correlation_id = long();
        publication.reply_to = long();
        publication.content_type = long();
        let minimal = delivered(&publication.minimal().unwrap());
        assert_eq!(minimal.envelope().message_id, None);
        assert_eq!(minimal.fleet_headers().history.reasons, ["broken"]);
        publication.message_id = "its-id".to_owned();
        let minimal = delivered(&publication.minimal().unwrap());
        assert_eq!(minimal.origin(), delivery().origin());
        assert_eq!(publication.minimal().unwrap().minimal(), None);
    }

    #[test]
    fn a_property_too_long_for_amqp_is_an_error_that_names_it() {
        let mut publication = Publication::action("conversation.save_message", Vec::new());
        publication.correlation_id = Some("x".repeat(256));
        let error = publication.properties().unwrap_err();
        assert_eq!(error.to_string(), "correlation_id is 256 bytes long; AMQP allows at most 255");
    }
}
