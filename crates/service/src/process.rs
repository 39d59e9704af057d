//! The processes of the fleet: their names are those of binaries, of sections in the file, and of
//! the `process` field in log lines.

/// A process of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Process {
    /// Saves messages.
    MessageSaveWorker,
    /// Closes and archives conversations.
    PersistenceMigrationWorker,
    /// Computes statistics, keeps dead letters.
    StatisticsWorker,
    /// The command line.
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

    /// What it does, in one sentence for `--help`.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::MessageSaveWorker => {
                "Saves the messages of conversation.save_message in PostgreSQL, then in Redis"
            }
            Self::PersistenceMigrationWorker => {
                "Follows sessions; closes and archives conversations"
            }
            Self::StatisticsWorker => {
                "Computes statistics, keeps dead letters, exports gauges of shared things"
            }
            Self::Verbatim => "Sets up, publishes to and looks into a Verbatim fleet",
        }
    }

    /// The process of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|process| process.name() == name)
    }
}

/// The version of everything in this repository: one number for the whole fleet.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which one of its kind this process is: the host's name, which in a container is the container's
/// or the pod's, and the process id. `-` where the host has no name that Linux tells (proc(5)).
#[must_use]
pub fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("-");
    format!("{host}:{}", std::process::id())
}
