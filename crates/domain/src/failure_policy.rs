//! The failure policy: after how long and how many failures a message is retried, requeued, quarantined or
//! dead-lettered.
//!
//! The topology, the consumers, the defaults of settings and the log lines take these numbers from here, and a
//! test compares the tables of `docs/delivery.md` and the runbooks with them. How a consumer paces itself (batches,
//! prefetch, the turns of suspects) is no part of it.

use std::time::Duration;

/// The delays before the second and later attempts of a message, in order. After the last attempt it becomes
/// a dead letter. Each delay has a queue of its own, whose name and TTL cannot be changed.
pub const RETRY_DELAYS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// How long a transaction that collided with another one (a deadlock, a serialisation failure) is retried in place:
/// longer than any transaction of the fleet holds its locks. It costs no attempt.
pub const IN_PLACE_LIMIT: Duration = Duration::from_secs(3);

/// How long one statement over a batch may take. After that the batch is halved until the item is found that is slow.
/// Longer than the default of `database_lock_timeout` (2 s), so PostgreSQL reports a lock as such.
pub const BATCH_LIMIT: Duration = Duration::from_millis(2_500);

/// How long one statement over a part of such a batch may take.
pub const PART_LIMIT: Duration = Duration::from_millis(200);

/// How long a part of such a batch waits for a lock. About nine parts of a batch of 500 contain a locked item, and the
/// others are done within 5 s.
pub const PART_LOCK_LIMIT: Duration = Duration::from_millis(50);

/// The time limits, in order, of a single item for which the usual limit is too short although its dependency answers.
/// It is handled apart from all others meanwhile.
pub const SLOW_LIMITS: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(5 * 60)];

/// How long slow background work waits for a lock before others like it have their turn.
pub const SLOW_LOCK_LIMIT: Duration = Duration::from_secs(5);

/// How long an item of a slow queue waits for a lock. Short, because the items behind it wait as well; longer than a
/// transaction of the fleet over a batch holds its locks.
pub const SLOW_QUEUE_LOCK_LIMIT: Duration = Duration::from_millis(300);

/// How long the other items of a conversation in a slow queue are taken as locked without a try after one of them has
/// waited for the lock in vain. Longer if many conversations are locked.
pub const LOCKED_FOR_SLOW: Duration = Duration::from_secs(5);

/// How long the items of that conversation in batches are taken as locked: the batches do not wait for the lock. Longer
/// than it takes until the slow queue has tried again, also with the item that failed.
pub const LOCKED_FOR: Duration = Duration::from_secs(20);

/// The pauses between two probes of an unavailable dependency grow to at most this. So a recovery is noticed
/// within 5 s, although a connection to a server that has just started takes some seconds.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The default of `hold_limit`: how long a batch is held while a dependency is unavailable, before its
/// messages are requeued. Well below RabbitMQ's `consumer_timeout` of 30 min, which closes the channel.
pub const HOLD_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The default of `stall_limit`: how long a consumer may receive nothing while messages are ready.
pub const STALL_LIMIT: Duration = Duration::from_secs(20);

/// The redelivery count at which a message of a work queue is quarantined. Each connection loss adds one to
/// every unacknowledged message. So this count alone never dead-letters a message; it only chooses where the
/// message is handled.
pub const QUARANTINE_AFTER: u64 = 3;

/// The most suspects that are handled together, unless a batch has fewer. A crash of the process makes each of
/// them a message that is handled alone.
pub const SUSPECTS_TOGETHER: usize = 100;

/// The redelivery count at which a suspect is dead-lettered. A suspect that was redelivered once is handled
/// alone, so all but the first of these redeliveries were caused while it alone was being handled.
pub const SUSPECT_LIMIT: u64 = 5;

/// The redelivery count at which a message of a slow queue is dead-lettered. It is alone in its consumer, but not in its
/// process: a message that kills the process does so eight times as a rule before it is a dead letter, and each time a
/// slow message beside it is redelivered.
pub const SLOW_MESSAGE_LIMIT: u64 = 20;

/// The redeliveries from a work queue after which RabbitMQ itself dead-letters a message. Far more than outages
/// cause. Yet it ends the redelivery of a message that crashes every consumer.
pub const WORK_DELIVERY_LIMIT: i64 = 100;

/// The delivery limit of every queue that must not dead-letter by count: practically unreachable, but positive.
pub const UNREACHABLE_DELIVERY_LIMIT: i64 = 1_000_000;

/// How long a request waits in its queue before it expires.
pub const REQUEST_TTL: Duration = Duration::from_secs(30);
