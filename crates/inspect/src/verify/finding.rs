//! Findings: what can be wrong, and what to run about it.

use database::Difference;
use domain::ids::ConversationKey;
use serde::Serialize;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The tenant, if it concerns one.
    pub tenant_id: Option<String>,
    /// The conversation, if it concerns one.
    pub conversation_id: Option<String>,
    /// The message, the day with its agent, or the queue.
    pub id: Option<String>,
    /// What is wrong, as text; never the content of a message.
    pub detail: String,
    /// Whether it was repaired.
    #[serde(rename = "repair")]
    pub repair_outcome: RepairOutcome,
}

/// What can be wrong. The JSON names are stable, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A valid hot copy lacks a committed message.
    HotCopyMissing,
    /// A valid hot copy holds a message that is not committed.
    HotCopySurplus,
    /// A valid hot copy holds a message that differs from its committed row.
    HotCopyDifferent,
    /// A hot copy cannot be decoded. Readers do not use it.
    HotCopyDamaged,
    /// A hot copy with messages of a conversation that does not exist, or a key of no conversation.
    HotCopyOrphaned,
    /// A close has stopped: its lease expired, and no closer took it over.
    ClosingStuck,
    /// A conversation should be closed by now.
    CloseOverdue,
    /// An archived conversation's totals are not those of its messages.
    TotalsDiffer,
    /// An archived conversation no longer has messages.
    MessagesGone,
    /// Messages cannot be decoded by this program.
    MessagesUnreadable,
    /// A conversation's statistics are not what follows from its messages.
    StatisticsDiffer,
    /// A conversation's statistics should be computed by now.
    StatisticsOverdue,
    /// A day's statistics are not what follows from its conversations', or are missing.
    DayDiffers,
    /// A day's statistics should be computed by now.
    DayOverdue,
    /// There are messages whose conversation does not exist.
    MessagesOrphaned,
    /// There are statistics whose conversation does not exist.
    StatisticsOrphaned,
    /// A queue or exchange is missing or was declared with other arguments.
    TopologyDiffers,
    /// Dead letters are in their queue, and no dead-letter collector consumes them.
    DeadLettersWaiting,
    /// Actions wait in `domain.unrouted`, and no dead-letter-worker reroutes them.
    UnroutedWaiting,
    /// Suspects are in their queue, and no worker handles them.
    SuspectsWaiting,
    /// Messages are in a work queue, and it has no consumer.
    WorkWithoutConsumers,
}

/// Whether a finding was repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairOutcome {
    /// It can be repaired, and that was not requested.
    NotRequested,
    /// It was marked as stale; the fleet corrects it.
    Done,
    /// The repair failed; why.
    Failed(String),
    /// No repair exists: see [`Kind::advice`].
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

    /// What to do about it, and which command to run.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::HotCopyMissing | Self::HotCopySurplus | Self::HotCopyDifferent => {
                "readers use this copy: run `verbatim verify --repair`, which invalidates it; the next reader \
                 loads it again"
            }
            Self::HotCopyDamaged => {
                "readers do not use it: run `verbatim verify --repair`, which drops it"
            }
            Self::HotCopyOrphaned => {
                "readers do not use it: run `verbatim verify --repair`, which drops the copy of a \
                 conversation; delete any other key yourself"
            }
            Self::ClosingStuck => {
                "run `verbatim verify --repair`, which makes it due for the closing sweep again; check that a \
                 persistence-migration-worker is running"
            }
            Self::CloseOverdue => {
                "check that a persistence-migration-worker is running and keeps up (metric \
                 verbatim_close_lag_seconds)"
            }
            Self::TotalsDiffer => {
                "run `verbatim verify --repair`, which closes it again: that recounts its messages and publishes \
                 conversation.migrated once more"
            }
            Self::MessagesGone => {
                "its message rows were deleted: restore them from a backup; there is no repair, because \
                 closing it again would delete the conversation"
            }
            Self::MessagesUnreadable => {
                "a newer version wrote these rows, or they were changed by hand: upgrade, or restore them from a \
                 backup"
            }
            Self::StatisticsDiffer => "run `verbatim verify --repair`, which has them recomputed",
            Self::DayDiffers => "run `verbatim verify --repair`, which has the day recomputed",
            Self::StatisticsOverdue | Self::DayOverdue => {
                "check that a statistics-worker is running and keeps up; its log says \"statistics not refreshed\" \
                 with the error when it cannot"
            }
            Self::MessagesOrphaned => {
                "the row of their conversation was deleted: restore it from a backup, with its `number`"
            }
            Self::StatisticsOrphaned => {
                "run `verbatim verify --repair`, which deletes them and has their day recomputed"
            }
            Self::TopologyDiffers => {
                "run `verbatim setup`, which creates what is missing and reports what it cannot change"
            }
            Self::DeadLettersWaiting | Self::UnroutedWaiting => {
                "check that a dead-letter-worker is running (`verbatim queues` shows consumers); its log says what \
                 it cannot store or reroute"
            }
            Self::SuspectsWaiting => {
                "suspects are handled while their consumer has no other delivery: check that a \
                 worker of the queue is running (`verbatim queues` shows consumers)"
            }
            Self::WorkWithoutConsumers => {
                "start a worker that consumes the queue; `verbatim queues` names it"
            }
        }
    }
}

/// Differences as one line of text.
pub(super) fn describe(differences: &[Difference]) -> String {
    let one = |it: &Difference| format!("{} is {}, should be {}", it.field, it.is, it.should_be);
    differences.iter().map(one).collect::<Vec<_>>().join("; ")
}
