//! How a command ends: its exit code and its error message.
//!
//! An error names the server or setting, what went wrong, and the remedy. Addresses are shown without
//! secrets.

use std::fmt;
use std::process::ExitCode;

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
        /// What is wrong.
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

/// A server that is unreachable, or where authentication failed.
#[derive(Debug)]
pub(crate) struct Unavailable {
    /// Its name, such as `RabbitMQ`.
    pub(crate) server: &'static str,
    /// The setting that holds its address.
    pub(crate) setting: &'static str,
    /// Its address, without secrets.
    pub(crate) address: String,
    /// What went wrong.
    pub(crate) cause: String,
}

impl Exit {
    /// The exit code of the process.
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Success => ExitCode::SUCCESS,
            Self::Problems => ExitCode::from(1),
            Self::Unavailable => ExitCode::from(3),
        }
    }
}

impl Failure {
    /// A problem with a known remedy.
    pub(crate) fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Problem { what: what.into(), remedy: Some(remedy.into()) }
    }

    /// A problem without a known remedy.
    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self::Problem { what: what.into(), remedy: None }
    }

    /// The exit code of the process.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Problem { .. } => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Unavailable(_) => ExitCode::from(3),
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

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, setting, address, cause } = self;
        let failed = if self.is_authentication() { "authentication failed: " } else { "" };
        write!(f, "{server} at {address}: {failed}{cause}\n{} ({setting})", self.remedy())
    }
}

impl Unavailable {
    /// The remedy for the usual meaning of the cause. The texts that it looks for are those of the
    /// operating system, RabbitMQ, Redis and PostgreSQL.
    fn remedy(&self) -> &'static str {
        let says = |text: &str| self.cause.contains(text);
        if says("refused (os error") {
            "nothing listens at this address: start the server, or correct host and port"
        } else if says("lookup") || says("Name or service") {
            "the host name does not resolve: correct it"
        } else if says("does not exist") && says("database") {
            "create the database, then run `verbatim setup`"
        } else if self.is_authentication() {
            "correct user and password"
        } else if says("Redis Cluster") {
            "one URL means a single server, several mean nodes of one Redis Cluster"
        } else if says("vhost") {
            "create the virtual host, and give the user permissions in it"
        } else {
            "check that the server is running and that the address is right"
        }
    }

    /// Whether the server rejected user or password.
    fn is_authentication(&self) -> bool {
        let texts = ["password", "ACCESS", "WRONGPASS", "NOAUTH"];
        texts.iter().any(|text| self.cause.contains(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_server_is_named_with_its_address_setting_and_remedy() {
        let unavailable = Unavailable {
            server: "PostgreSQL",
            setting: "DATABASE_URL",
            address: "postgres://***@db:5432/verbatim".to_owned(),
            cause: "Connection refused (os error 111)".to_owned(),
        };
        assert_eq!(
            Failure::Unavailable(unavailable).to_string(),
            "PostgreSQL at postgres://***@db:5432/verbatim: Connection refused (os error 111)\n\
             nothing listens at this address: start the server, or correct host and port \
             (DATABASE_URL)"
        );
    }

    #[test]
    fn a_rejected_login_is_reported_as_failed_authentication() {
        let unavailable = Unavailable {
            server: "Redis",
            setting: "REDIS_URL",
            address: "redis://***@cache:6379/0".to_owned(),
            cause: "WRONGPASS invalid username-password pair".to_owned(),
        };
        assert_eq!(
            Failure::Unavailable(unavailable).to_string(),
            "Redis at redis://***@cache:6379/0: authentication failed: WRONGPASS invalid \
             username-password pair\ncorrect user and password (REDIS_URL)"
        );
    }

    #[test]
    fn a_reader_that_closed_the_pipe_is_no_failure() {
        let closed = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(matches!(closed, Failure::ClosedPipe));
        let full = Failure::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(full.to_string().starts_with("cannot write the output"), "{full}");
    }
}
