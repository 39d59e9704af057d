//! The messages of `conversation.save_messages`: each is read as the `conversation.save_message` that it would be by
//! itself, with the fields of the action that it does not have itself.
//!
//! Id and time of each follow from the action alone, so a redelivery gives the same ones. An element that is refused has
//! them too: it becomes a dead letter of its own, and a replay takes its place.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::content::INSTEAD_OF_CONTENT;
use super::fault::FieldError;
use super::fields::{Field, Fields, Inherited};
use super::identity::{derived_element, element_of};
use super::received::{Received, Said};
use crate::action::{
    Action, ActionKind, Common, Element, Identity, SaveMessage, SaveMessages, TimeSource,
};
use crate::envelope::{Envelope, Resolved};
use crate::failure::Refusal;
use crate::ids::{ActionId, MessageId, id_text};
use crate::json::{array_elements, members, size_of_array, string};
use crate::time::Timestamp;
use crate::wire;

/// The most messages of one `conversation.save_messages`.
pub const MAX_ELEMENTS: usize = 100;

/// The most messages of the list of a `conversation.sync_messages`.
pub const MAX_LISTED: usize = 10_000;

/// What a body with the field `messages` has: its name, or the beginning of an escape for one of its characters.
static NAMES: LazyLock<[Finder<'static>; 3]> =
    LazyLock::new(|| ["messages", r"\u006", r"\u007"].map(Finder::new));

/// What a body becomes when each of its messages is an action of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The number of its messages.
    pub messages: usize,
    /// The bytes of their bodies together.
    pub bytes: usize,
}

impl Extent {
    /// Of a body of one message, or of none.
    #[must_use]
    pub fn of_one(body: &[u8]) -> Self {
        Self { messages: 1, bytes: body.len() }
    }

    /// Of a body, which need not be valid.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        // Nearly every body has one message: only those that may have the field are parsed. Most others have no array at
        // all, which is found out fastest.
        let may_have_messages = memchr::memchr(b'[', body).is_some()
            && NAMES.iter().any(|name| name.find(body).is_some());
        if !may_have_messages {
            return Self::of_one(body);
        }
        Self::of_several(body).unwrap_or_else(|| Self::of_one(body))
    }

    fn of_several(body: &[u8]) -> Option<Self> {
        let body_text = std::str::from_utf8(body).ok()?;
        let (elements, bytes) = size_of_array(body_text, "messages", Some("data"))?;
        // More are refused, as one action.
        let count = elements.clamp(1, MAX_LISTED);
        // Each has what stands beside them, too.
        let beside = body.len() - bytes;
        Some(Self { messages: count, bytes: body.len() + beside.saturating_mul(count - 1) })
    }
}

/// Fields of an action that are not those of its messages.
const OF_THE_ACTION: [&str; 6] =
    ["action_type", "action_id", "timestamp", "messages", "correlation_id", "callback_queue_name"];

/// Fields that an action and its messages have in common.
const OF_THE_CONVERSATION: [&str; 3] = ["tenant_id", "session_id", "conversation_id"];

/// Fields that only a message has, beside those that [stand for its content](INSTEAD_OF_CONTENT).
const OF_A_MESSAGE: [&str; 14] = [
    "role",
    "content",
    "message_id",
    "tokens_estimate",
    "processing_time_ms",
    "tool_call_id",
    "tool_calls",
    "item",
    "usage",
    "finish_reason",
    "response_id",
    "parent_message_id",
    "context_hash",
    "parts",
];

fn of_a_message() -> impl Iterator<Item = &'static str> {
    OF_A_MESSAGE.into_iter().chain(INSTEAD_OF_CONTENT)
}

