//! What can go wrong with Redis, each with its failure class.
//!
//! Redis accelerates; it holds no truth. So nearly every fault is [`FailureClass::Unavailable`]: the
//! caller goes on with PostgreSQL. No error repeats a URL, an argument or a message's words.

use std::fmt;
use std::sync::Arc;

use domain::failure::{Dependency, FailureClass, Unavailable};
use domain::ids::ConversationKey;
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why a call to Redis failed. Cheap to clone: while Redis is down many calls share one cause.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No connection could be made, or its server is not ours to use; the next attempt is due soon.
    #[error("no connection to Redis: {0}")]
    NotConnected(Arc<str>),
    /// The server is no master, so it would refuse writes or forget them.
    #[error("the Redis server is a {0}, not a master")]
    NotMaster(String),
    /// The connection broke or the reply did not come in time: whether the command ran is unknown.
    #[error("the connection to Redis broke: {0}")]
    Broken(Arc<str>),
    /// The server is there and serves us nothing now: loading, failing over, not letting us in; or a
    /// cluster of which a part is not what it was.
    #[error("Redis does not serve: {0}")]
    NotServing(Arc<str>),
    /// The server serves, but not this command now: out of memory, unable to write its disk, busy,
    /// not permitted, or handing this key over to another.
    #[error("Redis refuses for now: {0}")]
    Refusing(Arc<str>),
    /// The server identity could not be compared with the one on record.
    #[error("Redis could not be admitted: {0}")]
    ServerRejected(Arc<str>),
    /// Another reader is loading the copy, and a second load would only take its place.
    #[error("another load of the hot copy is under way")]
    LoadUnderWay,
    /// The server answered with an error that nobody foresaw.
    #[error("Redis refused a command: {0}")]
    Command(Arc<str>),
}

/// An append that did not wholly succeed. Whoever gets this gives the conversations a new
/// `hot_generation` before acknowledging anything.
#[derive(Debug, Clone)]
pub struct AppendError {
    /// The conversations whose rows are missing or may be missing from their copies.
    pub conversations: Vec<ConversationKey>,
    /// What happened first.
    pub cause: Error,
}

impl Error {
    /// How it is to be treated.
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

    /// Whether the connection must not be used again.
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

    /// The same, with the name of the server at fault.
    pub(crate) fn at(self, place: &str) -> Self {
        let at = |text: &str| -> Arc<str> { format!("{place}: {text}").into() };
        match &self {
            Self::NotConnected(text) => Self::NotConnected(at(text)),
            Self::Broken(text) => Self::Broken(at(text)),
            Self::NotServing(text) => Self::NotServing(at(text)),
            Self::Refusing(text) => Self::Refusing(at(text)),
            Self::Command(text) => Self::Command(at(text)),
            Self::NotMaster(_) | Self::ServerRejected(_) | Self::LoadUnderWay => self,
        }
    }

    /// The same, as the reason why there is no connection.
    pub(crate) fn in_connecting(self) -> Self {
        match self {
            Self::Broken(text)
            | Self::NotServing(text)
            | Self::Refusing(text)
            | Self::Command(text) => Self::NotConnected(text),
            Self::NotConnected(_)
            | Self::NotMaster(_)
            | Self::ServerRejected(_)
            | Self::LoadUnderWay => self,
        }
    }

    /// Why a transaction did not run; what ends the connection before all else.
    fn aborted(error: RedisError, text: Arc<str>) -> Self {
        let causes = error.into_server_errors();
        let causes = causes.iter().flat_map(|causes| causes.iter());
        let mut causes = causes.map(|(_, cause)| Self::from(RedisError::from(cause.clone())));
        let first = causes.next();
        let ends = first.iter().cloned().chain(causes).find(Self::ends_the_connection);
        ends.or(first).unwrap_or(Self::Command(text))
    }
}

impl From<Error> for Unavailable {
    fn from(error: Error) -> Self {
        Self { dependency: Dependency::Redis, source: Box::new(error) }
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        let text: Arc<str> = describe(&error).into();
        match error.kind() {
            // A demoted master must not be used again: its server identity is over.
            ErrorKind::Server(ServerErrorKind::ReadOnly) => Self::NotMaster("replica".to_owned()),
            ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown)
            | ErrorKind::AuthenticationFailed => Self::NotServing(text),
            // The map of the slots is no longer the one under which this connection was admitted.
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::ClusterDown) => {
                Self::NotServing(text)
            }
            // A new connection would be admitted and refused again, so this one is kept. ASK: the key's
            // slot is being handed over, and not to be followed (see `connection.rs`).
            ErrorKind::Server(
                ServerErrorKind::Ask | ServerErrorKind::TryAgain | ServerErrorKind::NoPerm,
            ) => Self::Refusing(text),
            // Nothing of a transaction ran, because of what is said of its commands.
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

/// The error's text without what Redis repeats of our arguments ("…, with args beginning with: …"),
/// which could be somebody's words.
fn describe(error: &RedisError) -> String {
    let mut text = error.to_string();
    if let Some(at) = text.find(", with args") {
        text.truncate(at);
    }
    text
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} conversations may lack rows in their hot copies", self.conversations.len())
    }
}

impl std::error::Error for AppendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(line: &str) -> Error {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err().into()
    }

    #[test]
    fn a_server_that_cannot_serve_is_unavailable() {
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
    fn an_unforeseen_reply_is_retryable() {
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
    fn a_broken_connection_or_a_time_out_is_unavailable() {
        for kind in [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::TimedOut] {
            let error = Error::from(RedisError::from(std::io::Error::from(kind)));
            assert_eq!(error.class(), FailureClass::Unavailable, "{kind}");
            assert!(error.ends_the_connection(), "{kind}");
        }
    }
}
