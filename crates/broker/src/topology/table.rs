//! The table: exchanges, queues, bindings and their arguments.

use std::time::Duration;

use domain::action::ActionKind;
use domain::failure_policy::{
    REQUEST_TTL, RETRY_DELAYS, UNREACHABLE_DELIVERY_LIMIT, WORK_DELIVERY_LIMIT,
};
use domain::fleet::{Arrivals, WorkQueue};

/// Where agents publish actions: a topic exchange, routing key = `action_type`.
pub const ACTIONS: &str = "domain.actions";
/// Where the fleet publishes events: a topic exchange.
pub const EVENTS: &str = "conversation.events";
/// The alternate exchange of [`ACTIONS`], and the queue bound to it: actions that no binding matched.
pub const UNROUTED: &str = "domain.unrouted";
/// The queue of all requests. After [`REQUEST_TTL`] RabbitMQ dead-letters what it holds to [`UNROUTED`]: a write with
/// the routing key of a request may be among it.
pub const REQUESTS: &str = "conversation.context";

/// A queue of delayed retries, shared by all work queues. The delay is part of the name, because the TTL of a
/// queue cannot be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryQueue {
    /// One second.
    Second,
    /// Five seconds.
    FiveSeconds,
    /// Half a minute.
    HalfMinute,
}

/// What a queue is for. It determines the queue's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A work queue. RabbitMQ dead-letters messages that reach the delivery limit or expire to its
    /// dead-letter queue.
    Work(WorkQueue),
    /// Messages that were redelivered too often, to be handled apart from the queue.
    Suspects(WorkQueue),
    /// Single messages that take longer than usual, or whose rows are locked.
    Slow(WorkQueue),
    /// Dead letters that wait to be stored in PostgreSQL.
    DeadLetters,
    /// Single dead letters that take longer than usual to be stored, or whose rows are locked.
    SlowDeadLetters,
    /// A delay, after which a message is routed to its own queue, which its routing key names.
    Retry(RetryQueue),
    /// Requests.
    Requests,
}

/// A queue and its purpose.
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
    /// The exchange for messages that no binding matches. Without one they are returned or dropped.
    pub alternate: Option<&'static str>,
}

/// A binding of a queue to an exchange.
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

/// Every exchange. The alternate exchange of [`ACTIONS`] is declared before it.
pub const EXCHANGES: [Exchange; 6] = [
    Exchange { name: UNROUTED, routing: Routing::Fanout, alternate: None },
    Exchange { name: ACTIONS, routing: Routing::Topic, alternate: Some(UNROUTED) },
    Exchange { name: EVENTS, routing: Routing::Topic, alternate: None },
    Exchange { name: RetryQueue::Second.name(), routing: Routing::Fanout, alternate: None },
    Exchange { name: RetryQueue::FiveSeconds.name(), routing: Routing::Fanout, alternate: None },
    Exchange { name: RetryQueue::HalfMinute.name(), routing: Routing::Fanout, alternate: None },
];

/// Every binding.
#[must_use]
pub fn bindings() -> Vec<Binding> {
    let actions = ActionKind::ALL.map(|kind| {
        let (queue, key) = (queue_of(kind), kind.as_str());
        Binding { exchange: ACTIONS, queue, key }
    });
    let others = WorkQueue::ALL.into_iter().filter_map(|queue| {
        let (exchange, key) = match queue.arrivals() {
            Arrivals::Actions => return None,
            Arrivals::Events => (EVENTS, "#"),
            Arrivals::UnroutedActions => (UNROUTED, ""),
        };
        Some(Binding { exchange, queue: queue.name(), key })
    });
    let delays = RetryQueue::ALL.map(RetryQueue::name);
    let delays = delays.map(|name| Binding { exchange: name, queue: name, key: "" });
    actions.into_iter().chain(others).chain(delays).collect()
}

/// The queue to which [`ACTIONS`] routes this action.
#[must_use]
pub const fn queue_of(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::SaveMessage | ActionKind::SaveMessages | ActionKind::SyncMessages => {
            WorkQueue::SaveMessage.name()
        }
        ActionKind::SessionOpened
        | ActionKind::SessionClosed
        | ActionKind::Feedback
        | ActionKind::Erase
        | ActionKind::DeleteMessage => WorkQueue::Session.name(),
        ActionKind::StateSave
        | ActionKind::StatePatch
        | ActionKind::StateTransition
        | ActionKind::StateClear => WorkQueue::BotState.name(),
        ActionKind::GetContext
        | ActionKind::GetHistory
        | ActionKind::StateLoad
        | ActionKind::StateListActive
        | ActionKind::StateStats => REQUESTS,
    }
}

