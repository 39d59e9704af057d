//! The messages of `conversation.sync_messages`: each is read as the `conversation.save_message` that it would be by itself,
//! and is refused as that would be. But only what it is compared by is kept: of a long list nearly all messages are stored
//! already. Those that are new are read again from the body.

use std::collections::HashSet;

use super::content;
use super::context::DecodeContext;
use super::elements::{
    MAX_LISTED, Own, elements, inherited, message, no_fields_of_a_message, said_alone, shared,
};
use super::fault::FieldError;
use super::fields::{Fields, Inherited};
use super::received::Received;
use crate::action::{
    Action, ActionKind, Common, Identity, ListedMessage, SaveMessage, SyncMessages, TimeSource,
};
use crate::envelope::{Envelope, Resolved};
use crate::json::{Json, array_elements, members};
use crate::message::{Details, Role};
use crate::sync::hash::{Compared, Fingerprint};
use crate::sync::names::OnConflict;
use crate::sync::plan::New;
use crate::wire;

/// Fields of the action whose length is limited by themselves.
const LIMITED: [&str; 6] =
    ["action_type", "tenant_id", "session_id", "conversation_id", "user_id", "agent_id"];

/// A shorter `model_name` or `tenant_tier` does not count for each message.
const SHORT: usize = 256;

/// The action and what its messages are compared by.
pub(super) fn read(received: &mut Received<'_>) -> Result<Action, FieldError> {
    let sent: wire::Common<'_> = received.fields.read()?;
    let payload: wire::SyncMessages<'_> = received.fields.read()?;
    let path = received.fields.path("messages");
    let remedy = ": only those behind a stored one, with its id as `after`";
    let elements = elements(payload.messages.0, &path, MAX_LISTED, remedy)?;
    no_fields_of_a_message(&received.fields, &path)?;
    let inherited = inherited(&received.fields, received.kind);
    let is_short = |name: &str, value: &str| {
        LIMITED.contains(&name)
            || matches!(name, "model_name" | "tenant_tier") && value.len() <= SHORT
    };
    let bytes = inherited.bytes_of(|name, value| !is_short(name, value));
    if bytes.saturating_mul(elements.len()) > received.context.max_body_bytes {
        let fault = format!(
            "has {} messages, and `metadata` and other fields of the action that count for each of them have {bytes} bytes: \
             more than {} together; send them with the messages that need them, or send only the messages behind a stored \
             one, with its id as `after`",
            elements.len(),
            received.context.max_body_bytes
        );
        return Err(FieldError::new(&path, &fault));
    }
    let (common, _) = received.common(sent, None)?;
    let on_conflict = payload.on_conflict.unwrap_or_default();
    if on_conflict == OnConflict::Refuse && common.reply_to.is_none() {
        let fault = "is `refuse`, but the action names no queue for the reply that would say so; set `reply_to` or \
                     `callback_queue_name` (over HTTP `?wait=durable`), or leave `on_conflict` out";
        return Err(received.fields.error("on_conflict", fault));
    }
    let reader = Reader { shared: shared(received, &inherited, &common), received, inherited };
    let mut ids = HashSet::new();
    let (mut head, mut listed) = (Vec::new(), Vec::with_capacity(elements.len()));
    for (position, element) in elements.into_iter().enumerate() {
        let place = format!("{path}[{position}].");
        let (role, message) = reader.compared(position, element, &place, &common)?;
        if listed.is_empty() && matches!(role, Role::System | Role::Developer) {
            head.push(message);
            continue;
        }
        if let Some(id) = message.id.as_ref().filter(|id| !ids.insert((*id).clone())) {
            let fault = format!(
                "is {id:?}, as that of an earlier message of the list; give each an id of its own, or none"
            );
            return Err(FieldError::new(&format!("{place}message_id"), &fault));
        }
        listed.push(message);
    }
    Ok(Action::SyncMessages(SyncMessages {
        common,
        head,
        listed,
        system: payload.system.unwrap_or_default(),
        on_conflict,
        after: payload.after,
        redelivered: received.envelope.redelivered,
    }))
}

