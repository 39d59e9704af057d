//! What is to be published: actions, events, and copies of deliveries.
//!
//! A copy carries an allow-list: the body, its content type, the properties that identify it, our own
//! headers and the trace. Never the broker's own headers, `CC`, `BCC`, `expiration` or `user_id`
//! (RabbitMQ refuses a `user_id` that is not the publisher's).

use std::borrow::Cow;

use domain::envelope::Resolved;
use domain::failure::Refusal;
use domain::time::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use uuid::Uuid;

use crate::Delivery;
use crate::delivery::{TRACEPARENT, TRACESTATE};
use crate::journey::{Journey, Verdict};
use crate::topology::{ACTIONS, EVENTS, RetryQueue};
use crate::wire;

/// A message to publish: always persistent, mandatory and with a message id.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// The exchange; empty for the one that routes to the queue that the routing key names.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The body.
    pub body: Vec<u8>,
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
    /// The W3C trace.
    pub traceparent: Option<String>,
    /// The vendor part of the trace.
    pub tracestate: Option<String>,
    /// What our headers say.
    pub journey: Journey,
}

/// The delivery mode that makes RabbitMQ write a message to disk (AMQP 0-9-1, `basic.publish`).
const PERSISTENT: u8 = 2;

/// What the headers of a message take at most, in bytes: half of RabbitMQ's default `frame_max`
/// (128 KiB). All properties travel in one frame, and the broker closes a connection that sends a
/// longer one, whoever else publishes on it.
const MAX_HEADER_BYTES: usize = 64 << 10;

const JSON: &str = "application/json";

impl Publication {
    /// An action, as agents publish them; the message id is fresh unless the caller sets one.
    #[must_use]
    pub fn action(action_type: &str, body: Vec<u8>) -> Self {
        Self::fresh(ACTIONS, action_type, body)
    }

    /// An event of the fleet.
    #[must_use]
    pub fn event(event_type: &str, body: Vec<u8>) -> Self {
        Self::fresh(EVENTS, event_type, body)
    }

    /// A message to one queue, past all exchanges.
    #[must_use]
    pub fn to_queue(queue: &str, body: Vec<u8>) -> Self {
        Self::fresh("", queue, body)
    }

    /// A copy of a delivery for one queue, past all exchanges.
    #[must_use]
    pub fn copy(delivery: &Delivery, queue: &str) -> Self {
        let envelope = delivery.envelope();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let journey = Journey {
            origin: Some(delivery.origin()),
            validated_user: owned(envelope.user_id),
            anonymous: envelope.message_id.is_none(),
            ..delivery.journey().clone()
        };
        Self {
            message_id: owned(envelope.message_id).unwrap_or_else(fresh_message_id),
            content_type: owned(delivery.content_type()),
            timestamp: envelope.timestamp,
            correlation_id: owned(envelope.correlation_id),
            reply_to: owned(envelope.reply_to),
            traceparent: delivery.traceparent(),
            tracestate: delivery.tracestate(),
            journey,
            ..Self::to_queue(queue, delivery.body.clone())
        }
    }

    /// With what an attempt made of the message, where it got so far.
    #[must_use]
    pub fn resolved(mut self, resolved: Option<Resolved>) -> Self {
        self.journey.resolved = resolved.or(self.journey.resolved);
        self
    }

    /// With the reason why it is a dead letter, whoever said so: RabbitMQ's words for it do not come
    /// with a copy.
    #[must_use]
    pub fn told_why(mut self, delivery: &Delivery) -> Self {
        self.journey.verdict = delivery.verdict().map(Cow::into_owned);
        self
    }

    /// With one more failed attempt in its history.
    #[must_use]
    pub fn failed(mut self, error: &str, at: Timestamp) -> Self {
        self.journey.history.record(error, at);
        self
    }

