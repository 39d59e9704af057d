//! The table of the fleet: every process, the queues that it consumes, and the actions that it carries out.
//!
//! Every work queue is consumed, also one whose actions no worker of this version carries out: they become dead letters,
//! so that no action waits unseen.
//!
//! Whatever lists the processes derives from it: `verbatim queues`, the sections of the configuration file, the
//! commands of `cargo xtask`, the tests of `deploy/`, of the documents and of the layers.

use crate::action::ActionKind;
use crate::failure::{DeadLetterReason, Refusal};

/// A process of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    name: &'static str,
    about: &'static str,
    consumes: &'static [Consumed],
}

/// What a worker consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consumed {
    /// A work queue, its suspects and its slow queue.
    Work(WorkQueue),
    /// The dead-letter queue of every work queue, and the slow queues of these.
    DeadLetters,
}

/// What RabbitMQ routes to a work queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Actions of agents, by their `action_type`.
    Actions,
    /// Every event of the fleet.
    Events,
    /// Actions that no binding matches.
    UnroutedActions,
}

/// Defines the work queues: name, what arrives, the suffix of its slow queue if it has one, what its messages are.
macro_rules! work_queues {
    ($($(#[$doc:meta])* $queue:ident = $name:literal, $arrivals:ident, [$($slow:literal)?], $about:literal;)+) => {
        /// A queue whose every message gets an outcome: done, retried or dead-lettered.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum WorkQueue {
            $($(#[$doc])* $queue,)+
        }

        impl WorkQueue {
            /// Every work queue.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$queue),+];

            /// The name of the queue.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$queue => $name,)+
                }
            }

            /// The name of its dead-letter queue.
            #[must_use]
            pub const fn dlq(self) -> &'static str {
                match self {
                    $(Self::$queue => concat!($name, ".dlq"),)+
                }
            }

            /// The name of its suspect queue: messages that were redelivered too often to be handled in
            /// batches.
            #[must_use]
            pub const fn suspect(self) -> &'static str {
                match self {
                    $(Self::$queue => concat!($name, ".suspect"),)+
                }
            }

            /// The name of its slow queue: single messages that take longer than usual, or whose rows are locked.
            /// `None` if its worker needs no database for them.
            #[must_use]
            pub const fn slow(self) -> Option<&'static str> {
                match self {
                    $(Self::$queue => {
                        let names: &[&'static str] = &[$(concat!($name, $slow))?];
                        match names {
                            [name] => Some(*name),
                            _ => None,
                        }
                    })+
                }
            }

            /// The name of the slow queue of its dead letters.
            #[must_use]
            pub const fn slow_dlq(self) -> &'static str {
                match self {
                    $(Self::$queue => concat!($name, ".dlq.slow"),)+
                }
            }

            /// What RabbitMQ routes to it.
            #[must_use]
            pub const fn arrivals(self) -> Arrivals {
                match self {
                    $(Self::$queue => Arrivals::$arrivals,)+
                }
            }

            /// What its messages are.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self {
                    $(Self::$queue => $about,)+
                }
            }
        }
    };
}

