//! The status of a conversation.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The status of a conversation. The names are stored and published: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConversationStatus {
    /// Open for messages.
    Active,
    /// A close is in progress: tokens are counted, the hot copy is dropped, the event is published.
    Closing,
    /// Closed. A later message makes it active again.
    Archived,
}

impl ConversationStatus {
    /// Every status, in the order of a conversation's life.
    pub const ALL: [Self; 3] = [Self::Active, Self::Closing, Self::Archived];

    /// The stored name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Closing => "closing",
            Self::Archived => "archived",
        }
    }

    /// The status of a stored name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

impl fmt::Display for ConversationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
