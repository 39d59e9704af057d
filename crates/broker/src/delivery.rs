//! A message as delivered by a queue.
//!
//! The routing key of a delivery is not always that of its action: a retry has the name of its own queue
//! as routing key, a dead letter the name of its dead-letter queue. The first exchange and routing key
//! are in our headers, or in the `x-death` header that RabbitMQ wrote.
//!
//! Invariant: our headers are trusted only on messages that never passed an exchange to which agents
//! publish, so that an agent cannot forge an identity or a validated user. The user is not trusted either on a message that
//! died in another queue than a retry queue.

use std::borrow::Cow;

use bytes::Bytes;
use domain::envelope::Envelope;
use domain::failure::{DeadLetterReason, Refusal};
use domain::time::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::amqp_second;
use crate::fleet_headers::{self, DeadLetterInfo, FleetHeaders, Origin, RAW_BYTES, SENT};
use crate::header_owner::Copied;
use crate::raw_message::{Moved, RawMessage};
use crate::sender_fields::{SenderFields, Written};
use crate::topology::{REQUESTS, RetryQueue, UNROUTED};
use crate::wire;

/// A message that was delivered and is not settled. Its properties and headers are read on demand, because
/// for most messages only the identifying properties are needed.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The body, as published. A copy of the delivery, and what is stored of it, share its memory.
    pub body: Bytes,
    /// When this delivery was received. The time of the first attempt is in
    /// [`FleetHeaders::resolved`].
    pub received_at: Timestamp,
    /// The `redelivered` flag of AMQP: RabbitMQ may have delivered it before.
    pub redelivered: bool,
    /// The microseconds that complete its AMQP timestamp.
    pub(crate) timestamp_micros: u32,
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    /// Boxed, because few messages have our headers.
    fleet_headers: Option<Box<FleetHeaders>>,
    copied: Copied,
    /// What its sender set, if it was made from what was stored of it.
    sender: Option<Box<SenderFields>>,
    /// As RabbitMQ sent it, if the client library cannot read all of it.
    raw: Option<Box<RawMessage>>,
}

/// An entry of RabbitMQ's `x-death` header: one dead-lettering of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// The queue that dead-lettered it.
    pub queue: String,
    /// `rejected`, `expired`, `maxlen` or `delivery_limit`.
    pub reason: String,
    /// How often this queue dead-lettered it for this reason.
    pub count: u64,
    /// The exchange to which it had been published.
    pub exchange: String,
    /// The routing key with which it had been published.
    pub routing_key: String,
    /// When this queue first dead-lettered it for this reason, in seconds since 1970.
    pub at_seconds: Option<u64>,
}

pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const TRACESTATE: &str = "tracestate";

/// The longest `traceparent` that is copied, in bytes. Version 00 has 55 (W3C Trace Context,
/// 3.2.2); later versions may append to it.
const MAX_TRACEPARENT_BYTES: usize = 128;
/// The longest `tracestate` that is copied, in bytes: the least that W3C Trace Context (3.3.1.5) wants
/// propagated. A longer one is dropped, because nothing here needs it, and a copy whose headers do not
/// fit into a frame could not be published.
const MAX_TRACESTATE_BYTES: usize = 512;

impl Delivery {
    /// An element of it, as a delivery of its own on its first attempt. It has the origin and the user of the
    /// whole, but not its identity: the message id is not that of the element.
    pub(crate) fn element(&self, body: Vec<u8>) -> Self {
        let whole = self.fleet_headers();
        let fleet_headers = FleetHeaders {
            anonymous: true,
            origin: whole.origin.clone(),
            validated_user: whole.validated_user.clone(),
            replay_count: whole.replay_count,
            replay_of: whole.replay_of,
            ..FleetHeaders::default()
        };
        let Self { received_at, redelivered, timestamp_micros, .. } = *self;
        Self {
            body: body.into(),
            received_at,
            redelivered,
            timestamp_micros,
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            properties: self.properties.clone(),
            fleet_headers: Some(Box::new(fleet_headers)),
            copied: self.copied,
            sender: self.sender.clone(),
            raw: None,
        }
    }