/// Every queue.
#[must_use]
pub fn queues() -> Vec<Queue> {
    let work = WorkQueue::ALL.into_iter().flat_map(|queue| {
        let slow = queue.slow().map(|name| Queue { name, purpose: Purpose::Slow(queue) });
        // The work queue last, so that it does not exist without the others.
        let all = [
            Some(Queue { name: queue.slow_dlq(), purpose: Purpose::SlowDeadLetters }),
            Some(Queue { name: queue.dlq(), purpose: Purpose::DeadLetters }),
            Some(Queue { name: queue.suspect(), purpose: Purpose::Suspects(queue) }),
            slow,
            Some(Queue { name: queue.name(), purpose: Purpose::Work(queue) }),
        ];
        all.into_iter().flatten()
    });
    let retry = RetryQueue::ALL
        .into_iter()
        .map(|queue| Queue { name: queue.name(), purpose: Purpose::Retry(queue) });
    let requests = [Queue { name: REQUESTS, purpose: Purpose::Requests }];
    work.chain(retry).chain(requests).collect()
}

impl RetryQueue {
    /// Every retry queue, the shortest delay first.
    pub const ALL: [Self; 3] = [Self::Second, Self::FiveSeconds, Self::HalfMinute];

    /// The name of the queue and of its fanout exchange.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "domain.retry.1000",
            Self::FiveSeconds => "domain.retry.5000",
            Self::HalfMinute => "domain.retry.30000",
        }
    }

    /// How long a message is delayed.
    #[must_use]
    pub const fn delay(self) -> Duration {
        match self {
            Self::Second => RETRY_DELAYS[0],
            Self::FiveSeconds => RETRY_DELAYS[1],
            Self::HalfMinute => RETRY_DELAYS[2],
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
        let dead_letters_to = |exchange| {
            [
                ("x-dead-letter-exchange", Argument::Text(exchange)),
                ("x-dead-letter-strategy", Argument::Text("at-least-once")),
            ]
        };
        // "" is the default exchange: it routes to the queue that the routing key names.
        let dead_letters = dead_letters_to("");
        let ttl = |delay: Duration| {
            // Every delay here is a constant of less than a minute.
            (
                "x-message-ttl",
                Argument::Number(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
            )
        };
        match self.purpose {
            Purpose::Work(queue) | Purpose::Suspects(queue) | Purpose::Slow(queue) => {
                arguments.extend(dead_letters);
                arguments.push(("x-dead-letter-routing-key", Argument::Text(queue.dlq())));
            }
            // Without `x-dead-letter-routing-key` the message keeps the routing key with which it was
            // published: the name of its own queue.
            Purpose::Retry(queue) => {
                arguments.extend(dead_letters);
                arguments.push(ttl(queue.delay()));
            }
            Purpose::Requests => {
                arguments.extend(dead_letters_to(UNROUTED));
                arguments.push(ttl(REQUEST_TTL));
            }
            Purpose::DeadLetters | Purpose::SlowDeadLetters => {}
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_is_quorum_with_reject_publish_and_a_delivery_limit() {
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
    fn every_work_queue_has_a_dead_letter_and_a_suspect_queue() {
        let names: Vec<_> = queues().iter().map(|queue| queue.name).collect();
        for queue in WorkQueue::ALL {
            assert_eq!(queue.dlq(), format!("{}.dlq", queue.name()));
            assert_eq!(queue.suspect(), format!("{}.suspect", queue.name()));
            assert_eq!(queue.slow_dlq(), format!("{}.dlq.slow", queue.name()));
            let mut of_queue = vec![queue.name(), queue.dlq(), queue.suspect(), queue.slow_dlq()];
            of_queue.extend(queue.slow());
            assert!(of_queue.iter().all(|name| names.contains(name)));
        }
    }

    #[test]
    fn every_binding_has_a_declared_exchange_and_a_declared_queue() {
        let queues = queues();
        for binding in bindings() {
            assert!(EXCHANGES.iter().any(|e| e.name == binding.exchange), "{binding:?}");
            assert!(queues.iter().any(|q| q.name == binding.queue), "{binding:?}");
        }
    }

    #[test]
    fn the_name_of_a_retry_queue_contains_its_delay() {
        for queue in RetryQueue::ALL {
            assert_eq!(queue.name(), format!("domain.retry.{}", queue.delay().as_millis()));
        }
    }
}