    /// For another attempt: comes to its queue after the delay of `retry`.
    #[must_use]
    pub fn delayed(mut self, retry: RetryQueue) -> Self {
        retry.name().clone_into(&mut self.exchange);
        self.journey.attempt = self.journey.attempt.saturating_add(1);
        self
    }

    /// As a dead letter of the queue `home`.
    #[must_use]
    pub fn condemned(mut self, home: &str, refusal: Refusal, at: Timestamp) -> Self {
        let history = &mut self.journey.history;
        history.first_failed_at.get_or_insert(at);
        history.last_failed_at = Some(at);
        self.journey.verdict = Some(Verdict { queue: home.to_owned(), refusal });
        self
    }

    /// The same without what its receiver can do without, so that nothing in it is too long for
    /// AMQP. An id that is too long came from no AMQP client and identifies nothing.
    pub(crate) fn minimal(&self) -> Self {
        let mut minimal = Self {
            correlation_id: None,
            reply_to: None,
            content_type: None,
            traceparent: None,
            tracestate: None,
            ..self.clone()
        };
        if short("message_id", &self.message_id).is_err() {
            minimal.message_id = fresh_message_id();
            minimal.journey.anonymous = true;
        }
        minimal
    }

    /// The headers on the wire. Where they would be too long, the trace goes, then the errors of the
    /// oldest attempts; the rest is bounded and stays.
    fn headers(&self) -> FieldTable {
        let mut headers = wire::to_table(&self.journey.to_headers());
        let size = wire::encoded_bytes(&headers);
        let traces = [(TRACEPARENT, &self.traceparent), (TRACESTATE, &self.tracestate)];
        let trace = traces.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        // The octets are those of the lengths and the type.
        let trace_bytes: usize =
            trace.clone().map(|(name, value)| 1 + name.len() + 1 + 4 + value.len()).sum();
        if size + trace_bytes <= MAX_HEADER_BYTES {
            for (name, value) in trace {
                headers.insert(name.into(), AMQPValue::LongString(value.into()));
            }
        }
        let mut journey = Cow::Borrowed(&self.journey);
        while wire::encoded_bytes(&headers) > MAX_HEADER_BYTES
            && !journey.history.reasons.is_empty()
        {
            journey.to_mut().history.reasons.remove(0);
            headers = wire::to_table(&journey.to_headers());
        }
        headers
    }

    /// The properties on the wire.
    ///
    /// # Errors
    /// A property is longer than AMQP's 255 bytes.
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
        Ok(properties)
    }

    fn fresh(exchange: &str, routing_key: &str, body: Vec<u8>) -> Self {
        Self {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            body,
            message_id: fresh_message_id(),
            content_type: Some(JSON.to_owned()),
            timestamp: None,
            correlation_id: None,
            reply_to: None,
            traceparent: None,
            tracestate: None,
            journey: Journey::default(),
        }
    }
}

/// A text that AMQP has no room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {bytes} bytes long; AMQP takes at most 255")]
pub struct TooLong {
    /// Which one.
    pub what: &'static str,
    /// Its length.
    pub bytes: usize,
}

/// A text as AMQP's short string.
pub(crate) fn short(what: &'static str, text: &str) -> Result<ShortString, TooLong> {
    ShortString::try_new(text).map_err(|_| TooLong { what, bytes: text.len() })
}

