//! How a command ends: its exit code and its error message.
//!
//! An error names the server or setting, what went wrong, and the remedy.

use std::process::ExitCode;

use stores::Fault;

/// The exit code of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything was done, and no problem was found.
    Success = 0,
    /// A problem was found, or something could not be done.
    Problems = 1,
    /// The command line or a setting is invalid.
    Usage = 2,
    /// A server is unreachable, or authentication failed.
    Unavailable = 3,
}

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// The first line says what is wrong; the others give the remedy.
    pub(crate) text: String,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

impl Failure {
    /// What the command needs is missing or wrong; `remedy` says how to fix it.
    pub(crate) fn problem(what: impl Into<String>, remedy: impl AsRef<str>) -> Self {
        Self::plain(what).with(remedy)
    }

    /// What the command needs is missing or wrong.
    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self { exit: Exit::Problems, text: what.into() }
    }

    /// The command line or a setting is invalid.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, text: what.into() }
    }

    /// The failure with another line.
    pub(crate) fn with(mut self, line: impl AsRef<str>) -> Self {
        self.text.push('\n');
        self.text.push_str(line.as_ref());
        self
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Setting(what) => Self::usage(what),
            Fault::Unavailable(unavailable) => {
                Self { exit: Exit::Unavailable, text: unavailable.to_string() }
            }
            Fault::Refused(what) => Self::plain(what),
        }
    }
}