    /// Its fleet headers: attempt, history, replays, dead-letter info. The default if it has none that
    /// are trusted.
    #[must_use]
    pub fn fleet_headers(&self) -> &FleetHeaders {
        self.fleet_headers.as_deref().unwrap_or(&fleet_headers::FIRST_ATTEMPT)
    }

    /// Its AMQP properties and fleet headers as an envelope.
    #[must_use]
    pub fn envelope(&self) -> Envelope<'_> {
        let (properties, fleet_headers) = (&self.properties, self.fleet_headers());
        let validated_user = fleet_headers.validated_user.as_deref();
        Envelope {
            message_id: text(properties.message_id()).filter(|_| !fleet_headers.anonymous),
            timestamp: *properties.timestamp(),
            timestamp_micros: self.timestamp_micros,
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            content_encoding: self.content_encoding(),
            user_id: text(properties.user_id()).or(validated_user),
            resolved: fleet_headers.resolved.as_ref(),
            redelivered: self.redelivered || self.copied == Copied::ByFleet,
        }
    }

    /// The exchange and routing key of the first publish.
    #[must_use]
    pub fn origin(&self) -> Origin {
        let exchange = self.exchange.as_str();
        let known = self.fleet_headers().origin.clone();
        known.or_else(|| first_published(exchange, self.table()?)).unwrap_or_else(|| Origin {
            exchange: exchange.to_owned(),
            routing_key: self.routing_key.to_string(),
        })
    }

    /// How often this queue requeued it without an acknowledgement. Connection losses and broker restarts
    /// count too, so in a work queue it only chooses the lane.
    ///
    /// 0 for a message that was not redelivered: there RabbitMQ 3 leaves the header as published, set by
    /// an agent or with the count of another queue.
    pub(crate) fn delivery_count(&self) -> u64 {
        if !self.redelivered {
            return 0;
        }
        let count = self.table().and_then(|headers| wire::number(headers, "x-delivery-count"));
        count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
    }

    /// The W3C `traceparent`; `None` if it is longer than 128 bytes.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        wire::text(self.table()?, TRACEPARENT).filter(|text| text.len() <= MAX_TRACEPARENT_BYTES)
    }

    /// The W3C `tracestate`; `None` if it is longer than 512 bytes.
    #[must_use]
    pub fn tracestate(&self) -> Option<String> {
        wire::text(self.table()?, TRACESTATE).filter(|text| text.len() <= MAX_TRACESTATE_BYTES)
    }

    /// The trace id, for log lines: the second field of the `traceparent` (W3C Trace Context, 3.2.2.3).
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.traceparent()?.split('-').nth(1).map(str::to_owned)
    }

    /// The media type of the body.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        text(self.properties.content_type())
    }

    /// The encoding of the body, as its sender named it.
    fn content_encoding(&self) -> Option<&str> {
        let sent = text(self.properties.content_encoding());
        sent.or_else(|| match (&self.sender, self.copied) {
            (Some(sender), _) => sender.content_encoding(),
            (None, Copied::ByFleet) => {
                SenderFields::content_encoding_in(self.table()?.inner().get(SENT)?)
            }
            (None, Copied::Never) => None,
        })
    }

    /// The entries of `x-death`, the most recent one first. Empty for dead letters that Verbatim itself
    /// published.
    #[must_use]
    pub fn deaths(&self) -> Vec<Death> {
        self.table().map(deaths).unwrap_or_default()
    }

    /// Whether it comes from the queue of requests, where no worker took it in time.
    #[must_use]
    pub fn expired_among_requests(&self) -> bool {
        self.table().is_some_and(|headers| expired_among_requests(self.exchange(), headers))
    }

    /// Why it is a dead letter: from our headers, or derived from RabbitMQ's `x-death`. `None` if neither
    /// says so. An expiration in a retry queue does not count: that is how a retry works.
    #[must_use]
    pub fn dead_letter_info(&self) -> Option<Cow<'_, DeadLetterInfo>> {
        if let Some(dead_letter_info) = &self.fleet_headers().dead_letter_info {
            return Some(Cow::Borrowed(dead_letter_info));
        }
        let Death { queue, reason, count, .. } =
            self.deaths().into_iter().find(|death| !is_retry_queue(&death.queue))?;
        let detail =
            format!("dead-lettered by RabbitMQ from queue {queue} ({reason}, {count} times)");
        let reason = match reason.as_str() {
            "expired" => DeadLetterReason::Expired,
            "delivery_limit" => DeadLetterReason::DeliveryLimit,
            _ => DeadLetterReason::AttemptsExhausted,
        };
        let refusal = match self.unreadable() {
            Some(unreadable) => {
                Refusal { detail: format!("{}; {detail}", unreadable.detail), ..unreadable }
            }
            None => Refusal::new(reason, detail),
        };
        Some(Cow::Owned(DeadLetterInfo { queue, refusal, by_rabbitmq: true }))
    }

    /// What its sender set: of a copy, what the fleet header with it says.
    pub(crate) fn sender_fields(&self) -> SenderFields {
        match (&self.sender, self.copied) {
            (Some(sender), _) => SenderFields::clone(sender),
            (None, Copied::ByFleet) => {
                let header = self.table().and_then(|headers| headers.inner().get(SENT));
                header.map(SenderFields::from_header).unwrap_or_default()
            }
            (None, Copied::Never) => {
                let exchange = self.exchange.as_str();
                let by_rabbitmq = is_retry_queue(exchange)
                    || self.table().is_none_or(|headers| dead_letters_to(exchange, headers));
                let written = match (by_rabbitmq, self.redelivered) {
                    (true, _) => Written::ByRabbitMq,
                    (false, true) => Written::CountsByRabbitMq,
                    (false, false) => Written::BySender,
                };
                SenderFields::of(&self.properties, written)
            }
        }
    }

    /// Why it is refused, if the client library cannot read all that RabbitMQ sent of it.
    #[must_use]
    pub fn unreadable(&self) -> Option<Refusal> {
        let raw = self.raw.as_ref()?;
        // Another version may have been unable to read what this version can.
        let fault = raw.check().err();
        let fault =
            fault.map_or("the AMQP properties could not be read".into(), |it| it.to_string());
        Some(Refusal::new(DeadLetterReason::Unreadable, fault))
    }

    /// As RabbitMQ sent it, if the client library cannot read all of it.
    pub(crate) fn raw(&self) -> Option<&RawMessage> {
        self.raw.as_deref()
    }

    /// The exchange by which it was delivered.
    pub(crate) fn exchange(&self) -> &str {
        self.exchange.as_str()
    }

    pub(crate) fn amqp_properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// Whether the fleet published it as a copy: then its properties and headers are not its sender's.
    pub(crate) fn copied(&self) -> Copied {
        self.copied
    }

    pub(crate) fn from_amqp(delivery: lapin::message::Delivery, received_at: Timestamp) -> Self {
        let lapin::message::Delivery {
            exchange,
            routing_key,
            redelivered,
            properties,
            mut data,
            ..
        } = delivery;
        // lapin appends the frames of a large body to a buffer that doubles its capacity.
        data.shrink_to_fit();
        let mut body = Bytes::from(data);
        let moved = Moved::with(&properties);
        let raw = moved.and_then(|moved| RawMessage::split_off(&mut body, moved.bytes));
        let Some(raw) = raw else {
            return Self::new(body, received_at, redelivered, exchange, routing_key, properties);
        };
        let properties = raw.readable();
        let raw = raw.check().is_err().then(|| Box::new(raw));
        let delivery = Self::new(body, received_at, redelivered, exchange, routing_key, properties);
        Self { raw: raw.or(delivery.raw), ..delivery }
    }

    /// A delivery made from what was stored of it.
    pub(crate) fn restored(
        body: Vec<u8>,
        received_at: Timestamp,
        exchange: ShortString,
        properties: BasicProperties,
        sender: SenderFields,
        raw: Option<RawMessage>,
    ) -> Self {
        let delivery = Self::new(body.into(), received_at, false, exchange, "".into(), properties);
        Self { sender: Some(Box::new(sender)), raw: raw.map(Box::new), ..delivery }
    }

    fn new(
        mut body: Bytes,
        received_at: Timestamp,
        redelivered: bool,
        exchange: ShortString,
        routing_key: ShortString,
        properties: BasicProperties,
    ) -> Self {
        let headers = properties.headers().as_ref();
        let fleet_headers =
            headers.and_then(|headers| trusted_fleet_headers(exchange.as_str(), headers));
        let copied = if fleet_headers.is_some() { Copied::ByFleet } else { Copied::Never };
        let fleet_headers = fleet_headers.map(Box::new);
        let raw_bytes = headers.filter(|_| copied == Copied::ByFleet);
        let raw_bytes = raw_bytes.and_then(|headers| wire::number(headers, RAW_BYTES));
        let raw = raw_bytes
            .and_then(|bytes| RawMessage::split_off(&mut body, usize::try_from(bytes).ok()?))
            .map(Box::new);
        let resolved = fleet_headers.as_ref().and_then(|headers| headers.resolved.as_ref());
        let timestamp_micros = properties
            .timestamp()
            .map_or(0, |second| amqp_second::micros(second, received_at, resolved));
        Self {
            body,
            received_at,
            redelivered,
            timestamp_micros,
            exchange,
            routing_key,
            properties,
            fleet_headers,
            copied,
            sender: None,
            raw,
        }
    }

    fn table(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }
}

