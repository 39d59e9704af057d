//! A dead letter as a worker would see it if it were replayed now: to which queue it is sent, which message it
//! is, whether it would be refused again.
//!
//! Invariant: the same dead letter with the same body always gives the same message id and time. So a replay
//! that is sent twice, because a run crashed before it recorded the first, takes effect once. A message whose
//! sender gave no id gets the id of its dead letter.

use std::borrow::Cow;

use broker::fleet_headers::Origin;
use broker::{Publication, topology};
use database::{Actor, ContentFingerprint, DeadLetterDetail};
use domain::action::Action;
use domain::decode::{DecodeContext, SentFields, decode};
use domain::envelope::{Envelope, Resolved};
use domain::failure::Refusal;
use domain::ids::TenantId;
use uuid::Uuid;

use crate::record::delivery_of;

/// Decodes dead letters as the workers do.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetterValidator {
    /// The largest body that the workers accept, in bytes.
    pub max_body_bytes: usize,
}

/// What a replay of a dead letter would be.
#[derive(Debug)]
pub(crate) struct ReplayPlan {
    /// The queue that it is sent to.
    pub(crate) queue: String,
    /// The resolved id, conversation and times; `None` if the body cannot be decoded.
    pub(crate) resolved: Option<Resolved>,
    /// The fingerprint of its content, if it is a message to save.
    pub(crate) fingerprint: Option<ContentFingerprint>,
    /// Why the workers of this version would refuse it; `None`: they would accept it.
    pub(crate) refusal: Option<Refusal>,
    /// The tenant that the body names, whether or not a worker would accept it.
    tenant: Option<String>,
}

impl DeadLetterValidator {
    /// Decodes a body with the properties and headers of a dead letter, as the workers would.
    pub(crate) fn decode(&self, detail: &DeadLetterDetail, body: &[u8]) -> Result<Action, Refusal> {
        let delivery = delivery_of(detail, Vec::new());
        let earlier = delivery.fleet_headers().resolved.as_ref();
        let id = earlier.and_then(|resolved| Uuid::parse_str(resolved.id.as_str()).ok());
        let context = DecodeContext {
            received_at: earlier.map_or(delivery.received_at, |resolved| resolved.received_at),
            max_body_bytes: self.max_body_bytes,
            new_id: &|| id.unwrap_or(detail.dead_letter.id),
        };
        let action = decode(body, &Envelope { resolved: None, ..delivery.envelope() }, &context)?;
        match &action {
            Action::SaveMessages(several) => several.refusal().map_or(Ok(action), Err),
            _ => Ok(action),
        }
    }

    /// What a replay of a dead letter would be.
    pub(crate) fn plan(&self, detail: &DeadLetterDetail) -> ReplayPlan {
        let body = detail.body_to_send();
        // The identity must not depend on the size limit, which is a setting of each process.
        let decoded = Self { max_body_bytes: usize::MAX }.decode(detail, body);
        let refusal = if body.len() > self.max_body_bytes {
            self.decode(detail, body).err()
        } else {
            decoded.as_ref().err().cloned()
        };
        let found = decoded.as_ref().ok().and_then(Action::resolved);
        // An edited body is resolved again: its id may be what was wrong.
        let delivery = delivery_of(detail, Vec::new());
        let time = |body| SentFields::of(body).json("timestamp").map(str::to_owned);
        let has_same_time = || time(&detail.message.body) == time(body);
        let resolved = match (&detail.edit.edited_body, &delivery.fleet_headers().resolved) {
            (None, Some(earlier)) => Some(earlier.clone()),
            // A message among several may have a time some microseconds after the one that was sent.
            (Some(_), Some(earlier)) if has_same_time() => {
                found.map(|found| Resolved { timestamp: earlier.timestamp, ..found })
            }
            _ => found,
        };
        let queue = match &decoded {
            Ok(action) => topology::queue_of(action.kind()).to_owned(),
            Err(_) => detail.dead_letter.queue.clone(),
        };
        let fingerprint = match (&decoded, &resolved) {
            (Ok(Action::SaveMessage(save)), Some(resolved)) => {
                let mut key = save.common.key.clone();
                key.conversation = resolved.conversation.clone();
                let hash = save.body_hash();
                Some(ContentFingerprint { key, id: resolved.id.clone(), hash })
            }
            _ => None,
        };
        let tenant = SentFields::of(body).id("tenant_id").map(Cow::into_owned);
        ReplayPlan { queue, resolved, fingerprint, refusal, tenant }
    }
}

impl ReplayPlan {
    /// Whether the body names another tenant than the one to which this run is limited. An edit may have changed it.
    pub(crate) fn is_of_another_tenant(&self, actor: &Actor) -> bool {
        let limited_to = actor.tenant.as_ref().map(TenantId::as_str);
        limited_to.is_some() && self.tenant.is_some() && self.tenant.as_deref() != limited_to
    }

    /// The message to publish. It carries no header of RabbitMQ or of an agent except the trace.
    pub(crate) fn publication(&self, detail: &DeadLetterDetail) -> Publication {
        let DeadLetterDetail { dead_letter, .. } = detail;
        let copy =
            Publication::copy(&delivery_of(detail, detail.body_to_send().to_vec()), &self.queue);
        let mut replay = copy.replaying(dead_letter.id);
        replay.fleet_headers.resolved.clone_from(&self.resolved);
        replay.fleet_headers.origin = Some(Origin {
            exchange: dead_letter.exchange.clone(),
            routing_key: dead_letter.routing_key.clone(),
        });
        replay
    }
}

