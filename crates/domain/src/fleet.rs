//! The table of the fleet: every process, and the queues that it consumes.
//!
//! Whatever lists the processes derives from it: `verbatim queues`, the sections of the configuration file, the
//! commands of `cargo xtask`, the tests of `deploy/`, of the documents and of the layers.

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
    /// A work queue, and the suspects of it.
    Work(WorkQueue),
    /// The dead-letter queue of every work queue.
    DeadLetters,
}

/// A queue whose every message gets an outcome: done, retried or dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkQueue {
    /// Messages to save.
    SaveMessage,
    /// Sessions that open and close, feedback, erasure.
    Session,
    /// Events of conversations: refresh triggers for the statistics.
    Statistics,
    /// Writes of bot state.
    BotState,
    /// Actions that no binding of `domain.actions` matched.
    Unrouted,
}

/// Stores messages in PostgreSQL and Redis.
pub const MESSAGE_SAVE_WORKER: Process = Process {
    name: "message-save-worker",
    about: "Consumes conversation.save_message and stores the messages in PostgreSQL, then in Redis",
    consumes: &[Consumed::Work(WorkQueue::SaveMessage)],
};

/// Closes and archives conversations.
pub const PERSISTENCE_MIGRATION_WORKER: Process = Process {
    name: "persistence-migration-worker",
    about: "Consumes session events; closes and archives conversations",
    consumes: &[Consumed::Work(WorkQueue::Session)],
};

/// Computes statistics.
pub const STATISTICS_WORKER: Process = Process {
    name: "statistics-worker",
    about: "Computes the statistics of conversations and days",
    consumes: &[Consumed::Work(WorkQueue::Statistics)],
};

/// Stores dead letters, reroutes actions, exports fleet-wide gauges.
pub const DEAD_LETTER_WORKER: Process = Process {
    name: "dead-letter-worker",
    about: "Stores dead letters, reroutes unroutable actions, exports gauges of queues and tables",
    consumes: &[Consumed::DeadLetters, Consumed::Work(WorkQueue::Unrouted)],
};

/// The command-line tool.
pub const VERBATIM: Process = Process {
    name: "verbatim",
    about: "Sets up, publishes to and inspects a Verbatim fleet",
    consumes: &[],
};

/// Every process that consumes queues.
pub const WORKERS: [Process; 4] =
    [MESSAGE_SAVE_WORKER, PERSISTENCE_MIGRATION_WORKER, STATISTICS_WORKER, DEAD_LETTER_WORKER];

/// Every process: the workers and the command-line tool.
#[must_use]
pub fn processes() -> Vec<Process> {
    [WORKERS.as_slice(), &[VERBATIM]].concat()
}

/// The worker that consumes this; `None` if this version has none.
#[must_use]
pub fn worker_of(consumed: Consumed) -> Option<Process> {
    WORKERS.into_iter().find(|worker| worker.consumes.contains(&consumed))
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

impl WorkQueue {
    /// Every work queue.
    pub const ALL: [Self; 5] =
        [Self::SaveMessage, Self::Session, Self::Statistics, Self::BotState, Self::Unrouted];

    /// The name of the queue.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The name of its dead-letter queue.
    #[must_use]
    pub const fn dlq(self) -> &'static str {
        self.names()[1]
    }

    /// The name of its suspect queue: messages that were redelivered too often to be handled in batches.
    #[must_use]
    pub const fn suspect(self) -> &'static str {
        self.names()[2]
    }

    /// What its messages are.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::SaveMessage => "messages to save",
            Self::Session => "sessions opened and closed, feedback, erasure",
            Self::Statistics => "events of conversations, for statistics",
            Self::BotState => "bot state to store",
            Self::Unrouted => "actions with a routing key that no queue is bound to",
        }
    }

    // Written in full, so that a text search for a queue's name finds it.
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
            Self::Unrouted => ["domain.unrouted", "domain.unrouted.dlq", "domain.unrouted.suspect"],
        }
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
    fn each_process_is_found_by_its_name() {
        for process in processes() {
            assert_eq!(Process::named(process.name()), Some(process));
        }
        assert_eq!(Process::named("context-worker"), None);
    }
}
