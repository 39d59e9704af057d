//! The closed label sets that belong to metrics alone; those of the domain stay in the domain.

use domain::failure::DeadLetterReason;

use crate::Label;
use crate::label::label;

label! {
    /// How a delivery was settled.
    DeliveryOutcome {
        /// It took effect.
        Applied = "applied",
        /// It had taken effect before.
        Duplicate = "duplicate",
        /// A tombstone forbids its effect.
        Erased = "erased",
        /// A copy waits in a retry queue.
        Retried = "retried",
        /// A copy became a dead letter.
        DeadLettered = "dead_lettered",
        /// A copy moved to the suspect queue: it had come back too often.
        Quarantined = "quarantined",
        /// It was given back to the queue unsettled: a hold or a drain ran out of time.
        Requeued = "requeued",
    }
}

label! {
    /// Why an attempt is made again.
    RetryClass {
        /// A store was away.
        Unavailable = "unavailable",
        /// One message failed in a way that nobody classified.
        Retryable = "retryable",
    }
}

label! {
    /// Why a transaction was done again in place.
    TransactionRetry {
        /// A deadlock, a serialisation failure or a lock time-out.
        Transient = "transient",
        /// One of its rows was refused, or it took too long as a whole: it was halved.
        Split = "split",
    }
}

label! {
    /// What became of a publish.
    PublishOutcome {
        /// The broker confirmed it, and it reached a queue.
        Confirmed = "confirmed",
        /// The broker refused it (`basic.nack`): a queue is full or has no leader.
        Refused = "refused",
        /// No queue took it; the broker returned it.
        Unroutable = "unroutable",
        /// The broker has stopped reading from publishers: a memory or disk alarm. It may still arrive.
        Blocked = "blocked",
        /// The connection died before the confirm: nobody knows.
        Unknown = "unknown",
    }
}

label! {
    /// Why a consumer was built anew.
    ConsumerRestart {
        /// Its stream ended: the queue was deleted, or the broker cancelled it.
        StreamEnded = "stream_ended",
        /// The channel or the connection failed.
        Error = "error",
        /// Messages were ready, room was free, and nothing came.
        NoProgress = "no_progress",
        /// A hold lasted so long that the channel was closed for its duration.
        Hold = "hold",
        /// The prefetch changed, which takes effect for new consumers only.
        Prefetch = "prefetch",
    }
}

label! {
    /// What a reader found in Redis.
    HotRead {
        /// A complete copy; it was used.
        Hit = "hit",
        /// No copy.
        Miss = "miss",
        /// A copy whose mark carries other numbers than PostgreSQL; it was not used.
        Stale = "stale",
        /// Redis did not answer.
        Unavailable = "unavailable",
    }
}

label! {
    /// How the load of a hot copy ended.
    HotLoad {
        /// The copy is there and marked.
        Loaded = "loaded",
        /// The key vanished or another load took over; nothing was marked.
        Overtaken = "overtaken",
        /// Redis or PostgreSQL failed meanwhile.
        Failed = "failed",
    }
}

label! {
    /// Why a conversation got a new `hot_generation`.
    GenerationChange {
        /// An append failed or its result is unknown.
        AppendFailed = "append_failed",
        /// Redis was known to be away when the messages were saved.
        RedisAway = "redis_away",
        /// Its rows changed behind the copy: erased or repaired.
        Rewritten = "rewritten",
    }
}

label! {
    /// Which session event was applied.
    SessionEventKind {
        /// `conversation.session_opened`.
        Opened = "opened",
        /// `conversation.session_closed`.
        Closed = "closed",
    }
}

label! {
    /// Why a conversation was closed.
    CloseCause {
        /// Its last open session closed and the grace period passed.
        SessionClosed = "session_closed",
        /// Nothing happened in it for the idle time.
        Idle = "idle",
    }
}

label! {
    /// Why the dead-letter collector sent a dead letter back to its queue.
    RerouteCause {
        /// It had expired in the queue by its sender's own `expiration`.
        Expired = "expired",
        /// It had been unroutable although its action is known.
        Unrouted = "unrouted",
    }
}

label! {
    /// The state of a message in a queue, in RabbitMQ's words.
    QueueState {
        /// Waiting for a consumer.
        Ready = "ready",
        /// Delivered and not yet acknowledged.
        Unacknowledged = "unacknowledged",
    }
}

label! {
    /// What is counted for the whole fleet.
    Counted {
        /// The queues of RabbitMQ: messages and consumers.
        Queues = "queues",
        /// Rows of PostgreSQL: dead letters and conversations.
        Rows = "rows",
    }
}

label! {
    /// How a supervised task ended that should not have.
    TaskEnd {
        /// It panicked.
        Panicked = "panicked",
        /// It returned an error.
        Failed = "failed",
        /// It returned as if it were done.
        Returned = "returned",
    }
}

/// Where a dead letter is: stored by the dead-letter collector with its reason, or still on its way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadLetterState {
    /// An open row of `dead_letters`.
    Stored(DeadLetterReason),
    /// A message in the dead-letter queue. Its reason is known when the dead-letter collector has read it.
    InQueue,
}

impl Label for DeadLetterState {
    const CLOSED: Option<&'static [&'static str]> = Some(&[
        "malformed_json",
        "schema",
        "too_large",
        "unknown_action",
        "conflict",
        "attempts_exhausted",
        "delivery_limit",
        "expired",
        "in_queue",
    ]);

    fn value(self) -> &'static str {
        match self {
            Self::Stored(reason) => reason.as_str(),
            Self::InQueue => "in_queue",
        }
    }
}
