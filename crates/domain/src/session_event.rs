//! Session events and feedback, with everything that their sender said.

use crate::action::{Action, ActionKind, Common};
use crate::ids::{AgentId, MessageId, SessionId, UserId};
use crate::json::Json;
use crate::message::BodyHash;
use crate::time::Timestamp;

/// `conversation.session_opened`, `conversation.session_closed` or `conversation.feedback`.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionEvent {
    /// The action's id: its sender's, else derived or random, as that of a message.
    pub id: MessageId,
    /// Which action it is.
    pub kind: ActionKind,
    /// The session.
    pub session: SessionId,
    /// When it happened: when it was sent, else when it was received.
    pub created_at: Timestamp,
    /// When its first attempt received it.
    pub received_at: Timestamp,
    /// Why the session closed.
    pub reason: Option<String>,
    /// How satisfied the user was, from 1 (bad) to 5 (good).
    pub satisfaction: Option<u8>,
    /// The end user, if it names one.
    pub user_id: Option<UserId>,
    /// The agent, if it names one.
    pub agent_id: Option<AgentId>,
    /// The model, if it names one.
    pub model_name: Option<String>,
    /// The tenant's price plan, if it names one.
    pub tenant_tier: Option<String>,
    /// Its metadata, with the fields that the contract does not define.
    pub metadata: Option<Json>,
}

impl SessionEvent {
    /// The session event or feedback of an action; `None` for other actions.
    #[must_use]
    pub fn of(action: &Action) -> Option<Self> {
        Some(match action {
            Action::SessionOpened(common) => Self::new(common),
            Action::SessionClosed(common, closed) => Self {
                reason: closed.reason.clone(),
                satisfaction: closed.satisfaction.map(u8::from),
                ..Self::new(common)
            },
            Action::Feedback(common, feedback) => {
                Self { satisfaction: Some(feedback.satisfaction.into()), ..Self::new(common) }
            }
            _ => return None,
        })
    }

    /// The hash of all that it says, without its id and its times. A second event with the same id, hash and
    /// second is a duplicate, and so is one whose sender gave no time; others are events of their own.
    #[must_use]
    pub fn content_hash(&self) -> BodyHash {
        let satisfaction = self.satisfaction.map(|satisfaction| satisfaction.to_string());
        let metadata = self.metadata.as_ref().map(Json::canonical);
        BodyHash::of([
            (b'k', Some(self.kind.as_str())),
            (b's', Some(self.session.as_str())),
            (b'r', self.reason.as_deref()),
            (b'f', satisfaction.as_deref()),
            (b'u', self.user_id.as_ref().map(UserId::as_str)),
            (b'a', self.agent_id.as_ref().map(AgentId::as_str)),
            (b'm', self.model_name.as_deref()),
            (b't', self.tenant_tier.as_deref()),
            (b'd', metadata.as_deref()),
        ])
    }

    fn new(common: &Common) -> Self {
        Self {
            id: common.resolved_id.clone(),
            kind: common.kind,
            session: common.session.clone(),
            created_at: common.happened_at,
            received_at: common.received_at,
            reason: None,
            satisfaction: None,
            user_id: common.user_id.clone(),
            agent_id: common.agent_id.clone(),
            model_name: common.model_name.clone(),
            tenant_tier: common.tenant_tier.clone(),
            metadata: common.metadata.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::decode::{DecodeContext, decode};
    use crate::envelope::Envelope;

    fn event(extra: &Value) -> SessionEvent {
        let mut body = json!({
            "action_type": "conversation.session_closed", "tenant_id": "t", "session_id": "s",
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let context = DecodeContext {
            received_at: Timestamp::from_micros(1).unwrap(),
            max_body_bytes: 1 << 20,
            new_id: &uuid::Uuid::nil,
        };
        let action = decode(body.to_string().as_bytes(), &Envelope::default(), &context).unwrap();
        SessionEvent::of(&action).unwrap()
    }

    #[test]
    fn each_field_changes_the_content_hash_and_times_do_not() {
        let hash = |extra: Value| event(&extra).content_hash();
        let plain = hash(json!({}));
        assert_eq!(hash(json!({"timestamp": "2026-11-20T10:00:00Z"})), plain);
        for field in [
            "reason",
            "user_id",
            "agent_id",
            "model_name",
            "tenant_tier",
            "task_id",
            "origin_service",
            "a_field_of_the_sender",
        ] {
            assert_ne!(hash(json!({field: "a"})), plain, "{field}");
            assert_ne!(hash(json!({field: "a"})), hash(json!({field: "b"})), "{field}");
        }
        assert_ne!(hash(json!({"satisfaction": 1})), hash(json!({"satisfaction": 2})));
        assert_eq!(
            hash(json!({"metadata": {"a": 1, "b": 2}})),
            hash(json!({"metadata": {"b": 2, "a": 1}}))
        );
    }

    #[test]
    fn the_content_hash_is_the_same_in_every_version() {
        let full = json!({
            "reason": "done", "satisfaction": 5, "user_id": "u", "agent_id": "a", "model_name": "m",
            "tenant_tier": "gold", "metadata": {"k": [1]}, "task_id": "t",
        });
        let hash = event(&full).content_hash().0;
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ec2ba354e477e649dbe5c1d2a8599450");
    }
}
