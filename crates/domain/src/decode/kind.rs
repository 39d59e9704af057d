//! Which action a body names.

use super::fault::{FieldError, excerpt};
use super::field::Field;
use super::json_fields;
use super::strict_fields::strict_fields;
use crate::action::ActionKind;
use crate::failure::{DeadLetterReason, Hint, Refusal};

/// The action that a body's `action_type` names.
pub(super) fn kind(body: &[Field<'_>]) -> Result<ActionKind, Refusal> {
    const FIELD: &str = "action_type";
    let value = |name: &str| {
        body.iter().find(|field| field.name == name && field.value != "null").map(|it| it.value)
    };
    let nested = || {
        let data = value("data")?;
        let data = json_fields::fields(data, "").or_else(|| strict_fields(data, "").ok())?;
        data.into_iter().find(|field| field.name == FIELD).map(|field| field.value)
    };
    let value = value(FIELD).or_else(nested).ok_or_else(|| FieldError::missing(FIELD))?;
    let name = json_fields::string(value)
        .ok_or_else(|| FieldError::wrong_type(FIELD, "a string", value))?;
    ActionKind::parse(&name).ok_or_else(|| {
        let sent = excerpt(&name, 80);
        let (remedy, hint) = match ActionKind::meant_by(&name) {
            Some(kind) => (
                format!("did you mean `{kind}`?"),
                Some(Hint::DidYouMean(kind.as_str().to_owned())),
            ),
            None => ("see the wire contract for all actions".to_owned(), None),
        };
        Refusal {
            reason: DeadLetterReason::UnknownAction,
            field: Some(FIELD.to_owned()),
            detail: format!("`{FIELD}` must be a known action, but is {sent:?}; {remedy}"),
            hint,
        }
    })
}
