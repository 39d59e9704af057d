//! A dead letter as a worker would see it if it were sent now: where it goes, what it is, whether it would be
//! refused again.
//!
//! Invariant: the same dead letter with the same copy always gives the same identity and time. So a replay
//! that is sent twice, because somebody died before it was noted, takes effect once; also where its
//! sender gave no id at all, for then it is known by the dead letter's.

use broker::{Publication, StoredDeadLetter, topology};
use database::{ContentFingerprint, DeadLetterRow};
use domain::action::Action;
use domain::decode::{DecodeContext, decode};
use domain::envelope::Resolved;
use domain::failure::Refusal;
use domain::time::Timestamp;
use uuid::Uuid;

/// Decodes dead letters as the workers do.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetterValidator {
    /// The largest body that the workers accept, in bytes.
    pub max_body_bytes: usize,
}

/// What a replay of a dead letter would be.
#[derive(Debug)]
pub struct ReplayPlan {
    /// The queue to which it goes.
    pub queue: String,
    /// What it is known to be; nothing while it cannot be decoded.
    pub resolved: Option<Resolved>,
    /// Its words, if it is a message to save.
    pub fingerprint: Option<ContentFingerprint>,
    /// Why the workers of this version would refuse it.
    pub refusal: Option<Refusal>,
}

impl DeadLetterValidator {
    /// What a body in the place of a dead letter's would ask for.
    ///
    /// # Errors
    /// The refusal that the workers would answer with.
    pub fn decode(&self, dead_letter: &DeadLetterRow, body: &[u8]) -> Result<Action, Refusal> {
        let kept = as_kept(dead_letter).fleet_headers().resolved;
        let received_at = match &kept {
            Some(resolved) => resolved.received_at,
            None => Timestamp::try_from(dead_letter.first_failed_at).unwrap_or(Timestamp::EARLIEST),
        };
        let id = kept.and_then(|resolved| Uuid::parse_str(resolved.id.as_str()).ok());
        let context = DecodeContext {
            received_at,
            max_body_bytes: self.max_body_bytes,
            new_id: &|| id.unwrap_or(dead_letter.id),
        };
        decode(body, &as_kept(dead_letter).envelope(), &context)
    }

    /// What a replay of a dead letter would be.
    #[must_use]
    pub fn prepare(&self, dead_letter: &DeadLetterRow) -> ReplayPlan {
        let body = dead_letter.body_to_send();
        // What it is does not depend on how large a body may be, which each process is told for itself.
        let decoded = Self { max_body_bytes: usize::MAX }.decode(dead_letter, body);
        let refusal = if body.len() > self.max_body_bytes {
            self.decode(dead_letter, body).err()
        } else {
            decoded.as_ref().err().cloned()
        };
        let found = decoded.as_ref().ok().and_then(Action::resolved);
        // An edited body says itself what it is: its id may be what was wrong.
        let resolved =
            match (&dead_letter.edited_body, as_kept(dead_letter).fleet_headers().resolved) {
                (None, Some(kept)) => Some(kept),
                _ => found,
            };
        let queue = match &decoded {
            Ok(action) => topology::queue_of(action.kind()).to_owned(),
            Err(_) => dead_letter.queue.clone(),
        };
        let fingerprint = match (&decoded, &resolved) {
            (Ok(Action::SaveMessage(save)), Some(resolved)) => {
                let mut key = save.common.key.clone();
                key.conversation = resolved.conversation.clone();
                let hash = save.message.body_hash();
                Some(ContentFingerprint { key, id: resolved.id.clone(), hash })
            }
            _ => None,
        };
        ReplayPlan { queue, resolved, fingerprint, refusal }
    }
}

impl ReplayPlan {
    /// The message that sends it.
    #[must_use]
    pub fn publication(&self, dead_letter: &DeadLetterRow) -> Publication {
        as_kept(dead_letter).replay(
            dead_letter.body_to_send().to_vec(),
            &self.queue,
            self.resolved.clone(),
        )
    }
}

