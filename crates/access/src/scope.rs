//! What a key may do.

/// A group of endpoints that a key may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Read conversations and statistics.
    Read,
    /// Publish actions.
    Write,
    /// List, replay and discard dead letters.
    Operate,
    /// Erase conversations and users.
    Erase,
    /// Export all that a tenant has.
    Export,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Operate, Self::Erase, Self::Export];

    /// Its name in commands, in the table of keys and in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Operate => "operate",
            Self::Erase => "erase",
            Self::Export => "export",
        }
    }

    /// The scope with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}
