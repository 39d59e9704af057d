//! The names of all actions. Routing, decoding and schemas use this one list.

use std::fmt;

/// The kind of an action. Its name is the body's `action_type` and the routing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    /// `conversation.save_message`
    SaveMessage,
    /// `conversation.session_opened`
    SessionOpened,
    /// `conversation.session_closed`
    SessionClosed,
    /// `conversation.get_context`
    GetContext,
    /// `conversation.get_history`
    GetHistory,
    /// `conversation.feedback`
    Feedback,
    /// `conversation.erase`
    Erase,
    /// `state.load`
    StateLoad,
    /// `state.save`
    StateSave,
    /// `state.patch`
    StatePatch,
    /// `state.transition`
    StateTransition,
    /// `state.clear`
    StateClear,
    /// `state.list_active`
    StateListActive,
    /// `state.stats`
    StateStats,
}

impl ActionKind {
    /// Every action, in the order of the documentation.
    pub const ALL: [Self; 14] = [
        Self::SaveMessage,
        Self::SessionOpened,
        Self::SessionClosed,
        Self::GetContext,
        Self::GetHistory,
        Self::Feedback,
        Self::Erase,
        Self::StateLoad,
        Self::StateSave,
        Self::StatePatch,
        Self::StateTransition,
        Self::StateClear,
        Self::StateListActive,
        Self::StateStats,
    ];

    /// The `action_type`, which is also the routing key.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SaveMessage => "conversation.save_message",
            Self::SessionOpened => "conversation.session_opened",
            Self::SessionClosed => "conversation.session_closed",
            Self::GetContext => "conversation.get_context",
            Self::GetHistory => "conversation.get_history",
            Self::Feedback => "conversation.feedback",
            Self::Erase => "conversation.erase",
            Self::StateLoad => "state.load",
            Self::StateSave => "state.save",
            Self::StatePatch => "state.patch",
            Self::StateTransition => "state.transition",
            Self::StateClear => "state.clear",
            Self::StateListActive => "state.list_active",
            Self::StateStats => "state.stats",
        }
    }

    /// The action of this `action_type`.
    #[must_use]
    pub fn parse(action_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == action_type)
    }

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

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
