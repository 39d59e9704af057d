//! Why a process does not start with the settings it was given, in words that name what to change.
//!
//! The text of a secret never appears; neither do excerpts of the file, whose next line may be one.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A key of the YAML file.
    File {
        /// The file.
        path: PathBuf,
        /// The line of the value, from 1.
        line: u64,
        /// The key.
        key: String,
    },
    /// An environment variable.
    Environment(String),
    /// A flag such as `--listen`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, key } => write!(f, "{}:{line}: {key}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Settings that a process cannot start with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not YAML, or not a map.
    #[error("{}:{line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong there.
        reason: String,
    },
    /// Nobody knows this key.
    #[error("{origin}: unknown setting{hint}")]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// What was probably meant; starts with a separator, or is empty.
        hint: String,
    },
    /// The value does not fit.
    #[error("{origin}: {}{reason}", .value.as_ref().map(|v| format!("{v:?}: ")).unwrap_or_default())]
    Value {
        /// Where it came from.
        origin: Origin,
        /// The value; none for secrets.
        value: Option<String>,
        /// What would fit.
        reason: String,
    },
    /// A secret is given as itself and as a file.
    #[error("both {0} and {1} are set: set one of them")]
    Both(Origin, Origin),
    /// The file that should hold a secret cannot be read.
    #[error("{origin}: cannot read {}", path.display())]
    Secret {
        /// Who names the file.
        origin: Origin,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Settings without a default that nobody gave.
    #[error("{}", .0.join("\n"))]
    Missing(Vec<String>),
    /// The command line itself is wrong.
    #[error("{0}")]
    Usage(String),
}
