//! The publication of a line: its routing key and its message id.

use std::borrow::Cow;

use broker::Publication;
use domain::action::Action;
use domain::decode::SentFields;

use crate::validator::{MissingFields, Validator};

pub(super) struct Router {
    pub(super) validator: Validator,
    /// The routing key of every line, instead of its `action_type`.
    pub(super) routing_key: Option<String>,
    /// Whether messages of a conversation are published together.
    pub(super) groups: bool,
}

/// A line with its routing key.
pub(super) struct Routed {
    pub(super) publication: Publication,
    /// The action, if the workers accept it.
    pub(super) action: Option<Action>,
}

impl Router {
    /// The publication of a line by itself; `None` without a routing key. Counts what it lacks.
    pub(super) fn route(&self, body: Vec<u8>, missing: &mut MissingFields) -> Option<Routed> {
        let action = self.validator.decode(&body).ok();
        let (action_type, id) = match &action {
            Some(action) => {
                missing.count(action);
                let id = action.common().resolved_id.to_string();
                (Some(action.kind().as_str().to_owned()), Some(id))
            }
            None => sent(&body),
        };
        // A longer id identifies the action in its body alone.
        let id = id.filter(is_short);
        let routing_key = self.routing_key.clone().or(action_type)?;
        let mut publication = self.validator.publication(&routing_key, body);
        if let Some(id) = id {
            publication.message_id = id;
        }
        Some(Routed { publication, action })
    }
}

/// Routing key and id of a body that cannot be decoded as an action.
fn sent(body: &[u8]) -> (Option<String>, Option<String>) {
    let fields = SentFields::of(body);
    let id = fields.id("message_id").or_else(|| fields.id("action_id"));
    let action_type = fields.text("action_type").map(Cow::into_owned);
    (action_type.filter(is_short), id.map(Cow::into_owned))
}

/// Whether a text is an AMQP short string that is not empty, such as a routing key or a message id.
#[expect(clippy::ptr_arg, reason = "the argument of Option::filter")]
fn is_short(text: &String) -> bool {
    const MAX_BYTES: usize = 255;
    (1..=MAX_BYTES).contains(&text.len())
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;

    fn router() -> Router {
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1_000, sender: None };
        Router { validator, routing_key: None, groups: false }
    }

    fn publication_of(router: &Router, body: Vec<u8>) -> Option<Publication> {
        let routed = router.route(body, &mut MissingFields::default())?;
        Some(routed.publication)
    }

    fn message(extra: &str) -> Vec<u8> {
        let start = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"hi""#;
        format!("{start}{extra}}}").into_bytes()
    }

    #[test]
    fn an_action_is_published_with_the_id_that_the_workers_derive() {
        let id = |extra: &str| publication_of(&router(), message(extra)).unwrap().message_id;
        assert_eq!(id(r#","message_id":"m-1","action_id":"a-1""#), "m-1");
        assert_eq!(id(r#","action_id":"a-1""#), "a-1");
        let dated = r#","timestamp":"2026-11-20T10:00:00Z""#;
        assert_eq!(id(dated), id(dated), "publishing a file again saves it once");
        assert_ne!(id(""), id(""), "without id and time each is a message of its own");
    }

    #[test]
    fn a_body_that_cannot_be_decoded_is_routed_by_its_action_type() {
        let body = br#"{"action_type":"conversation.save_message","role":"bot","action_id":"a-1"}"#;
        let publication = publication_of(&router(), body.to_vec()).unwrap();
        assert_eq!(publication.routing_key, "conversation.save_message");
        assert_eq!(publication.message_id, "a-1");
        assert_eq!(publication.body, body[..]);
        assert!(publication_of(&router(), b"hello".to_vec()).is_none());
        let twice = br#"{"action_type":"state.load","text":"\ud800","x":1e400,"x":2}"#;
        assert_eq!(publication_of(&router(), twice.to_vec()).unwrap().routing_key, "state.load");
        let routed = Router { routing_key: Some("key".to_owned()), ..router() };
        assert_eq!(publication_of(&routed, b"hello".to_vec()).unwrap().routing_key, "key");
    }
}
