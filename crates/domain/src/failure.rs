//! The outcomes of a delivery: the handler returns one for each, the consumer loop settles it.
//!
//! Every error has a class that separates infrastructure failures from faults of a message. An
//! infrastructure failure (PostgreSQL, Redis or RabbitMQ unavailable) never counts as an attempt. A
//! fault of one message never delays other messages.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::causes::with_causes;
use crate::named::named;

/// How a failure is treated. Every error of a client library is mapped to one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// A dependency is unavailable (connection refused, timeout, failover, read-only, disk full):
    /// the batch is held, the dependency is probed, no attempt is counted.
    Unavailable,
    /// A serialisation failure, a deadlock or a lock timeout. All but the last are retried in place, with pauses, for about
    /// 3 s; no attempt is counted.
    Transient,
    /// The data of some message in the batch was refused: the batch is bisected to find it.
    Data,
    /// Any other error: one attempt is counted and the message is retried after a delay. After the
    /// last attempt it becomes a dead letter.
    Retryable,
}

/// A server that the fleet depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dependency {
    /// RabbitMQ.
    RabbitMq,
    /// Redis.
    Redis,
    /// PostgreSQL.
    PostgreSql,
}

impl Dependency {
    /// Every dependency.
    pub const ALL: [Self; 3] = [Self::RabbitMq, Self::Redis, Self::PostgreSql];

    /// The label in metrics, in JSON and in the fields of log lines. People read its `Display`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
            Self::PostgreSql => "postgresql",
        }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RabbitMq => "RabbitMQ",
            Self::Redis => "Redis",
            Self::PostgreSql => "PostgreSQL",
        })
    }
}

/// A dependency is unavailable. The caller holds its batch and probes the dependency until it is
/// available again.
#[derive(Debug, thiserror::Error)]
#[error("{dependency} is unavailable")]
pub struct Unavailable {
    /// Which one.
    pub dependency: Dependency,
    /// The error of the client library.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// An error with its causes. Clones share it. Two are equal if their texts are.
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

/// What a use case decided about one action.
pub type Outcome = Result<Done, Failure>;

/// Why an action took no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Another attempt may succeed: the message is retried after a delay.
    #[error("{0}")]
    Retry(Cause),
    /// It alone takes longer than the time limit, although its dependency answers. It is handled again apart from
    /// others, with a longer limit; no attempt is counted until the longest is over.
    #[error("{0}")]
    TimedOut(Cause),
    /// Another transaction holds what it needs. It is handled again apart from others until it succeeds; no attempt is
    /// counted.
    #[error("{0}")]
    Locked(Cause),
    /// Its dependency fails with it as if it were unavailable, and works for others. It is handled again apart from
    /// others until it succeeds; no attempt is counted.
    #[error("{0}")]
    Unavailable(Cause),
    /// It can never succeed: the message becomes a dead letter.
    #[error("{0}")]
    DeadLetter(Refusal),
}

/// Why a delivery needs no further work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Done {
    /// It took effect.
    Applied,
    /// It had taken effect before; nothing changed.
    Duplicate,
    /// The conversation was erased after the action was sent (a newer tombstone); nothing changed.
    Erased,
}

/// Why an action was refused, so that its sender can correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// The class that operators group by.
    pub reason: DeadLetterReason,
    /// The field at fault, as a path such as `data.tool_calls[0].id`, where there is one.
    pub field: Option<String>,
    /// A sentence for people that names the field, its fault and the remedy.
    pub detail: String,
    /// The remedy for programs, if the decoder finds one. It is neither sent nor stored: for a
    /// stored refusal the body must be decoded again.
    pub hint: Option<Hint>,
}

/// What corrects a refused field or body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// The field probably means this value.
    DidYouMean(String),
    /// The field is missing: add it.
    AddField,
    /// The field contains U+0000 or half of a surrogate pair, or is NaN or infinite: replace the character by another, and
    /// the number by null.
    ReplaceUnstorable,
    /// The body is JSON in another encoding than UTF-8, or behind a byte order mark.
    ToUtf8,
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Cause {
    fn from(error: E) -> Self {
        Self(error.into().into())
    }
}

impl Cause {
    /// The error.
    #[must_use]
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl fmt::Display for Cause {
    /// The error and its causes in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_causes(&*self.0))
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Cause {}

impl Failure {
    /// Whether it is handled again apart from others.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Locked(_) | Self::Unavailable(_))
    }

    /// The error, if another attempt may succeed.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Retry(cause)
            | Self::TimedOut(cause)
            | Self::Locked(cause)
            | Self::Unavailable(cause) => Some(cause),
            Self::DeadLetter(_) => None,
        }
    }

    /// The refusal of a message that is not tried again.
    #[must_use]
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::DeadLetter(refusal) => refusal,
            exhausted => Refusal::new(DeadLetterReason::AttemptsExhausted, exhausted.to_string()),
        }
    }
}

impl Refusal {
    /// A refusal that is about no single field.
    #[must_use]
    pub fn new(reason: DeadLetterReason, detail: String) -> Self {
        Self { reason, field: None, detail, hint: None }
    }
}

named! {
    /// Why something became a dead letter. The names are stored and published: they never change.
    #[derive(Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum DeadLetterReason {
        /// The body is not one JSON object in UTF-8.
        MalformedJson = "malformed_json",
        /// A field is missing, of the wrong type, out of range or contradictory.
        Schema = "schema",
        /// The body is larger than the limit.
        TooLarge = "too_large",
        /// No action has this `action_type`.
        UnknownAction = "unknown_action",
        /// Another message with different content has this id.
        Conflict = "conflict",
        /// Every attempt failed with an unexpected error.
        AttemptsExhausted = "attempts_exhausted",
        /// It was redelivered too often: workers crashed while they handled it, or requeued it.
        DeliveryLimit = "delivery_limit",
        /// It waited in a queue longer than its sender's `expiration`, and could not be sent to its queue
        /// again.
        Expired = "expired",
        /// RabbitMQ delivers AMQP properties that a client library cannot read, such as a name that is not UTF-8.
        Unreadable = "unreadable",
        /// The setting `amqp_users` does not list the action's tenant for the AMQP user that sent it.
        Forbidden = "forbidden",
    }
}
