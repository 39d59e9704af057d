//! `conversation.save_message` bodies of one conversation as one `conversation.save_messages`.

use crate::action::{ActionKind, ConversationSource, Identity, SaveMessage, TimeSource};
use crate::decode::MAX_ELEMENTS;
use crate::json::members;

/// Fields that the action has for all of its messages.
const OF_THE_ACTION: [&str; 4] = ["action_type", "tenant_id", "session_id", "conversation_id"];

/// Bodies that become one action. Each message stays the one that it would be by itself.
#[derive(Debug, Clone)]
pub struct Grouping {
    /// The fields of the action, without the closing brackets.
    body: String,
    messages: usize,
    max_bytes: usize,
}

impl Grouping {
    /// The action for messages of the conversation of this one, of so many bytes at most. It has no message yet.
    #[must_use]
    pub fn of(message: &SaveMessage, max_bytes: usize) -> Self {
        let common = &message.common;
        let conversation = match common.conversation_is_explicit {
            ConversationSource::Explicit => {
                Some(("conversation_id", common.key.conversation.as_str()))
            }
            ConversationSource::FromSession => None,
        };
        let fields = [
            ("action_type", ActionKind::SaveMessages.as_str()),
            ("tenant_id", common.key.tenant.as_str()),
            ("session_id", common.session.as_str()),
        ];
        let fields: Vec<String> = fields.into_iter().chain(conversation).map(text_member).collect();
        Self { body: format!("{{{},\"messages\":[", fields.join(",")), messages: 0, max_bytes }
    }

    /// Whether a message is of the same conversation and session, by the same fields, as another one, and both or none have
    /// a `timestamp`.
    #[must_use]
    pub fn joins(one: &SaveMessage, other: &SaveMessage) -> bool {
        let has_time = |it: &SaveMessage| it.common.time_source == TimeSource::Body;
        let place = |it: &SaveMessage| {
            (it.common.key.clone(), it.common.session.clone(), it.common.conversation_is_explicit)
        };
        // Without a time of its own a message would get that of the one before it.
        place(one) == place(other) && has_time(one) == has_time(other)
    }

    /// Adds a message, whose body was decoded. Returns whether it was added: the action may be full, or the sender of the
    /// message may want a reply to it.
    pub fn add(&mut self, body: &[u8], message: &SaveMessage) -> bool {
        let Some(element) = element(body, message) else { return false };
        // A comma, and the closing brackets.
        let bytes = self.body.len() + element.len() + ",]}".len();
        if self.messages == MAX_ELEMENTS || bytes > self.max_bytes {
            return false;
        }
        if self.messages > 0 {
            self.body.push(',');
        }
        self.body.push_str(&element);
        self.messages += 1;
        true
    }

    /// The number of messages.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// The body of the action.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        (self.body + "]}").into_bytes()
    }
}

/// A body as an element: as it was sent, without the fields of the action, and with its id. By itself its id may be derived
/// from its body.
fn element(body: &[u8], message: &SaveMessage) -> Option<String> {
    if message.common.reply_to.is_some() || message.common.correlation_id.is_some() {
        return None;
    }
    let has_id = message.identity == Identity::Sent;
    let own = members(std::str::from_utf8(body).ok()?).ok()?;
    let own = own.iter().filter(|(name, value)| {
        let is_of_action = OF_THE_ACTION.contains(&&**name);
        let is_empty_id = !has_id && *name == "message_id" && *value == "null";
        !is_of_action && !is_empty_id
    });
    let own = own.map(|(name, value)| format!("{}:{value}", serde_json::Value::from(&**name)));
    let id = (!has_id).then(|| text_member(("message_id", message.message.id.as_str())));
    Some(format!("{{{}}}", own.chain(id).collect::<Vec<_>>().join(",")))
}

fn text_member((name, value): (&str, &str)) -> String {
    format!("\"{name}\":{}", serde_json::Value::from(value))
}