/// Defines the workers: name, what they consume, one sentence for `--help`.
macro_rules! workers {
    ($($(#[$doc:meta])* $worker:ident = $name:literal, [$($consumed:expr),+], $about:literal;)+) => {
        $(
            $(#[$doc])*
            pub const $worker: Process =
                Process { name: $name, about: $about, consumes: &[$($consumed),+] };
        )+

        /// Every process that consumes queues.
        pub const WORKERS: [Process; [$($name),+].len()] = [$($worker),+];
    };
}

work_queues! {
    /// Messages to save.
    SaveMessage = "conversation.save_message", Actions, [".slow"], "messages to save";
    /// Sessions that open and close, feedback, erasure.
    Session = "conversation.session", Actions, [".slow"],
        "sessions opened and closed, feedback, erasure";
    /// Events of conversations: refresh triggers for the statistics.
    Statistics = "conversation.statistics", Events, [], "events of conversations, for statistics";
    /// Writes of bot state.
    BotState = "bot.state", Actions, [], "bot state to store";
    /// Actions that no binding of `domain.actions` matched.
    Unrouted = "domain.unrouted", UnroutedActions, [],
        "actions with a routing key that no queue is bound to";
}

workers! {
    /// Stores messages in PostgreSQL and Redis.
    MESSAGE_SAVE_WORKER = "message-save-worker", [Consumed::Work(WorkQueue::SaveMessage)],
        "Consumes conversation.save_message and stores the messages in PostgreSQL, then in Redis";
    /// Closes and archives conversations.
    PERSISTENCE_MIGRATION_WORKER = "persistence-migration-worker",
        [Consumed::Work(WorkQueue::Session)],
        "Consumes session events; closes and archives conversations";
    /// Computes statistics.
    STATISTICS_WORKER = "statistics-worker", [Consumed::Work(WorkQueue::Statistics)],
        "Computes the statistics of conversations and days";
    /// Stores dead letters, reroutes actions, exports fleet-wide gauges. Refuses the actions of queues that have no
    /// worker of their own yet.
    DEAD_LETTER_WORKER = "dead-letter-worker",
        [Consumed::DeadLetters, Consumed::Work(WorkQueue::Unrouted), Consumed::Work(WorkQueue::BotState)],
        "Stores dead letters, reroutes unroutable actions, exports gauges of queues and tables";
}

/// Reads conversations and publishes actions over HTTP. It consumes no work queue.
pub const CONVERSATION_API: Process = Process {
    name: "conversation-api",
    about: "Serves conversations and statistics over HTTP, and publishes actions",
    consumes: &[],
};

/// The command-line tool.
pub const VERBATIM: Process = Process {
    name: "verbatim",
    about: "Sets up, publishes to and inspects a Verbatim fleet",
    consumes: &[],
};

/// Every process: the workers, the API and the command-line tool.
#[must_use]
pub fn processes() -> Vec<Process> {
    [WORKERS.as_slice(), &[CONVERSATION_API, VERBATIM]].concat()
}

/// Every process that runs until it is stopped: the workers and the API.
#[must_use]
pub fn services() -> Vec<Process> {
    [WORKERS.as_slice(), &[CONVERSATION_API]].concat()
}

/// The worker that consumes this; `None` if this version has none.
#[must_use]
pub fn worker_of(consumed: Consumed) -> Option<Process> {
    WORKERS.into_iter().find(|worker| worker.consumes.contains(&consumed))
}

/// The worker that carries out this action; `None` if this version has none. An action without a worker becomes a dead
/// letter, or, if it is a request, gets the error `unavailable` as its reply.
#[must_use]
pub const fn worker_of_action(kind: ActionKind) -> Option<Process> {
    match kind {
        ActionKind::SaveMessage | ActionKind::SaveMessages | ActionKind::SyncMessages => {
            Some(MESSAGE_SAVE_WORKER)
        }
        ActionKind::SessionOpened
        | ActionKind::SessionClosed
        | ActionKind::Feedback
        | ActionKind::DeleteMessage => Some(PERSISTENCE_MIGRATION_WORKER),
        ActionKind::Erase
        | ActionKind::GetContext
        | ActionKind::GetHistory
        | ActionKind::StateLoad
        | ActionKind::StateSave
        | ActionKind::StatePatch
        | ActionKind::StateTransition
        | ActionKind::StateClear
        | ActionKind::StateListActive
        | ActionKind::StateStats => None,
    }
}

/// Why a worker refuses a valid action that it does not carry out. Its dead letter can be replayed: to the queue of the
/// action, or to a version that has a worker for it.
#[must_use]
pub fn refusal_of(kind: ActionKind) -> Refusal {
    let name = kind.as_str();
    let detail = if worker_of_action(kind).is_some() {
        format!(
            "{name} is not an action of this queue: it was published with the routing key of another action"
        )
    } else {
        format!(
            "no worker of this version carries out {name}; leave the dead letter open, and replay it with a version \
             that has one"
        )
    };
    let field = Some("action_type".to_owned());
    Refusal { reason: DeadLetterReason::UnknownAction, field, detail, hint: None }
}

impl Process {
    /// The name of its binary, of its section in the configuration file, of its service and Prometheus job,
    /// and the value of `process` in log lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// One sentence about it, for `--help`.
    #[must_use]
    pub const fn about(self) -> &'static str {
        self.about
    }

    /// What it consumes.
    #[must_use]
    pub const fn consumes(self) -> &'static [Consumed] {
        self.consumes
    }

    /// The process with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        processes().into_iter().find(|process| process.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_queue_has_two_workers() {
        let mut consumed: Vec<Consumed> = Vec::new();
        for it in WORKERS.iter().flat_map(|worker| worker.consumes) {
            assert!(!consumed.contains(it), "{it:?}");
            consumed.push(*it);
        }
        assert_eq!(
            worker_of(Consumed::Work(WorkQueue::Session)),
            Some(PERSISTENCE_MIGRATION_WORKER)
        );
    }

    #[test]
    fn no_work_queue_is_without_a_worker() {
        for queue in WorkQueue::ALL {
            assert!(worker_of(Consumed::Work(queue)).is_some(), "{queue:?}");
        }
    }

    #[test]
    fn an_action_is_refused_because_of_its_queue_or_because_nothing_carries_it_out() {
        let detail = |kind| refusal_of(kind).detail;
        assert!(detail(ActionKind::Feedback).contains("routing key of another action"));
        let state = detail(ActionKind::StateSave);
        assert!(state.starts_with("no worker of this version carries out state.save;"), "{state}");
    }

    #[test]
    fn each_process_is_found_by_its_name() {
        for process in processes() {
            assert_eq!(Process::named(process.name()), Some(process));
        }
        assert_eq!(Process::named("context-worker"), None);
    }
}
