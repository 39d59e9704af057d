//! Reading a dead letter: what died, where, why, and after how many attempts.
//!
//! Our own letters carry it in their headers. Those that RabbitMQ made (a delivery limit, an
//! expiration) get their story from its `x-death` header.

use archive::DeadLetter;
use broker::Delivery;
use broker::journey::Journey;
use broker::topology::WorkQueue;
use domain::failure::{DeadLetterReason, Refusal};
use domain::ids::{ConversationKey, SessionId, TenantId};
use domain::time::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The name space of letter keys. Fixed for ever: with another one a letter that comes again would be
/// stored a second time.
const NAMESPACE: Uuid = Uuid::from_u128(0x2d9c_6f0b_4a1e_5c37_9b82_e05f_7d14_c6a8);

/// A dead letter, read.
pub(crate) struct Letter {
    /// As it is stored.
    pub(crate) row: DeadLetter,
}

impl Letter {
    /// Reads a letter from the dead-letter queue of `queue`.
    pub(crate) fn read(queue: WorkQueue, delivery: &Delivery) -> Self {
        let journey = delivery.journey();
        let refusal = delivery.verdict().map_or_else(
            || Refusal {
                reason: DeadLetterReason::AttemptsExhausted,
                field: None,
                detail: format!("somebody published it to {} without saying why", queue.dlq()),
            },
            |verdict| verdict.into_owned().refusal,
        );
        let reason = refusal.reason;
        let died_at = delivery
            .deaths()
            .first()
            .and_then(|death| Timestamp::from_seconds(death.at_seconds?).ok())
            .unwrap_or(delivery.received_at);
        let body = told_by_body(&delivery.body);
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let (origin, resolved) = (delivery.origin(), journey.resolved.as_ref());
        Self {
            row: DeadLetter {
                id: key(queue, reason, delivery),
                queue: queue.name().to_owned(),
                reason,
                field: refusal.field.map(storable),
                error: storable(refusal.detail),
                tenant_id: text("tenant_id"),
                conversation_id: resolved
                    .map(|resolved| resolved.conversation.to_string())
                    .or_else(|| text("conversation_id"))
                    .or_else(|| of_session(&body)),
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
                body: delivery.body.clone(),
                properties: properties(delivery),
                headers: Value::Object(delivery.headers()),
                attempts: i32::try_from(journey.attempt).unwrap_or(i32::MAX),
                replay_count: i32::try_from(journey.replay_count).unwrap_or(i32::MAX),
                replay_of: journey.replay_of,
                first_failed_at: journey.history.first_failed_at.unwrap_or(died_at),
                last_failed_at: journey.history.last_failed_at.unwrap_or(died_at),
            },
        }
    }
}

/// What makes it the same letter when it comes again: queue, resolved id, reason, replay count and
/// body; for letters without a resolved id, everything that was sent.
///
/// The body always counts: two senders may give one id to different words, and each of these letters is
/// then the only place where its words are. True copies have the same bytes.
fn key(queue: WorkQueue, reason: DeadLetterReason, delivery: &Delivery) -> Uuid {
    let replays = delivery.journey().replay_count;
    let mut name = format!("{}\0{reason}\0{replays}\0", queue.name()).into_bytes();
    if let Some(resolved) = &delivery.journey().resolved {
        let tenant = told_by_body(&delivery.body);
        let tenant = tenant.get("tenant_id").and_then(Value::as_str).unwrap_or_default();
        for part in ["resolved", tenant, resolved.conversation.as_str(), resolved.id.as_str()] {
            name.extend_from_slice(part.as_bytes());
            name.push(0);
        }
    } else {
        let mut headers = delivery.headers();
        // What differs between two copies of one letter: the broker's counts, and our own headers,
        // which tell when it failed.
        headers.remove("x-delivery-count");
        headers.remove("x-acquired-count");
        headers.retain(|header, _| !Journey::owns(header));
        name.extend_from_slice(properties(delivery).to_string().as_bytes());
        name.push(0);
        name.extend_from_slice(Value::Object(headers).to_string().as_bytes());
        name.push(0);
    }
    // Last, because it is the only part that may hold NUL.
    name.extend_from_slice(&delivery.body);
    Uuid::new_v5(&NAMESPACE, &name)
}