/// The action and its messages.
pub(super) fn read(received: &mut Received<'_>) -> Result<Action, FieldError> {
    let sent: wire::Common<'_> = received.fields.read()?;
    let payload: wire::SaveMessages<'_> = received.fields.read()?;
    let path = received.fields.path("messages");
    let elements = elements(payload.messages.0, &path, MAX_ELEMENTS, "")?;
    no_fields_of_a_message(&received.fields, &path)?;
    let inherited = inherited(&received.fields, received.kind);
    // Each message has a copy of them.
    let bytes = inherited.bytes();
    if bytes.saturating_mul(elements.len()) > received.context.max_body_bytes {
        let fault = format!(
            "has {} messages, and the fields of the action that count for each of them have {bytes} bytes: more than {} \
             together; send fewer messages, or `metadata` with those that need it",
            elements.len(),
            received.context.max_body_bytes
        );
        return Err(FieldError::new(&path, &fault));
    }
    let (common, identity) = received.common(sent, None)?;
    let mut identities =
        Identities { action: &common, action_identity: identity, equal: HashMap::new() };
    let mut times = Times { first: common.happened_at, own: None, before: None };
    let shared = shared(received, &inherited, &common);
    let mut read = Vec::with_capacity(elements.len());
    for (position, element) in elements.into_iter().enumerate() {
        // The first one has the time of the action.
        let is_estimated = |own: &Own| own.timestamp.is_none() && position > 0;
        let mut resolve = |own: &Own| {
            let (id, identity) = identities.of(position, element, own);
            let timestamp = times.next(position, own.timestamp);
            let (conversation, received_at) = (common.key.conversation.clone(), common.received_at);
            let time_source = match own.timestamp {
                Some(_) => TimeSource::Body,
                None => common.time_source,
            };
            (Resolved { id, conversation, timestamp, received_at }, identity, time_source)
        };
        if let Some(shared) = &shared
            && let Some((said, own, _)) = said_alone(element)
        {
            let (resolved, identity, time_source) = resolve(&own);
            let is_time_estimated = is_estimated(&own);
            let common = Common {
                resolved_id: resolved.id.clone(),
                happened_at: resolved.timestamp,
                time_source,
                ..shared.clone()
            };
            let message = Ok(Box::new(said.into_message(common, identity)));
            read.push(Element { message, resolved, is_time_estimated });
            continue;
        }
        let place = format!("{path}[{position}].");
        let nested = format!("{place}data.");
        let fields = Fields::of_element(element, [&place, &nested]);
        let own = fields.as_ref().map(Own::of).unwrap_or_default();
        let (resolved, identity, time_source) = resolve(&own);
        let is_time_estimated = is_estimated(&own);
        let fields = fields.map(|fields| fields.inheriting(&inherited));
        let message = fields.and_then(|fields| {
            message(received, element, fields, &inherited, &resolved)
                .map_err(|error| error.inside(&place))
        });
        let message = message.map_err(Refusal::from).map(|mut save| {
            (save.identity, save.common.time_source) = (identity, time_source);
            // The action is replied to as a whole.
            (save.common.reply_to, save.common.correlation_id) = (None, None);
            Box::new(save)
        });
        read.push(Element { message, resolved, is_time_estimated });
    }
    let atomic = payload.atomic.unwrap_or(false);
    Ok(Action::SaveMessages(SaveMessages { common, identity, atomic, elements: read }))
}

/// Elements of a body that was decoded, each as the `conversation.save_message` that it would be by itself: with its id and,
/// if the action or the element has a `timestamp`, its time. Positions that do not exist are left out.
#[must_use]
pub fn elements_as_actions(
    body: &[u8],
    action: &SaveMessages,
    positions: impl IntoIterator<Item = usize>,
) -> Vec<Vec<u8>> {
    let members = std::str::from_utf8(body).ok().and_then(|body| members(body).ok());
    let Some(fields) = members.and_then(|members| Fields::merged(members).ok()) else {
        return Vec::new();
    };
    let messages = fields.value("messages").and_then(array_elements).unwrap_or_default();
    let inherited = inherited(&fields, ActionKind::SaveMessages);
    let element = |position: usize| {
        let (element, known) = (messages.get(position)?, action.elements.get(position)?);
        let has_time = action.common.time_source == TimeSource::Body;
        Some(as_action(element, &inherited.fields, &known.resolved, has_time))
    };
    positions.into_iter().filter_map(element).collect()
}

