//! From a delivery to the record of a dead letter, and back.
//!
//! Forth, for the collector: which action failed, in which queue, why, and after how many attempts. A dead letter
//! from a worker has this in the fleet headers. For one from RabbitMQ (delivery limit, expiration) it comes from
//! the header `x-death`. Back, for showing, editing and replaying: the delivery that the collector read, whose
//! headers are parsed and trusted by the same code.

use broker::Delivery;
use broker::fleet_headers::FleetHeaders;
use broker::topology::{RetryQueue, WorkQueue};
use database::{CollectedDeadLetter, DeadLetter, DeadLetterDetail, FailedMessage};
use domain::event::DeadLettered;
use domain::failure::{DeadLetterReason, Refusal};
use domain::ids::{ConversationId, ConversationKey, SessionId, TenantId};
use domain::time::Timestamp;
use serde_json::{Map, Value};
use uuid::Uuid;

/// The UUID namespace of dead letter ids. Never change it: a dead letter that is delivered again would get another
/// id and be stored a second time.
const NAMESPACE: Uuid = Uuid::from_u128(0x2d9c_6f0b_4a1e_5c37_9b82_e05f_7d14_c6a8);

/// Reads a dead letter from the dead-letter queue of `queue`: the record to store, and the event that announces
/// it.
pub(crate) fn read_dead_letter(
    queue: WorkQueue,
    delivery: &Delivery,
) -> (CollectedDeadLetter, DeadLettered) {
    let fleet_headers = delivery.fleet_headers();
    let refusal = delivery.dead_letter_info().map_or_else(
        || {
            let detail =
                format!("published to {} without the headers that give a reason", queue.dlq());
            Refusal::new(DeadLetterReason::AttemptsExhausted, detail)
        },
        |dead_letter_info| dead_letter_info.into_owned().refusal,
    );
    let reason = refusal.reason;
    let failed_at = delivery
        .deaths()
        .first()
        .and_then(|death| Timestamp::from_seconds(death.at_seconds?).ok())
        .unwrap_or(delivery.received_at);
    let first_failed_at = fleet_headers.history.first_failed_at.unwrap_or(failed_at);
    let last_failed_at = fleet_headers.history.last_failed_at.unwrap_or(failed_at);
    let body = body_fields(&delivery.body);
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    let (origin, resolved) = (delivery.origin(), fleet_headers.resolved.as_ref());
    let dead_letter = DeadLetter {
        id: id(queue, reason, delivery),
        queue: queue.name().to_owned(),
        reason: reason.to_string(),
        field: refusal.field.map(storable),
        error: storable(refusal.detail),
        tenant_id: text("tenant_id"),
        conversation_id: resolved
            .map(|resolved| resolved.conversation.to_string())
            .or_else(|| text("conversation_id"))
            .or_else(|| conversation_of_session(&body)),
        session_id: text("session_id"),
        message_id: resolved
            .map(|resolved| resolved.id.to_string())
            .or_else(|| text("message_id"))
            .or_else(|| text("action_id"))
            .or_else(|| delivery.envelope().message_id.map(str::to_owned))
            .map(storable),
        action_type: text("action_type"),
        routing_key: storable(origin.routing_key),
        exchange: storable(origin.exchange),
        attempts: i32::try_from(fleet_headers.attempt).unwrap_or(i32::MAX),
        replay_count: i32::try_from(fleet_headers.replay_count).unwrap_or(i32::MAX),
        replay_of: fleet_headers.replay_of,
        first_failed_at: first_failed_at.into(),
        last_failed_at: last_failed_at.into(),
    };
    let event = DeadLettered {
        dead_letter_id: dead_letter.id,
        reason,
        detail: dead_letter.error.clone(),
        field: dead_letter.field.clone(),
        queue: dead_letter.queue.clone(),
        routing_key: dead_letter.routing_key.clone(),
        tenant_id: dead_letter.tenant_id.as_deref().and_then(|id| TenantId::new(id).ok()),
        conversation_id: dead_letter
            .conversation_id
            .as_deref()
            .and_then(|id| ConversationId::new(id).ok()),
        attempts: fleet_headers.attempt,
        first_failed_at,
        last_failed_at,
    };
    let message = FailedMessage {
        body: delivery.body.clone(),
        properties: delivery.properties(),
        headers: Value::Object(delivery.headers()),
    };
    (CollectedDeadLetter { dead_letter, message }, event)
}

