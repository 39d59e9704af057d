//! From a delivery to the record of a dead letter, and back.
//!
//! Forth, for the collector: which action failed, in which queue, why, and after how many attempts. A dead letter
//! from a worker has this and its id in the fleet headers. For one from RabbitMQ (delivery limit, expiration) it
//! comes from the header `x-death`. Back, for showing, editing and replaying: the delivery that the collector read, whose
//! headers are parsed and trusted by the same code.

use std::borrow::Cow;

use broker::topology::WorkQueue;
use broker::{Delivery, StoredDelivery};
use database::{CollectedDeadLetter, DeadLetter, DeadLetterDetail, FailedMessage};
use domain::decode::{SentFields, check_size};
use domain::event::DeadLettered;
use domain::failure::{DeadLetterReason, Refusal};
use domain::ids::{ActionId, ConversationId, ConversationKey, SessionId, TenantId};
use domain::time::Timestamp;

/// Reads a dead letter from the dead-letter queue of `queue`: the record to store, and the event that announces
/// it.
pub(crate) fn read_dead_letter(
    queue: WorkQueue,
    delivery: &Delivery,
    max_body_bytes: usize,
) -> (CollectedDeadLetter, DeadLettered) {
    let fleet_headers = delivery.fleet_headers();
    let refusal = refusal(queue, delivery, max_body_bytes);
    let reason = refusal.reason;
    let failed_at = delivery
        .deaths()
        .first()
        .and_then(|death| Timestamp::from_seconds(death.at_seconds?).ok())
        .unwrap_or(delivery.received_at);
    let first_failed_at = fleet_headers.history.first_failed_at.unwrap_or(failed_at);
    let last_failed_at = fleet_headers.history.last_failed_at.unwrap_or(failed_at);
    let body = SentFields::of(&delivery.body);
    let id = |name: &str| valid_id_of(&body, name);
    let (origin, resolved) = (delivery.origin(), fleet_headers.resolved.as_ref());
    let dead_letter = DeadLetter {
        id: delivery.dead_letter_id(queue),
        queue: queue.name().to_owned(),
        reason: reason.to_string(),
        field: refusal.field.map(storable),
        error: storable(refusal.detail),
        tenant_id: id("tenant_id"),
        conversation_id: match resolved {
            Some(resolved) => Some(resolved.conversation.to_string()),
            None => match body.id("conversation_id") {
                Some(conversation) => valid_id(&conversation),
                None => conversation_of_session(&body),
            },
        },
        session_id: id("session_id"),
        message_id: resolved
            .map(|resolved| resolved.id.to_string())
            .or_else(|| id("message_id"))
            .or_else(|| id("action_id"))
            .or_else(|| delivery.envelope().sent_message_id().and_then(valid_id)),
        // No action has a name that is no valid id.
        action_type: id("action_type"),
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
    let StoredDelivery { properties, headers, left_out, delivery: delivered } = delivery.stored();
    let body = delivery.body.clone();
    let message = FailedMessage { body, properties, headers, left_out, delivery: delivered };
    (CollectedDeadLetter { dead_letter, message }, event)
}

/// Why it is a dead letter.
pub(crate) fn refusal(queue: WorkQueue, delivery: &Delivery, max_body_bytes: usize) -> Refusal {
    match delivery.dead_letter_info().map(Cow::into_owned) {
        // A worker rejects a body over its limit before it has received it, and would reject one that expired.
        Some(info)
            if info.by_rabbitmq
                && matches!(
                    info.refusal.reason,
                    DeadLetterReason::AttemptsExhausted | DeadLetterReason::Expired
                ) =>
        {
            check_size(&delivery.body, max_body_bytes).err().unwrap_or(info.refusal)
        }
        Some(info) => info.refusal,
        None => delivery.unreadable().unwrap_or_else(|| {
            let detail =
                format!("published to {} without the headers that give a reason", queue.dlq());
            Refusal::new(DeadLetterReason::AttemptsExhausted, detail)
        }),
    }
}

/// The conversation in which the message of a dead letter may be stored: an earlier delivery may have committed it,
/// and the later ones failed for a reason that is no verdict on its content. Whoever committed it may have died
/// before it wrote the hot copy. `None` if the message names no conversation, or cannot have been stored.
pub(crate) fn may_be_stored_in(queue: WorkQueue, event: &DeadLettered) -> Option<ConversationKey> {
    let may_be_stored = match event.reason {
        DeadLetterReason::AttemptsExhausted
        | DeadLetterReason::DeliveryLimit
        | DeadLetterReason::Expired => queue == WorkQueue::SaveMessage,
        DeadLetterReason::MalformedJson
        | DeadLetterReason::Schema
        | DeadLetterReason::TooLarge
        | DeadLetterReason::UnknownAction
        | DeadLetterReason::Conflict
        | DeadLetterReason::Unreadable
        | DeadLetterReason::Forbidden => false,
    };
    let (tenant, conversation) = (event.tenant_id.clone()?, event.conversation_id.clone()?);
    may_be_stored.then_some(ConversationKey { tenant, conversation })
}

/// The delivery that a dead letter was, received when the message first failed, with this body.
pub(crate) fn delivery_of(detail: &DeadLetterDetail, body: Vec<u8>) -> Delivery {
    let DeadLetterDetail { dead_letter, message, .. } = detail;
    let received_at =
        Timestamp::try_from(dead_letter.first_failed_at).unwrap_or(Timestamp::EARLIEST);
    let stored = StoredDelivery {
        properties: message.properties.clone(),
        headers: message.headers.clone(),
        left_out: message.left_out.clone(),
        delivery: message.delivery.clone(),
    };
    Delivery::from_stored(body, &stored, received_at)
}

/// The id in a field of a body, which may be invalid.
fn valid_id_of(body: &SentFields<'_>, name: &str) -> Option<String> {
    body.id(name).as_deref().and_then(valid_id)
}

/// An id of a body or an AMQP property, unless no action may have it. The body may have any text in its place, and an
/// index of PostgreSQL refuses one of some kilobytes. All kinds of ids obey one rule.
fn valid_id(text: &str) -> Option<String> {
    ActionId::new(text).is_ok().then(|| text.to_owned())
}

fn conversation_of_session(body: &SentFields<'_>) -> Option<String> {
    let tenant = TenantId::new(body.id("tenant_id")?).ok()?;
    let session = SessionId::new(body.id("session_id")?).ok()?;
    Some(ConversationKey::of_session(tenant, &session).conversation.to_string())
}

/// PostgreSQL's type `text` cannot hold U+0000, so it is replaced. The body is stored as bytes, unchanged.
fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    /// A dead letter as RabbitMQ delivers it, with these headers of the fleet.
    fn received(headers: &Value) -> Delivery {
        let stored = StoredDelivery {
            properties: json!({"message_id": "m", "app_id": "booking"}),
            headers: json!({"x-custom": "own"}),
            left_out: Some(json!({"headers": 1, "names": ["x-large"]})),
            delivery: json!({"properties": {"message_id": "m"}, "headers": headers}),
        };
        Delivery::from_stored(b"{}".to_vec(), &stored, at(2))
    }

    /// A dead letter of `conversation.save_message` with this reason and body, as RabbitMQ delivers it.
    fn dead_lettered(reason: &str, body: &Value) -> DeadLettered {
        let headers = json!({"x-verbatim-queue": "q", "x-verbatim-reason": reason,
                             "x-verbatim-detail": "failed in the test"});
        let mut delivery = received(&headers);
        delivery.body = body.to_string().into();
        read_dead_letter(WorkQueue::SaveMessage, &delivery, 1 << 20).1
    }

    #[test]
    fn the_message_of_a_dead_letter_may_be_stored_unless_its_content_was_refused() {
        let body = json!({"tenant_id": "t", "conversation_id": "c"});
        let stored = |reason: DeadLetterReason| {
            let event = dead_lettered(reason.as_str(), &body);
            assert_eq!(event.reason, reason);
            assert_eq!(may_be_stored_in(WorkQueue::Session, &event), None, "{reason}");
            may_be_stored_in(WorkQueue::SaveMessage, &event)
        };
        let (may, may_not): (Vec<_>, Vec<_>) =
            DeadLetterReason::ALL.into_iter().partition(|reason| stored(*reason).is_some());
        use DeadLetterReason::{
            AttemptsExhausted, Conflict, DeliveryLimit, Expired, Forbidden, MalformedJson, Schema,
            TooLarge, UnknownAction, Unreadable,
        };
        assert_eq!(may, [AttemptsExhausted, DeliveryLimit, Expired]);
        let refused =
            [MalformedJson, Schema, TooLarge, UnknownAction, Conflict, Unreadable, Forbidden];
        assert_eq!(may_not, refused);
        assert_eq!(stored(Expired), ConversationKey::parse("t", "c").ok());
    }

    #[test]
    fn the_conversation_of_a_dead_letter_is_the_one_in_which_its_message_is_saved() {
        let of_session =
            ConversationKey::of_session(TenantId::new("t").unwrap(), &SessionId::new("s").unwrap());
        let named = ConversationKey::parse("t", "c").unwrap();
        let ids = json!({"tenant_id": "t", "session_id": "s", "conversation_id": "c"});
        for (body, key) in [
            (ids.clone(), &named),
            (json!({"data": ids}), &named),
            (json!({"tenant_id": "t", "conversation_id": null, "data": ids}), &named),
            (json!({"tenant_id": "t", "session_id": "s"}), &of_session),
            (json!({"tenant_id": "t", "session_id": "s", "conversation_id": null}), &of_session),
        ] {
            let event = dead_lettered("delivery_limit", &body);
            let stored_in = may_be_stored_in(WorkQueue::SaveMessage, &event);
            assert_eq!(stored_in.as_ref(), Some(key), "{body}");
        }
    }

    #[test]
    fn a_body_that_no_parser_reads_completely_still_names_its_message() {
        let mut delivery = received(&json!({}));
        let body = r#"{"tenant_id":"t","message_id":"m","n":1e400,"content":"\ud800","data":{"session_id":"s"}}"#;
        delivery.body = body.into();
        let dead_letter =
            read_dead_letter(WorkQueue::SaveMessage, &delivery, 1 << 20).0.dead_letter;
        assert_eq!(dead_letter.tenant_id.as_deref(), Some("t"));
        assert_eq!(dead_letter.session_id.as_deref(), Some("s"));
        assert_eq!(dead_letter.message_id.as_deref(), Some("m"));
    }

    #[test]
    fn a_body_over_the_limit_is_too_large_whether_it_was_rejected_or_expired() {
        for reason in ["rejected", "expired"] {
            let death = json!({"queue": "conversation.save_message", "reason": reason,
                               "count": 1, "exchange": "", "routing-keys": ["k"]});
            let mut delivery = received(&json!({"x-death": [death]}));
            delivery.body = "{}".into();
            let refused = |limit| refusal(WorkQueue::SaveMessage, &delivery, limit).reason;
            assert_eq!(refused(1), DeadLetterReason::TooLarge, "{reason}");
            assert_ne!(refused(2), DeadLetterReason::TooLarge, "{reason}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_parsed_hides_no_id() {
        let mut delivery = received(&json!({}));
        let deep = ["[", "]"].map(|it| it.repeat(1_000)).concat();
        delivery.body = format!(
            r#"{{"number":1e999999,"data":{{"tenant_id":"t"}},"deep":{deep},"session_id":"s"}}"#
        )
        .into();
        let read = read_dead_letter(WorkQueue::SaveMessage, &delivery, 1 << 20).0.dead_letter;
        assert_eq!((read.tenant_id.as_deref(), read.session_id.as_deref()), (Some("t"), Some("s")));
    }

    #[test]
    fn a_dead_letter_has_the_id_that_it_carries_and_what_its_sender_set() {
        let id = Uuid::from_u128(7);
        let headers = json!({
            "x-verbatim-dead-letter": id, "x-verbatim-queue": "conversation.save_message",
            "x-verbatim-reason": "schema", "x-verbatim-detail": "role is missing",
            "x-verbatim-exchange": "domain.actions", "x-verbatim-routing-key": "k",
        });
        let delivery = received(&headers);
        let (collected, event) = read_dead_letter(WorkQueue::SaveMessage, &delivery, 1 << 20);
        assert_eq!((collected.dead_letter.id, event.dead_letter_id), (id, id));
        assert_eq!(collected.dead_letter.reason, "schema");
        let FailedMessage { properties, headers, left_out, .. } = &collected.message;
        assert_eq!(properties, &json!({"message_id": "m", "app_id": "booking"}));
        assert_eq!(headers, &json!({"x-custom": "own"}));
        assert_eq!(left_out, &Some(json!({"headers": 1, "names": ["x-large"]})));
        let mut detail = crate::fixtures::dead_letter("{}");
        detail.message = collected.message;
        let again = delivery_of(&detail, b"{}".to_vec());
        assert_eq!(again.stored(), delivery.stored());
        assert_eq!(again.dead_letter_info(), delivery.dead_letter_info());
    }
}
