//! The errors of Redis with their failure classes.
//!
//! Redis is a cache; PostgreSQL has all data. So nearly every error is
//! [`FailureClass::Unavailable`]: the caller continues with PostgreSQL. No error contains a URL, an
//! argument of a command or message content.

use std::sync::Arc;

use domain::failure::FailureClass;
use domain::ids::ConversationKey;
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why a call to Redis failed. Cheap to clone: while Redis is unavailable, many calls return the
/// same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The attempt to connect failed; the next attempt follows after a pause.
    #[error("no connection to Redis: {0}")]
    NotConnected(Arc<str>),
    /// The server is not a master: it would refuse writes, or lose them when it synchronises.
    #[error("the Redis server is a {0}, not a master; the Redis URL must lead to a master")]
    NotMaster(String),
    /// The connection was lost or the reply timed out: it is unknown whether the command ran.
    #[error("the connection to Redis was lost: {0}")]
    Broken(Arc<str>),
    /// The server is reachable but cannot be used: it is loading, fails over or refuses the
    /// credentials; its identity changed; or a cluster's slots moved.
    #[error("Redis cannot be used: {0}")]
    NotServing(Arc<str>),
    /// The server works but does not run this command now: out of memory, cannot write to its disk,
    /// busy, no permission, or the slot of the key is being migrated.
    #[error("Redis does not run this command now: {0}")]
    Refusing(Arc<str>),
    /// The server identity could not be compared with the recorded one.
    #[error("the Redis server identity could not be checked: {0}")]
    ServerRejected(Arc<str>),
    /// Another reader is loading the copy; a second load would only cancel the first.
    #[error("another reader is loading the hot copy")]
    LoadUnderWay,
    /// Any other error reply.
    #[error("Redis replied with an error: {0}")]
    Command(Arc<str>),
}

/// An append that failed completely or in part. Before the caller acknowledges the messages, it
/// must give each of these conversations a new `hot_generation`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the hot copies of {} conversations may lack messages", conversations.len())]
pub struct AppendError {
    /// The conversations whose copies lack or may lack rows.
    pub conversations: Vec<ConversationKey>,
    /// The first error.
    #[source]
    pub cause: Error,
}

