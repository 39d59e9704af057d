//! The names of all actions. Routing, decoding and schemas use this one list.

use crate::named::named;

named! {
    /// The kind of an action. Its name is the body's `action_type` and the routing key.
    pub enum ActionKind {
        /// `conversation.save_message`
        SaveMessage = "conversation.save_message",
        /// `conversation.save_messages`
        SaveMessages = "conversation.save_messages",
        /// `conversation.sync_messages`
        SyncMessages = "conversation.sync_messages",
        /// `conversation.delete_message`
        DeleteMessage = "conversation.delete_message",
        /// `conversation.session_opened`
        SessionOpened = "conversation.session_opened",
        /// `conversation.session_closed`
        SessionClosed = "conversation.session_closed",
        /// `conversation.get_context`
        GetContext = "conversation.get_context",
        /// `conversation.get_history`
        GetHistory = "conversation.get_history",
        /// `conversation.feedback`
        Feedback = "conversation.feedback",
        /// `conversation.erase`
        Erase = "conversation.erase",
        /// `state.load`
        StateLoad = "state.load",
        /// `state.save`
        StateSave = "state.save",
        /// `state.patch`
        StatePatch = "state.patch",
        /// `state.transition`
        StateTransition = "state.transition",
        /// `state.clear`
        StateClear = "state.clear",
        /// `state.list_active`
        StateListActive = "state.list_active",
        /// `state.stats`
        StateStats = "state.stats",
    }
}

impl ActionKind {
    /// The action that a misspelt `action_type` probably means, for a hint: one that differs in
    /// case or punctuation only, or lacks the part before the dot.
    pub(crate) fn meant_by(action_type: &str) -> Option<Self> {
        let normalised = |name: &str| -> String {
            name.chars()
                .filter(char::is_ascii_alphanumeric)
                .collect::<String>()
                .to_ascii_lowercase()
        };
        let meant = normalised(action_type);
        let is_meant = |name: &str| normalised(name) == meant;
        Self::ALL.into_iter().find(|kind| {
            let name = kind.as_str();
            is_meant(name) || name.split_once('.').is_some_and(|(_, short)| is_meant(short))
        })
    }

    /// Whether it is a request, which only reads. Requests may expire, are never retried and never
    /// dead-lettered.
    #[must_use]
    pub const fn is_request(self) -> bool {
        matches!(
            self,
            Self::GetContext
                | Self::GetHistory
                | Self::StateLoad
                | Self::StateListActive
                | Self::StateStats
        )
    }
}
