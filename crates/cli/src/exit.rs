//! How a command ends: its exit code and its error message.
//!
//! An error names the server or setting, what went wrong, and the remedy.

use std::fmt;
use std::process::ExitCode;

use stores::Fault;
pub(crate) use stores::Unavailable;

/// How a command that could do its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything was done, and no problem was found.
    Success,
    /// A problem was found, or something could not be done.
    Problems,
    /// A server became unavailable while the command ran.
    Unavailable,
}

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the command needs is missing or wrong.
    Problem {
        what: String,
        /// How to fix it, where that is known.
        remedy: Option<String>,
    },
    /// The command line or a setting is invalid.
    Usage(String),
    /// A server is unreachable, or authentication failed.
    Unavailable(Unavailable),
    /// The reader of standard output closed the pipe (`| head`). No error.
    ClosedPipe,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Success => ExitCode::SUCCESS,
            Self::Problems => ExitCode::from(1),
            Self::Unavailable => ExitCode::from(3),
        }
    }
}

impl Failure {
    pub(crate) fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Problem { what: what.into(), remedy: Some(remedy.into()) }
    }

    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self::Problem { what: what.into(), remedy: None }
    }

    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Problem { .. } => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Unavailable(_) => ExitCode::from(3),
            Self::ClosedPipe => ExitCode::SUCCESS,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Setting(what) => Self::Usage(what),
            Fault::Unavailable(unavailable) => Self::Unavailable(unavailable),
            Fault::Refused(what) => Self::plain(what),
        }
    }
}

impl From<std::io::Error> for Failure {
    /// Writing the output failed.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::plain(format!("cannot write the output: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    /// The first line says what is wrong; the others give the remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem { what, remedy: None } => f.write_str(what),
            Self::Problem { what, remedy: Some(remedy) } => write!(f, "{what}\n{remedy}"),
            Self::Usage(what) => f.write_str(what),
            Self::Unavailable(unavailable) => unavailable.fmt(f),
            Self::ClosedPipe => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_closed_the_pipe_is_no_failure() {
        let closed = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(matches!(closed, Failure::ClosedPipe));
        let full = Failure::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(full.to_string().starts_with("cannot write the output"), "{full}");
    }
}
