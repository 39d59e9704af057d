//! How a command ends, and what is said about it.
//!
//! A failure says what was tried and where, what went wrong, and what mends it; addresses are shown
//! without their secrets.

use std::fmt;
use std::process::ExitCode;

/// How a command that could do its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is well.
    Fine,
    /// What was looked at has problems, or not everything could be done.
    Problems,
    /// A server went away in the middle.
    Away,
}

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for is not there or not as it must be.
    Problem {
        /// What is wrong.
        what: String,
        /// How to mend it, where that is known.
        mend: Option<String>,
    },
    /// The command line or a setting cannot be worked with.
    Usage(String),
    /// A server does not answer, or does not let us in.
    Away(Away),
    /// Whoever read the output has seen enough.
    ClosedPipe,
}

/// A server that does not answer, or does not let us in.
#[derive(Debug)]
pub(crate) struct Away {
    /// Its name, such as `RabbitMQ`.
    pub(crate) server: &'static str,
    /// The setting that says where it is.
    pub(crate) setting: &'static str,
    /// Where it was looked for, without secrets.
    pub(crate) address: String,
    /// What went wrong.
    pub(crate) cause: String,
}

impl Exit {
    /// What the process answers its caller.
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Fine => ExitCode::SUCCESS,
            Self::Problems => ExitCode::from(1),
            Self::Away => ExitCode::from(3),
        }
    }
}

impl Failure {
    /// Something is wrong, and it is known what to do about it.
    pub(crate) fn problem(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Problem { what: what.into(), mend: Some(mend.into()) }
    }

    /// Something is wrong.
    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self::Problem { what: what.into(), mend: None }
    }

    /// What the process answers its caller.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Problem { .. } => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Away(_) => ExitCode::from(3),
            Self::ClosedPipe => ExitCode::SUCCESS,
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
    /// The first line says what is wrong, the others how to mend it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem { what, mend: None } => f.write_str(what),
            Self::Problem { what, mend: Some(mend) } => write!(f, "{what}\n{mend}"),
            Self::Usage(what) => f.write_str(what),
            Self::Away(away) => away.fmt(f),
            Self::ClosedPipe => Ok(()),
        }
    }
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, setting, address, cause } = self;
        write!(f, "{server} at {address}: {cause}\n{}", self.mend())?;
        write!(f, " ({setting} says where it is)")
    }
}

impl Away {
    /// What the cause usually means. The texts are those of the operating system, RabbitMQ, Redis and
    /// PostgreSQL.
    fn mend(&self) -> &'static str {
        let says = |words: &str| self.cause.contains(words);
        if says("refused (os error") {
            "nothing listens there: is it running, are host and port right?"
        } else if says("lookup") || says("Name or service") {
            "the host name is not known here: is it spelt right?"
        } else if says("does not exist") && says("database") {
            "create the database, then run `verbatim setup`"
        } else if says("password") || says("ACCESS") || says("WRONGPASS") || says("NOAUTH") {
            "user and password must be those of the server"
        } else if says("Redis Cluster") {
            "one URL is a single server, several are nodes of a cluster"
        } else if says("vhost") {
            "the virtual host must exist, and the user must have permissions in it"
        } else {
            "is it running, and is this the right address?"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_away_is_named_with_its_address_and_its_setting() {
        let away = Away {
            server: "PostgreSQL",
            setting: "DATABASE_URL",
            address: "postgres://***@db:5432/verbatim".to_owned(),
            cause: "Connection refused (os error 111)".to_owned(),
        };
        assert_eq!(
            Failure::Away(away).to_string(),
            "PostgreSQL at postgres://***@db:5432/verbatim: Connection refused (os error 111)\n\
             nothing listens there: is it running, are host and port right? (DATABASE_URL says \
             where it is)"
        );
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let closed = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(matches!(closed, Failure::ClosedPipe));
        let full = Failure::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(full.to_string().starts_with("cannot write the output"), "{full}");
    }
}
