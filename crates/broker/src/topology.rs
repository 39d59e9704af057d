//! Every exchange, queue and binding of the fleet, as data, in one place.
//!
//! Setup declares exactly this and every process verifies exactly this, so that no two parts of the
//! fleet can disagree about an argument. The arguments are what keeps messages alive:
//!
//! - *quorum* queues only, because a classic queue loses confirmed messages with its node;
//! - *reject-publish*, because `drop-head`, the default, throws away confirmed messages, and because
//!   at-least-once dead-lettering needs it;
//! - a delivery limit that is always written out: absent, it means none on RabbitMQ 3.10 to 3.13 but
//!   "20, then drop" on 4.0 and later, and `-1` on 3.10.8 deletes messages at their first return.
//!
//! To add a queue, add it here; [`declare`], [`verify`] and [`crate::inspect`] follow.

mod difference;
mod setup;

use std::time::Duration;

use domain::action::ActionKind;

pub use difference::{Difference, Kind};
pub use setup::{TopologyError, declare, verify, verify_and_bind};

/// Where agents publish actions: a topic exchange, routing key = `action_type`.
pub const ACTIONS: &str = "domain.actions";
/// Where the fleet publishes what happened: a topic exchange.
pub const EVENTS: &str = "conversation.events";
/// The alternate exchange of [`ACTIONS`], and the queue behind it: what no binding matched.
pub const UNROUTED: &str = "domain.unrouted";
/// The queue of all questions; an answer is worth waiting for only so long.
pub const REQUESTS: &str = "conversation.context";

/// How long a question waits for an answer before it expires.
pub const REQUEST_TTL: Duration = Duration::from_secs(30);

/// Returns to a work queue before RabbitMQ itself dead-letters a message. Far above what outages
/// cost (each connection loss, consumer kill or broker kill adds one to every unacknowledged
/// message), far below a poison message that crashes the fleet for ever.
pub const WORK_DELIVERY_LIMIT: i64 = 100;
/// The limit of every queue that must never give up on a message: out of reach, but positive.
pub const UNREACHABLE_DELIVERY_LIMIT: i64 = 1_000_000;

/// A queue whose messages must each end in a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkQueue {
    /// Messages to save.
    SaveMessage,
    /// Sessions that open and close, feedback, erasure.
    Session,
    /// What happened to conversations: hints for the statistics.
    Statistics,
    /// Writes of bot state.
    BotState,
    /// Actions that no binding of [`ACTIONS`] matched.
    Unrouted,
}

/// A queue of delayed retries that the whole fleet shares. The delay is part of the name because the
/// time to live of a queue cannot change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryQueue {
    /// One second.
    Second,
    /// Five seconds.
    FiveSeconds,
    /// Half a minute.
    HalfMinute,
}

/// What a queue is for; all its arguments follow from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Work, and where RabbitMQ puts what exceeds the delivery limit or its own expiration.
    Work(WorkQueue),
    /// Messages that came back too often, to be tried one at a time.
    Suspects(WorkQueue),
    /// Dead letters on their way to the archive.
    DeadLetters,
    /// A delay, after which a message returns to the queue that its routing key names.
    Retry(RetryQueue),
    /// Questions.
    Requests,
}

/// A queue and why it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub purpose: Purpose,
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// By patterns of routing keys.
    Topic,
    /// To every bound queue.
    Fanout,
}

/// An exchange; all are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// How it routes.
    pub routing: Routing,
    /// Where messages go that no binding matches; without one they are returned or dropped.
    pub alternate: Option<&'static str>,
}

/// A queue's interest in what an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The exchange.
    pub exchange: &'static str,
    /// The queue.
    pub queue: &'static str,
    /// The routing key, or a pattern of them.
    pub key: &'static str,
}

/// The value of a queue or exchange argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(&'static str),
    /// A number.
    Number(i64),
}

/// Every exchange. [`ACTIONS`] needs its alternate declared first.
pub const EXCHANGES: [Exchange; 6] = [
    Exchange { name: UNROUTED, routing: Routing::Fanout, alternate: None },
    Exchange { name: ACTIONS, routing: Routing::Topic, alternate: Some(UNROUTED) },
    Exchange { name: EVENTS, routing: Routing::Topic, alternate: None },
    Exchange { name: RetryQueue::Second.name(), routing: Routing::Fanout, alternate: None },
    Exchange { name: RetryQueue::FiveSeconds.name(), routing: Routing::Fanout, alternate: None },
    Exchange { name: RetryQueue::HalfMinute.name(), routing: Routing::Fanout, alternate: None },
];