fn text(property: &Option<ShortString>) -> Option<&str> {
    property.as_ref().map(ShortString::as_str)
}

/// Our headers, if there are any and they are trusted.
fn trusted_fleet_headers(exchange: &str, headers: &FieldTable) -> Option<FleetHeaders> {
    let is_ours = headers.inner().keys().any(|name| FleetHeaders::owns(name.as_str()));
    (is_ours && passed_only_fleet_exchanges(exchange, headers)).then(|| {
        let ours = |name: &str| FleetHeaders::owns(name) && name != SENT;
        let ours = FleetHeaders::from_headers(&wire::to_json_where(headers, ours));
        if died_outside_of_retry_queues(headers) {
            FleetHeaders { validated_user: None, ..ours }
        } else {
            ours
        }
    })
}

/// Whether a queue dead-lettered it that is no retry queue. RabbitMQ 3 counts a death in the entry for that queue and
/// reason that an agent forged, and keeps the forged exchange of the entry. So such a message may be an agent's, although
/// no exchange says so, and its headers say nothing of its user. The property `user_id` still does.
fn died_outside_of_retry_queues(headers: &FieldTable) -> bool {
    deaths(headers).iter().any(|death| !is_retry_queue(&death.queue))
}

/// Whether only the fleet publishes to every exchange that the message is known to have passed.
///
/// Messages of the fleet expire only in retry queues. If an agent publishes a forged `x-death` entry for its
/// queue and `expired`, RabbitMQ 3 increments that entry and keeps its forged exchange.
fn passed_only_fleet_exchanges(exchange: &str, headers: &FieldTable) -> bool {
    let by_fleet = |death: &Death| {
        let may_be_forged = death.reason == "expired" && !is_retry_queue(&death.queue);
        fleet_only(&death.exchange) && !may_be_forged
    };
    fleet_only(exchange) && deaths(headers).iter().all(by_fleet)
}

