//! Which action a body names.

use super::fault::{FieldError, excerpt};
use crate::action::ActionKind;
use crate::failure::{DeadLetterReason, Hint, Refusal};
use crate::json::{Member, members, string};

pub(super) fn kind(body: &[Member<'_>]) -> Result<ActionKind, Refusal> {
    const FIELD: &str = "action_type";
    let value = |wanted: &str| {
        body.iter().find(|(name, value)| name == wanted && *value != "null").map(|it| it.1)
    };
    let nested = || {
        let data = members(value("data")?).ok()?;
        data.into_iter().find(|(name, _)| name == FIELD).map(|it| it.1)
    };
    let value = value(FIELD).or_else(nested).ok_or_else(|| FieldError::missing(FIELD))?;
    let name = string(value).ok_or_else(|| FieldError::wrong_type(FIELD, "a string", value))?;
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