fn as_action(
    element: &str,
    inherited: &[Field<'_>],
    resolved: &Resolved,
    has_time: bool,
) -> Vec<u8> {
    let id = serde_json::Value::from(resolved.id.as_str()).to_string();
    let time = serde_json::Value::from(resolved.timestamp.to_string()).to_string();
    let own = members(element).unwrap_or_default();
    let nested =
        own.iter().find(|(name, _)| name == "data").and_then(|(_, data)| members(data).ok());
    let nested = nested.unwrap_or_default();
    let said = own.iter().chain(&nested).filter(|(_, value)| *value != "null");
    let said: HashSet<&str> = said.map(|(name, _)| &**name).collect();
    let mut added: Vec<(&str, &str)> =
        inherited.iter().map(|field| (&*field.name, field.value)).collect();
    if !said.contains("message_id") && !said.contains("action_id") {
        added.push(("message_id", &id));
    }
    if has_time && !said.contains("timestamp") {
        added.push(("timestamp", &time));
    }
    added.retain(|(name, _)| !said.contains(name));
    if own.is_empty() {
        // It is no object, or an empty one.
        added.push(("data", element));
    }
    // As it was sent, without its nulls for which the action has a value.
    let names: HashSet<&str> = added.iter().map(|(name, _)| *name).collect();
    let own = own.iter().filter(|(name, _)| !names.contains(&**name));
    let own = own.map(|(name, value)| member(name, value));
    let added = added.iter().map(|(name, value)| member(name, value));
    format!("{{{}}}", own.chain(added).collect::<Vec<_>>().join(",")).into_bytes()
}

fn member(name: &str, value: &str) -> String {
    format!("{}:{value}", serde_json::Value::from(name))
}

/// The messages of an action, each as it is written. `remedy` follows the sentence that says how many may be sent.
pub(super) fn elements<'a>(
    array: &'a str,
    path: &str,
    most: usize,
    remedy: &str,
) -> Result<Vec<&'a str>, FieldError> {
    let elements = array_elements(array)
        .ok_or_else(|| FieldError::wrong_type(path, "an array of messages", array))?;
    let count = elements.len();
    if (1..=most).contains(&count) {
        return Ok(elements);
    }
    let fault = format!("has {count} messages; send 1 to {most} with each action{remedy}");
    Err(FieldError::new(path, &fault))
}

/// Refuses an action with a field of a message beside its messages.
pub(super) fn no_fields_of_a_message(action: &Fields<'_>, path: &str) -> Result<(), FieldError> {
    if let Some(name) = of_a_message().find(|name| action.value(name).is_some()) {
        let fault = format!("is a field of a message; send it in the elements of `{path}`");
        return Err(action.error(name, &fault));
    }
    if action.value("data").is_some() {
        let fault = "is nested in `data`; send it in `metadata`";
        return Err(action.error("data", fault));
    }
    Ok(())
}

/// The fields of an action that its messages have, too.
pub(super) fn inherited<'a>(action: &Fields<'a>, kind: ActionKind) -> Inherited<'a> {
    let of_kind: &[&str] = match kind {
        ActionKind::SyncMessages => &["system", "on_conflict", "after"],
        _ => &["atomic"],
    };
    let is_wanted = |name: &str| {
        !OF_THE_ACTION.contains(&name)
            && !of_kind.contains(&name)
            && of_a_message().all(|other| other != name)
    };
    let mut fields = action.named(is_wanted);
    fields.insert(0, Field::implied("action_type", "\"conversation.save_message\""));
    Inherited::new(fields)
}

/// What all messages have from the action. Most have nothing of it themselves.
pub(super) fn shared(
    action: &Received<'_>,
    inherited: &Inherited<'_>,
    of_action: &Common,
) -> Option<Common> {
    let resolved = of_action.resolved();
    let envelope = Envelope { resolved: Some(&resolved), ..Envelope::default() };
    let (kind, context) = (ActionKind::SaveMessage, action.context);
    let fields = Fields::inherited(inherited);
    let mut received = Received { kind, fields, body: &[], envelope: &envelope, context };
    let sent = received.fields.read().ok()?;
    received.common(sent, None).ok().map(|(common, _)| common)
}

