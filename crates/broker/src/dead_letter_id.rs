//! The id of a dead letter, under which it is stored once.
//!
//! It is minted when a worker decides to dead-letter a message, and the dead letter carries it. A crash between
//! the confirm of the dead letter and the acknowledgement dead-letters the message a second time. So a message
//! with an identity gives the same id each time: a hash of what failed, where and why. Two messages without
//! an identity and with the same body do not differ, so their ids are random: they are two dead letters, and
//! after such a crash one of them may be two.
//!
//! RabbitMQ mints no ids. A dead letter that it made gets one when the collector reads it, from what was sent.
//!
//! Invariant: different content is another dead letter, because each dead letter may be the only place that has
//! its content. So every id depends on the body.

use domain::decode::SentFields;
use domain::failure::DeadLetterReason;
use domain::fleet::WorkQueue;
use domain::ids::{ActionId, MessageId};
use domain::time::Timestamp;
use serde_json::Value;
use sha1_smol::Sha1;
use uuid::{Builder, Uuid};

use crate::fleet_headers::FleetHeaders;
use crate::{Delivery, header_owner, lossless, properties, property_list};

/// The UUID namespace of dead letter ids. Never change it: a dead letter that is delivered again would get another
/// id and be stored a second time.
const NAMESPACE: Uuid = Uuid::from_u128(0x2d9c_6f0b_4a1e_5c37_9b82_e05f_7d14_c6a8);

/// The id of the dead letter that a message becomes. `fleet_headers` are those of the message with its resolved
/// identity, and `message_id` is the property, if the sender set it.
pub(crate) fn mint(
    queue: &str,
    reason: DeadLetterReason,
    fleet_headers: &FleetHeaders,
    message_id: Option<&str>,
    body: &[u8],
) -> Uuid {
    if !failpoints::holds(failpoints::Guard::DeadLetterIdDerived) {
        return Uuid::now_v7();
    }
    if let Some(identity) = resolved_identity(fleet_headers, body) {
        return hash(queue, reason, fleet_headers, &identity, body);
    }
    match message_id.filter(|id| ActionId::new(id).is_ok()) {
        Some(id) => hash(queue, reason, fleet_headers, &["message_id", id], body),
        // A replay is identified by the dead letter that it sends.
        None if fleet_headers.replay_of.is_some() || has_an_identity(body) => {
            hash(queue, reason, fleet_headers, &["body"], body)
        }
        None => Uuid::now_v7(),
    }
}

impl Delivery {
    /// The id of this dead letter of `queue`: the one that it carries; else, if RabbitMQ made it, a hash of its
    /// identity, or of its properties, headers and body, without RabbitMQ's counts and history.
    #[must_use]
    pub fn dead_letter_id(&self, queue: WorkQueue) -> Uuid {
        let fleet_headers = self.fleet_headers();
        if let Some(id) = fleet_headers.dead_letter {
            return id;
        }
        let reason = self
            .dead_letter_info()
            .map_or(DeadLetterReason::AttemptsExhausted, |info| info.refusal.reason);
        if let Some(identity) = resolved_identity(fleet_headers, &self.body) {
            return hash(queue.name(), reason, fleet_headers, &identity, &self.body);
        }
        let properties = Value::Object(properties::to_json(self.amqp_properties())).to_string();
        let headers = self.amqp_properties().headers().as_ref().map(header_owner::of_the_sender);
        let headers = headers.map(|it| lossless::table_to_json(&it).to_string());
        let headers = headers.unwrap_or_default();
        let raw = self.raw().map(|raw| {
            lossless::bytes_to_json(&property_list::as_sent(&raw.properties)).to_string()
        });
        let sent = ["sent", &properties, &headers].into_iter().chain(raw.as_deref());
        hash(queue.name(), reason, fleet_headers, &sent.collect::<Vec<_>>(), &self.body)
    }
}

