//! Errors of settings. Each names the setting, where its value came from, and what to change.
//!
//! No error contains a secret, nor an excerpt of the file: an excerpt may include the line of a secret.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The source of a value.
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

/// Why the settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the file system.
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
    /// The key is not a setting.
    #[error("{origin}: unknown setting{hint}")]
    Unknown {
        /// Where the key is.
        origin: Origin,
        /// The probable correction; starts with a separator, or is empty.
        hint: String,
    },
    /// The value is invalid.
    #[error("{origin}: {}{reason}", .value.as_ref().map(|v| format!("{v:?}: ")).unwrap_or_default())]
    Value {
        /// The source of the value.
        origin: Origin,
        /// The value; none for secrets.
        value: Option<String>,
        /// What is wrong, and which values are valid.
        reason: String,
    },
    /// A secret is set both directly and as the path of a file.
    #[error("both {0} and {1} are set: set only one of them")]
    Both(Origin, Origin),
    /// The file of a secret cannot be read.
    #[error("{origin}: cannot read {}", path.display())]
    Secret {
        /// The setting that names the file.
        origin: Origin,
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// Required settings are not set: a line for each.
    #[error("{}", .0.join("\n"))]
    Missing(Vec<String>),
    /// The command line cannot be parsed.
    #[error("{0}")]
    Usage(String),
}