/// What an element says, if it has no fields but those of a message and its time, and all are valid.
pub(super) fn said_alone(element: &str) -> Option<(Said, Own, Fields<'_>)> {
    const TIME: &str = "timestamp";
    let mut fields = Fields::of_element(element, ["", "data."]).ok()?;
    let timestamp = match fields.value(TIME) {
        Some(time) => Some(Timestamp::parse(&string(time)?).ok()?),
        None => None,
    };
    let said = Said::read(&mut fields).ok()?;
    let is_alone = fields.unknown().all(|field| field.name == TIME);
    let own = Own { id: said.message_id.clone(), timestamp };
    is_alone.then_some((said, own, fields))
}

/// An element as the action that it would be by itself.
pub(super) fn message(
    action: &Received<'_>,
    element: &str,
    fields: Fields<'_>,
    inherited: &Inherited<'_>,
    resolved: &Resolved,
) -> Result<SaveMessage, FieldError> {
    of_another(&fields, inherited)?;
    let envelope = Envelope { resolved: Some(resolved), ..Envelope::default() };
    let (kind, context) = (ActionKind::SaveMessage, action.context);
    let body = element.as_bytes();
    let mut received = Received { kind, fields, body, envelope: &envelope, context };
    received.message()
}

/// Refuses an element that names another conversation or action, or has a field of the action.
fn of_another(fields: &Fields<'_>, inherited: &Inherited<'_>) -> Result<(), FieldError> {
    for name in OF_THE_CONVERSATION.into_iter().chain(["action_type"]) {
        let Some(own) = fields.value(name) else { continue };
        let mut of_action = inherited.fields.iter();
        let of_action = of_action.find(|field| field.name == name && field.value != "null");
        if of_action.is_none_or(|field| id_text(field.value) != id_text(own)) {
            let fault =
                "differs from that of the action; send the message with an action of its own";
            return Err(fields.error(name, fault));
        }
    }
    for name in ["correlation_id", "callback_queue_name"] {
        if fields.value(name).is_some() {
            let fault = "is a field of the action; send it beside `messages`";
            return Err(fields.error(name, fault));
        }
    }
    Ok(())
}

/// What an element says about its id and its time, as far as that is valid.
#[derive(Default)]
pub(super) struct Own {
    pub(super) id: Option<MessageId>,
    pub(super) timestamp: Option<Timestamp>,
}

impl Own {
    pub(super) fn of(fields: &Fields<'_>) -> Self {
        let value = |name: &str| fields.value(name);
        let id = |name: &str| ActionId::new(id_text(value(name)?)?).ok();
        let timestamp = || Timestamp::parse(&string(value("timestamp")?)?).ok();
        Self {
            id: id("message_id").or_else(|| id("action_id")).map(MessageId::from),
            timestamp: timestamp(),
        }
    }
}

/// Gives each element its id.
struct Identities<'a> {
    action: &'a Common,
    action_identity: Identity,
    /// How many equal elements of one time there were.
    equal: HashMap<(Timestamp, &'a str), usize>,
}

impl<'a> Identities<'a> {
    fn of(&mut self, position: usize, element: &'a str, own: &Own) -> (MessageId, Identity) {
        if let Some(id) = &own.id {
            return (id.clone(), Identity::Sent);
        }
        let key = &self.action.key;
        if let Some(timestamp) = own.timestamp {
            let before = self.equal.entry((timestamp, element)).or_default();
            let id = derived_element(key, timestamp, element, *before);
            *before += 1;
            return (id, Identity::Derived);
        }
        let identity = match self.action_identity {
            Identity::Sent | Identity::Derived => Identity::Derived,
            random @ Identity::Random { .. } => random,
        };
        (element_of(key, &self.action.resolved_id, position), identity)
    }
}

/// Gives each element its time.
struct Times {
    /// The time of the action.
    first: Timestamp,
    /// The last time of its own that an element had.
    own: Option<Timestamp>,
    /// The time of the element before.
    before: Option<Timestamp>,
}