impl Error {
    /// How the error is treated.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NotConnected(_)
            | Self::NotMaster(_)
            | Self::Broken(_)
            | Self::NotServing(_)
            | Self::Refusing(_)
            | Self::ServerRejected(_) => FailureClass::Unavailable,
            Self::LoadUnderWay => FailureClass::Transient,
            Self::Command(_) => FailureClass::Retryable,
        }
    }

    /// Whether the connection must be discarded.
    pub(crate) fn ends_the_connection(&self) -> bool {
        match self {
            Self::Broken(_) | Self::NotConnected(_) | Self::NotMaster(_) | Self::NotServing(_) => {
                true
            }
            Self::Refusing(_) | Self::ServerRejected(_) | Self::LoadUnderWay | Self::Command(_) => {
                false
            }
        }
    }

    pub(crate) fn at(mut self, server: &str) -> Self {
        if let Some(text) = self.text() {
            *text = format!("{server}: {text}").into();
        }
        self
    }

    /// The same error as the reason of a failed attempt to connect.
    pub(crate) fn while_connecting(mut self) -> Self {
        match self.text() {
            Some(text) => Self::NotConnected(Arc::clone(text)),
            None => self,
        }
    }

    /// What a server replied, or the client library says about it.
    fn text(&mut self) -> Option<&mut Arc<str>> {
        match self {
            Self::NotConnected(text)
            | Self::Broken(text)
            | Self::NotServing(text)
            | Self::Refusing(text)
            | Self::Command(text) => Some(text),
            Self::NotMaster(_) | Self::ServerRejected(_) | Self::LoadUnderWay => None,
        }
    }

    /// The error that aborted a transaction: one that ends the connection if there is one, else the
    /// first.
    fn aborted(error: RedisError, text: Arc<str>) -> Self {
        let causes = error.into_server_errors();
        let causes = causes.iter().flat_map(|causes| causes.iter());
        let mut causes = causes.map(|(_, cause)| Self::from(RedisError::from(cause.clone())));
        let first = causes.next();
        let ends = first.iter().cloned().chain(causes).find(Self::ends_the_connection);
        ends.or(first).unwrap_or(Self::Command(text))
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        let text: Arc<str> = describe(&error).into();
        match error.kind() {
            // A demoted master must not be used again: it has a new server identity.
            ErrorKind::Server(ServerErrorKind::ReadOnly) => Self::NotMaster("replica".to_owned()),
            ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown)
            | ErrorKind::AuthenticationFailed => Self::NotServing(text),
            // The slot map is no longer the one with which this connection was checked.
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::ClusterDown) => {
                Self::NotServing(text)
            }
            // A new connection would get the same error, so this one is kept. ASK: the slot of the
            // key is being migrated; ASK is not followed (see `connection.rs`).
            ErrorKind::Server(
                ServerErrorKind::Ask | ServerErrorKind::TryAgain | ServerErrorKind::NoPerm,
            ) => Self::Refusing(text),
            // No command of the transaction ran; the error has the errors of its commands.
            ErrorKind::Server(ServerErrorKind::ExecAbort) => Self::aborted(error, text),
            _ => match error.code() {
                Some("NOAUTH" | "WRONGPASS") => Self::NotServing(text),
                Some("OOM" | "MISCONF" | "NOREPLICAS" | "BUSY") => Self::Refusing(text),
                _ if error.is_io_error() || error.is_unrecoverable_error() => Self::Broken(text),
                _ => Self::Command(text),
            },
        }
    }
}

/// The error's text without the arguments that Redis repeats ("…, with args beginning with: …"):
/// they may be message content.
fn describe(error: &RedisError) -> String {
    let mut text = error.to_string();
    if let Some(at) = text.find(", with args") {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(line: &str) -> Error {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err().into()
    }

    #[test]
    fn a_server_that_cannot_be_used_is_unavailable() {
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots",
            "NOREPLICAS Not enough good replicas to write.",
            "BUSY Redis is busy running a script.",
            "NOAUTH Authentication required.",
            "NOPERM this user has no permissions",
        ] {
            assert_eq!(reply(line).class(), FailureClass::Unavailable, "{line}");
        }
    }

    #[test]
    fn a_demoted_master_ends_the_connection_but_full_memory_does_not() {
        assert!(reply("READONLY You can't write").ends_the_connection());
        assert!(reply("LOADING Redis is loading").ends_the_connection());
        assert!(reply("MOVED 3999 127.0.0.1:6381").ends_the_connection());
        assert!(reply("CLUSTERDOWN The cluster is down").ends_the_connection());
        for line in [
            "OOM command not allowed",
            "NOPERM this user has no permissions",
            "ASK 3999 127.0.0.1:6381",
        ] {
            assert!(!reply(line).ends_the_connection(), "{line}");
        }
    }

    #[test]
    fn any_other_error_reply_is_retryable() {
        let error = reply("WRONGTYPE Operation against a key holding the wrong kind of value");
        assert_eq!(error.class(), FailureClass::Retryable);
    }

    #[test]
    fn an_error_never_repeats_arguments() {
        let error = reply("ERR unknown command `ZADD`, with args beginning with: `k`, `my words`");
        assert!(!error.to_string().contains("my words"), "{error}");
        assert!(error.to_string().contains("unknown command"), "{error}");
    }

    #[test]
    fn a_lost_connection_or_a_timeout_is_unavailable() {
        for kind in [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::TimedOut] {
            let error = Error::from(RedisError::from(std::io::Error::from(kind)));
            assert_eq!(error.class(), FailureClass::Unavailable, "{kind}");
            assert!(error.ends_the_connection(), "{kind}");
        }
    }
}