/// Every binding.
pub const BINDINGS: [Binding; 19] = [
    action("conversation.save_message", WorkQueue::SaveMessage.name()),
    action("conversation.session_opened", WorkQueue::Session.name()),
    action("conversation.session_closed", WorkQueue::Session.name()),
    action("conversation.feedback", WorkQueue::Session.name()),
    action("conversation.erase", WorkQueue::Session.name()),
    action("conversation.get_context", REQUESTS),
    action("conversation.get_history", REQUESTS),
    action("state.load", REQUESTS),
    action("state.list_active", REQUESTS),
    action("state.stats", REQUESTS),
    action("state.save", WorkQueue::BotState.name()),
    action("state.patch", WorkQueue::BotState.name()),
    action("state.transition", WorkQueue::BotState.name()),
    action("state.clear", WorkQueue::BotState.name()),
    Binding { exchange: EVENTS, queue: WorkQueue::Statistics.name(), key: "#" },
    Binding { exchange: UNROUTED, queue: WorkQueue::Unrouted.name(), key: "" },
    delay(RetryQueue::Second),
    delay(RetryQueue::FiveSeconds),
    delay(RetryQueue::HalfMinute),
];

/// The queue of an action: where [`ACTIONS`] routes it, and where it is sent past all exchanges.
#[must_use]
pub fn queue_of(kind: ActionKind) -> &'static str {
    let bound = |binding: &&Binding| binding.exchange == ACTIONS && binding.key == kind.as_str();
    BINDINGS.iter().find(bound).map_or(UNROUTED, |binding| binding.queue)
}

/// Every queue.
#[must_use]
pub fn queues() -> Vec<Queue> {
    let work = WorkQueue::ALL.into_iter().flat_map(|queue| {
        [
            // Dead letters first: no work queue is ever without a place for them.
            Queue { name: queue.dlq(), purpose: Purpose::DeadLetters },
            Queue { name: queue.suspect(), purpose: Purpose::Suspects(queue) },
            Queue { name: queue.name(), purpose: Purpose::Work(queue) },
        ]
    });
    let retry = RetryQueue::ALL
        .into_iter()
        .map(|queue| Queue { name: queue.name(), purpose: Purpose::Retry(queue) });
    let questions = [Queue { name: REQUESTS, purpose: Purpose::Requests }];
    work.chain(retry).chain(questions).collect()
}

impl WorkQueue {
    /// Every work queue.
    pub const ALL: [Self; 5] =
        [Self::SaveMessage, Self::Session, Self::Statistics, Self::BotState, Self::Unrouted];

    /// The name of the queue.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The queue of its dead letters.
    #[must_use]
    pub const fn dlq(self) -> &'static str {
        self.names()[1]
    }

    /// The queue of its suspects: messages that came back too often to be taken in batches.
    #[must_use]
    pub const fn suspect(self) -> &'static str {
        self.names()[2]
    }

    // Written out, so that a search for any queue's name ends here.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Self::SaveMessage => [
                "conversation.save_message",
                "conversation.save_message.dlq",
                "conversation.save_message.suspect",
            ],
            Self::Session => {
                ["conversation.session", "conversation.session.dlq", "conversation.session.suspect"]
            }
            Self::Statistics => [
                "conversation.statistics",
                "conversation.statistics.dlq",
                "conversation.statistics.suspect",
            ],
            Self::BotState => ["bot.state", "bot.state.dlq", "bot.state.suspect"],
            Self::Unrouted => [UNROUTED, "domain.unrouted.dlq", "domain.unrouted.suspect"],
        }
    }
}

impl RetryQueue {
    /// Every retry queue, the shortest delay first.
    pub const ALL: [Self; 3] = [Self::Second, Self::FiveSeconds, Self::HalfMinute];