/// The delivery that a dead letter was, received when the message first failed, with this body.
pub(crate) fn delivery_of(detail: &DeadLetterDetail, body: Vec<u8>) -> Delivery {
    let DeadLetterDetail { dead_letter, message, .. } = detail;
    let received_at =
        Timestamp::try_from(dead_letter.first_failed_at).unwrap_or(Timestamp::EARLIEST);
    Delivery::from_stored(body, &message.properties, &message.headers, received_at)
}

/// The id of a dead letter, the same whenever it is delivered again. Derived from queue, resolved id, reason,
/// replay count and body; without a resolved id, from everything that was sent.
///
/// It always includes the body: two senders may give one id to different content, and then each dead letter is
/// the only place that has its content. Redelivered copies have the same bytes.
fn id(queue: WorkQueue, reason: DeadLetterReason, delivery: &Delivery) -> Uuid {
    let replays = delivery.fleet_headers().replay_count;
    let mut name = format!("{}\0{reason}\0{replays}\0", queue.name()).into_bytes();
    if let Some(resolved) = &delivery.fleet_headers().resolved {
        let tenant = body_fields(&delivery.body);
        let tenant = tenant.get("tenant_id").and_then(Value::as_str).unwrap_or_default();
        for part in ["resolved", tenant, resolved.conversation.as_str(), resolved.id.as_str()] {
            name.extend_from_slice(part.as_bytes());
            name.push(0);
        }
    } else {
        let mut headers = delivery.headers();
        // These differ between copies of one dead letter: RabbitMQ's counts, and the fleet headers, which have
        // the times of failures.
        headers.remove("x-delivery-count");
        headers.remove("x-acquired-count");
        headers.retain(|header, _| !FleetHeaders::owns(header));
        // RabbitMQ wrote these when the collector retried a copy, and not into the others.
        let first_death = headers.get("x-first-death-queue").and_then(Value::as_str);
        if RetryQueue::ALL.iter().any(|queue| Some(queue.name()) == first_death) {
            let deaths = ["x-death", "x-first-death-", "x-last-death-"];
            headers.retain(|header, _| !deaths.iter().any(|death| header.starts_with(death)));
        }
        name.extend_from_slice(delivery.properties().to_string().as_bytes());
        name.push(0);
        name.extend_from_slice(Value::Object(headers).to_string().as_bytes());
        name.push(0);
    }
    // Last, because it is the only part that may contain NUL.
    name.extend_from_slice(&delivery.body);
    Uuid::new_v5(&NAMESPACE, &name)
}

/// The text fields of the body, at the top level and under `data`. The body may be invalid; what cannot be stored
/// as text is left out.
fn body_fields(body: &[u8]) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(body) else {
        return Map::new();
    };
    if let Some(Value::Object(nested)) = fields.remove("data") {
        for (name, value) in nested {
            fields.entry(name).or_insert(value);
        }
    }
    fields.retain(|_, value| value.as_str().is_some_and(|text| !text.contains('\0')));
    fields
}

fn conversation_of_session(body: &Map<String, Value>) -> Option<String> {
    let text = |name: &str| body.get(name)?.as_str();
    let tenant = TenantId::new(text("tenant_id")?).ok()?;
    let session = SessionId::new(text("session_id")?).ok()?;
    Some(ConversationKey::of_session(tenant, &session).conversation.to_string())
}

