//! The error of settings. It names the setting, where its value came from, and what to change.

use std::fmt;

/// Why the settings are invalid, for the person who starts the process. It contains no secret, nor an
/// excerpt of the file: an excerpt may include the line of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl SettingsError {
    /// An error of the command line as a whole, or of the file.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The value of `origin`, such as `flag --listen` or `fleet.yaml:3: listen`, is invalid.
    pub(super) fn of(origin: &str, reason: impl fmt::Display) -> Self {
        Self(format!("{origin}: {reason}"))
    }

    /// A secret is set both directly and as the path of a file.
    pub(super) fn both(one: &str, other: &str) -> Self {
        Self(format!("both {one} and {other} are set: set only one of them"))
    }
}