/// Messages of a list, complete, from the body of its action.
///
/// # Errors
/// The body is not that of the action: the position of a message that it does not have.
pub fn listed_messages(
    body: &[u8],
    action: &SyncMessages,
    wanted: &[New],
) -> Result<Vec<SaveMessage>, usize> {
    let first = wanted.first().map_or(0, |new| new.position);
    let members = std::str::from_utf8(body).ok().and_then(|body| members(body).ok());
    let fields = members.and_then(|members| Fields::merged(members).ok()).ok_or(first)?;
    let elements = fields.value("messages").and_then(array_elements).ok_or(first)?;
    let context = DecodeContext {
        received_at: action.common.received_at,
        max_body_bytes: usize::MAX,
        new_id: &uuid::Uuid::nil,
    };
    let envelope = Envelope::default();
    let inherited = inherited(&fields, ActionKind::SyncMessages);
    let (kind, context) = (ActionKind::SyncMessages, &context);
    let received = Received { kind, fields, body, envelope: &envelope, context };
    let shared = shared(&received, &inherited, &action.common);
    let reader = Reader { received: &received, inherited, shared };
    let complete = |new: &New| {
        let element = elements.get(new.position)?;
        let mut message = reader.complete(element, new, &action.common)?;
        if let Some(parent) = &new.parent {
            let mut details = Details::of(&message.message.details).clone();
            details.parent_message_id.get_or_insert_with(|| parent.clone());
            message.message.details = details.boxed();
        }
        Some(message)
    };
    wanted.iter().map(|new| complete(new).ok_or(new.position)).collect()
}

struct Reader<'r, 'a> {
    received: &'r Received<'a>,
    inherited: Inherited<'a>,
    /// What all messages have from the action, unless they have it themselves.
    shared: Option<Common>,
}

impl Reader<'_, '_> {
    /// What an element is compared by, if it is a valid message.
    fn compared(
        &self,
        position: usize,
        element: &str,
        place: &str,
        action: &Common,
    ) -> Result<(Role, ListedMessage), FieldError> {
        let listed = |fingerprint, own: Own| ListedMessage {
            position,
            fingerprint,
            id: own.id,
            timestamp: own.timestamp,
        };
        if self.shared.is_some()
            && let Some((said, own, fields)) = said_alone(element)
        {
            let fingerprint = said.fingerprint(content::instead(None, &fields).as_ref());
            return Ok((said.role(), listed(fingerprint, own)));
        }
        let nested = format!("{place}data.");
        let fields = Fields::of_element(element, [place, &nested])?;
        let (own, beside) = (Own::of(&fields), content::instead(None, &fields));
        let resolved = action.resolved();
        let fields = fields.inheriting(&self.inherited);
        let save = message(self.received, element, fields, &self.inherited, &resolved)
            .map_err(|error| error.inside(place))?;
        let fingerprint = fingerprint(&save, beside.as_ref());
        Ok((save.message.role, listed(fingerprint, own)))
    }

    /// An element as a message with this id and time.
    fn complete(&self, element: &str, new: &New, action: &Common) -> Option<SaveMessage> {
        let resolved = Resolved {
            id: new.id.clone(),
            conversation: action.key.conversation.clone(),
            timestamp: new.created_at,
            received_at: action.received_at,
        };
        let time_source = if new.is_time_estimated { action.time_source } else { TimeSource::Body };
        if let Some(shared) = &self.shared
            && let Some((said, ..)) = said_alone(element)
        {
            let common = Common {
                resolved_id: new.id.clone(),
                happened_at: new.created_at,
                received_at: action.received_at,
                time_source,
                ..shared.clone()
            };
            return Some(said.into_message(common, Identity::Derived));
        }
        let fields = Fields::of_element(element, ["", "data."]).ok()?;
        let fields = fields.inheriting(&self.inherited);
        let mut save = message(self.received, element, fields, &self.inherited, &resolved).ok()?;
        (save.identity, save.common.time_source) = (Identity::Derived, time_source);
        (save.common.reply_to, save.common.correlation_id) = (None, None);
        Some(save)
    }
}

fn fingerprint(save: &SaveMessage, beside: Option<&Json>) -> Fingerprint {
    let message = &save.message;
    let compared = Compared {
        role: message.role,
        content: &message.content,
        tool_calls: message.tool_calls.as_ref(),
        item: Details::of(&message.details).item.as_ref(),
        beside,
    };
    compared.fingerprint()
}