/// Whether only the fleet publishes to this exchange: the default exchange and those of the retry
/// queues.
fn fleet_only(exchange: &str) -> bool {
    exchange.is_empty() || is_retry_queue(exchange)
}

/// Whether this is the name of a retry queue, which is also the name of its exchange.
fn is_retry_queue(name: &str) -> bool {
    RetryQueue::ALL.iter().any(|queue| queue.name() == name)
}

/// Whether RabbitMQ may have dead-lettered a message to this exchange, so that `x-death` is its. It dead-letters
/// through the default exchange, and from the queue of requests to the exchange of unroutable actions (see the
/// arguments of the topology's queues). On a message from any other exchange its sender wrote `x-death`.
fn dead_letters_to(exchange: &str, headers: &FieldTable) -> bool {
    exchange.is_empty() || expired_among_requests(exchange, headers)
}

fn expired_among_requests(exchange: &str, headers: &FieldTable) -> bool {
    let newest = || deaths(headers).into_iter().next();
    exchange == UNROUTED && newest().is_some_and(|death| death.queue == REQUESTS)
}

/// Where a message that RabbitMQ dead-lettered was first published: the oldest entry of `x-death`.
fn first_published(exchange: &str, headers: &FieldTable) -> Option<Origin> {
    if !dead_letters_to(exchange, headers) {
        return None;
    }
    let oldest = deaths(headers).pop()?;
    Some(Origin { exchange: oldest.exchange, routing_key: oldest.routing_key })
}

