//! The closed label sets that only metrics use; the `domain` crate defines the others.

use domain::failure::DeadLetterReason;

use crate::Label;
use crate::label::label;

label! {
    /// How a delivery was settled.
    DeliveryOutcome {
        /// It was applied.
        Applied = "applied",
        /// It had been applied before.
        Duplicate = "duplicate",
        /// It was dropped: it was deleted before, or its conversation or user was erased after it was sent.
        Erased = "erased",
        /// A copy was published to a retry queue.
        Retried = "retried",
        /// A copy was published as a dead letter.
        DeadLettered = "dead_lettered",
        /// A copy was published to `domain.unrouted`: it was not in the queue of its action.
        Rerouted = "rerouted",
        /// A copy was published to the suspect queue: it had been redelivered too often.
        Quarantined = "quarantined",
        /// A copy was published to the slow queue: alone it took longer than the time limit, its rows were locked, or PostgreSQL failed with it alone as in an outage. A locked message counts with every try; its copy waits 5 s in `domain.retry.5000` first.
        Slow = "slow",
        /// A request was refused or failed: nothing of it is kept.
        Refused = "refused",
        /// A request expired while a dependency was unavailable: nothing of it is kept.
        Expired = "expired",
        /// It was requeued without an outcome: a hold or a drain reached its time limit, or the bodies in flight
        /// exceeded `VERBATIM_MAX_INFLIGHT_BYTES`.
        Requeued = "requeued",
    }
}

label! {
    /// Why an attempt is retried.
    RetryClass {
        /// A dependency was unavailable.
        Unavailable = "unavailable",
        /// One message failed with an error of no known class.
        Retryable = "retryable",
    }
}

label! {
    /// Why a transaction was retried at once.
    TransactionRetry {
        /// A deadlock or a serialisation failure.
        Transient = "transient",
        /// PostgreSQL rejected one of its rows, or it timed out: it was repeated in parts.
        Split = "split",
    }
}

label! {
    /// What became of a reply.
    ReplyOutcome {
        /// RabbitMQ processed it. Whether a queue or a requester has it is not known.
        Sent = "sent",
        /// It was dropped: nobody is at its direct reply-to address, the address is too long for AMQP, the
        /// connection failed while it was sent, or too many bytes of replies waited.
        Dropped = "dropped",
        /// It was dropped: its address is a queue of the fleet.
        Ignored = "ignored",
    }
}

label! {
    /// How a publish ended.
    PublishOutcome {
        /// RabbitMQ confirmed it, and it reached a queue.
        Confirmed = "confirmed",
        /// RabbitMQ refused it (`basic.nack`): a queue is full or has no leader.
        Refused = "refused",
        /// No queue is bound to its routing key; RabbitMQ returned it.
        Unroutable = "unroutable",
        /// RabbitMQ blocks publishers (a memory or disk alarm). The message may still arrive.
        Blocked = "blocked",
        /// The connection failed before the confirm. The message may have arrived.
        Unknown = "unknown",
    }
}

label! {
    /// Why a consumer was restarted.
    ConsumerRestart {
        /// RabbitMQ cancelled it: the queue was deleted or lost its leader.
        StreamEnded = "stream_ended",
        /// The channel or the connection failed.
        Error = "error",
        /// Messages were ready and the prefetch was not full, but nothing was delivered.
        NoProgress = "no_progress",
        /// A hold reached `VERBATIM_HOLD_LIMIT`; the messages were requeued, and the consumer waited. Normal in an
        /// outage.
        Hold = "hold",
        /// The prefetch changed, which only a new consumer applies. Normal.
        Prefetch = "prefetch",
    }
}

label! {
    /// The result of reading a hot copy.
    HotRead {
        /// A complete copy; it was used.
        Hit = "hit",
        /// No copy.
        Miss = "miss",
        /// A copy whose epoch or generation differs from PostgreSQL's, or PostgreSQL has no current epoch;
        /// it was not used.
        Stale = "stale",
        /// Redis did not answer.
        Unavailable = "unavailable",
    }
}

label! {
    /// How the load of a hot copy ended.
    HotLoad {
        /// The copy is stored and marked as complete.
        Loaded = "loaded",
        /// Another load was under way or replaced this one, or the key was deleted; this load stored
        /// no complete copy.
        Superseded = "superseded",
        /// Redis or PostgreSQL failed during the load.
        Failed = "failed",
    }
}

label! {
    /// Why a conversation got a new `hot_generation`.
    GenerationChange {
        /// An append failed or its result is unknown.
        AppendFailed = "append_failed",
        /// Redis was known to be unavailable when the messages were saved.
        RedisUnavailable = "redis_unavailable",
        /// A message without an identity was saved on a later delivery, so it may be stored twice.
        SavedAgain = "saved_again",
        /// A message became a dead letter that an earlier delivery of it may have stored.
        DeadLettered = "dead_lettered",
        /// Its rows were erased or repaired.
        Rewritten = "rewritten",
    }
}

label! {
    /// How the list of a `conversation.sync_messages` continues what is stored.
    SyncAlignment {
        /// By ids: from the newest message, or nothing was new.
        Exact = "exact",
        /// By what its messages say: its sender rewrote what stands before.
        Inferred = "inferred",
        /// From an earlier message: an answer was generated again, a message was edited, or another sender saved messages.
        Branch = "branch",
        /// It is not stored: it has nothing in common with the conversation, or a message has an id that is taken, or its
        /// sender wants no branch.
        Conflict = "conflict",
    }
}

