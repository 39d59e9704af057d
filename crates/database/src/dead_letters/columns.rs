//! The columns of a dead letter as they are inserted: all of them or, if PostgreSQL refuses that, fewer.
//!
//! A dead letter that is not stored would be retried for ever, and nobody could decide about it. What matters most
//! is the body, and a `bytea` accepts every body. So what PostgreSQL refuses is left out, the least important columns
//! first, and the row says which are missing and why.

use serde_json::{Value, json};

use super::record::{CollectedDeadLetter, DeadLetter, FailedMessage};

/// What is left out of a dead letter that PostgreSQL refuses to store whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Omitted {
    /// The ids and the `action_type`, which its body has too, and what its sender set.
    Details,
    /// Everything but its body, its id, its queue and reason, its counts and times.
    AllButBody,
}

impl Omitted {
    /// Both, in the order in which they are tried.
    pub const ALL: [Self; 2] = [Self::Details, Self::AllButBody];
}

/// The columns that may be left out. The others are read from the [`CollectedDeadLetter`].
#[derive(Debug, Default)]
pub(super) struct Columns<'a> {
    pub(super) field: Option<&'a str>,
    pub(super) error: &'a str,
    pub(super) tenant_id: Option<&'a str>,
    pub(super) conversation_id: Option<&'a str>,
    pub(super) session_id: Option<&'a str>,
    pub(super) message_id: Option<&'a str>,
    pub(super) action_type: Option<&'a str>,
    pub(super) routing_key: &'a str,
    pub(super) exchange: &'a str,
    /// JSON, as are the next three.
    pub(super) properties: String,
    pub(super) headers: String,
    pub(super) left_out: Option<String>,
    pub(super) delivery: String,
    /// JSON, if anything was left out.
    pub(super) not_stored: Option<String>,
}

impl<'a> Columns<'a> {
    /// All columns.
    pub(super) fn whole(collected: &'a CollectedDeadLetter) -> Self {
        let CollectedDeadLetter { dead_letter, message } = collected;
        Self {
            tenant_id: dead_letter.tenant_id.as_deref(),
            conversation_id: dead_letter.conversation_id.as_deref(),
            session_id: dead_letter.session_id.as_deref(),
            message_id: dead_letter.message_id.as_deref(),
            action_type: dead_letter.action_type.as_deref(),
            properties: message.properties.to_string(),
            headers: message.headers.to_string(),
            left_out: message.left_out.as_ref().map(ToString::to_string),
            ..Self::without_details(collected)
        }
    }

    /// Fewer columns, because PostgreSQL refused more with this error.
    pub(super) fn without(
        collected: &'a CollectedDeadLetter,
        omitted: Omitted,
        error: &str,
    ) -> Self {
        let columns = match omitted {
            Omitted::Details => Self::without_details(collected),
            Omitted::AllButBody => Self::of_the_body_alone(),
        };
        let missing = missing(collected, omitted);
        Self {
            not_stored: Some(json!({"columns": missing, "error": error}).to_string()),
            ..columns
        }
    }

    fn without_details(collected: &'a CollectedDeadLetter) -> Self {
        let CollectedDeadLetter { dead_letter, message } = collected;
        Self {
            field: dead_letter.field.as_deref(),
            error: &dead_letter.error,
            routing_key: &dead_letter.routing_key,
            exchange: &dead_letter.exchange,
            delivery: message.delivery.to_string(),
            ..Self::of_the_body_alone()
        }
    }

    fn of_the_body_alone() -> Self {
        let nothing = || "{}".to_owned();
        Self { properties: nothing(), headers: nothing(), delivery: nothing(), ..Self::default() }
    }
}

/// The names of the columns that are left out although the dead letter has a value for them.
fn missing(collected: &CollectedDeadLetter, omitted: Omitted) -> Vec<&'static str> {
    let CollectedDeadLetter {
        dead_letter:
            DeadLetter {
                field,
                error,
                tenant_id,
                conversation_id,
                session_id,
                message_id,
                action_type,
                routing_key,
                exchange,
                ..
            },
        message: FailedMessage { properties, headers, left_out, delivery, .. },
    } = collected;
    let has_fields = |json: &Value| json.as_object().is_none_or(|fields| !fields.is_empty());
    let details = [
        ("tenant_id", tenant_id.is_some()),
        ("conversation_id", conversation_id.is_some()),
        ("session_id", session_id.is_some()),
        ("message_id", message_id.is_some()),
        ("action_type", action_type.is_some()),
        ("properties", has_fields(properties)),
        ("headers", has_fields(headers)),
        ("left_out", left_out.is_some()),
    ];
    let others = [
        ("field", field.is_some()),
        ("error", !error.is_empty()),
        ("routing_key", !routing_key.is_empty()),
        ("exchange", !exchange.is_empty()),
        ("delivery", has_fields(delivery)),
    ];
    let others = others.into_iter().filter(|_| omitted == Omitted::AllButBody);
    details.into_iter().chain(others).filter(|(_, has)| *has).map(|(name, _)| name).collect()
}
