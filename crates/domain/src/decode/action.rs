//! Builds an action from its fields: defaults, fallbacks and the rules that span fields.

use super::elements;
use super::fault::FieldError;
use super::listed;
use super::received::Received;
use crate::action::state::Patch;
use crate::action::{Action, ActionKind, Common, ConversationSource};
use crate::wire;

pub(super) fn read(mut received: Received<'_>) -> Result<Action, FieldError> {
    match received.kind {
        ActionKind::SaveMessage => received.message().map(Box::new).map(Action::SaveMessage),
        ActionKind::SaveMessages => elements::read(&mut received),
        ActionKind::SyncMessages => listed::read(&mut received),
        ActionKind::DeleteMessage => with(received, Action::DeleteMessage),
        ActionKind::SessionOpened => {
            with(received, |common, wire::SessionOpened {}| Action::SessionOpened(common))
        }
        ActionKind::SessionClosed => with(received, Action::SessionClosed),
        ActionKind::GetContext => with(received, Action::GetContext),
        ActionKind::GetHistory => with(received, Action::GetHistory),
        ActionKind::Feedback => with(received, Action::Feedback),
        ActionKind::Erase => erase(received),
        ActionKind::StateLoad => with(received, Action::StateLoad),
        ActionKind::StateSave => with(received, Action::StateSave),
        ActionKind::StatePatch => patch(received),
        ActionKind::StateTransition => with(received, Action::StateTransition),
        ActionKind::StateClear => with(received, Action::StateClear),
        ActionKind::StateListActive => with(received, Action::StateListActive),
        ActionKind::StateStats => with(received, Action::StateStats),
    }
}

fn with<'a, T: serde::Deserialize<'a>>(
    mut received: Received<'a>,
    action: impl FnOnce(Common, T) -> Action,
) -> Result<Action, FieldError> {
    let (common, payload) = received.common_and()?;
    Ok(action(common, payload))
}

fn erase(mut received: Received<'_>) -> Result<Action, FieldError> {
    let (common, wire::Erase {}) = received.common_and()?;
    // A sender that puts both into every action may mean either; a wrong choice would destroy
    // data.
    let is_explicit = common.conversation_is_explicit == ConversationSource::Explicit;
    if common.user_id.is_some() && is_explicit {
        let fault = "must not be sent together with `conversation_id`; send only what to erase";
        return Err(received.fields.error("user_id", fault));
    }
    Ok(Action::Erase(common))
}

fn patch(mut received: Received<'_>) -> Result<Action, FieldError> {
    let (common, patch): (Common, Patch) = received.common_and()?;
    if patch.patch.is_none() && patch.append.is_none() && patch.increment.is_none() {
        let fault = "is missing, as are `append` and `increment`; send at least one of the three";
        return Err(received.fields.error("patch", fault));
    }
    Ok(Action::StatePatch(common, patch))
}