label! {
    /// Why all hot copies were invalidated.
    EpochCause {
        /// The fleet used Redis for the first time.
        First = "first",
        /// Redis was replaced, failed over or lost data.
        Redis = "redis",
        /// PostgreSQL failed over to a standby, or was recovered, restored or moved.
        PostgreSql = "postgresql",
        /// Both at once, as after a move to other servers.
        Both = "both",
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
        /// It was idle for the idle time.
        Idle = "idle",
        /// Another process began to close it and did not finish, for one of these two causes.
        TakenOver = "taken_over",
    }
}

label! {
    /// What was handled apart from others, because it was too slow for its usual time limit, or locked.
    SlowWork {
        /// The close of a conversation.
        Close = "close",
        /// The statistics of a conversation.
        ConversationStatistics = "conversation_statistics",
        /// The statistics of a day.
        DailyStatistics = "daily_statistics",
    }
}

label! {
    /// How something that was handled apart from others ended.
    SlowOutcome {
        /// It succeeded.
        Done = "done",
        /// A message or an opened session arrived for the conversation meanwhile; it closes later.
        Cancelled = "cancelled",
        /// A step did not end within 5 min. It is tried again later.
        TooSlow = "too_slow",
        /// A row stayed locked. It is tried again later.
        Locked = "locked",
        /// A server was unavailable. It is tried again later.
        Unavailable = "unavailable",
        /// Another error. It is tried again later.
        Failed = "failed",
    }
}

label! {
    /// How a request over HTTP was answered.
    HttpStatus {
        /// With what it asked for, or that the client has it already: 2xx and 3xx.
        Succeeded = "succeeded",
        /// It is wrong, or asks for what is not there: 4xx.
        Invalid = "invalid",
        /// Its key is missing, invalid, or lacks the scope: 401 and 403.
        Refused = "refused",
        /// Its key made too many requests: 429.
        RateLimited = "rate_limited",
        /// A server was unavailable, or the time limit passed: 503.
        Unavailable = "unavailable",
        /// It failed unexpectedly: other 5xx.
        Failed = "failed",
    }
}

label! {
    /// Which server answered a request whose answer may be stale.
    ReadServer {
        /// The read replica.
        Replica = "replica",
        /// The primary: there is no read replica.
        Primary = "primary",
        /// The primary: the read replica is not used.
        PrimaryUnusable = "primary_unusable",
        /// The primary: the read replica had not replayed the position of `Verbatim-After` in time.
        PrimaryBehind = "primary_behind",
        /// The primary: the read replica failed or cancelled a query, or its answer did not count.
        PrimaryRepeated = "primary_repeated",
    }
}

label! {
    /// What a caller of the conversation-api did that an honest one hardly does.
    AnomalyKind {
        /// An address sent many keys that were refused.
        RefusedKeys = "refused_keys",
        /// A key named tenants that are not its own.
        ForeignTenants = "foreign_tenants",
        /// A key read far more messages than in its usual hour.
        Reads = "reads",
    }
}

label! {
    /// Why a key or a signature was refused.
    RefusedCredential {
        /// There is none.
        Missing = "missing",
        /// It is no key, or mistyped.
        Malformed = "malformed",
        /// No key has this id and secret.
        Unknown = "unknown",
        /// It was revoked.
        Revoked = "revoked",
        /// It has expired, or its secret was rotated.
        Expired = "expired",
        /// It is not accepted from the address.
        Address = "address",
        /// The key did not sign this request.
        Signature = "signature",
        /// The request was signed too long ago, later than now, or before the last failover or restore of PostgreSQL.
        Stale = "stale",
        /// The signed request was received before.
        Replayed = "replayed",
        /// Too many from its address were refused before, so it was not checked.
        Limited = "limited",
    }
}

label! {
    /// Why a message was rerouted to its own queue.
    RerouteCause {
        /// It expired in its queue by the `expiration` that its publisher set.
        Expired = "expired",
        /// It was in `domain.unrouted` although its action is known.
        Unrouted = "unrouted",
    }
}

label! {
    /// The state of a message in a queue, by RabbitMQ's names.
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
        /// RabbitMQ's queues: messages and consumers.
        Queues = "queues",
        /// PostgreSQL's rows: dead letters and conversations.
        Rows = "rows",
    }
}

label! {
    /// How a supervised task ended without a shutdown.
    TaskEnd {
        /// It panicked.
        Panicked = "panicked",
        /// It returned an error.
        Failed = "failed",
        /// It returned without an error.
        Returned = "returned",
    }
}

/// Where an open dead letter is: stored with its reason, or still in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadLetterState {
    /// An open row of `dead_letters`.
    Stored(DeadLetterReason),
    /// A message in the dead-letter queue. Its reason is unknown until the dead-letter collector reads it.
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
        "unreadable",
        "in_queue",
    ]);

    fn value(self) -> &'static str {
        match self {
            Self::Stored(reason) => reason.as_str(),
            Self::InQueue => "in_queue",
        }
    }
}
