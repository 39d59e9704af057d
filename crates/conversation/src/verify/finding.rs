//! What can be wrong, and what is done about it.

use database::Difference;
use domain::ids::ConversationKey;
use serde::Serialize;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The tenant, where it is about one.
    pub tenant_id: Option<String>,
    /// The conversation, where it is about one.
    pub conversation_id: Option<String>,
    /// The message, the day with its agent, or the queue.
    pub id: Option<String>,
    /// What differs, in words; never those of a conversation.
    pub detail: String,
    /// Whether it was repaired.
    #[serde(rename = "repair")]
    pub repair_outcome: RepairOutcome,
}

/// What can be wrong. The names are what scripts go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A valid hot copy lacks a committed message.
    HotCopyMissing,
    /// A valid hot copy holds a message that is not committed.
    HotCopySurplus,
    /// A valid hot copy holds other words, or another time, than the committed row.
    HotCopyDifferent,
    /// A hot copy cannot be read. Readers pass over it.
    HotCopyDamaged,
    /// A hot copy with messages, of a conversation that does not exist; or of none at all.
    HotCopyOrphaned,
    /// Nobody goes on with a close.
    ClosingStuck,
    /// A conversation should be closed by now.
    CloseOverdue,
    /// An archived conversation's totals are not those of its messages.
    TotalsDiffer,
    /// An archived conversation has no messages any more.
    MessagesGone,
    /// Messages cannot be read by this program.
    MessagesUnreadable,
    /// A conversation's statistics are not what follows from its messages.
    StatisticsDiffer,
    /// A conversation's statistics should be computed by now.
    StatisticsOverdue,
    /// A day's statistics are not what follows from its conversations', or are missing.
    DayDiffers,
    /// A day's statistics should be computed by now.
    DayOverdue,
    /// There are messages whose conversation is not there.
    MessagesOrphaned,
    /// There are statistics whose conversation is not there.
    StatisticsOrphaned,
    /// A queue or exchange is missing or was declared otherwise.
    TopologyDiffers,
    /// Dead letters lie in their queue, and no dead-letter collector takes them.
    DeadLettersWaiting,
    /// Actions that no binding matched lie there, and nobody sends them home.
    UnroutedWaiting,
    /// Suspects wait, and nobody tries them.
    SuspectsWaiting,
    /// Work waits, and nobody consumes it.
    WorkWithoutConsumers,
}

/// Whether a finding was repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairOutcome {
    /// It could be, and nobody asked for it.
    NotRequested,
    /// It is marked for the fleet, which does the rest.
    Done,
    /// It could be, and that failed.
    Failed(String),
    /// Not by marking anything: see [`Kind::advice`].
    NotRepairable,
}

impl Finding {
    pub(super) fn of(kind: Kind, key: &ConversationKey, detail: impl Into<String>) -> Self {
        Self {
            tenant_id: Some(key.tenant.to_string()),
            conversation_id: Some(key.conversation.to_string()),
            ..Self::about(kind, None, detail)
        }
    }

    pub(super) fn about(kind: Kind, id: Option<String>, detail: impl Into<String>) -> Self {
        Self {
            kind,
            tenant_id: None,
            conversation_id: None,
            id,
            detail: detail.into(),
            repair_outcome: RepairOutcome::NotRepairable,
        }
    }
}

impl Kind {
    /// Its name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HotCopyMissing => "hot_copy_missing",
            Self::HotCopySurplus => "hot_copy_surplus",
            Self::HotCopyDifferent => "hot_copy_different",
            Self::HotCopyDamaged => "hot_copy_damaged",
            Self::HotCopyOrphaned => "hot_copy_orphaned",
            Self::ClosingStuck => "closing_stuck",
            Self::CloseOverdue => "close_overdue",
            Self::TotalsDiffer => "totals_differ",
            Self::MessagesGone => "messages_gone",
            Self::MessagesUnreadable => "messages_unreadable",
            Self::StatisticsDiffer => "statistics_differ",
            Self::StatisticsOverdue => "statistics_overdue",
            Self::DayDiffers => "day_differs",
            Self::DayOverdue => "day_overdue",
            Self::MessagesOrphaned => "messages_orphaned",
            Self::StatisticsOrphaned => "statistics_orphaned",
            Self::TopologyDiffers => "topology_differs",
            Self::DeadLettersWaiting => "dead_letters_waiting",
            Self::UnroutedWaiting => "unrouted_waiting",
            Self::SuspectsWaiting => "suspects_waiting",
            Self::WorkWithoutConsumers => "work_without_consumers",
        }
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::HotCopyMissing | Self::HotCopySurplus | Self::HotCopyDifferent => {
                "readers believe this copy: --repair voids it, and the next reader loads it anew"
            }
            Self::HotCopyDamaged | Self::HotCopyOrphaned => {
                "readers pass over this copy: --repair drops it"
            }
            Self::ClosingStuck => {
                "--repair gives it back to the sweep; is a persistence-migration-worker running?"
            }
            Self::CloseOverdue => {
                "is a persistence-migration-worker running, and does it keep up? See verbatim_close_lag_seconds"
            }
            Self::TotalsDiffer => {
                "--repair has it closed again, which counts anew and publishes conversation.migrated again"
            }
            Self::MessagesGone => {
                "its rows were deleted: restore them from a backup; a repair would drop what is left of it"
            }
            Self::MessagesUnreadable => {
                "a newer version wrote these rows, or a hand did: upgrade, or restore them from a backup"
            }
            Self::StatisticsDiffer => "--repair has them recomputed",
            Self::DayDiffers => "--repair has the day recomputed",
            Self::StatisticsOverdue | Self::DayOverdue => {
                "is a statistics-worker running, and does it keep up?"
            }
            Self::MessagesOrphaned => {
                "the row of their conversation was deleted: restore it, with its number, from a backup"
            }
            Self::StatisticsOrphaned => "--repair removes them, and has their day recomputed",
            Self::TopologyDiffers => {
                "`verbatim setup` makes what is missing and says what is in its way"
            }
            Self::DeadLettersWaiting | Self::UnroutedWaiting => {
                "is a statistics-worker running? Its log says what it cannot store or send"
            }
            Self::SuspectsWaiting => {
                "they are tried one at a time while nothing else is under way: is a worker of the queue running?"
            }
            Self::WorkWithoutConsumers => {
                "start a worker of that queue; `verbatim queues` names it"
            }
        }
    }
}

/// Differences in one line.
pub(super) fn told(differences: &[Difference]) -> String {
    let one = |it: &Difference| format!("{} is {}, should be {}", it.field, it.is, it.should_be);
    differences.iter().map(one).collect::<Vec<_>>().join("; ")
}