fn deaths(headers: &FieldTable) -> Vec<Death> {
    let Some(AMQPValue::FieldArray(entries)) = headers.inner().get("x-death") else {
        return Vec::new();
    };
    let tables = entries.as_slice().iter().filter_map(|entry| match entry {
        AMQPValue::FieldTable(table) => Some(table),
        _ => None,
    });
    tables.map(death).collect()
}

fn death(table: &FieldTable) -> Death {
    let text = |name| wire::text(table, name).unwrap_or_default();
    let routing_key = match table.inner().get("routing-keys") {
        Some(AMQPValue::FieldArray(keys)) => match keys.as_slice().first() {
            Some(AMQPValue::LongString(key)) => key.to_string(),
            _ => String::new(),
        },
        _ => String::new(),
    };
    let unsigned = |name| wire::number(table, name).and_then(|number| u64::try_from(number).ok());
    Death {
        queue: text("queue"),
        reason: text("reason"),
        count: unsigned("count").unwrap_or(1),
        exchange: text("exchange"),
        routing_key,
        at_seconds: unsigned("time"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Publication;
    use lapin::types::FieldArray;
    use serde_json::json;

    /// The delivery of a message with these properties.
    pub(crate) fn with_properties(exchange: &str, properties: BasicProperties) -> Delivery {
        let key = "conversation.save_message".into();
        let body = b"{}".to_vec();
        let mut amqp = lapin::message::Delivery::mock(1, exchange.into(), key, false, body);
        amqp.properties = properties;
        Delivery::from_amqp(amqp, Timestamp::from_micros(1).unwrap())
    }

    /// The delivery that a publication causes.
    pub(crate) fn delivered(publication: &Publication) -> Delivery {
        let delivery = with_properties(&publication.exchange, publication.properties().unwrap());
        let routing_key = publication.routing_key.as_str().into();
        Delivery { body: publication.body.clone(), routing_key, ..delivery }
    }

    fn received(exchange: &str, routing_key: &str, headers: FieldTable) -> Delivery {
        let properties = BasicProperties::default().with_headers(headers);
        Delivery { routing_key: routing_key.into(), ..with_properties(exchange, properties) }
    }

    pub(crate) fn forged() -> FieldTable {
        let mut headers = FieldTable::default();
        headers.insert("x-verbatim-user".into(), AMQPValue::LongString("somebody".into()));
        headers.insert("x-verbatim-attempt".into(), AMQPValue::LongLongInt(3));
        headers
    }

    pub(crate) fn died_in(queue: &str, reason: &str, exchange: &str, key: &str) -> AMQPValue {
        let mut death = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        death.insert("queue".into(), text(queue));
        death.insert("reason".into(), text(reason));
        death.insert("exchange".into(), text(exchange));
        death.insert("count".into(), AMQPValue::LongLongInt(1));
        death.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
        death.insert(
            "routing-keys".into(),
            AMQPValue::FieldArray(FieldArray::from(vec![text(key)])),
        );
        AMQPValue::FieldTable(death)
    }

    #[test]
    fn fleet_headers_are_trusted_only_on_what_the_fleet_published() {
        let from_agent = received("domain.actions", "conversation.save_message", forged());
        assert_eq!(from_agent.fleet_headers(), &FleetHeaders::default());
        assert_eq!(from_agent.envelope().user_id, None);

        let from_fleet = received("", "conversation.save_message", forged());
        assert_eq!(from_fleet.fleet_headers().attempt, 3);
        assert_eq!(from_fleet.envelope().user_id, Some("somebody"));
    }

    #[test]
    fn forged_headers_stay_untrusted_after_rabbitmq_dead_letters_the_message() {
        let mut headers = forged();
        let death = died_in(
            "conversation.save_message",
            "expired",
            "domain.actions",
            "conversation.save_message",
        );
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![death])));
        let dead_letter = received("", "conversation.save_message.dlq", headers);
        assert_eq!(dead_letter.fleet_headers(), &FleetHeaders::default());
    }

    #[test]
    fn a_forged_expiration_does_not_make_forged_headers_trusted() {
        for (reason, trusted) in [("expired", false), ("delivery_limit", true)] {
            let mut headers = forged();
            let death = died_in("conversation.save_message", reason, "", "state.clear");
            headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![death])));
            let dead_letter = received("", "conversation.save_message.dlq", headers);
            assert_eq!(dead_letter.fleet_headers().attempt == 3, trusted, "{reason}");
        }
    }

    #[test]
    fn a_death_outside_of_retry_queues_leaves_only_the_user_that_is_a_property() {
        let key = "conversation.save_message";
        let retry = RetryQueue::HalfMinute.name();
        for (death, user) in [
            (died_in(retry, "expired", retry, key), Some("somebody")),
            (died_in(key, "rejected", "", key), None),
            (died_in(key, "delivery_limit", "", key), None),
        ] {
            let mut headers = forged();
            headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![death])));
            let died = received("", key, headers.clone());
            assert_eq!(died.envelope().user_id, user, "{died:?}");
            let properties = BasicProperties::default().with_user_id("agent".into());
            let died = with_properties("", properties.with_headers(headers));
            assert_eq!(died.envelope().user_id, Some("agent"));
        }
    }

    #[test]
    fn an_expiration_in_a_retry_queue_is_no_dead_letter_info() {
        let retry = RetryQueue::HalfMinute.name();
        let waited = died_in(retry, "expired", retry, "conversation.save_message.dlq");
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![waited])));
        assert_eq!(received("", "conversation.save_message.dlq", headers).dead_letter_info(), None);
    }

    #[test]
    fn a_delivery_count_is_read_only_from_redelivered_messages() {
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(99));
        let mut delivery = received("domain.actions", "conversation.save_message", headers);
        assert_eq!(delivery.delivery_count(), 0, "the header was set by its agent");
        delivery.redelivered = true;
        assert_eq!(delivery.delivery_count(), 99);
    }

    #[test]
    fn the_counts_of_a_message_are_its_senders_until_rabbitmq_delivers_it_again() {
        let mut headers = FieldTable::default();
        for name in ["x-acquired-count", "x-delivery-count"] {
            headers.insert(name.into(), AMQPValue::LongLongInt(99));
        }
        let first = received("domain.actions", "conversation.save_message", headers);
        let named = json!({"headers": 2, "names": ["x-acquired-count", "x-delivery-count"]});
        assert_eq!(first.stored().left_out, Some(named.clone()));
        let copy = delivered(&Publication::copy(&first, "conversation.save_message"));
        assert_eq!(copy.stored().left_out, Some(named));
        assert_eq!(Delivery { redelivered: true, ..first.clone() }.stored().left_out, None);
        let by_rabbitmq = Delivery { exchange: "".into(), ..first };
        assert_eq!(by_rabbitmq.stored().left_out, None);
    }

    #[test]
    fn a_worker_may_have_handled_what_is_redelivered_and_what_the_fleet_copied() {
        let first = received("domain.actions", "conversation.save_message", forged());
        assert!(!first.envelope().redelivered);
        assert!(Delivery { redelivered: true, ..first.clone() }.envelope().redelivered);
        let copy = delivered(&Publication::copy(&first, "conversation.save_message"));
        assert!(copy.envelope().redelivered);
    }

    #[test]
    fn forged_deaths_do_not_change_the_origin() {
        let death = died_in("conversation.session", "expired", "domain.actions", "state.clear");
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![death])));
        let key = "conversation.save_message";
        for exchange in ["domain.actions", "domain.unrouted", "domain.retry.1000"] {
            let origin = received(exchange, key, headers.clone()).origin();
            assert_eq!((origin.exchange.as_str(), origin.routing_key.as_str()), (exchange, key));
        }
        assert_eq!(received("", key, headers).origin().routing_key, "state.clear");
    }

    #[test]
    fn what_expired_among_the_requests_has_the_origin_of_its_publish_and_no_header_of_rabbitmq() {
        let request = "conversation.get_context";
        let mut headers = FieldTable::default();
        let death = died_in(REQUESTS, "expired", "domain.actions", request);
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![death])));
        headers.insert("x-tenant".into(), AMQPValue::Boolean(true));
        let delivery = received(UNROUTED, request, headers);
        let origin = delivery.origin();
        assert_eq!(
            (origin.exchange.as_str(), origin.routing_key.as_str()),
            ("domain.actions", request)
        );
        let sent = delivery.sender_fields();
        let properties = BasicProperties::default();
        let mut headers = FieldTable::default();
        headers.insert("x-tenant".into(), AMQPValue::Boolean(true));
        let of_sender = SenderFields::of(&properties.with_headers(headers), Written::BySender);
        assert_eq!(sent, of_sender);
    }

    #[test]
    fn a_trace_is_copied_up_to_its_length_limits() {
        let traced = |parent: usize, state: usize| {
            let mut headers = FieldTable::default();
            let text = |bytes| AMQPValue::LongString("x".repeat(bytes).into());
            headers.insert(TRACEPARENT.into(), text(parent));
            headers.insert(TRACESTATE.into(), text(state));
            let delivery = received("", "q", headers);
            (delivery.traceparent().is_some(), delivery.tracestate().is_some())
        };
        assert_eq!(traced(128, 512), (true, true));
        assert_eq!(traced(129, 513), (false, false));
    }

    #[test]
    fn a_dead_letter_by_rabbitmq_has_its_reason_and_origin() {
        let key = "conversation.save_message";
        let deaths = vec![
            died_in(key, "delivery_limit", "", key),
            died_in("domain.retry.1000", "expired", "domain.retry.1000", key),
        ];
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(deaths)));
        let dead_letter = received("", "conversation.save_message.dlq", headers);
        let refusal = &dead_letter.dead_letter_info().unwrap().refusal;
        assert_eq!(refusal.reason, DeadLetterReason::DeliveryLimit);
        assert!(refusal.detail.contains(key), "{refusal:?}");
        assert_eq!(dead_letter.deaths()[0].at_seconds, Some(1_700_000_000));
        assert_eq!(dead_letter.origin().routing_key, key);

        // Its copy does not have the `x-death` of RabbitMQ.
        let queue = crate::topology::WorkQueue::SaveMessage;
        let retry = Publication::copy(&dead_letter, "q").same_dead_letter(&dead_letter, queue);
        let retry = delivered(&retry);
        assert!(retry.deaths().is_empty());
        assert_eq!(retry.dead_letter_info(), dead_letter.dead_letter_info());
        assert!(retry.dead_letter_info().unwrap().by_rabbitmq);
    }

    #[test]
    fn an_element_of_a_retried_message_is_on_its_first_attempt_with_an_identity_of_its_own() {
        let mut headers = forged();
        for (name, value) in [("id", "m"), ("conversation", "c")] {
            headers
                .insert(format!("x-verbatim-{name}").into(), AMQPValue::LongString(value.into()));
        }
        for name in ["timestamp-us", "received-us"] {
            headers.insert(format!("x-verbatim-{name}").into(), AMQPValue::LongLongInt(1));
        }
        let whole = received("", "conversation.save_message", headers);
        assert!(whole.envelope().resolved.is_some());
        let element = whole.element(b"element".to_vec());
        assert_eq!(element.envelope().resolved, None);
        assert_eq!(element.envelope().message_id, None);
        assert_eq!(element.fleet_headers().attempt, 1);
        assert_eq!(element.envelope().user_id, whole.envelope().user_id);
        assert_eq!(element.origin(), whole.origin());
    }
}