fn as_kept(dead_letter: &DeadLetterRow) -> StoredDeadLetter<'_> {
    StoredDeadLetter {
        id: dead_letter.id,
        exchange: &dead_letter.exchange,
        routing_key: &dead_letter.routing_key,
        properties: &dead_letter.properties,
        headers: &dead_letter.headers,
    }
}

#[cfg(test)]
mod tests {
    use database::DeadLetterRow;
    use domain::failure::DeadLetterReason;
    use serde_json::json;

    use super::*;
    use crate::dead_letters::fixtures::dead_letter;

    const VALIDATOR: DeadLetterValidator = DeadLetterValidator { max_body_bytes: 1_000 };
    const ANONYMOUS: &str = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"hi"}"#;

    fn resolved(dead_letter: &DeadLetterRow) -> (String, String) {
        let resolved = VALIDATOR.prepare(dead_letter).resolved.unwrap();
        (resolved.id.to_string(), resolved.timestamp.to_string())
    }

    #[test]
    fn a_dead_letter_that_nothing_identifies_is_known_by_its_own_id_and_the_time_it_died() {
        let dead_letter = dead_letter(ANONYMOUS);
        let expected = (dead_letter.id.to_string(), "2026-11-20T11:59:00.000000Z".to_owned());
        assert_eq!(resolved(&dead_letter), expected);
        assert_eq!(resolved(&dead_letter), expected, "twice the same");
        assert_eq!(
            VALIDATOR
                .prepare(&dead_letter)
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
    fn a_dead_letter_that_is_too_large_is_still_known_by_its_id() {
        let large = dead_letter(&ANONYMOUS.replace("hi", &"hi".repeat(500)));
        let plan = VALIDATOR.prepare(&large);
        assert_eq!(plan.resolved.unwrap().id.as_str(), large.id.to_string());
        assert!(plan.fingerprint.is_some());
        assert_eq!(plan.refusal.unwrap().reason, DeadLetterReason::TooLarge);
    }

    #[test]
    fn what_an_earlier_attempt_found_stays_unless_an_edit_says_otherwise() {
        let first = Uuid::from_u128(9).to_string();
        let headers = json!({
            "x-verbatim-id": first, "x-verbatim-conversation": "c",
            "x-verbatim-timestamp-us": 1_000_000, "x-verbatim-received-us": 1_000_000,
        });
        let kept = DeadLetterRow { headers, ..dead_letter(ANONYMOUS) };
        let moment = "1970-01-01T00:00:01.000000Z".to_owned();
        assert_eq!(resolved(&kept), (first.clone(), moment.clone()));
        let said = ANONYMOUS.replace("hi", "ho");
        let edited = DeadLetterRow { edited_body: Some(said.into_bytes()), ..kept.clone() };
        assert_eq!(
            resolved(&edited),
            (first, moment.clone()),
            "an edit of the fingerprint keeps the id"
        );
        let renamed = ANONYMOUS.replace("\"role\"", "\"message_id\":\"new\",\"role\"");
        let edited = DeadLetterRow { edited_body: Some(renamed.into_bytes()), ..kept };
        assert_eq!(resolved(&edited), ("new".to_owned(), moment));
    }

    #[test]
    fn a_dead_letter_goes_to_the_queue_of_its_action_and_what_is_none_where_it_died() {
        let unrouted =
            DeadLetterRow { queue: "domain.unrouted".to_owned(), ..dead_letter(ANONYMOUS) };
        let plan = VALIDATOR.prepare(&unrouted);
        assert_eq!((plan.queue.as_str(), plan.refusal), ("conversation.save_message", None));
        assert!(plan.fingerprint.is_some());
        let unknown = DeadLetterRow { body: b"what?".to_vec(), ..unrouted };
        let plan = VALIDATOR.prepare(&unknown);
        assert_eq!(plan.queue, "domain.unrouted");
        assert_eq!(plan.refusal.unwrap().reason, DeadLetterReason::MalformedJson);
        assert!(plan.resolved.is_none() && plan.fingerprint.is_none());
    }
}