/// The fields of the body, flat ones and those under `data`, as far as it can be read. It is
/// somebody's broken action: whatever cannot be stored as text is left out.
fn told_by_body(body: &[u8]) -> Map<String, Value> {
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

/// The conversation of an action that names none: its session's.
fn of_session(body: &Map<String, Value>) -> Option<String> {
    let text = |name: &str| body.get(name)?.as_str();
    let tenant = TenantId::new(text("tenant_id")?).ok()?;
    let session = SessionId::new(text("session_id")?).ok()?;
    Some(ConversationKey::of_session(tenant, &session).conversation.to_string())
}

/// PostgreSQL's text holds no U+0000; the body, which is bytes, keeps it.
fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

fn properties(delivery: &Delivery) -> Value {
    let envelope = delivery.envelope();
    json!({
        "content_type": delivery.content_type(),
        "message_id": envelope.message_id,
        "timestamp": envelope.timestamp,
        "correlation_id": envelope.correlation_id,
        "reply_to": envelope.reply_to,
        "user_id": envelope.user_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use broker::journey::Verdict;
    use domain::envelope::{Envelope, Resolved};
    use domain::ids::{ConversationId, MessageId};

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    /// A letter as a worker makes it of a message whose id it knows.
    fn resolved(id: &str, body: &str, received_at: Timestamp) -> Delivery {
        let resolved = Resolved {
            id: MessageId::new(id).unwrap(),
            conversation: ConversationId::new("c").unwrap(),
            timestamp: at(1),
            received_at,
        };
        let verdict = Verdict {
            queue: WorkQueue::SaveMessage.name().to_owned(),
            refusal: Refusal {
                reason: DeadLetterReason::Conflict,
                field: None,
                detail: "taken".to_owned(),
            },
        };
        let journey =
            Journey { resolved: Some(resolved), verdict: Some(verdict), ..Journey::default() };
        Delivery::fresh("", Envelope::default(), body.as_bytes().to_vec(), received_at)
            .with_journey(journey)
    }

    fn id(delivery: &Delivery) -> Uuid {
        Letter::read(WorkQueue::SaveMessage, delivery).row.id
    }

    #[test]
    fn other_words_under_one_id_are_another_letter_and_the_same_words_are_the_same() {
        let said = |said: &str, received_at| {
            let body = json!({"tenant_id": "t", "message_id": "m", "content": said});
            id(&resolved("m", &body.to_string(), received_at))
        };
        assert_ne!(said("second", at(2)), said("third", at(2)));
        assert_eq!(said("third", at(2)), said("third", at(3)));
    }

    #[test]
    fn one_body_is_a_letter_for_each_id_queue_and_replay() {
        let letter = resolved("m", "{}", at(2));
        let replayed = Journey { replay_count: 1, ..letter.journey().clone() };
        let replayed = letter.clone().with_journey(replayed);
        let elsewhere = Letter::read(WorkQueue::Session, &letter).row.id;
        let ids = [id(&letter), id(&resolved("n", "{}", at(2))), id(&replayed), elsewhere];
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    }

    #[test]
    fn without_an_id_all_that_was_sent_makes_the_letter() {
        let sent = |message_id: &str, body: &[u8]| {
            let envelope = Envelope { message_id: Some(message_id), ..Envelope::default() };
            id(&Delivery::fresh("", envelope, body.to_vec(), at(2)))
        };
        assert_eq!(sent("m", b"what"), sent("m", b"what"));
        assert_ne!(sent("m", b"what"), sent("m", b"who"));
        assert_ne!(sent("m", b"what"), sent("n", b"what"));
    }
}