fn hash(
    queue: &str,
    reason: DeadLetterReason,
    fleet_headers: &FleetHeaders,
    identity: &[impl AsRef<str>],
    body: &[u8],
) -> Uuid {
    let replays = fleet_headers.replay_count.to_string();
    // Two dead letters of one message may be replayed and fail alike.
    let replay_of = fleet_headers.replay_of.map(|id| id.to_string()).unwrap_or_default();
    // The name of a UUID of version 5 (RFC 9562, 5.5), hashed in parts: a body may have a hundred megabytes.
    let mut sha1 = Sha1::from(NAMESPACE.as_bytes());
    let parts = [queue, reason.as_str(), &replays, &replay_of].into_iter();
    for part in parts.chain(identity.iter().map(AsRef::as_ref)) {
        // With its length, so that no part can be taken for another.
        sha1.update(&(part.len() as u64).to_be_bytes());
        sha1.update(part.as_bytes());
    }
    sha1.update(body);
    let [first @ .., _, _, _, _] = sha1.digest().bytes();
    Builder::from_sha1_bytes(first).into_uuid()
}

/// Tenant, conversation and id, where an attempt resolved them.
fn resolved_identity(fleet_headers: &FleetHeaders, body: &[u8]) -> Option<[String; 4]> {
    let resolved = fleet_headers.resolved.as_ref()?;
    let tenant = SentFields::of(body).id("tenant_id").unwrap_or_default();
    let [conversation, id] = [resolved.conversation.as_str(), resolved.id.as_str()];
    Some(["resolved", &*tenant, conversation, id].map(str::to_owned))
}