fn fresh_message_id() -> String {
    Uuid::now_v7().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::envelope::Envelope;
    use domain::failure::DeadLetterReason;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    fn delivery() -> Delivery {
        let envelope = Envelope { user_id: Some("agent"), ..Envelope::default() };
        Delivery::fresh("conversation.save_message", envelope, b"{}".to_vec(), at(0))
    }

    /// The delivery that a publication causes.
    fn delivered(publication: &Publication) -> Delivery {
        let mut amqp = lapin::message::Delivery::mock(
            1,
            publication.exchange.as_str().into(),
            publication.routing_key.as_str().into(),
            false,
            publication.body.clone(),
        );
        amqp.properties = publication.properties().unwrap();
        Delivery::from_amqp(amqp, at(9))
    }

    #[test]
    fn a_retry_comes_back_as_the_same_action_one_attempt_later() {
        let retry = Publication::copy(&delivery(), "conversation.save_message")
            .failed("broken", at(5))
            .delayed(RetryQueue::Second);
        assert_eq!(retry.exchange, "domain.retry.1000");
        let again = delivered(&retry);
        assert_eq!(again.envelope(), delivery().envelope());
        assert_eq!(again.journey().attempt, 2);
        assert_eq!(again.journey().history.reasons, ["broken"]);
        assert_eq!(again.origin(), delivery().origin());
    }

    #[test]
    fn a_message_without_an_id_does_not_gain_one_by_being_copied() {
        let copy = Publication::copy(&delivery(), "conversation.save_message.suspect");
        assert!(!copy.message_id.is_empty());
        let moved = delivered(&copy);
        assert_eq!(moved.envelope().message_id, None);
        let twice = delivered(&Publication::copy(&moved, "conversation.save_message"));
        assert_eq!(twice.envelope().message_id, None);
    }

    #[test]
    fn a_dead_letter_says_why_and_when() {
        let refusal = Refusal {
            reason: DeadLetterReason::Schema,
            field: Some("role".to_owned()),
            detail: "role is missing".to_owned(),
        };
        let letter = Publication::copy(&delivery(), "conversation.save_message.dlq").condemned(
            "conversation.save_message",
            refusal.clone(),
            at(7),
        );
        let letter = delivered(&letter);
        let verdict = letter.journey().verdict.clone().unwrap();
        assert_eq!(
            (verdict.queue.as_str(), verdict.refusal),
            ("conversation.save_message", refusal)
        );
        assert_eq!(letter.journey().history.first_failed_at, Some(at(7)));
    }

    #[test]
    fn headers_fit_into_a_frame_whatever_is_put_into_them() {
        let mut publication = Publication::to_queue("queue", Vec::new());
        publication.traceparent = Some("00-trace".to_owned());
        publication.tracestate = Some("x".repeat(200_000));
        let headers = publication.headers();
        assert!(headers.inner().is_empty(), "without the trace nothing is left");

        publication.tracestate = None;
        publication.journey.history.reasons =
            (0..100).map(|n| format!("{n} {}", "x".repeat(5_000))).collect();
        let headers = publication.headers();
        assert!(wire::encoded_bytes(&headers) <= MAX_HEADER_BYTES);
        let kept = Journey::from_headers(&wire::to_json(&headers)).history.reasons;
        assert!(kept.len() > 20 && kept.last().unwrap().starts_with("99 "), "{}", kept.len());
        assert!(!headers.inner().contains_key(TRACEPARENT));
    }

    #[test]
    fn a_minimal_publication_has_nothing_that_amqp_has_no_room_for() {
        let long = || Some("x".repeat(256));
        let mut publication = Publication::copy(&delivery(), "queue").failed("broken", at(5));
        publication.message_id = "x".repeat(256);
        publication.correlation_id = long();
        publication.reply_to = long();
        publication.content_type = long();
        let minimal = delivered(&publication.minimal());
        assert_eq!(minimal.envelope().message_id, None);
        assert_eq!(minimal.journey().history.reasons, ["broken"]);
        publication.message_id = "its-id".to_owned();
        let minimal = delivered(&publication.minimal());
        assert_eq!(minimal.origin(), delivery().origin());
    }

    #[test]
    fn a_property_that_amqp_has_no_room_for_is_refused_by_name() {
        let mut publication = Publication::action("conversation.save_message", Vec::new());
        publication.correlation_id = Some("x".repeat(256));
        let error = publication.properties().unwrap_err();
        assert_eq!(error.to_string(), "correlation_id is 256 bytes long; AMQP takes at most 255");
    }
}