    /// The name of the queue and of the fanout exchange before it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "domain.retry.1000",
            Self::FiveSeconds => "domain.retry.5000",
            Self::HalfMinute => "domain.retry.30000",
        }
    }

    /// How long a message stays.
    #[must_use]
    pub const fn delay(self) -> Duration {
        match self {
            Self::Second => Duration::from_secs(1),
            Self::FiveSeconds => Duration::from_secs(5),
            Self::HalfMinute => Duration::from_secs(30),
        }
    }
}

impl Queue {
    /// The arguments with which the queue is declared.
    #[must_use]
    pub fn arguments(&self) -> Vec<(&'static str, Argument)> {
        let limit = match self.purpose {
            Purpose::Work(_) => WORK_DELIVERY_LIMIT,
            _ => UNREACHABLE_DELIVERY_LIMIT,
        };
        let mut arguments = vec![
            ("x-queue-type", Argument::Text("quorum")),
            ("x-overflow", Argument::Text("reject-publish")),
            ("x-delivery-limit", Argument::Number(limit)),
        ];
        // The exchange named "" routes to the queue that the routing key names.
        let dead_letters = [
            ("x-dead-letter-exchange", Argument::Text("")),
            ("x-dead-letter-strategy", Argument::Text("at-least-once")),
        ];
        let ttl = |delay: Duration| {
            // Every delay here is a constant of less than a minute.
            (
                "x-message-ttl",
                Argument::Number(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
            )
        };
        match self.purpose {
            Purpose::Work(queue) | Purpose::Suspects(queue) => {
                arguments.extend(dead_letters);
                arguments.push(("x-dead-letter-routing-key", Argument::Text(queue.dlq())));
            }
            // Without a routing key of its own, the message keeps the one it was published with:
            // its home queue.
            Purpose::Retry(queue) => {
                arguments.extend(dead_letters);
                arguments.push(ttl(queue.delay()));
            }
            Purpose::Requests => arguments.push(ttl(REQUEST_TTL)),
            Purpose::DeadLetters => {}
        }
        arguments
    }
}

const fn action(key: &'static str, queue: &'static str) -> Binding {
    Binding { exchange: ACTIONS, queue, key }
}

const fn delay(queue: RetryQueue) -> Binding {
    Binding { exchange: queue.name(), queue: queue.name(), key: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_keeps_what_it_confirmed() {
        for queue in queues() {
            let arguments = queue.arguments();
            let has = |name, value| assert!(arguments.contains(&(name, value)), "{queue:?}");
            has("x-queue-type", Argument::Text("quorum"));
            has("x-overflow", Argument::Text("reject-publish"));
            let limit = arguments.iter().find(|(name, _)| *name == "x-delivery-limit");
            assert!(matches!(limit, Some((_, Argument::Number(1..)))), "{queue:?}");
        }
    }

    #[test]
    fn every_work_queue_has_dead_letters_and_suspects() {
        let names: Vec<_> = queues().iter().map(|queue| queue.name).collect();
        for queue in WorkQueue::ALL {
            assert_eq!(queue.dlq(), format!("{}.dlq", queue.name()));
            assert_eq!(queue.suspect(), format!("{}.suspect", queue.name()));
            assert!([queue.name(), queue.dlq(), queue.suspect()].iter().all(|n| names.contains(n)));
        }
    }

    #[test]
    fn every_binding_joins_a_declared_exchange_and_a_declared_queue() {
        let queues = queues();
        for binding in BINDINGS {
            assert!(EXCHANGES.iter().any(|e| e.name == binding.exchange), "{binding:?}");
            assert!(queues.iter().any(|q| q.name == binding.queue), "{binding:?}");
        }
    }

    #[test]
    fn every_action_has_exactly_one_queue() {
        for kind in ActionKind::ALL {
            let bound =
                |binding: &&Binding| binding.exchange == ACTIONS && binding.key == kind.as_str();
            assert_eq!(BINDINGS.iter().filter(bound).count(), 1, "{}", kind.as_str());
        }
        let actions = BINDINGS.iter().filter(|binding| binding.exchange == ACTIONS);
        assert!(actions.clone().all(|binding| ActionKind::parse(binding.key).is_some()));
    }

    #[test]
    fn a_retry_queue_says_its_delay_in_its_name() {
        for queue in RetryQueue::ALL {
            assert_eq!(queue.name(), format!("domain.retry.{}", queue.delay().as_millis()));
        }
    }
}