/// Whether a body that could not be decoded nevertheless identifies its message: by an id, or by a timestamp, from
/// which its id would be derived. Each may be a number, which only the decoder refuses. "", 0 and other text that
/// is not valid identify nothing, because they may be the same in each message.
fn has_an_identity(body: &[u8]) -> bool {
    let fields = SentFields::of(body);
    let has = |name: &str, is_valid: fn(&str) -> bool| match fields.text(name) {
        Some(text) => is_valid(&text),
        None => {
            fields.json(name).and_then(|json| json.parse::<f64>().ok()).is_some_and(|n| n != 0.0)
        }
    };
    has("message_id", |id| MessageId::new(id).is_ok())
        || has("action_id", |id| ActionId::new(id).is_ok())
        || has("timestamp", |time| Timestamp::parse(time).is_ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use domain::envelope::Resolved;
    use domain::failure::Refusal;
    use domain::ids::ConversationId;
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::Publication;
    use crate::delivery::tests::{delivered, died_in, with_properties};
    use crate::topology::RetryQueue;

    const QUEUE: WorkQueue = WorkQueue::SaveMessage;
    const ANONYMOUS: &str = r#"{"tenant_id":"t","role":"bot","content":"hi"}"#;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    fn resolved(id: &str) -> Option<Resolved> {
        Some(Resolved {
            id: MessageId::new(id).unwrap(),
            conversation: ConversationId::new("c").unwrap(),
            timestamp: at(1),
            received_at: at(1),
        })
    }

    fn with_body(body: &str, mut delivery: Delivery) -> Delivery {
        delivery.body = body.to_owned().into();
        delivery
    }

    fn sent(message_id: Option<&str>, body: &str) -> Delivery {
        let properties = BasicProperties::default();
        let properties = match message_id {
            Some(id) => properties.with_message_id(id.into()),
            None => properties,
        };
        with_body(body, with_properties("domain.actions", properties))
    }

    /// The dead letter that the collector receives for a message that a worker dead-lettered.
    fn dead_lettered(
        message: &Delivery,
        resolved: Option<Resolved>,
        reason: DeadLetterReason,
    ) -> Delivery {
        let copy = Publication::copy(message, QUEUE.dlq()).resolved(resolved);
        let refusal = Refusal::new(reason, "refused by the test".to_owned());
        delivered(&copy.dead_lettered(QUEUE.name(), refusal, at(2)))
    }

    fn id(message: &Delivery, resolved: Option<Resolved>) -> Uuid {
        dead_lettered(message, resolved, DeadLetterReason::Schema).dead_letter_id(QUEUE)
    }

    #[test]
    fn an_id_is_the_uuid_of_version_5_of_its_parts_and_the_body() {
        let part = |text: &str| [&(text.len() as u64).to_be_bytes(), text.as_bytes()].concat();
        let parts = ["q", "schema", "0", "", "body"].map(part).concat();
        let expected = Uuid::new_v5(&NAMESPACE, &[&parts, &b"{broken"[..]].concat());
        let found =
            hash("q", DeadLetterReason::Schema, &FleetHeaders::default(), &["body"], b"{broken");
        assert_eq!(found, expected);
    }

    #[test]
    fn a_message_with_an_identity_that_is_dead_lettered_twice_is_one_dead_letter() {
        let with = |field: &str| ANONYMOUS.replacen('{', &format!("{{{field},"), 1);
        let nested = format!(r#"{{"data":{}}}"#, with(r#""message_id":"m""#));
        for (message, resolved) in [
            (sent(Some("m"), "{broken"), None),
            (sent(None, ANONYMOUS), resolved("m")),
            (sent(None, &with(r#""message_id":"m""#)), None),
            (sent(None, &with(r#""action_id":7"#)), None),
            (sent(None, &with(r#""message_id":"m","n":1e400,"text":"\ud800""#)), None),
            (sent(None, &with(r#""timestamp":"2026-11-20T10:00:00Z""#)), None),
            (sent(None, &nested), None),
        ] {
            let body = String::from_utf8_lossy(&message.body);
            assert_eq!(id(&message, resolved.clone()), id(&message, resolved), "{body}");
        }
    }

    #[test]
    fn two_messages_without_an_identity_are_two_dead_letters() {
        let without = [
            "{broken",
            "",
            "[]",
            ANONYMOUS,
            r#"{"message_id":null}"#,
            // Values that cannot identify a message, and are the same in each.
            r#"{"message_id":""}"#,
            r#"{"data":{"action_id":""}}"#,
            r#"{"message_id":0}"#,
            r#"{"message_id":0.0}"#,
            r#"{"timestamp":"now"}"#,
            r#"{"timestamp":""}"#,
        ];
        for body in without {
            assert_ne!(id(&sent(None, body), None), id(&sent(None, body), None), "{body}");
        }
        assert_ne!(id(&sent(Some(""), "{}"), None), id(&sent(Some(""), "{}"), None));
        // The generated id of a copy is no identity.
        let copy = delivered(&Publication::copy(&sent(None, "{broken"), "q"));
        assert_ne!(id(&copy, None), id(&copy, None));
    }

    #[test]
    fn another_body_id_queue_reason_or_replay_is_another_dead_letter() {
        let message = sent(Some("m"), "what");
        let replayed = |of: u128| {
            let copy = Publication::copy(&message, "q").replaying(Uuid::from_u128(of));
            delivered(&copy)
        };
        let expired = dead_lettered(&message, resolved("m"), DeadLetterReason::Conflict);
        let copy = Publication::copy(&message, "q").resolved(resolved("m"));
        let refusal = Refusal::new(DeadLetterReason::Schema, "refused".to_owned());
        let elsewhere = delivered(&copy.dead_lettered("bot.state", refusal, at(2)));
        let ids = [
            id(&message, resolved("m")),
            id(&sent(Some("m"), "who"), resolved("m")),
            id(&message, resolved("n")),
            id(&message, None),
            id(&sent(Some("n"), "what"), None),
            id(&replayed(1), resolved("m")),
            id(&replayed(2), resolved("m")),
            expired.dead_letter_id(QUEUE),
            elsewhere.dead_letter_id(QUEUE),
        ];
        assert_eq!(BTreeSet::from(ids).len(), ids.len(), "{ids:?}");
    }

    #[test]
    fn a_replay_that_is_sent_twice_and_fails_alike_is_one_dead_letter() {
        let dead_letter = dead_lettered(&sent(None, "{broken"), None, DeadLetterReason::Schema);
        let replay =
            || delivered(&Publication::copy(&dead_letter, "q").replaying(Uuid::from_u128(7)));
        assert_eq!(replay().fleet_headers().dead_letter, None, "a replay is no dead letter");
        assert_eq!(id(&replay(), None), id(&replay(), None));
    }

    #[test]
    fn a_copy_that_is_no_dead_letter_has_no_id_and_no_reason() {
        let dead_letter = dead_lettered(&sent(Some("m"), "{}"), None, DeadLetterReason::Expired);
        let rerouted = delivered(&Publication::copy(&dead_letter, "q"));
        assert_eq!(rerouted.fleet_headers().dead_letter, None);
        assert_eq!(rerouted.dead_letter_info(), None);
        let element = dead_letter.element(b"element".to_vec());
        assert_eq!(element.fleet_headers().dead_letter, None);
    }

    /// A dead letter that RabbitMQ made, with these further headers.
    fn by_rabbitmq(body: &str, headers: &[(&str, AMQPValue)], deaths: Vec<AMQPValue>) -> Delivery {
        let mut table = FieldTable::default();
        table.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        let properties = BasicProperties::default().with_headers(table);
        with_body(body, with_properties("", properties))
    }

    fn limit() -> AMQPValue {
        died_in(QUEUE.name(), "delivery_limit", "domain.actions", QUEUE.name())
    }

    #[test]
    fn a_dead_letter_by_rabbitmq_is_identified_by_what_was_sent() {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let id = |body, headers: &[(&str, AMQPValue)]| {
            by_rabbitmq(body, headers, vec![limit()]).dead_letter_id(QUEUE)
        };
        let own = [("x-custom", text("a"))];
        assert_eq!(id("what", &own), id("what", &own));
        let redelivered = [
            ("x-custom", text("a")),
            ("x-acquired-count", AMQPValue::LongLongInt(4)),
            ("x-delivery-count", AMQPValue::LongLongInt(3)),
            ("x-first-death-queue", text(QUEUE.name())),
            ("x-last-death-reason", text("delivery_limit")),
        ];
        assert_eq!(id("what", &redelivered), id("what", &own));
        assert_ne!(id("who", &own), id("what", &own));
        assert_ne!(id("what", &[("x-custom", text("b"))]), id("what", &own));
        let retry = RetryQueue::Second.name();
        let waited = died_in(retry, "expired", retry, QUEUE.name());
        let retried = by_rabbitmq("what", &own, vec![waited, limit()]);
        assert_eq!(retried.dead_letter_id(QUEUE), id("what", &own));
    }

    #[test]
    fn a_dead_letter_that_its_collector_retries_keeps_its_id() {
        for first in [
            by_rabbitmq("what", &[], vec![limit()]),
            sent(None, "what"),
            dead_lettered(&sent(None, "what"), None, DeadLetterReason::Schema),
        ] {
            let id = first.dead_letter_id(QUEUE);
            let mut retried = first;
            for _ in 0..3 {
                let copy = Publication::copy(&retried, QUEUE.dlq());
                let retry = RetryQueue::Second;
                retried = delivered(&copy.same_dead_letter(&retried, QUEUE).delayed(retry));
                assert_eq!(retried.dead_letter_id(QUEUE), id);
            }
        }
    }

    #[test]
    fn an_agent_cannot_choose_the_id_of_a_dead_letter() {
        let forged = Uuid::from_u128(5);
        let mut headers = FieldTable::default();
        let text = forged.to_string();
        headers.insert("x-verbatim-dead-letter".into(), AMQPValue::LongString(text.into()));
        headers.insert("x-death".into(), AMQPValue::FieldArray(vec![limit()].into()));
        for exchange in ["domain.actions", ""] {
            let properties = BasicProperties::default().with_headers(headers.clone());
            let message = with_properties(exchange, properties);
            assert_ne!(message.dead_letter_id(QUEUE), forged);
            assert_ne!(id(&message, None), forged);
        }
    }

    #[test]
    fn the_id_of_a_dead_letter_is_the_same_in_every_version() {
        let ids = [
            id(&sent(Some("m"), "what"), resolved("m")),
            id(&sent(Some("m"), "what"), None),
            by_rabbitmq("what", &[], vec![limit()]).dead_letter_id(QUEUE),
        ];
        let expected = [
            "17d8e9b2-7364-5de2-89ab-a53d02fc31a9",
            "46e0c53d-0907-578b-8f80-6cd7f2e04d53",
            "0c9b73de-8b30-55d6-b2dc-a8a603fbd488",
        ];
        assert_eq!(ids.map(|id| id.to_string()), expected);
    }
}
