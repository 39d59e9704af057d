//! The id and the time of an action, from what its sender gave.
//!
//! The same delivery gives the same result on every replica. A random id and the time of receipt
//! would differ at the next attempt. So a retry carries them as [`Resolved`], which takes
//! precedence there.

use uuid::Uuid;

use super::context::DecodeContext;
use super::fault::FieldError;
use crate::action::{Identity, TimeSource};
use crate::envelope::{Envelope, Resolved};
use crate::ids::{ActionId, ConversationKey, MessageId};
use crate::time::Timestamp;

/// The name space of ids that are derived from conversation, timestamp and body. It must never
/// change: with another value a redelivered message would be stored twice.
const MESSAGE_NAMESPACE: Uuid = Uuid::from_u128(0x2c9d_6a71_e05b_5f3c_b1d4_0f86_97a2_3e58);

#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) happened_at: Timestamp,
    pub(super) source: TimeSource,
    pub(super) received_at: Timestamp,
}

/// The `action_id` of an action: the body's, else the AMQP `message_id`. An invalid property is refused only if it
/// would identify the action. Otherwise nothing but the reply would repeat it.
pub(super) fn action_id(
    sent: Option<ActionId>,
    has_identity: bool,
    envelope: &Envelope<'_>,
) -> Result<Option<ActionId>, FieldError> {
    match (sent, envelope.sent_message_id().map(ActionId::new)) {
        (Some(id), _) | (None, Some(Ok(id))) => Ok(Some(id)),
        (None, Some(Err(_))) if has_identity => Ok(None),
        (None, Some(Err(invalid))) => {
            let fault = format!("{invalid}, or send an id in the body");
            Err(FieldError::new("AMQP message_id", &fault))
        }
        (None, None) => Ok(None),
    }
}

/// The times of an action whose body has the `timestamp` `sent`.
pub(super) fn times(
    sent: Option<Timestamp>,
    envelope: &Envelope<'_>,
    context: &DecodeContext<'_>,
) -> Result<Times, FieldError> {
    let source = match (sent, envelope.sent_second()) {
        (Some(_), _) => TimeSource::Body,
        (None, Some(_)) => TimeSource::AmqpSecond,
        (None, None) => TimeSource::Receipt,
    };
    if let Some(Resolved { timestamp, received_at, .. }) = envelope.resolved {
        return Ok(Times {
            happened_at: *timestamp,
            // Where the sender gave no time, the first attempt used the time of receipt. A body whose time was
            // removed since by an edit keeps the time of the first attempt.
            source: match source {
                TimeSource::Receipt if timestamp != received_at => TimeSource::AmqpSecond,
                source => source,
            },
            received_at: *received_at,
        });
    }
    let received_at = context.received_at;
    let happened_at = match (sent, envelope.sent_second()) {
        (Some(sent), _) => sent,
        (None, Some(seconds)) => {
            Timestamp::in_second(seconds, envelope.timestamp_micros).map_err(|invalid| {
                let remedy = "send whole seconds since 1970, or `timestamp` in the body";
                FieldError::new("AMQP timestamp", &format!("{invalid}; {remedy}"))
            })?
        }
        (None, None) => received_at,
    };
    Ok(Times { happened_at, source, received_at })
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    /// The body's `message_id`, in a message.
    pub(super) message_id: Option<&'a MessageId>,
    pub(super) action_id: Option<&'a ActionId>,
    /// The body's `timestamp`. The AMQP property is not used: it has whole seconds, so two messages
    /// "yes" of one second would get the same id.
    pub(super) timestamp: Option<Timestamp>,
    pub(super) key: &'a ConversationKey,
    pub(super) body: &'a [u8],
}

/// The id of an action: given by the sender, else derived, else new.
pub(super) fn identify(
    evidence: Evidence<'_>,
    envelope: &Envelope<'_>,
    context: &DecodeContext<'_>,
) -> (MessageId, Identity) {
    let resolved = envelope.resolved.map(|resolved| resolved.id.clone());
    let given = evidence
        .message_id
        .cloned()
        .or_else(|| evidence.action_id.map(|id| MessageId::from(id.clone())));
    match (given, evidence.timestamp) {
        (Some(given), _) => (resolved.unwrap_or(given), Identity::Sent),
        (None, Some(timestamp)) => {
            let id = resolved.unwrap_or_else(|| derived(evidence.key, timestamp, evidence.body));
            (id, Identity::Derived)
        }
        (None, None) => {
            let id = resolved.unwrap_or_else(|| (context.new_id)().into());
            (id, Identity::Random { redelivered: envelope.redelivered })
        }
    }
}

/// The name space of ids of elements. It must never change.
const ELEMENT_NAMESPACE: Uuid = Uuid::from_u128(0x91d0_4c2e_6b7f_5a38_9c15_e3f2_08a4_d716);

/// The id of an element with a time of its own: UUIDv5 of conversation, timestamp, its bytes, and how many equal ones
/// there are before it. So the same elements in actions of other sizes are the same messages.
pub(super) fn derived_element(
    key: &ConversationKey,
    timestamp: Timestamp,
    element: &str,
    before: usize,
) -> MessageId {
    let ConversationKey { tenant, conversation } = key;
    let micros = timestamp.micros();
    let name = format!("{tenant}\0{conversation}\0{micros}\0{before}\0{element}");
    Uuid::new_v5(&ELEMENT_NAMESPACE, name.as_bytes()).into()
}

/// The id of an element without a time of its own: UUIDv5 of its action and its position.
pub(super) fn element_of(key: &ConversationKey, action: &MessageId, position: usize) -> MessageId {
    let ConversationKey { tenant, conversation } = key;
    // With one part less than the name of an element with a time.
    let name = format!("{tenant}\0{conversation}\0{action}\0{position}");
    Uuid::new_v5(&ELEMENT_NAMESPACE, name.as_bytes()).into()
}

/// UUIDv5 of conversation, timestamp and raw body.
fn derived(key: &ConversationKey, timestamp: Timestamp, body: &[u8]) -> MessageId {
    let ConversationKey { tenant, conversation } = key;
    // Ids and timestamps contain no NUL, so the parts are unambiguous.
    let mut name = format!("{tenant}\0{conversation}\0{}\0", timestamp.micros()).into_bytes();
    name.extend_from_slice(body);
    Uuid::new_v5(&MESSAGE_NAMESPACE, &name).into()
}
