//! Where a conversation stands between its first message and the archive.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a conversation. The names are stored and published: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConversationStatus {
    /// Messages come, or may come.
    Active,
    /// A close is under way: somebody counts, drops the hot copy and tells the world.
    Closing,
    /// Closed. A late message makes it active again.
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
