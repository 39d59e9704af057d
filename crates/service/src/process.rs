//! The processes of the fleet. A process's name is the name of its binary, of its section in the
//! configuration file, and the value of `process` in log lines.

/// A process of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Process {
    /// Stores messages in PostgreSQL and Redis.
    MessageSaveWorker,
    /// Closes and archives conversations.
    PersistenceMigrationWorker,
    /// Computes statistics, stores dead letters, exports fleet-wide gauges.
    StatisticsWorker,
    /// The command-line tool.
    Verbatim,
}

impl Process {
    /// Every process.
    pub const ALL: [Self; 4] = [
        Self::MessageSaveWorker,
        Self::PersistenceMigrationWorker,
        Self::StatisticsWorker,
        Self::Verbatim,
    ];

    /// The name of the binary.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MessageSaveWorker => "message-save-worker",
            Self::PersistenceMigrationWorker => "persistence-migration-worker",
            Self::StatisticsWorker => "statistics-worker",
            Self::Verbatim => "verbatim",
        }
    }

    /// One sentence about the process, for `--help`.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::MessageSaveWorker => {
                "Consumes conversation.save_message and stores the messages in PostgreSQL, then in Redis"
            }
            Self::PersistenceMigrationWorker => {
                "Consumes session events; closes and archives conversations"
            }
            Self::StatisticsWorker => {
                "Computes statistics, stores dead letters, exports gauges of queues and tables"
            }
            Self::Verbatim => "Sets up, publishes to and inspects a Verbatim fleet",
        }
    }

    /// The process with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|process| process.name() == name)
    }
}

/// The version of the fleet: all crates of this repository share it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The identity of this process among the replicas: `HOST:PID`. In a container the host name is the
/// container's or the pod's. The host is `-` if `/proc/sys/kernel/hostname` (proc(5)) is unreadable.
#[must_use]
pub fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("-");
    format!("{host}:{}", std::process::id())
}