#[cfg(test)]
mod tests {
    use database::DeadLetterDetail;
    use domain::failure::DeadLetterReason;
    use serde_json::json;

    use super::*;
    use crate::fixtures::dead_letter;

    const VALIDATOR: DeadLetterValidator = DeadLetterValidator { max_body_bytes: 1_000 };
    const ANONYMOUS: &str = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"hi"}"#;

    fn resolved(dead_letter: &DeadLetterDetail) -> (String, String) {
        let resolved = VALIDATOR.plan(dead_letter).resolved.unwrap();
        (resolved.id.to_string(), resolved.timestamp.to_string())
    }

    #[test]
    fn a_message_without_an_id_gets_the_id_of_its_dead_letter_and_the_time_of_its_failure() {
        let dead_letter = dead_letter(ANONYMOUS);
        let expected =
            (dead_letter.dead_letter.id.to_string(), "2026-11-20T11:59:00.000000Z".to_owned());
        assert_eq!(resolved(&dead_letter), expected);
        assert_eq!(resolved(&dead_letter), expected, "the same the second time");
        assert_eq!(
            VALIDATOR
                .plan(&dead_letter)
                .publication(&dead_letter)
                .fleet_headers
                .resolved
                .unwrap()
                .id
                .as_str(),
            expected.0
        );
    }

    #[test]
    fn a_dead_letter_that_is_too_large_still_has_its_id() {
        let large = dead_letter(&ANONYMOUS.replace("hi", &"hi".repeat(500)));
        let plan = VALIDATOR.plan(&large);
        assert_eq!(plan.resolved.unwrap().id.as_str(), large.dead_letter.id.to_string());
        assert!(plan.fingerprint.is_some());
        assert_eq!(plan.refusal.unwrap().reason, DeadLetterReason::TooLarge);
    }

    #[test]
    fn an_id_that_an_earlier_attempt_resolved_stays_unless_an_edit_changes_it() {
        let first = Uuid::from_u128(9).to_string();
        let headers = json!({
            "x-verbatim-id": first, "x-verbatim-conversation": "c",
            "x-verbatim-timestamp-us": 1_000_000, "x-verbatim-received-us": 1_000_000,
        });
        let mut row = dead_letter(ANONYMOUS);
        row.message.delivery = json!({"headers": headers, "properties": {}});
        let moment = "1970-01-01T00:00:01.000000Z".to_owned();
        assert_eq!(resolved(&row), (first.clone(), moment.clone()));
        let body = ANONYMOUS.replace("hi", "ho");
        let mut edited = row.clone();
        edited.edit.edited_body = Some(body.into_bytes());
        assert_eq!(
            resolved(&edited),
            (first, moment.clone()),
            "an edit of the content keeps the id"
        );
        let renamed = ANONYMOUS.replace("\"role\"", "\"message_id\":\"new\",\"role\"");
        edited.edit.edited_body = Some(renamed.into_bytes());
        assert_eq!(resolved(&edited), ("new".to_owned(), moment));
    }

    #[test]
    fn a_dead_letter_with_an_amqp_timestamp_keeps_its_place_within_the_second() {
        let mut row = dead_letter(ANONYMOUS);
        // 2026-11-20T11:58:59Z: it failed a second after its end at the latest.
        row.message.properties = json!({"timestamp": 1_795_175_939_u64});
        let time = |row: &DeadLetterDetail| resolved(row).1;
        assert_eq!(time(&row), "2026-11-20T11:58:59.850000Z", "by the time of its failure");
        row.message.headers = json!({
            "x-verbatim-id": "m", "x-verbatim-conversation": "c",
            "x-verbatim-timestamp-us": 1_795_175_939_000_042_i64,
            "x-verbatim-received-us": 1_795_175_939_000_041_i64,
        });
        let first = "2026-11-20T11:58:59.000042Z";
        assert_eq!(time(&row), first);
        row.edit.edited_body = Some(ANONYMOUS.replace("hi", "ho").into_bytes());
        assert_eq!(time(&row), first, "an edit of the content keeps the time");
    }

    #[test]
    fn a_dead_letter_is_sent_to_the_queue_of_its_action_or_else_to_the_queue_that_it_failed_in() {
        let mut unrouted = dead_letter(ANONYMOUS);
        "domain.unrouted".clone_into(&mut unrouted.dead_letter.queue);
        let plan = VALIDATOR.plan(&unrouted);
        assert_eq!((plan.queue.as_str(), plan.refusal), ("conversation.save_message", None));
        assert!(plan.fingerprint.is_some());
        unrouted.message.body = "what?".into();
        let plan = VALIDATOR.plan(&unrouted);
        assert_eq!(plan.queue, "domain.unrouted");
        assert_eq!(plan.refusal.unwrap().reason, DeadLetterReason::MalformedJson);
        assert!(plan.resolved.is_none() && plan.fingerprint.is_none());
    }
}