impl Times {
    /// Its own time, else a microsecond after the element before it where that goes by a time of its own, else that of the
    /// action and its position in microseconds. Where its own time is not later than that of the element before it because
    /// both have the same one, it gets a microsecond more: the order is that of the array. An earlier time of its own
    /// counts.
    fn next(&mut self, position: usize, own: Option<Timestamp>) -> Timestamp {
        let after = self.before.map(|before| before.later_by(1));
        let is_in_order = own.zip(self.own).is_none_or(|(own, last)| own >= last);
        let wanted = match (own, self.own) {
            (Some(own), _) => own,
            (None, Some(_)) => after.unwrap_or(self.first),
            (None, None) => self.first.later_by(position),
        };
        let time = match after {
            Some(after) if is_in_order && (own.is_none() || self.own.is_some()) => {
                wanted.max(after)
            }
            Some(after) if self.before == Some(wanted) => after,
            _ => wanted,
        };
        self.own = own.or(self.own);
        self.before = Some(time);
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(own: &[Option<i64>]) -> Vec<i64> {
        let at = |micros| Timestamp::from_micros(micros).unwrap();
        let mut times = Times { first: at(1_000), own: None, before: None };
        let next =
            |(position, own): (usize, &Option<i64>)| times.next(position, own.map(at)).micros();
        own.iter().enumerate().map(next).collect()
    }

    #[test]
    fn a_body_counts_as_many_messages_and_bytes_as_its_elements_have_by_themselves() {
        let of = |body: &str| (Extent::of(body.as_bytes()), body.len());
        let counts = |body: &str, messages: usize| {
            let (extent, len) = of(body);
            assert_eq!(extent.messages, messages, "{body}");
            extent.bytes - len
        };
        let metadata = r#""metadata":{"messages":[1,2],"a":"0123456789"}"#;
        let beside = r#"{"messages":,}"#.len() + metadata.len();
        assert_eq!(
            counts(&format!(r#"{{"messages":[{{}},{{}},{{}}],{metadata}}}"#), 3),
            2 * beside
        );
        assert_eq!(
            counts(&format!(r#"{{{metadata}, "messages" : [{{}},{{}},{{}}]}}"#), 3),
            2 * (beside + 3)
        );
        let nested = format!(r#"{{"messages":null,"data":{{"mess\u0061ges":[1,2],{metadata}}}}}"#);
        assert_eq!(counts(&nested, 2), nested.len() - "[1,2]".len());
        assert_eq!(counts(r#"{"content":"messages"}"#, 1), 0);
        assert_eq!(counts(r#"{"messages":[]}"#, 1), 0);
        assert_eq!(counts(r#"{"messages":7}"#, 1), 0);
        assert_eq!(counts("messages, and no JSON", 1), 0);
        let many = format!(r#"{{"messages":[{}0]}}"#, "0,".repeat(500));
        counts(&many, 501);
        let more = format!(r#"{{"messages":[{}0]}}"#, "0,".repeat(20_000));
        counts(&more, MAX_LISTED);
    }

    #[test]
    fn elements_have_the_order_of_the_array_unless_their_own_times_say_otherwise() {
        assert_eq!(times(&[None, None, None]), [1_000, 1_001, 1_002]);
        assert_eq!(times(&[Some(5), Some(5), Some(5), Some(6), Some(9)]), [5, 6, 7, 8, 9]);
        assert_eq!(times(&[Some(9), Some(5), Some(5)]), [9, 5, 6]);
        assert_eq!(times(&[Some(1_001), None, None]), [1_001, 1_002, 1_003]);
        assert_eq!(times(&[None, Some(1_000), None]), [1_000, 1_001, 1_002]);
        assert_eq!(times(&[Some(5_000), None]), [5_000, 5_001]);
        assert_eq!(times(&[Some(5), None, Some(5), Some(6), None]), [5, 6, 7, 8, 9]);
        assert_eq!(times(&[Some(9), None, Some(5), None, Some(5)]), [9, 10, 5, 6, 7]);
    }
}
