//! What can become of a delivery: the handler names one outcome for each, the loop settles it.
//!
//! The classes keep one question out of every `catch`: is it the message's fault, or the weather's?
//! Weather (a store that is away) never counts an attempt; a message's own fault never holds up its
//! neighbours.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a failure is to be treated. Every infrastructure error names its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// A store or the broker is away (refused, timed out, failing over, read-only, disk full):
    /// hold the batch, probe, count no attempt.
    Unavailable,
    /// A serialisation failure, deadlock or lock time-out: retried in place, uncounted, bounded.
    Transient,
    /// The data of some message in the batch was refused: bisect down to it.
    Data,
    /// Nobody classified it: attempt + 1, delayed retry, and after the last one a dead letter.
    Retryable,
}

/// A server that the fleet depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dependency {
    /// RabbitMQ.
    RabbitMq,
    /// Redis.
    Redis,
    /// PostgreSQL.
    PostgreSql,
}

impl Dependency {
    /// Every store.
    pub const ALL: [Self; 3] = [Self::RabbitMq, Self::Redis, Self::PostgreSql];

    /// The label in metrics and log lines.
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
        f.write_str(self.as_str())
    }
}

/// A store is away; whoever gets this holds what it has and probes.
#[derive(Debug, thiserror::Error)]
#[error("{dependency} is unavailable")]
pub struct Unavailable {
    /// Which one.
    pub dependency: Dependency,
    /// What the client library said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What a handler decided about one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do: acknowledge.
    Done(Done),
    /// It failed in a way that nobody classified; the text says how. Another attempt, later.
    Retry(String),
    /// It can never succeed.
    DeadLetter(Refusal),
}

/// Why an outcome is final and good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Done {
    /// It took effect.
    Applied,
    /// It had taken effect before; nothing changed.
    Duplicate,
    /// A tombstone newer than it forbids its effect.
    Erased,
}

/// Why an action was refused, in the words that its sender needs to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// The class that operators group by.
    pub reason: DeadLetterReason,
    /// The field at fault, as a path such as `data.tool_calls[0].id`, where there is one.
    pub field: Option<String>,
    /// A sentence that names the field and its fault.
    pub detail: String,
}

/// Why something became a dead letter. The names are stored and published: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterReason {
    /// The body is not one JSON object in UTF-8.
    MalformedJson,
    /// A field is missing, of the wrong type, out of range or contradictory.
    Schema,
    /// The body is larger than the limit.
    TooLarge,
    /// No action has this `action_type`.
    UnknownAction,
    /// The id is taken by a message with other words.
    Conflict,
    /// Every retry failed.
    AttemptsExhausted,
    /// It came back to the queue too often without being settled.
    DeliveryLimit,
    /// It waited longer than its own `expiration`.
    Expired,
}

impl DeadLetterReason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::MalformedJson,
        Self::Schema,
        Self::TooLarge,
        Self::UnknownAction,
        Self::Conflict,
        Self::AttemptsExhausted,
        Self::DeliveryLimit,
        Self::Expired,
    ];

    /// The stored name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::Schema => "schema",
            Self::TooLarge => "too_large",
            Self::UnknownAction => "unknown_action",
            Self::Conflict => "conflict",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::DeliveryLimit => "delivery_limit",
            Self::Expired => "expired",
        }
    }

    /// The reason of a stored name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