/// PostgreSQL's type `text` cannot hold U+0000, so it is replaced. The body is stored as bytes, unchanged.
fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use broker::fleet_headers::DeadLetterInfo;
    use domain::envelope::Resolved;
    use domain::ids::MessageId;
    use serde_json::json;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    /// A dead letter as a worker publishes it for a message with a resolved id.
    fn resolved(id: &str, body: &str, received_at: Timestamp) -> Delivery {
        let resolved = Resolved {
            id: MessageId::new(id).unwrap(),
            conversation: ConversationId::new("c").unwrap(),
            timestamp: at(1),
            received_at,
        };
        let dead_letter_info = DeadLetterInfo {
            queue: WorkQueue::SaveMessage.name().to_owned(),
            refusal: Refusal {
                reason: DeadLetterReason::Conflict,
                hint: None,
                field: None,
                detail: "taken".to_owned(),
            },
            by_rabbitmq: false,
        };
        let fleet_headers = FleetHeaders {
            resolved: Some(resolved),
            dead_letter_info: Some(dead_letter_info),
            ..FleetHeaders::default()
        };
        with_fleet_headers(body, &fleet_headers, received_at)
    }

    fn with_fleet_headers(body: &str, fleet_headers: &FleetHeaders, at: Timestamp) -> Delivery {
        let headers = Value::Object(fleet_headers.to_headers());
        Delivery::from_stored(body.as_bytes().to_vec(), &json!({}), &headers, at)
    }

    fn id_of(delivery: &Delivery) -> Uuid {
        read_dead_letter(WorkQueue::SaveMessage, delivery).0.dead_letter.id
    }

    #[test]
    fn different_content_under_one_id_is_another_dead_letter_and_the_same_content_is_not() {
        let dead_letter = |content: &str, received_at| {
            let body = json!({"tenant_id": "t", "message_id": "m", "content": content});
            id_of(&resolved("m", &body.to_string(), received_at))
        };
        assert_ne!(dead_letter("second", at(2)), dead_letter("third", at(2)));
        assert_eq!(dead_letter("third", at(2)), dead_letter("third", at(3)));
    }

    #[test]
    fn one_body_is_another_dead_letter_for_each_id_queue_and_replay() {
        let dead_letter = resolved("m", "{}", at(2));
        let replayed = FleetHeaders { replay_count: 1, ..dead_letter.fleet_headers().clone() };
        let replayed = with_fleet_headers("{}", &replayed, at(2));
        let elsewhere = read_dead_letter(WorkQueue::Session, &dead_letter).0.dead_letter.id;
        let ids =
            [id_of(&dead_letter), id_of(&resolved("n", "{}", at(2))), id_of(&replayed), elsewhere];
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    }

    #[test]
    fn without_a_resolved_id_all_that_was_sent_identifies_the_dead_letter() {
        let sent = |message_id: &str, body: &[u8]| {
            let properties = json!({"message_id": message_id});
            id_of(&Delivery::from_stored(body.to_vec(), &properties, &json!({}), at(2)))
        };
        assert_eq!(sent("m", b"what"), sent("m", b"what"));
        assert_ne!(sent("m", b"what"), sent("m", b"who"));
        assert_ne!(sent("m", b"what"), sent("n", b"what"));
    }

    #[test]
    fn a_dead_letter_that_its_collector_retried_keeps_its_id() {
        let with = |headers: &Value| {
            id_of(&Delivery::from_stored(b"what".to_vec(), &json!({}), headers, at(2)))
        };
        let death = |queue: &str| json!({"queue": queue, "reason": "expired", "count": 1});
        let retried = |name: &str| {
            json!({
                "x-death": [death("domain.retry.5000"), death("domain.retry.1000")],
                "x-first-death-queue": "domain.retry.1000", "x-first-death-reason": "expired",
                "x-first-death-exchange": "domain.retry.1000",
                "x-last-death-queue": "domain.retry.5000", "x-last-death-reason": "expired",
                "x-last-death-exchange": "domain.retry.5000",
                "traceparent": name,
            })
        };
        assert_eq!(with(&retried("t")), with(&json!({"traceparent": "t"})));
        assert_ne!(with(&retried("t")), with(&retried("u")));
        // What RabbitMQ wrote when a work queue dead-lettered the message stays part of its id.
        let limit = json!({"x-death": [death("bot.state")], "x-first-death-queue": "bot.state"});
        assert_ne!(with(&limit), with(&json!({})));
    }

    #[test]
    fn the_id_of_a_dead_letter_is_the_same_in_every_version() {
        let headers = json!({
            "x-death": [{"queue": "bot.state", "reason": "delivery_limit", "count": 1}],
            "x-first-death-queue": "bot.state", "x-first-death-reason": "delivery_limit",
        });
        let ids = [json!({}), headers].map(|headers| {
            let properties = json!({"message_id": "m"});
            let delivery = Delivery::from_stored(b"what".to_vec(), &properties, &headers, at(2));
            id_of(&delivery).to_string()
        });
        let expected =
            ["988545ee-33f6-53fb-9729-526b66177b4c", "550c3d34-9d29-53c5-8c8b-311edfa8260e"];
        assert_eq!(ids, expected);
    }
}
