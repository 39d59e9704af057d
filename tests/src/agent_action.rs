//! Actions as different agents send them: with every kind of identity, with and without AMQP properties.

use serde_json::{Value, json};
use uuid::Uuid;

/// An action as an agent publishes it: the same bytes and properties whenever it is published again.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentAction {
    /// The body.
    pub body: Value,
    /// The AMQP property `message_id`.
    pub message_id: Option<String>,
}

const SEVERAL: &str = "conversation.save_messages";
const LIST: &str = "conversation.sync_messages";

/// The field by which a session event or feedback is found; the contract does not define it.
pub(crate) const MARKER: &str = "marker";

/// What an agent publishes: an action, or a body alone.
pub trait AsAction {
    /// The action.
    fn as_action(&self) -> AgentAction;
}

impl AsAction for AgentAction {
    fn as_action(&self) -> AgentAction {
        self.clone()
    }
}

impl AsAction for Value {
    /// With a generated AMQP `message_id`, which most AMQP clients of agents set.
    fn as_action(&self) -> AgentAction {
        AgentAction { body: self.clone(), message_id: Some(Uuid::new_v4().to_string()) }
    }
}

/// By what Verbatim recognises a message that is delivered twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentIdentity {
    /// The body's `message_id`.
    MessageId,
    /// The body's `action_id`.
    ActionId,
    /// The AMQP property `message_id`.
    AmqpId,
    /// The body's `timestamp`, with the bytes of the body.
    Timestamp,
    /// Nothing: it may be stored twice.
    None,
}

/// Whether the AMQP property `message_id` is set beside an id in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AmqpProperty {
    /// With another value, which is not used.
    Set,
    /// It is not.
    Absent,
}

/// Every way to send a message: its identity, and the AMQP property. The last one has no identity.
const WAYS: [(SentIdentity, AmqpProperty); 7] = [
    (SentIdentity::MessageId, AmqpProperty::Set),
    (SentIdentity::MessageId, AmqpProperty::Absent),
    (SentIdentity::ActionId, AmqpProperty::Set),
    (SentIdentity::ActionId, AmqpProperty::Absent),
    (SentIdentity::AmqpId, AmqpProperty::Set),
    (SentIdentity::Timestamp, AmqpProperty::Absent),
    (SentIdentity::None, AmqpProperty::Absent),
];

impl AgentAction {
    /// The action of a [`fixtures::message`], sent in the `n`th way that gives it an identity. Its id, if it has
    /// one, stays the same, and its content is unique, so that it is found however it is identified.
    ///
    /// # Panics
    /// When the message has no `message_id`.
    #[must_use]
    pub fn identified_in_turn(n: usize, message: Value) -> Self {
        let identified = &WAYS[..WAYS.len() - 1];
        Self::sent(identified[n % identified.len()], message)
    }

    /// The action of a [`fixtures::message`], sent in the `n`th way, which may be without an identity: then it
    /// may be stored twice.
    ///
    /// # Panics
    /// When the message has no `message_id`.
    #[must_use]
    pub fn sent_in_turn(n: usize, message: Value) -> Self {
        Self::sent(WAYS[n % WAYS.len()], message)
    }

    fn sent((identity, property): (SentIdentity, AmqpProperty), mut message: Value) -> Self {
        let fields = message.as_object_mut().expect("an object");
        let id = fields.remove("message_id").expect("a message id");
        let amqp = || id.as_str().map(str::to_owned);
        let mut message_id = (property == AmqpProperty::Set).then(|| Uuid::new_v4().to_string());
        match identity {
            SentIdentity::MessageId => {
                fields.insert("message_id".to_owned(), id);
            }
            SentIdentity::ActionId => {
                fields.insert("action_id".to_owned(), id);
            }
            SentIdentity::AmqpId => message_id = amqp(),
            SentIdentity::Timestamp => {}
            SentIdentity::None => {
                fields.remove("timestamp");
            }
        }
        Self { body: message, message_id }
    }

    /// The same actions, with the messages of each session together as one `conversation.save_messages`.
    ///
    /// # Panics
    /// When an action has no session.
    #[must_use]
    pub fn together(actions: Vec<Self>) -> Vec<Self> {
        let mut together: Vec<Self> = Vec::new();
        for Self { mut body, message_id } in actions {
            if body["action_type"] != "conversation.save_message" {
                together.push(Self { body, message_id });
                continue;
            }
            if body.get("action_id").is_none()
                && let Some(id) = message_id
            {
                // An element has no AMQP properties.
                body.as_object_mut().expect("an object").entry("message_id").or_insert(id.into());
            }
            let is_of_session = |it: &&mut Self| {
                it.body["session_id"] == body["session_id"] && it.body.get("messages").is_some()
            };
            if let Some(several) = together.iter_mut().find(is_of_session) {
                several.body["messages"].as_array_mut().expect("an array").push(body);
                continue;
            }
            let session = body["session_id"].as_str().expect("a session").to_owned();
            let several = json!({
                "action_type": SEVERAL, "tenant_id": body["tenant_id"], "session_id": session,
                "action_id": format!("{} of {session}", Uuid::new_v4()), "messages": [body],
            });
            together.push(Self { body: several, message_id: None });
        }
        together
    }

    /// The actions that its messages would be by themselves, if it has several.
    #[must_use]
    pub(crate) fn messages(&self) -> Option<impl Iterator<Item = Self>> {
        let messages = self.body.get("messages").filter(|_| self.body["action_type"] == SEVERAL);
        let messages = messages.and_then(Value::as_array)?.iter();
        Some(messages.map(|body| Self { body: body.clone(), message_id: None }))
    }

    /// The contents of its messages, if it is a list.
    #[must_use]
    pub(crate) fn list(&self) -> Option<Vec<String>> {
        let messages = self.body.get("messages").filter(|_| self.body["action_type"] == LIST);
        let content = |it: &Value| it["content"].as_str().unwrap_or_default().to_owned();
        Some(messages?.as_array()?.iter().map(content).collect())
    }

    /// How Verbatim recognises it.
    #[must_use]
    pub fn identity(&self) -> SentIdentity {
        let has = |field: &str| self.body.get(field).is_some();
        match () {
            () if has("message_id") => SentIdentity::MessageId,
            () if has("action_id") => SentIdentity::ActionId,
            () if self.message_id.is_some() => SentIdentity::AmqpId,
            () if has("timestamp") => SentIdentity::Timestamp,
            () => SentIdentity::None,
        }
    }

    /// The id that it must be stored with; `None` if Verbatim makes the id.
    #[must_use]
    pub fn sent_id(&self) -> Option<&str> {
        let in_body = |field: &str| self.body.get(field)?.as_str();
        in_body("message_id").or_else(|| in_body("action_id")).or(self.message_id.as_deref())
    }

    /// A session event or feedback, found by an unknown field with this unique text, sent in the `n`th way. It
    /// keeps its timestamp: without one it would take effect at its time of receipt.
    ///
    /// # Panics
    /// When it is no object.
    #[must_use]
    pub fn event_in_turn(n: usize, marker: &str, mut event: Value) -> Self {
        event[MARKER] = marker.into();
        match n % 3 {
            0 => {
                event["action_id"] = json!(format!("action of {marker}"));
                Self { body: event, message_id: None }
            }
            1 => Self { body: event, message_id: Some(format!("amqp id of {marker}")) },
            _ => Self { body: event, message_id: None },
        }
    }
}
